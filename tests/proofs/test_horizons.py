"""Step sizes and horizons of chains: from when on a relaxation costs next to nothing."""

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
from settings import SETTING, START, at

from theory import symbols
from theory.bound import Bound
from theory.chain import Chain
from theory.horizon import NEEDS
from theory.parts import (
    Part,
    delay,
    feedback,
    resend,
    top_k_feedback,
)

SYSTEMS = [
    (),
    (delay(4),),
    (feedback(0.8),),
    (feedback(0.8), delay(4)),
    (resend(0.3),),
    (feedback(0.8), resend(0.3)),
    (feedback(0.8), resend(0.1), delay(2), resend(0.4)),
]


def exact_step(name: str, T: float) -> float:
    """Return where exact SGD's bound is least, by scan: its derivative is not looked at."""
    exact = Chain(workers=4).rate(name)
    known = {**SETTING, **START, "T": T}
    known = {k: v for k, v in known.items() if vars(symbols)[k] in exact.parameters}
    low, high = 1e-9, 0.5 - 1e-9
    for _ in range(30):
        grid = np.geomspace(low, high, 41)
        best = int(exact.curve(alpha=grid, **known).argmin())
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, 40)]
    return (low * high) ** 0.5


@pytest.mark.parametrize("name", ["N", "W"])
@pytest.mark.parametrize("parts", SYSTEMS)
def test_steps_and_horizons(name: str, parts: tuple[Part, ...]) -> None:
    chain, epsilon = Chain(*parts, workers=4), 0.25
    rate, exact = chain.rate(name), Chain(workers=4).rate("N")
    largest = chain.largest_step(name, L=SETTING["L"])
    assert "α" in {symbol.name for symbol in rate.parameters}
    known = {**SETTING, **START}
    at(rate, **known, T=100.0, alpha=largest * (1 - 1e-9))
    with pytest.raises(ValueError, match="holds only where"):
        at(rate, **known, T=100.0, alpha=largest * 1.01)
    textbook, tuned = chain.horizon(epsilon, name, **SETTING, **START)
    for T, step in [
        (textbook, lambda T: (4 / T) ** 0.5),
        (tuned, lambda T: (2 * 3.0 * 4 / (T * 2.0 * 1.5**2)) ** 0.5),
    ]:
        alpha = min(step(T), largest * (1 - 1e-12))
        limit = (1 + epsilon) * (1 + 1e-9)
        assert at(rate, **known, T=T, alpha=alpha) <= limit * at(exact, **known, T=T, alpha=alpha)
        if step(T) < largest * (1 - 1e-9):  # else the step size sets the horizon
            early = {**known, "T": T / 1.1, "alpha": min(step(T / 1.1), largest * (1 - 1e-12))}
            assert at(rate, **early) > (1 + epsilon) * at(exact, **early)


@pytest.mark.parametrize("name", ["C", "S", "P"])
@pytest.mark.parametrize("parts", SYSTEMS[::2])
def test_horizons_of_convex_rates(name: str, parts: tuple[Part, ...]) -> None:
    """Within 1 + ε of exact SGD's bound from T on, for many T; and not before T."""
    chain, epsilon, known = Chain(*parts, workers=4), 0.25, {**SETTING, **START}
    simple = name if name == "C" else f"{name}.simple"
    rates = [(simple, lambda T: exact_step(simple, T))]
    if name == "C":
        rates = [("C", lambda T: (4 / T) ** 0.5), *rates]
    else:
        rates = [(f"{name}.tuned", lambda T: np.log(T) / (0.3 * T)), *rates]
    horizons = chain.horizon(epsilon, name, **SETTING, **START)
    for T, (label, step) in zip(horizons, rates, strict=True):

        def ratio(T: float, label: str = label, step: Callable[[float], float] = step) -> float:
            at_T = {**known, "T": T, "alpha": step(T) * (1 - 1e-9)}
            return at(chain.rate(label), **at_T) / at(Chain(workers=4).rate(label), **at_T)

        for longer in (1, 1.01, 1.5, 10, 1000):
            assert ratio(longer * T) <= (1 + epsilon) * (1 + 1e-6), longer
        if parts:  # else the step size sets the horizon
            assert ratio(T / 1.01) > 1 + epsilon


def some_chain(rng: np.random.Generator) -> tuple[Chain, dict[str, float]]:
    parts = [feedback(float(rng.choice([0.1, 0.5, 0.9])))] if rng.random() < 0.5 else []
    parts += [delay(int(rng.integers(0, 9))) for _ in range(rng.integers(0, 2))]
    parts += [resend(float(rng.choice([0.05, 0.3]))) for _ in range(rng.integers(0, 2))]
    names = ("L", "sigma", "M", "Delta", "dist_0")
    known = dict(zip(names, np.exp(rng.uniform(-3, 3, size=5)), strict=True))
    known["c"] = known["L"] * rng.uniform(0.001, 0.9)
    return Chain(*parts, workers=int(rng.choice([1, 4, 30]))), known


def steps_at(name: str, which: int, T: float, p: int, known: dict[str, float]) -> float:
    """Return the step size of a horizon: textbook, then exact SGD's best one."""
    start, sigma, c = known["dist_0"], known["sigma"], known["c"]
    gap = 2 * known["Delta"] / known["L"]
    if name in ("S", "P"):
        kappa = c**2 * p * (start if name == "S" else gap) / sigma**2
        return -np.expm1(-np.log(kappa * T) / (T - 1)) / c if which else np.log(T) / (c * T)
    return (((start if name == "C" else gap) / sigma**2 if which else 1.0) * p / T) ** 0.5


