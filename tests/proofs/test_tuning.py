"""Step sizes and horizons against least values on grids; where partial participation fails."""

import functools
import itertools

import numpy as np
import pytest

from theory.bound import Bound
from theory.claims import (
    affordable,
    convex,
    horizons,
    nonconvex,
    participation,
    step_sizes,
    unrolled,
)

MODULES = (nonconvex, convex, participation, step_sizes, unrolled, horizons, affordable)
SETTINGS = list(itertools.product([0.0, 0.3, 5.0], [0.1, 1.0], [1, 8]))  # B, σ, p


@functools.cache
def bounds() -> dict[str, Bound]:
    """Make those that are needed here, once, and not while tests are collected."""
    return {bound.name: bound for module in MODULES for bound in module.bounds()}


@pytest.mark.parametrize(("B", "sigma", "p"), SETTINGS)
def test_the_cubic_finds_the_least_bound_of_a_grid(B: float, sigma: float, p: int) -> None:
    """N where 2L²B²α³ + Lσ²α²/p = 2Δ/T, or at 1/L if that is less; in closed form if B = 0."""
    L, Delta, T = 2.0, 1.5, 400
    cubic = [2 * (L * B) ** 2, L * sigma**2 / p, 0, -2 * Delta / T]
    (root,) = (z.real for z in np.roots(cubic) if abs(z.imag) < 1e-12 and z.real > 0)
    best = min(root, 1 / L)
    grid = np.append(np.geomspace(1e-4, 1, 200001) / L, best)
    known = {"L": L, "Delta": Delta, "T": T, "sigma": sigma, "p": p}
    curve = bounds()["N"].curve(alpha=grid, B=B, **known)
    assert curve[-1] <= curve.min() * (1 + 1e-12)
    assert grid[curve[:-1].argmin()] == pytest.approx(best, rel=1e-3)
    if B == 0 and root <= 1 / L:
        closed = bounds()["N.optimal.exact"]
        value = closed.at(L=L, Delta=Delta, T=T, sigma=sigma, p=p)
        assert value == pytest.approx(curve.min(), rel=1e-9)


@pytest.mark.parametrize(("B", "sigma", "p"), [setting for setting in SETTINGS if setting[0]])
def test_the_equation_of_C_finds_the_least_bound_of_a_grid(B: float, sigma: float, p: int) -> None:
    """σ²α²/p + LB²α³(2 − αL)/(1 − αL)² = ‖z_0‖²/T, times (1 − αL)²."""
    L, Z, T = 2.0, 1.5, 400
    square = np.poly1d([L**2, -2 * L, 1])
    left = np.poly1d([sigma**2 / p, 0, 0]) * square + np.poly1d([-(L**2), 2 * L, 0, 0, 0]) * B**2
    roots = (left - Z / T * square).roots
    (best,) = (z.real for z in roots if abs(z.imag) < 1e-9 and 0 < z.real < 1 / L)
    grid = np.append(np.geomspace(1e-4, 1 - 1e-6, 200001) / L, best)
    curve = bounds()["C"].curve(alpha=grid, B=B, L=L, Z_0=Z, T=T, sigma=sigma, p=p)
    assert curve[-1] <= curve.min() * (1 + 1e-12)
    assert grid[curve[:-1].argmin()] == pytest.approx(best, rel=1e-3)


def unrolled_setting(rng: np.random.Generator, name: str) -> dict[str, float]:
    values = dict(zip(("L", "sigma", "B"), np.exp(rng.uniform(-2, 1, size=3)), strict=True))
    values |= {"T": int(rng.integers(2, 300)), "p": int(rng.integers(1, 9))}
    values |= {"c": values["L"] * rng.uniform(0.05, 0.95)}
    return values | {"Z_0" if name.startswith("S") else "Delta": np.exp(rng.uniform(0, 6))}


@pytest.mark.parametrize("name", ["S", "P", "S.simple", "P.simple"])
def test_unrolled_bounds_are_least_where_halving_says(name: str) -> None:
    """Against a fine scan; on the way inside the range, at its end, and with values put in."""
    bound, rng, at_edge = bounds()[name], np.random.default_rng(0), 0
    least = bound.minimise("alpha")
    assert least.unique
    assert least.closed_form is None
    for i in range(10):
        values = unrolled_setting(rng, name)
        step, value = least.at(**values)
        grid = np.geomspace(1e-5, 1, 40001) / values["L"]
        curve = bound.curve(alpha=grid, **values)
        assert value <= curve.min() * (1 + 1e-12)
        assert value == pytest.approx(curve.min(), rel=1e-5)
        assert value == bound.at(alpha=step, **values)
        at_edge += step == pytest.approx(1 / values["L"])
        if i == 0:
            some = {key: values.pop(key) for key in ("T", "B", "c")}
            assert bound.put(**some).minimise("alpha").at(**values) == pytest.approx((step, value))
    assert 0 < at_edge < 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["S", "P"])
