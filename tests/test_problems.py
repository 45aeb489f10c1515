"""Problems: every constant is checked against the functions it is stated for."""

import contextlib
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_jax.problems import Problem, least_squares, linear, logistic, quadratic

D, N = 5, 12


@contextlib.contextmanager
def strict(dtype):
    """Run at this precision, with nothing promoted behind our back."""
    with (
        jax.enable_x64(dtype == "float64"),
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
    ):
        yield


FACTORIES = {
    "quadratic": lambda: quadratic(np.linspace(0.5, 4.0, D), noise=0.7, start=np.arange(D)),
    "quadratic, sphere": lambda: quadratic([0.0, 1, 2, 3, 4], noise=0.7, noise_law="sphere"),
    "quadratic, noiseless": lambda: quadratic([2.0] * D, noise=0.0),
    "linear": lambda: linear(D, slope=3.0, direction=[1, -2, 3, 0, 1]),
    "least squares": lambda: least_squares(jax.random.key(1), N, D),
    "least squares, pairs": lambda: least_squares(jax.random.key(2), N, D, batch_size=2),
    "least squares, n < d": lambda: least_squares(jax.random.key(3), 3, D, residual=0.5),
    "logistic": lambda: logistic(jax.random.key(4), N, D),
    "logistic, pairs": lambda: logistic(jax.random.key(5), N, D, l2=0.01, batch_size=2),
}
SAMPLED = [name for name in FACTORIES if name.startswith(("least", "logistic"))]


@functools.cache
def make(name: str, dtype: str) -> Problem:
    with strict(dtype):
        return FACTORIES[name]()


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with strict(request.param):
        yield request.param


CASES = [(name, "float64") for name in FACTORIES] + [
    (name, "float32") for name in ("quadratic", "linear", "least squares", "logistic")
]


@pytest.fixture(params=CASES, ids=", ".join)
def problem(request):
    with strict(request.param[1]):
        yield make(*request.param)


@pytest.fixture
def double():
    with strict("float64"):
        yield "float64"


@pytest.fixture(params=SAMPLED)
def sampled(request, double):
    return make(request.param, double)