@pytest.mark.slow
def test_rates_hold_at_the_horizons_that_are_returned() -> None:
    """With steps computed from the T returned, also where the longest step sets the horizon."""
    rng, sharp = np.random.default_rng(2), Chain(workers=4)
    edge = {"L": 10.0, "sigma": 1.0, "M": 1.0, "dist_0": 1.0}
    cases = [(sharp, edge | {"Delta": 1.0, "c": 0.1}), *(some_chain(rng) for _ in range(15))]
    for chain, known in cases:
        for name, needs in NEEDS.items():
            setting = {key: known[key] for key in ("L", "sigma", *needs)}
            for which, T in enumerate(chain.horizon(0.1, name, **setting)):
                if T == 0:
                    continue
                T = np.nextafter(T, 0) if name in ("C", "N", "W") else T
                alpha = steps_at(name, which, T, chain.workers, known)
                label = f"{name}.simple" if name in ("S", "P") else name
                at_T = known | {"T": T, "alpha": alpha}
                value = at(chain.rate(label), **at_T)
                exact = at(Chain(workers=chain.workers).rate(label), **at_T)
                if which or name not in ("S", "P"):
                    assert value <= 1.1 * exact * (1 + 1e-6)


def spare(
    T: float, name: str, which: int, rates: list[Bound], p: int, known: dict[str, float], eps: float
) -> float:
    """Return how far S or P, simplified, is below 1 + ε times exact SGD's bound."""
    alpha = steps_at(name, which, T, p, known)
    if alpha * known["L"] > 1 + 1e-9:
        return -1.0
    rate, exact = (at(rate, **known, T=T, alpha=alpha) for rate in rates)
    if not which:  # there the bound has 1/T for (1 − αc)^T
        start = known["dist_0" if name == "S" else "Delta"]
        more = start * (1 / T - (1 - alpha * known["c"]) ** T)
        rate, exact = rate + more, exact + more
    return (1 + eps) * exact - rate


@pytest.mark.parametrize("M", [1.0, 1e3, 1e8, 1e30])
@pytest.mark.parametrize("name", ["S", "P"])
def test_horizons_of_long_runs_keep_their_digits(name: str, M: float) -> None:
    """At T = 10¹⁷ and more, where (κT)^(−1/(T−1)) rounds to 1: checked with 200 digits."""
    chain, epsilon = Chain(top_k_feedback(0.001), workers=16), 0.01
    known = {"L": 1e3, "sigma": 1.0, "c": 0.01, "M": M}
    found = chain.horizon(epsilon, name, **known, **{"dist_0" if name == "S" else "Delta": 1.0})
    B, p = chain.constant(M), chain.workers
    with mpmath.workdps(200):
        L, c, eps = (mpmath.mpf(x) for x in (known["L"], known["c"], epsilon))
        kappa = c**2 * p * (1 if name == "S" else 2 / L)

        def spare(T: Any, alpha: Any, floor: Any) -> Any:
            return float((eps * floor - L * B**2 * p * alpha**2) / (eps * floor))

        for T, which in zip(found, ("textbook", "tuned"), strict=True):
            assert T > 1e15
            for longer, sign in ((1 + 1e-6, 1), (1 - 1e-6, -1)):
                t = mpmath.mpf(T) * longer
                if which == "textbook":
                    alpha = mpmath.log(t) / (c * t)
                    floor = alpha + kappa / (c * t)
                else:
                    alpha = (1 - (kappa * t) ** (-1 / (t - 1))) / c
                    floor = alpha + (1 - alpha * c) / (c * t)
                assert sign * spare(t, alpha, floor) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["S", "P"])
def test_horizons_of_unrolled_rates_are_the_least(name: str) -> None:
    """Also below κT = e² and T = e²: within 1 + ε from T on to 10 e²/κ, and not 1% before."""
    rng, below = np.random.default_rng(4), [0, 0]
    start = "dist_0" if name == "S" else "Delta"
    for _ in range(20):
        chain, known = some_chain(rng)
        known["M"] /= 10  # next to nothing is held
        known[start] /= 100
        p, epsilon = chain.workers, 0.2
        setting = {key: known[key] for key in ("L", "sigma", *NEEDS[name])}
        kappa = known["c"] ** 2 * p / known["sigma"] ** 2
        kappa *= known[start] * (1 if name == "S" else 2 / known["L"])
        rates = [each.rate(f"{name}.simple") for each in (chain, Chain(workers=p))]
        for which, (T, once) in enumerate(
            zip(chain.horizon(epsilon, name, **setting), (1, 1 / kappa), strict=True)
        ):
            least, lasting = max(2.0, once * 1.001), max(2.0, once * np.e**2)
            assert T >= least * (1 - 1e-12)
            known_of = (name, which, rates, p, known, epsilon)
            for later in np.geomspace(T * (1 + 1e-6), max(T, 10 * lasting) * 1.1, 60):
                assert spare(later, *known_of) >= 0
            if T > least * (1 + 1e-9):
                assert spare(T / 1.01, *known_of) < 0
            below[which] += T < lasting * 0.99
    assert max(below) >= 2