def test_a_floor_that_fades_in_leaves_a_best_step_at_any_noise(name: str) -> None:
    """Against scans of two kinds of constants: S ≥ DcT, where S.simple and P.simple refuse."""
    bound, rng, noisy = bounds()[name], np.random.default_rng(5), 0
    least, simple = bound.minimise("alpha"), bounds()[f"{name}.simple"].minimise("alpha")
    for _ in range(50):
        values = unrolled_setting(rng, name)
        start = "Z_0" if name == "S" else "Delta"
        values |= {"sigma": np.exp(rng.uniform(-2, 6)), start: np.exp(rng.uniform(-9, 3))}
        step, value = least.at(**values)
        grid = np.geomspace(1e-15, 1, 4001) / values["L"]
        curve = bound.curve(alpha=grid, **values)
        near = step * np.append(np.geomspace(0.99, 1, 500), 1.0)
        assert value <= min(curve.min(), bound.curve(alpha=near, **values).min()) * (1 + 1e-12)
        assert value == pytest.approx(curve.min(), rel=1e-3)
        assert value < values[start]
        try:
            simple.at(**values)
        except ValueError:
            noisy += 1
    assert 10 < noisy < 40
    values = {"L": 1, "c": 0.1, "p": 1, "sigma": 10, "B": 1, "T": 100, start: 1}
    assert least.at(**values)[1] < 0.9976


@pytest.mark.parametrize("name", ["S.simple", "P.simple"])
@pytest.mark.parametrize("put", [False, True])
def test_powers_are_accurate_at_the_smallest_steps(name: str, put: bool) -> None:
    """1 − αc rounds away most of αc = 1e-13; the power T = 1e13 is 1/e all the same."""
    start = "Z_0" if name.startswith("S") else "Delta"
    known = {"L": 1.0, "c": 1e-3, "p": 1, "T": 1e13, "alpha": 1e-10, start: 1.0}
    zero = {"sigma": 0.0, "B": 0.0}
    bound, some = bounds()[name], {key: known[key] for key in known if key != "alpha"}
    value = bound.put(**some).at(alpha=known["alpha"], **zero) if put else bound.at(**known, **zero)
    assert value == pytest.approx(np.exp(-1), rel=1e-9)
    edge = known | zero | {"alpha": 1.0, "c": 1 - 1e-16, "T": 5}
    assert bound.curve(**edge) == pytest.approx(0, abs=1e-60)


@pytest.mark.parametrize("name", ["S", "P", "S.simple", "P.simple"])
def test_the_equation_is_zero_at_the_best_step(name: str) -> None:
    bound = bounds()[name]
    least = bound.minimise("alpha")
    values = unrolled_setting(np.random.default_rng(3), name) | {"T": 2000}
    step, _ = least.at(**values)
    assert step < 0.99 / values["L"]
    near = np.array([1 - 1e-6, 1, 1 + 1e-6]) * step
    left, middle, right = (
        float(least.slope.subs({bound.symbol(key): each for key, each in known.items()}))
        for known in (values | {"alpha": alpha} for alpha in near)
    )
    assert left < 0 < right
    assert abs(middle) < 1e-4 * (right - left)


def test_steps_that_are_worth_nothing() -> None:
    """Simplified, at S ≥ DcT; where the floor fades in, at a start at the optimum alone."""
    values = {"L": 1, "c": 0.5, "T": 10, "sigma": 1, "B": 1, "p": 1}
    for name, far in {"S": 0, "P": 0, "S.simple": 1e-3, "P.simple": 1e-3}.items():
        start = {"Z_0" if name.startswith("S") else "Delta": far}
        with pytest.raises(ValueError, match="no least value in α"):
            bounds()[name].minimise("alpha").at(**values, **start)
    with pytest.raises(ValueError, match="no rational function"):
        bounds()["S"].minimise("c")


@pytest.mark.parametrize("name", ["S", "P"])
def test_exact_sgd_s_best_step_is_closed(name: str) -> None:
    """(1 − αc)^(T−1) = 1/(κT): the value of the closed form is the least of the simplified rate."""
    bound: Bound = bounds()[f"{name}.optimal.exact"]
    known = {"L": 2.0, "c": 0.3, "T": 60, "sigma": 0.7, "p": 3}
    known["Z_0" if name == "S" else "Delta"] = 4.0
    _, value = bounds()[f"{name}.simple"].put(B=0).minimise("alpha").at(**known)
    assert bound.at(**known) == pytest.approx(value, rel=1e-12)
    with pytest.raises(ValueError, match="κT > 1"):
        bound.at(**known | {"sigma": 1e3})


@pytest.mark.parametrize("step", ["textbook", "tuned"])
def test_horizons_are_where_the_ratio_to_exact_sgd_crosses(step: str) -> None:
    L, Delta, sigma, B, p, epsilon = 1.3, 0.8, 0.6, 0.5, 4, 0.05
    least = bounds()[f"N.horizon.{step}"].at(
        L=L, Delta=Delta, sigma=sigma, B=B, p=p, epsilon=epsilon
    )
    T = np.array([0.99, 1.0, 1.01]) * least
    alpha = np.sqrt(p / T) if step == "textbook" else np.sqrt(2 * Delta * p / (L * T)) / sigma
    rate = bounds()["N"]
    known = {"alpha": alpha, "T": T, "L": L, "Delta": Delta, "sigma": sigma, "p": p}
    before, at, after = rate.curve(B=B, **known) / rate.curve(B=0, **known)
    assert before > 1 + epsilon > after
    assert at == pytest.approx(1 + epsilon)