def points(problem, count=40, seed=0, radius=None):
    """Random parameters: around x* at up to `radius`, or around 0."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, D)) * 10 ** rng.uniform(-2, 1, size=(count, 1))
    if radius is not None:
        x *= radius / np.linalg.norm(x, axis=1, keepdims=True)
        x += np.zeros(D) if problem.minimiser is None else np.asarray(problem.minimiser)
    return jnp.asarray(x, problem.init.dtype)


def everything(problem, x):
    """At each x [m, d]: f [m], ∇f as stated [m, d], and the derivative of f [m, d]."""
    return _everything(problem.value, problem.gradient)(x)


@functools.cache
def _everything(value, gradient):
    def at(x):
        return value(x), gradient(x), jax.grad(value)(x)

    compiled = jax.jit(jax.vmap(at))
    return lambda x: [np.asarray(part) for part in compiled(x)]


def eps(problem):
    """The rounding of a sum of n + d terms, each product itself rounded a few times."""
    return 4 * (N + D) * float(jnp.finfo(problem.init.dtype).eps)


def all_batches(sampled):
    """Every minibatch there is, each as likely as any other."""
    n = N if float(sampled.strong_convexity) > 0 else 3
    size = sampled.sample(jax.random.key(0)).shape[-1]
    return jnp.asarray(list(itertools.product(range(n), repeat=size)), jnp.int32)


def all_gradients(sampled, x):
    return np.asarray(gradients_at(sampled.loss)(x, all_batches(sampled)))  # [batches, d]


@functools.cache
def gradients_at(loss):
    return jax.jit(jax.vmap(jax.grad(loss), (None, 0)))


def test_gradient_is_the_derivative_of_value(problem):
    x = points(problem)
    value, ours, theirs = everything(problem, x)
    assert value.dtype == ours.dtype == theirs.dtype == problem.init.dtype
    scale = (1 + problem.smoothness) * (10 + np.linalg.norm(x, axis=1)) + problem.second_moment(0)
    assert (np.linalg.norm(ours - theirs, axis=1) <= eps(problem) * scale).all()


def test_loss_is_deterministic_given_its_batch(problem):
    one = problem.sample(jax.random.key(0))
    batches = np.asarray(problem.sample(jax.random.key(0), (3, 2)))
    np.testing.assert_array_equal(batches, problem.sample(jax.random.key(0), (3, 2)))
    assert batches.shape == (3, 2, *one.shape)
    loss = jax.jit(problem.loss)
    first, second = loss(problem.init, batches[1, 1]), loss(problem.init, batches[1, 1])
    assert first == second and first.shape == () and first.dtype == problem.init.dtype


def test_the_minimum_is_there(problem):
    if problem.minimiser is None:
        assert problem.minimum == -math.inf
        return
    size = float(np.linalg.norm(problem.minimiser))
    at_minimum = np.linalg.norm(problem.gradient(problem.minimiser))
    assert at_minimum <= 1e-10 + eps(problem) * (1 + problem.smoothness) * (1 + size)
    slack = eps(problem) * (1 + problem.minimum) * (1 + problem.smoothness) * (1 + size)
    assert abs(problem.value(problem.minimiser) - problem.minimum) <= slack
    assert (everything(problem, points(problem))[0] >= problem.minimum - slack).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", FACTORIES)
def test_smoothness_and_strong_convexity(name, seed, double):
    problem = make(name, double)
    x, y = points(problem, seed=seed), points(problem, seed=seed + 10)
    fx, gx, _ = everything(problem, x)
    fy, gy, _ = everything(problem, y)
    x, y = np.asarray(x), np.asarray(y)
    above = fy - fx - np.sum(gx * (y - x), axis=1)
    squared = np.sum((y - x) ** 2, axis=1)
    slack = eps(problem) * (1 + abs(fx) + abs(fy) + np.linalg.norm(gx, axis=1) * squared**0.5)
    assert (above <= problem.smoothness / 2 * squared + slack).all()
    assert (above >= problem.strong_convexity / 2 * squared - slack).all()
    # The sharp form, Nesterov's for L-smooth c-strongly convex functions.
    inner = np.sum((gx - gy) * (x - y), axis=1)
    change = np.sum((gx - gy) ** 2, axis=1)
    big, small = problem.smoothness, problem.strong_convexity
    assert ((big + small) * inner + (big + 1) * slack >= big * small * squared + change).all()


@pytest.mark.parametrize("name", FACTORIES)
def test_constants_are_the_extreme_curvatures(name, double):
    problem = make(name, double)
    hessians = jax.jit(jax.vmap(jax.hessian(problem.value)))(points(problem, 5))
    spectra = np.linalg.eigvalsh(hessians)
    slack = eps(problem) * (1 + problem.smoothness)
    if name.startswith("logistic"):  # bounds
        assert spectra.max() <= problem.smoothness + slack
        assert spectra.min() >= problem.strong_convexity - slack
    else:  # equalities
        np.testing.assert_allclose(spectra[:, -1], problem.smoothness, atol=slack)
        np.testing.assert_allclose(spectra[:, 0], problem.strong_convexity, atol=slack)


def test_additive_noise_is_the_batch(dtype):
    for name in ("quadratic", "quadratic, sphere", "quadratic, noiseless"):
        problem = make(name, dtype)
        x, noise = points(problem), problem.sample(jax.random.key(1), (40,))
        drawn = jax.jit(jax.vmap(jax.grad(problem.loss)))(x, noise)
        scale = (1 + problem.smoothness) * (1 + np.linalg.norm(x, axis=1, keepdims=True))
        left = np.asarray(drawn) - everything(problem, x)[1] - np.asarray(noise)
        assert (abs(left) <= eps(problem) * scale).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_additive_noise_has_the_stated_law(seed, dtype):
    m = 20_000
    for law in ("gaussian", "sphere"):
        problem = quadratic([1.0] * D, noise=0.7, noise_law=law, dtype=dtype)
        noise = np.asarray(problem.sample(jax.random.key(seed), (m,)), np.float64)
        squares = np.sum(noise**2, axis=1)
        if law == "sphere":
            np.testing.assert_allclose(squares, 0.49, rtol=eps(problem))
        # Var‖ξ‖² = 2σ⁴/d for the Gaussian; each coordinate has variance σ²/d. 5 standard errors.
        assert abs(squares.mean() - 0.49) <= 5 * 0.49 * math.sqrt(2 / (D * m))
        assert (abs(noise.mean(axis=0)) <= 5 * 0.7 / math.sqrt(D * m)).all()
        # Cov entries: each product has standard deviation at most √2·σ²/d in both laws.
        error = 5 * math.sqrt(2) * 0.49 / (D * math.sqrt(m))
        assert (abs(noise.T @ noise / m - 0.49 / D * np.eye(D)) <= error).all()


def test_sampled_gradients_are_unbiased(sampled):
    for x in points(sampled, 5):
        mean = np.mean(all_gradients(sampled, x), axis=0)
        scale = (1 + sampled.smoothness) * (10 + float(np.linalg.norm(x)))
        np.testing.assert_allclose(mean, sampled.gradient(x), atol=N * eps(sampled) * scale)


def test_sampled_noise_is_sigma_at_the_minimiser(sampled):
    squares = np.sum(all_gradients(sampled, sampled.minimiser) ** 2, axis=1)
    # ∇f(x*) is 1e-10 or rounding, so the second moment is the variance.
    np.testing.assert_allclose(squares.mean(), sampled.noise**2, rtol=1e-8, atol=eps(sampled) ** 2)


@pytest.mark.parametrize("radius", [0.0, 0.1, 1.0, 30.0])
def test_second_moment_bounds_sampled_gradients(sampled, radius):
    bound = sampled.second_moment(radius)
    for x in points(sampled, 10, radius=radius):
        second = np.mean(np.sum(all_gradients(sampled, x) ** 2, axis=1))
        assert second**0.5 <= bound * (1 + 1e-9)
    np.testing.assert_allclose(sampled.second_moment(0.0), sampled.noise, rtol=1e-9)


def test_rows_are_drawn_uniformly(double):
    m = 20_000
    rows = np.asarray(make("least squares, pairs", double).sample(jax.random.key(0), (m,)))
    assert rows.dtype == np.int32 and rows.shape == (m, 2)
    counts = np.bincount(rows.ravel(), minlength=N)
    assert len(counts) == N
    assert (abs(counts / (2 * m) - 1 / N) <= 5 * math.sqrt((1 / N) * (1 - 1 / N) / (2 * m))).all()


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=3),
    st.floats(0, 10),
    st.floats(0, 10),
)
@settings(max_examples=30, deadline=None)
def test_quadratic_constants(eigenvalues, noise, radius):
    with strict("float64"):
        problem = quadratic(eigenvalues, noise=noise)
        assert (problem.smoothness, problem.strong_convexity) == (
            max(eigenvalues),
            min(eigenvalues),
        )
        # M is attained at distance r along the steepest direction.
        x = radius * np.eye(len(eigenvalues))[np.argmax(eigenvalues)]
        second = np.sum(np.asarray(problem.gradient(jnp.asarray(x))) ** 2) + noise**2
        expected = pytest.approx(float(second**0.5), rel=1e-12, abs=1e-150)  # squares underflow
        assert problem.second_moment(radius) == expected


def test_linear_attains_the_window(dtype):
    problem = make("linear", dtype)
    batches = problem.sample(jax.random.key(0), (4,))
    updates = jax.jit(jax.vmap(jax.grad(problem.loss)))(points(problem, 4), batches)
    held = 0.5 * np.asarray(updates, np.float64).sum(axis=0)
    np.testing.assert_allclose(np.linalg.norm(held), 4 * 0.5 * 3.0, rtol=eps(problem))
    assert problem.second_moment(7.0) == 3.0


def test_interpolation_has_no_noise_at_the_minimiser(double):
    problem = least_squares(jax.random.key(0), 3, D, residual=0.0)
    assert problem.noise <= 1e-12 and problem.minimum <= 1e-24 and problem.strong_convexity == 0


@pytest.mark.slow
def test_small_penalties_still_converge(double):
    for seed in range(3):
        problem = logistic(jax.random.key(seed), n=4, d=20, l2=1e-6)  # separable without penalty
        slope = everything(problem, problem.minimiser[None])[1]
        assert np.linalg.norm(slope) <= 1e-10 + 1e-14


def test_a_sweep_in_one_scan(dtype):
    problem = make("quadratic, noiseless", dtype)

    def train(rate, key):
        def step(x, batch):
            return x - rate * jax.grad(problem.loss)(x, batch), None

        return jax.lax.scan(step, problem.init, problem.sample(key, (10,)))[0]

    rates = jnp.asarray([0.1, 0.2, 0.45], problem.init.dtype)
    ends = jax.jit(jax.vmap(train))(rates, jax.random.split(jax.random.key(0), 3))
    expected = np.tile((1 - 2.0 * np.asarray([[0.1], [0.2], [0.45]])) ** 10, (1, D))
    np.testing.assert_allclose(ends, expected, rtol=20 * eps(problem))


@pytest.mark.slow
def test_other_dtypes():
    with strict("float32"):
        for dtype in (jnp.bfloat16, "float16"):
            problem = quadratic([1.0, 2.0], dtype=dtype)
            x, noise = problem.init, problem.sample(jax.random.key(0))
            assert x.dtype == noise.dtype == jax.grad(problem.loss)(x, noise).dtype == dtype
        assert quadratic([0.1]).smoothness == float(np.float32(0.1))  # what the loss really uses


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key: quadratic([]), r"eigenvalues has shape \(0,\).* at least one real number"),
        (lambda key: quadratic([1.0, -1.0]), "eigenvalues holds -1.0: give numbers ≥ 0"),
        (lambda key: quadratic([np.nan]), "eigenvalues holds a number that is not finite"),
        (lambda key: quadratic([1e300]), "not finite in float32"),
        (lambda key: quadratic([1.0], noise=-1.0), "noise=-1.0: give a finite number ≥ 0"),
        (lambda key: quadratic([1.0], noise=None), "noise=None: give a finite number ≥ 0"),
        (lambda key: quadratic([1.0], noise_law="cube"), "noise_law='cube': give 'gaussian' or"),
        (lambda key: quadratic([1.0], start=[1.0, 2.0]), "start has 2 entries: .* d=1"),
        (lambda key: quadratic([1.0], dtype="float64"), "'float64'.* needs jax_enable_x64"),
        (lambda key: quadratic([1.0], dtype="int32"), "dtype='int32': give a float dtype"),
        (lambda key: quadratic([1.0]).second_moment(-1.0), "radius=-1.0"),
        (lambda key: linear(0), "d=0 is no dimension; pass an int >= 1"),
        (lambda key: linear(2, slope=0), "slope=0: give a finite number > 0"),
        (lambda key: linear(2, direction=0.0), "direction is zero"),
        (lambda key: linear(2, direction=[1.0]), "direction has 1 entries"),
        (lambda key: least_squares(key, 2.5, 2), "n=2.5 is no number of rows"),
        (lambda key: least_squares(key, 2, 2, residual=math.nan), "residual=nan"),
        (lambda key: least_squares(key, 2, 2, batch_size=0), "batch_size=0 is no batch size"),
        (lambda key: least_squares(key, 2, 2).second_moment(math.inf), "radius=inf"),
        (lambda key: logistic(key, 2, 2, l2=0.0), "l2=0.0: give a finite number > 0"),
        (lambda key: logistic(key, 2, 2).second_moment(-1), "radius=-1"),
    ],
)
def test_bad_problems_are_refused(call, message):
    with strict("float32"), pytest.raises(ValueError, match=message):
        call(jax.random.key(0))
