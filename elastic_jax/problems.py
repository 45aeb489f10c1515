"""Problems whose constants are known in closed form, to hold bounds against measurements.

Each problem is a function f: R^d → R and a stochastic loss with E[∇loss(x, batch)] = ∇f(x). The
batch carries all the randomness, so the loss is deterministic given its batch. A `Problem` holds
functions: close over it, do not pass it through `jit`.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.checks import whole


class Problem(NamedTuple):
    """A function, its stochastic loss, and the constants of DESIGN: L, c, σ, M, x*, f*.

    The constants are Python floats, computed in float64 from the data that the loss uses.
    `minimiser` is x* rounded to the problem's dtype.
    """

    loss: Callable[[jax.Array, Any], jax.Array]  # (params [d], one batch) → scalar
    value: Callable[[jax.Array], jax.Array]  # f: params [d] → scalar
    gradient: Callable[[jax.Array], jax.Array]  # ∇f: params [d] → [d]
    sample: Callable[..., Any]  # (key, shape=()) → batches: leading axes `shape`, then one batch's
    init: jax.Array  # [d], x_0
    minimiser: jax.Array | None  # [d], x*; None if f has no minimum
    minimum: float  # f*; −inf if f has no minimum
    smoothness: float  # L
    strong_convexity: float  # c; 0 if f is only convex
    noise: float  # σ: E‖G̃ − ∇f‖² = σ², everywhere or, where the factory says so, at x*
    # M: radius r → a bound on (E‖G̃(x)‖²)^½ over the ball ‖x − x*‖ ≤ r
    second_moment: Callable[[float], float]


def quadratic(
    eigenvalues: Any,
    noise: float = 1.0,
    start: Any = 1.0,
    noise_law: Literal["gaussian", "sphere"] = "gaussian",
    dtype: Any = None,
) -> Problem:
    """f(x) = ½ Σ_j λ_j x_j² with additive isotropic gradient noise.

    loss(x, ξ) = f(x) + ⟨ξ, x⟩, where the batch is the noise ξ [d] itself, with E ξ = 0 and
    E‖ξ‖² = σ² at every x. L = max λ, c = min λ, x* = 0, f* = 0; M(r) = √(L²r² + σ²) is attained.

    Args:
        eigenvalues: λ, [d], all ≥ 0.
        noise: σ ≥ 0, the noise of the whole vector: each coordinate has variance σ²/d.
        start: x_0, a scalar for all coordinates or an array [d].
        noise_law: "gaussian", or "sphere" for ‖ξ‖ = σ every time (to rounding).
        dtype: of parameters and noise; None is JAX's default float.

    Raises:
        ValueError: for bad arguments, naming the one and what would be right.

    Example:
        >>> problem = quadratic([1.0, 4.0], noise=0.5)
        >>> problem.smoothness, problem.strong_convexity, float(problem.value(problem.init))
        (4.0, 1.0, 2.5)
    """
    dtype = _float_dtype(dtype)
    curvature = _vector("eigenvalues", eigenvalues, dtype)
    exact = np.asarray(curvature, np.float64)
    if (exact < 0).any():
        raise ValueError(f"eigenvalues holds {exact.min()}: give numbers ≥ 0, f must be convex")
    sigma = _number("noise", noise)
    d = len(exact)
    if noise_law not in ("gaussian", "sphere"):
        raise ValueError(f"noise_law={noise_law!r}: give 'gaussian' or 'sphere'")

    def value(params: jax.Array) -> jax.Array:
        return jnp.sum(curvature * params * params) / 2

    def loss(params: jax.Array, batch: jax.Array) -> jax.Array:
        return value(params) + jnp.sum(batch * params)

    def sample(key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        normal = jax.random.normal(key, (*shape, d), dtype)
        if noise_law == "gaussian":
            return normal * (sigma / math.sqrt(d))
        return normal * (sigma / jnp.linalg.norm(normal, axis=-1, keepdims=True))

    smoothness = float(exact.max())
    return Problem(
        loss=loss,
        value=value,
        gradient=lambda params: curvature * params,
        sample=sample,
        init=_start(start, d, dtype),
        minimiser=jnp.zeros(d, dtype),
        minimum=0.0,
        smoothness=smoothness,
        strong_convexity=float(exact.min()),
        noise=sigma,
        second_moment=lambda radius: math.hypot(smoothness * _number("radius", radius), sigma),
    )


def linear(
    d: int, slope: float = 1.0, direction: Any = 1.0, start: Any = 0.0, dtype: Any = None
) -> Problem:
    """f(x) = ⟨g, x⟩ with ‖g‖ = slope: a constant gradient, without noise.

    It attains the window lemma: τ held updates of step size α add up to exactly ατM, M = slope.
    L = c = σ = 0, there is no minimum, and the batches [] are ignored.

    Args:
        d: the number of parameters, ≥ 1.
        slope: M > 0, the norm of the gradient.
        direction: g up to its length, a scalar for all coordinates or an array [d]; not zero.
        start: x_0, a scalar for all coordinates or an array [d].
        dtype: of the parameters; None is JAX's default float.

    Raises:
        ValueError: for bad arguments, naming the one and what would be right.

    Example:
        >>> linear(4, slope=2.0).gradient(jnp.zeros(4)).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    dtype, d = _float_dtype(dtype), whole("d", d, "dimension")
    slope = _number("slope", slope, positive=True)
    along = np.asarray(_start(direction, d, dtype, name="direction"), np.float64)
    if not along.any():
        raise ValueError("direction is zero: give it a length to scale")
    constant = jnp.asarray(along * (slope / np.linalg.norm(along)), dtype)

    def value(params: jax.Array) -> jax.Array:
        return jnp.sum(constant * params)

    return Problem(
        loss=lambda params, batch: value(params),
        value=value,
        gradient=lambda params: constant,
        sample=lambda key, shape=(): jnp.zeros(shape, dtype),
        init=_start(start, d, dtype),
        minimiser=None,
        minimum=-math.inf,
        smoothness=0.0,
        strong_convexity=0.0,
        noise=0.0,
        second_moment=lambda radius: slope,
    )