@pytest.mark.parametrize("step", ["textbook", "tuned"])
def test_the_horizon_of_C_is_where_the_ratio_to_exact_sgd_crosses(step: str) -> None:
    L, Z, sigma, B, p, epsilon = 1.3, 0.8, 0.6, 0.5, 4, 0.05
    least = bounds()[f"C.horizon.{step}"].at(L=L, Z_0=Z, sigma=sigma, B=B, p=p, epsilon=epsilon)
    T = np.array([0.99, 1.0, 1.01]) * least
    alpha = np.sqrt(p / T) if step == "textbook" else np.sqrt(Z * p / T) / sigma
    known = {"alpha": alpha, "T": T, "L": L, "Z_0": Z, "sigma": sigma, "p": p}
    before, at, after = bounds()["C"].curve(B=B, **known) / bounds()["C"].curve(B=0, **known)
    assert before > 1 + epsilon > after
    assert at == pytest.approx(1 + epsilon)


def test_a_retuned_step_affords_as_much_as_any_step() -> None:
    """1 + ε = (3 + x²)/(4x) at Cα₀ = S(1 − x²)/(2x³): no step size has a smaller ratio."""
    S, start = 0.7, 0.9  # of D = Sα₀², α₀ = start
    for x in (0.3, 0.6, 0.9):
        C = S * (1 - x**2) / (2 * x**3 * start)
        grid = np.geomspace(1e-3, 10, 400001)
        ratio = (S * start**2 / grid + S * grid + C * grid**2).min() / (2 * S * start)
        assert ratio == pytest.approx((3 + x**2) / (4 * x), rel=1e-6)


def test_what_is_affordable_costs_exactly_epsilon() -> None:
    alpha, L, sigma, p, epsilon, M = 0.05, 1.5, 0.4, 4, 0.1, 2.0
    known = {"alpha": alpha, "L": L, "sigma": sigma, "p": p, "epsilon": epsilon}
    B = bounds()["affordable.B"].at(**known)
    assert (L * alpha * B) ** 2 == pytest.approx(epsilon * L * alpha * sigma**2 / p)
    assert bounds()["affordable.delay"].at(M=M, **known) * M == pytest.approx(B)
    share = bounds()["affordable.topk"].at(B=B, M=M)
    root = np.sqrt(1 - share)
    assert M * root / (1 - root) == pytest.approx(B)


@pytest.mark.parametrize("alpha", [0.1, 0.01, 0.001])
def test_workers_chosen_by_their_noise_break_partial_participation(alpha: float) -> None:
    """Of two workers the one with the larger noise takes part: ‖∇f‖² ≥ σ²/4 at every step."""
    L, sigma, T = 1.0, 1.0, 20_000
    rng = np.random.default_rng(0)
    larger = np.where(rng.random(size=(T, 2)) < 0.5, -sigma, sigma).max(1)
    fair = larger * np.where(rng.random(size=T) < 0.5, -1, 1)
    means = []
    for noise in (larger, fair):
        x, total = -sigma / (2 * L), 0.0
        for xi in noise:
            total += (L * x) ** 2
            x -= alpha / 2 * (L * x + xi)
        means.append(total / T)
    start = L / 2 * (sigma / (2 * L)) ** 2
    bound = bounds()["N.partial.fixed"].at(
        alpha=alpha, L=L, T=T, Delta=start, sigma=sigma, B=0, p=2, active=0.5
    )
    assert means[0] == pytest.approx(sigma**2 / 4 + alpha * L * 3 / 4 * sigma**2 / 4, rel=0.1)
    assert means[0] > bound > means[1]


def test_fresh_sets_cost_only_time() -> None:
    """N.fresh is N at 1/η times the start's cost; a set that looks at the views may cost more."""
    known = {"alpha": 0.1, "L": 1.0, "T": 50, "sigma": 0.5, "B": 2.0, "p": 4}
    fresh = bounds()["N.fresh"].at(Delta=1.0, active=0.25, **known)
    assert fresh == pytest.approx(bounds()["N"].at(Delta=4.0, **known))
    assert fresh < bounds()["N.partial.fixed"].at(Delta=1.0, active=0.25, **known)


def test_partial_participation_is_attained_by_an_adversary() -> None:
    """αηL = 1, f = (L/2)x², and only the workers with the worst views take part."""
    L, eta, x, e = 2.0, 0.25, 0.7, 0.3
    alpha = 1 / (eta * L)
    following = x - alpha * eta * L * (x - e)
    mean_square = eta * e**2
    bound = L / 2 * x**2 - alpha * eta / 2 * (L * x) ** 2 + alpha / 2 * L**2 * mean_square
    assert L / 2 * following**2 == pytest.approx(bound)
