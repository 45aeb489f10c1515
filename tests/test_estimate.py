"""Estimates of L, c, σ, M, Δ: exact where they can be, and intervals that hold as often as told."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from elastic_jax import estimate, lanczos, problems, sweeps
from elastic_jax.intervals import root_mean_square, student

D, N = 6, 30
SPECTRUM = np.linspace(0.5, 4.0, D)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield jnp.dtype(request.param)


def inside(found, truth, width=math.inf):
    assert found.low <= truth <= found.high
    assert found.low <= found.value <= found.high
    assert found.high - found.low <= width


def hessian(problem, at):
    return np.linalg.eigvalsh(np.asarray(jax.jit(jax.hessian(problem.value))(at), np.float64))


# ---- the Hessian ----


@pytest.mark.slow
def test_quadratic_is_exact(dtype):
    problem = problems.quadratic(SPECTRUM, noise=0.3)
    batches = problem.sample(jax.random.key(0), (3,))
    width = 64 * 4.0 * float(jnp.finfo(dtype).eps)  # ± 16 ulps of L, and as much for its rounding
    inside(estimate.smoothness(problem.loss, problem.init, batches), 4.0, width)
    inside(estimate.curvature(problem.loss, problem.init, batches), 0.5, width)


@pytest.mark.slow
@pytest.mark.parametrize("make", [problems.least_squares, problems.logistic])
def test_problems_in_closed_form(make, dtype):
    problem = make(jax.random.key(3), N, D)
    everything = jnp.arange(N, dtype=jnp.int32)[:, None]  # f itself: every row a batch
    at = problem.minimiser + jnp.asarray(0.1, dtype)
    found = estimate.constants(problem.loss, at, everything, lower_bound=problem.minimum)
    truth = hessian(problem, at)
    width = 300 * truth[-1] * float(jnp.finfo(dtype).eps)
    inside(found.L, truth[-1], width)
    inside(found.c, truth[0], width)
    assert found.L.value <= problem.smoothness * (1 + 1e-5)
    assert found.c.value >= problem.strong_convexity * (1 - 1e-5)
    gradients = np.asarray(
        jax.jit(jax.vmap(jax.grad(problem.loss), (None, 0)))(at, everything), np.float64
    )
    np.testing.assert_allclose(found.sigma.value**2, gradients.var(0, ddof=1).sum(), rtol=1e-4)
    np.testing.assert_allclose(found.M.value**2, (gradients**2).sum(1).mean(), rtol=1e-4)
    value = float(problem.value(at)) - problem.minimum
    np.testing.assert_allclose(found.Delta.value, value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_few_iterations_cover_with_wide_intervals(iterations):
    problem = problems.least_squares(jax.random.key(4), 40, 20)
    everything = jnp.arange(40, dtype=jnp.int32)[None]
    truth = hessian(problem, problem.init)
    few = estimate.smoothness(problem.loss, problem.init, everything, iterations=iterations)
    inside(few, truth[-1])
    inside(
        estimate.curvature(problem.loss, problem.init, everything, iterations=iterations), truth[0]
    )
    assert few.high > few.value * 1.001  # it knows what it does not know


def test_upper_bound_misses_as_often_as_told_and_not_much_less():
    values = np.r_[np.linspace(0, 0.1, 199), 1.0]  # the start may well miss the last eigenvector
    matrix = jnp.asarray(values, jnp.float32)
    misses, seeds, miss = 0, 200, 0.2
    for seed in range(seeds):
        start = jax.random.normal(jax.random.key(seed), (200,))
        ritz = lanczos.lanczos(lambda q: matrix * q, start, 2)
        assert ritz.values[-1] <= 1 + 1e-6
        misses += lanczos.upper_bound(ritz, miss) < 1 - 1e-6
    assert scipy.stats.binom.cdf(misses - 1, seeds, miss) < 0.999
    assert misses > seeds * miss / 3  # a bound this loose would show nothing


def test_lower_bound_mirrors_upper_bound():
    matrix = jnp.linspace(-3.0, 1.0, 50)
    start = jax.random.normal(jax.random.key(0), (50,))
    there = lanczos.lanczos(lambda q: matrix * q, start, 7)
    back = lanczos.lanczos(lambda q: -matrix * q, start, 7)
    np.testing.assert_allclose(lanczos.upper_bound(there, 0.1), -lanczos.lower_bound(back, 0.1))
    assert lanczos.lower_bound(there, 0.1) < -3 < there.values[0]


@pytest.mark.parametrize("values", [[2.0] * 5, [0.0] * 5, [1.0, 1.0, 1.0, 3.0, 3.0], [-1.0]])
def test_an_exhausted_krylov_space_ends_the_method(values, dtype):
    matrix = jnp.asarray(values, dtype)
    start = jax.random.normal(jax.random.key(1), matrix.shape, dtype)
    ritz = lanczos.lanczos(lambda q: matrix * q, start, 50)
    assert len(ritz.values) == len(set(values))
    np.testing.assert_allclose(ritz.values, sorted(set(values)), atol=20 * jnp.finfo(dtype).eps)
    assert lanczos.upper_bound(ritz, 0.01) - max(values) <= 1e4 * float(jnp.finfo(dtype).eps)


def test_reorthogonalised_to_rounding():
    # without it, copies of the largest eigenvalue appear among the Ritz values
    matrix = jnp.asarray(np.r_[np.linspace(0, 1, 99), 100.0], jnp.float32)
    start = jax.random.normal(jax.random.key(2), (100,))
    values = lanczos.lanczos(lambda q: matrix * q, start, 60).values
    assert (values > 50).sum() == 1


def test_nonconvex():
    curvatures = jnp.array([1.0, -3.0, 0.5])

    def loss(params, batch):
        return jnp.sum(curvatures * params**2) / 2 + jnp.sum(batch * params)

    batches = [jnp.ones(3), -jnp.ones(3)]
    inside(estimate.smoothness(loss, jnp.ones(3), batches), 3.0, 1e-4)  # |−3|
    inside(estimate.curvature(loss, jnp.ones(3), batches), -3.0, 1e-4)


def tree_loss(params, batch):
    inner = jnp.sum(params["w"] * params["w"]) * params["b"][0]
    return batch.mean() * (inner + jnp.sum(params["b"] ** 4)).astype(jnp.float32)


@pytest.mark.parametrize(("narrow", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.3)])
def test_any_tree_and_narrow_dtypes(narrow, tolerance):
    params = {"w": jnp.ones((2, 3), narrow), "b": jnp.asarray([0.5, -1.0], narrow)}
    # ∂²: 2b₀ on w, 2w across to b₀, 12b² on b
    matrix = np.diag([1.0] * 6 + [3.0, 12.0])
    matrix[6, :6] = matrix[:6, 6] = 2.0
    truth = 1.5 * np.linalg.eigvalsh(matrix)  # batches 1 and 2 have the mean 3/2
    L, c = (
        one(tree_loss, params, jnp.asarray([[1.0], [2.0]]))
        for one in (estimate.smoothness, estimate.curvature)
    )
    inside(L, truth[-1])
    inside(c, truth[0])
    np.testing.assert_allclose([L.value, c.value], truth[[-1, 0]], rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_mixed_dtypes_count_in_the_widest():
    with jax.enable_x64(True):
        params = {"a": jnp.ones(2, jnp.float64), "b": jnp.ones(2, jnp.float32)}

        def loss(params, batch):
            return jnp.sum(params["a"] ** 2) + jnp.sum(params["b"].astype(jnp.float64) ** 2) * batch

        batches = jnp.asarray([1.0, 2.0, 3.0, 2.0])
        found = estimate.constants(loss, params, batches)
        inside(found.L, 4.0, 1e-4)
        inside(found.c, 2.0, 1e-4)
        np.testing.assert_allclose(found.sigma.value**2, 8 * batches.var(ddof=1), rtol=1e-6)


def test_a_linear_loss_without_noise():
    problem = problems.linear(4, slope=2.0)
    batches = problem.sample(jax.random.key(0), (5,))
    found = estimate.constants(problem.loss, problem.init, batches, lower_bound=-1.0)
    assert found.L == found.c == (0.0, 0.0, 0.0)
    assert found.sigma.high <= 1e-6
    inside(found.M, 2.0, 1e-5)
    assert found.Delta == (1.0, 1.0, 1.0)


# ---- the gradients ----


@pytest.mark.slow
def test_intervals_hold_as_often_as_told_for_gaussian_noise():
    problem = problems.quadratic([1.0, 2.0, 4.0], noise=0.8)
    square = float(jnp.sum(problem.gradient(problem.init) ** 2))
    truth = 0.8, math.hypot(0.8, math.sqrt(square)), float(problem.value(problem.init))
    runs, n, level = 200, 12, 0.9
    hits = np.zeros(3)
    # one sweep over all draws, cut into runs: an interval for each
    batches = np.asarray(problem.sample(jax.random.key(5), (runs, n)))
    for own in batches:
        one = sweeps.Sweeps(problem.loss, problem.init, own, gradients=True)
        (found,) = one.moments()
        sigma, moment = (root_mean_square(x, 1 - level) for x in (found.spreads, found.lengths))
        delta = estimate.above(found.losses, 0.0, 1 - level)
        hits += [
            e.low <= true <= e.high for e, true in zip((sigma, moment, delta), truth, strict=True)
        ]
    # at most once in 10⁴ by chance for each side; the logarithm's skew costs σ up to 3 points
    assert (hits >= scipy.stats.binom.ppf(1e-4, runs, level - 0.03)).all()
    assert (hits <= scipy.stats.binom.ppf(1 - 1e-4, runs, level + 0.03)).all()


def test_interval_is_students_t_of_the_logarithm():
    squares = [1.0, 2.0, 4.0, 9.0]
    half = scipy.special.stdtrit(3, 0.95) * np.std(squares, ddof=1) / 2 / 4.0
    found = root_mean_square(np.sqrt(squares).tolist(), 0.1)
    np.testing.assert_allclose(
        found, (2.0, 2.0 * math.exp(-half / 2), 2.0 * math.exp(half / 2)), rtol=2e-3
    )


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 30, 10_000])
@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.99])
def test_quantiles_of_student(degrees, probability):
    truth = scipy.special.stdtrit(degrees, probability)
    assert student(probability, degrees) == pytest.approx(truth, rel=5e-3)
    assert student(1 - probability, degrees) == pytest.approx(-truth, rel=5e-3)


def test_second_moment_is_noise_and_gradient():
    problem = problems.quadratic(SPECTRUM, noise=0.8, noise_law="sphere")
    batches = problem.sample(jax.random.key(6), (500,))
    sigma = estimate.noise(problem.loss, problem.minimiser, batches)
    M = estimate.second_moment(problem.loss, problem.minimiser, batches)
    inside(sigma, 0.8, 0.01)
    np.testing.assert_allclose(M, (0.8, 0.8, 0.8), rtol=1e-6)  # ‖ξ‖ = σ every time


def test_gap_is_above_the_bound_given():
    losses = [jnp.asarray(x) for x in (1.0, 2.0, 4.0)]
    params = jnp.zeros(1)

    def loss(params, batch):
        return batch + params[0]

    found = estimate.gap(loss, params, losses, lower_bound=1.0, points=[params + 100])
    inside(found, 4 / 3)
    assert found.high - found.value == pytest.approx(
        scipy.special.stdtrit(2, 0.975) * np.std([1, 2, 4], ddof=1) / math.sqrt(3)
    )
    with pytest.raises(ValueError, match=r"lower_bound=9\.0 is above the loss"):
        estimate.gap(loss, params, losses, lower_bound=9.0)


# ---- losses of any size ----


@pytest.mark.slow
@pytest.mark.parametrize("power", [-84, 66])  # 1e-25, 1e20: float32 has no squares of them
def test_estimates_are_as_large_as_the_loss(power):
    """A loss times a power of two has estimates times it, and their digits too."""
    problem = problems.least_squares(jax.random.key(3), 12, 4)
    everything = jnp.arange(12, dtype=jnp.int32)[:, None]
    at, unit = problem.init + 0.5, 2.0**power

    def scaled(params, batch):
        return jnp.float32(unit) * problem.loss(params, batch)

    plain, other = (estimate.constants(f, at, everything) for f in (problem.loss, scaled))
    assert all(0 < found.low < found.value < found.high for found in plain)
    np.testing.assert_allclose(
        np.array(other) / unit, np.array(plain), rtol=64 * float(jnp.finfo("f4").eps)
    )


@pytest.mark.parametrize("unit", [1e-170, 1e170])
def test_intervals_of_numbers_of_any_size(unit):
    found = root_mean_square([unit, 2 * unit, 3 * unit], 0.1)
    np.testing.assert_allclose(np.array(found) / unit, root_mean_square([1, 2, 3], 0.1), rtol=1e-12)
    losses = [2 * unit, 3 * unit, 4 * unit]
    np.testing.assert_allclose(
        np.array(estimate.above(losses, 0.0, 0.1)) / unit, estimate.above([2, 3, 4], 0.0, 0.1)
    )


# ---- points, batches, progress, time ----


def quartic(params, batch):
    return jnp.sum(params**4) / 12 + jnp.sum(batch * params)


def test_points_take_the_worst():
    batches = jnp.asarray([[0.1], [-0.1], [0.3]])
    near, far = jnp.ones(1), jnp.full(1, 3.0)
    alone, other = (estimate.constants(quartic, at, batches) for at in (near, far))
    both = estimate.constants(quartic, near, batches, points=[far])
    assert (both.L.value, both.c.value) == (other.L.value, alone.c.value)  # x²: 9 and 1
    inside(both.L, 9.0, 1e-3)
    inside(both.c, 1.0, 1e-3)
    assert both.M.value == other.M.value
    assert both.Delta.value == alone.Delta.value  # the start's
    assert both.M.high > other.M.high  # the level is shared out


@pytest.mark.slow
def test_list_and_stack_agree():
    stacked = {"shift": jnp.arange(8.0).reshape(4, 2)}
    listed = [{"shift": row} for row in stacked["shift"]]

    def loss(params, batch):
        return jnp.sum(jnp.cosh(params - batch["shift"] / 8))

    one, other = (estimate.constants(loss, jnp.zeros(2), b) for b in (stacked, listed))
    np.testing.assert_array_equal(one, other)


def test_progress_ends_at_all_of_it_and_nothing_is_traced_twice():
    traces, seen = [], []

    def loss(params, batch):
        traces.append(1)
        return jnp.sum(params**2) + jnp.sum(batch * params)

    batches = jnp.ones((4, 3))

    def note(done, total):
        seen.append((done, total))

    estimate.constants(loss, jnp.ones(3), batches, points=[jnp.zeros(3)], iterations=7, note=note)
    done, totals = zip(*seen, strict=True)
    assert set(totals) == {2 * 4 * (1 + 7)} and done[-1] == totals[0]
    assert list(done) == sorted(set(done))  # the space is exhausted early: a jump, not a repeat
    assert len(traces) <= 4  # shapes, gradient, product; not a batch, an iteration or a point more
    before = len(traces)
    estimate.constants(loss, jnp.ones(3), batches)
    assert len(traces) <= before + 1


class Clock:
    """A second passes whenever it is read."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 1.0
        return self.now


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "gradients", "products"), [(0.5, 3, 5), (40.0, 12, 25)])
def test_a_limit_of_time_widens_intervals(monkeypatch, seconds, gradients, products):
    calls = {"gradient": 0, "product": 0}
    for name in calls:
        program = getattr(sweeps, f"_{name}")

        def counted(*args, name=name, program=program):
            calls[name] += 1
            return program(*args)

        monkeypatch.setattr(sweeps, f"_{name}", counted)
    problem = problems.quadratic(np.linspace(0.1, 5, 40), noise=0.3)
    batches = problem.sample(jax.random.key(0), (5 if seconds < 1 else 50,))
    free = estimate.constants(problem.loss, problem.init, batches)
    calls.update(gradient=0, product=0)
    monkeypatch.setattr(sweeps, "time", Clock())
    seen = []
    found = estimate.constants(
        problem.loss,
        problem.init,
        batches,
        seconds=seconds,
        note=lambda done, total: seen.append(done / total),
    )
    assert 3 <= calls["gradient"] <= max(3, seconds)
    assert len(batches) <= calls["product"] <= len(batches) + seconds
    assert seen[-1] == 1.0
    inside(found.L, 5.0)
    inside(found.sigma, 0.3)
    assert found.L.high > free.L.high
    assert found.sigma.high - found.sigma.low > free.sigma.high - free.sigma.low


def test_numpy_integers_are_integers():
    problem = problems.quadratic(SPECTRUM)
    found = estimate.smoothness(
        problem.loss, problem.init, [jnp.zeros(D)], iterations=np.int64(9), seed=np.int32(1)
    )
    inside(found, 4.0, 1e-3)