def least_squares(
    key: jax.Array,
    n: int,
    d: int,
    residual: float = 1.0,
    batch_size: int = 1,
    start: Any = 0.0,
    dtype: Any = None,
) -> Problem:
    """f(x) = 1/(2n) Σ_i (⟨a_i, x⟩ − y_i)² over a random design, with sampled minibatches.

    a_i ~ N(0, I_d), y_i = ⟨a_i, w⟩ + residual·N(0, 1), w ~ N(0, I_d). A batch is `batch_size`
    row indices, int32 [batch_size], drawn with replacement. With H = (1/n) Σ a_i a_iᵀ:
    L = λ_max(H), c = λ_min(H), x* solves the normal equations (the shortest solution if n < d).

    `noise` is σ at x*, exactly: σ² = (1/b)(1/n) Σ ‖a_i‖² r_i², with r the residuals at x* and b the
    batch size. Away from x* the noise grows without bound. By the triangle inequality in L²,
    M(r) = σ + r·λ_max((1/(bn)) Σ ‖a_i‖² a_i a_iᵀ + (1 − 1/b) H²)^½.

    Args:
        key: a JAX random key for the data.
        n: examples, ≥ 1.
        d: parameters, ≥ 1.
        residual: ≥ 0, the standard deviation of the targets' noise.
        batch_size: b ≥ 1.
        start: x_0, a scalar for all coordinates or an array [d].
        dtype: of parameters and data; None is JAX's default float.

    Raises:
        ValueError: for bad arguments, naming the one and what would be right.

    Example:
        >>> problem = least_squares(jax.random.key(0), n=50, d=3)
        >>> bool(jnp.linalg.norm(problem.gradient(problem.minimiser)) < 1e-5)
        True
    """
    dtype, n, d = _float_dtype(dtype), whole("n", n, "number of rows"), whole("d", d, "dimension")
    b = whole("batch_size", batch_size, "batch size")
    residual = _number("residual", residual)
    for_rows, for_truth, for_targets = jax.random.split(key, 3)
    rows = jax.random.normal(for_rows, (n, d), dtype)
    truth = jax.random.normal(for_truth, (d,), dtype)
    targets = _dot(rows, truth) + residual * jax.random.normal(for_targets, (n,), dtype)

    def mean_square(params: jax.Array, a: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean((_dot(a, params) - y) ** 2) / 2

    a, y = np.asarray(rows, np.float64), np.asarray(targets, np.float64)
    hessian = a.T @ a / n
    spectrum = np.linalg.eigvalsh(hessian)
    solution = np.linalg.lstsq(a, y)[0]
    errors = a @ solution - y
    lengths = np.sum(a * a, axis=1)  # [n], ‖a_i‖²
    sigma = math.sqrt(np.mean(lengths * errors**2) / b)
    spread = (a.T * lengths) @ a / (b * n) + (1 - 1 / b) * hessian @ hessian
    growth = math.sqrt(np.linalg.eigvalsh(spread)[-1])
    return Problem(
        loss=lambda params, batch: mean_square(params, rows[batch], targets[batch]),
        value=lambda params: mean_square(params, rows, targets),
        gradient=lambda params: _dot(rows.T, _dot(rows, params) - targets) / n,
        sample=_row_sampler(n, b),
        init=_start(start, d, dtype),
        minimiser=jnp.asarray(solution, dtype),
        minimum=float(np.mean(errors**2) / 2),
        smoothness=float(spectrum[-1]),
        strong_convexity=max(float(spectrum[0]), 0.0) if n >= d else 0.0,
        noise=sigma,
        second_moment=lambda radius: sigma + growth * _number("radius", radius),
    )


def logistic(
    key: jax.Array,
    n: int,
    d: int,
    l2: float = 0.1,
    batch_size: int = 1,
    start: Any = 0.0,
    dtype: Any = None,
) -> Problem:
    """f(x) = (1/n) Σ_i log(1 + exp(−y_i⟨a_i, x⟩)) + (l2/2)‖x‖², with sampled minibatches.

    a_i ~ N(0, I_d), y_i = ±1 with P(y_i = 1) = 1/(1 + exp(−⟨a_i, w⟩)), w ~ N(0, I_d). A batch is
    `batch_size` row indices, int32 [batch_size], drawn with replacement. With H = (1/n) Σ a_i a_iᵀ:
    L = λ_max(H)/4 + l2 and c = l2 hold everywhere (they are bounds, not attained). x* is found by
    Newton's method in float64, to ‖∇f(x*)‖ ≤ 1e-10.

    `noise` is σ at x*, exactly: σ² = (1/b)(1/n) Σ ‖∇f_i(x*)‖², f_i with its share of the penalty.
    Everywhere σ² ≤ (1/b)(1/n) Σ ‖a_i‖². M(r) is the smaller of l2(‖x*‖ + r) + ((1/n) Σ ‖a_i‖²)^½
    and σ + r·((1/n) Σ (‖a_i‖²/4 + l2)²)^½, both by the triangle inequality in L².

    Args:
        key: a JAX random key for the data.
        n: examples, ≥ 1.
        d: parameters, ≥ 1.
        l2: > 0, the penalty; without one, separable data have no minimiser.
        batch_size: b ≥ 1.
        start: x_0, a scalar for all coordinates or an array [d].
        dtype: of parameters and data; None is JAX's default float.

    Raises:
        ValueError: for bad arguments, naming the one and what would be right.

    Example:
        >>> problem = logistic(jax.random.key(0), n=50, d=3)
        >>> bool(jnp.linalg.norm(problem.gradient(problem.minimiser)) < 1e-5)
        True
    """
    dtype, n, d = _float_dtype(dtype), whole("n", n, "number of rows"), whole("d", d, "dimension")
    b = whole("batch_size", batch_size, "batch size")
    l2 = _number("l2", l2, positive=True)
    for_rows, for_truth, for_labels = jax.random.split(key, 3)
    rows = jax.random.normal(for_rows, (n, d), dtype)
    truth = jax.random.normal(for_truth, (d,), dtype)
    agree = jax.random.bernoulli(for_labels, jax.nn.sigmoid(_dot(rows, truth)))
    signed = jnp.where(agree[:, None], rows, -rows)  # y_i a_i: all that f needs

    def penalised(params: jax.Array, a: jax.Array) -> jax.Array:
        return jnp.mean(jax.nn.softplus(-_dot(a, params))) + l2 * jnp.sum(params * params) / 2

    def gradient(params: jax.Array) -> jax.Array:
        return l2 * params - _dot(signed.T, jax.nn.sigmoid(-_dot(signed, params))) / n

    a = np.asarray(signed, np.float64)
    solution = _newton(a, l2)
    margins = a @ solution
    lengths = np.sum(a * a, axis=1)  # [n], ‖a_i‖²
    at_minimum = l2 * solution - a * _sigmoid(-margins)[:, None]  # [n, d], ∇f_i(x*)
    sigma = math.sqrt(np.mean(np.sum(at_minimum**2, axis=1)) / b)
    growth = math.sqrt(np.mean((lengths / 4 + l2) ** 2))

    def second_moment(radius: float) -> float:
        r = _number("radius", radius)
        bounded = l2 * (float(np.linalg.norm(solution)) + r) + math.sqrt(np.mean(lengths))
        return min(bounded, sigma + growth * r)

    return Problem(
        loss=lambda params, batch: penalised(params, signed[batch]),
        value=lambda params: penalised(params, signed),
        gradient=gradient,
        sample=_row_sampler(n, b),
        init=_start(start, d, dtype),
        minimiser=jnp.asarray(solution, dtype),
        minimum=float(np.mean(np.logaddexp(0, -margins)) + l2 * solution @ solution / 2),
        smoothness=float(np.linalg.eigvalsh(a.T @ a / n)[-1]) / 4 + l2,
        strong_convexity=l2,
        noise=sigma,
        second_moment=second_moment,
    )


def _newton(signed: np.ndarray, l2: float) -> np.ndarray:
    """The minimiser of the logistic f by Newton's method with halved steps, float64 [d]."""
    n, d = signed.shape

    def value(x: np.ndarray) -> float:
        return float(np.mean(np.logaddexp(0, -signed @ x)) + l2 * x @ x / 2)

    x = np.zeros(d)
    for _ in range(200):
        missing = _sigmoid(-signed @ x)
        slope = l2 * x - signed.T @ missing / n
        if np.linalg.norm(slope) <= 1e-10:
            return x
        weights = missing * (1 - missing) / n
        step = np.linalg.solve((signed.T * weights) @ signed + l2 * np.eye(d), slope)
        # Close to x* the decrease drowns in rounding, and full steps converge by themselves.
        while slope @ step > 1e-10 and value(x - step) > value(x) - slope @ step / 4:
            step = step / 2
        x = x - step
    raise ValueError(f"l2={l2}: Newton's method did not reach the minimiser; give a larger l2")


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def _dot(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """A product in full precision, where accelerators would round the factors first."""
    return jnp.matmul(matrix, vector, precision=jax.lax.Precision.HIGHEST)


def _row_sampler(n: int, batch_size: int) -> Callable[..., jax.Array]:
    def sample(key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        return jax.random.randint(key, (*shape, batch_size), 0, n, jnp.int32)

    return sample


def _float_dtype(dtype: Any) -> np.dtype:
    default = jnp.zeros(()).dtype
    wanted = default if dtype is None else jnp.dtype(dtype)
    if not jnp.issubdtype(wanted, jnp.floating) or wanted.itemsize > default.itemsize:
        raise ValueError(f"dtype={dtype!r}: give a float dtype; float64 needs jax_enable_x64")
    return wanted


def _vector(name: str, value: Any, dtype: np.dtype) -> jax.Array:
    array = np.asarray(value)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iuf":
        raise ValueError(
            f"{name} has shape {array.shape} and dtype {array.dtype}: give a 1-d array of at least "
            f"one real number"
        )
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if not np.isfinite(cast).all():
        raise ValueError(f"{name} holds a number that is not finite in {dtype}: {value!r}")
    return jnp.asarray(cast)


def _start(value: Any, d: int, dtype: np.dtype, name: str = "start") -> jax.Array:
    array = _vector(name, np.full(d, value) if np.ndim(value) == 0 else value, dtype)
    if len(array) != d:
        raise ValueError(f"{name} has {len(array)} entries: give a scalar or d={d} of them")
    return array


def _number(name: str, value: Any, positive: bool = False) -> float:
    number = float(value) if isinstance(value, numbers.Real) else math.nan
    if not (0 < number < math.inf or (number == 0 and not positive)):
        raise ValueError(f"{name}={value!r}: give a finite number {'>' if positive else '≥'} 0")
    return number
