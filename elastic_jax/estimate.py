"""Estimates of the constants of a real loss, L, c, σ, M and Δ, each with an interval.

The bounds ask for numbers that hold everywhere; from samples one learns them at given parameters.
So each estimate is *local*: of the loss at `params`, and with `points=` (a run's checkpoints, say)
the worst over all of these. What an interval covers is said where it is made; none covers
parameters that were not looked at.

Batches are a list of batches, or one batch-like tree of arrays stacked [n, …]. A list may hold
batches of several sizes, which count alike. The mean of their losses stands for f.
"""

import functools
import math
import numbers
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.precision import squared_norm, wide, wide_dtype, wider

Loss = Callable[[Any, Any], jax.Array]  # (params, batch) → scalar
Note = Callable[[int, int], None]  # (gradients and Hessian products done, in all)
FEWEST = 3  # gradients, below which their spread says nothing


class Estimate(NamedTuple):
    """A number with an interval around it."""

    value: float
    low: float
    high: float


class Constants(NamedTuple):
    """What the bounds ask for; in a bound, put `high` (of c, `low`) to be on the safe side."""

    L: Estimate  # smoothness: the largest |eigenvalue| of the Hessian
    c: Estimate  # its least eigenvalue; negative where f is not convex
    sigma: Estimate  # noise: (E‖G̃ − ∇f‖²)^½
    M: Estimate  # second moment: (E‖G̃‖²)^½
    Delta: Estimate  # f − f*


def smoothness(
    loss_fn: Loss,
    params: Any,
    batches: Any,
    *,
    points: Iterable[Any] = (),
    iterations: int = 32,
    level: float = 0.95,
    seed: int = 0,
    seconds: float | None = None,
    note: Note | None = None,
) -> Estimate:
    """Estimates L at the given parameters: the largest |eigenvalue| of the Hessian.

    By Lanczos' method with full reorthogonalisation from a random start q. With the Ritz values
    θ_1 ≥ … ≥ θ_k and the off-diagonals β_1 … β_k of the tridiagonal matrix,

        θ_1 ≤ λ_max        and        Π_j (λ_max − θ_j) · |⟨u, q⟩| ≤ Π_j β_j,

    u the eigenvector of λ_max. The first makes `low`. In the second |⟨u, q⟩| is at least
    δ·(π/2d)^½ with probability 1 − δ, which makes `high`; so for λ_min with the signs turned. The
    interval is exact but for that probability, and for rounding, of which it allows for 16 ulps.
    Once the Krylov space is exhausted, as for quadratics of d ≤ iterations, it has no width beyond.

    It is an interval for the mean loss over these very batches: for f itself pass all the data.
    From a part of them λ_max is overestimated in the mean, and λ_min underestimated.

    Args:
        loss_fn: `(params, batch) -> loss`, a float scalar, twice differentiable by `jax.jvp` of
            `jax.grad`.
        params: a tree of float arrays; sums are in float32 or wider.
        batches: a list of n batches, or a tree of arrays stacked [n, …].
        points: more parameters; the result is the largest over `params` and these, which hold
            together with probability `level`.
        iterations: k at most; each is a Hessian product with every batch. Memory: k·d numbers.
        level: probability 1 − δ of the interval.
        seed: of the random start.
        seconds: stop before the batch after so many; at each point one iteration is finished
            always, and the interval is as wide as its few iterations make it.
        note: called with (done, total) products.

    Returns:
        The estimate; `value` equals `low` but for rounding, Lanczos' method comes from below.

    Raises:
        ValueError: for bad arguments, or where the Hessian is not finite.
        TypeError: for parameters that are not floats, or batches of another kind.

    Example:
        >>> from elastic_jax.problems import quadratic
        >>> problem = quadratic([1.0, 4.0, 2.0])
        >>> batches = problem.sample(jax.random.key(0), (4,))
        >>> L = smoothness(problem.loss, problem.init, batches)
        >>> print(f"{L.value:.3f}, in {L.low:.3f} … {L.high:.3f}")
        4.000, in 4.000 … 4.000

    Reference: van Dorsselaer, Hochstenbach, van der Vorst, Computing Probabilistic Bounds for
    Extreme Eigenvalues of Symmetric Matrices with the Lanczos Method, SIAM J. Matrix Anal. 2000.
    """
    least, largest = spectrum(
        loss_fn,
        params,
        batches,
        points=points,
        iterations=iterations,
        level=level,
        seed=seed,
        seconds=seconds,
        note=note,
    )
    return _largest_modulus(least, largest)


def curvature(loss_fn: Loss, params: Any, batches: Any, **settings: Any) -> Estimate:
    """Estimates c at the given parameters: the least eigenvalue of the Hessian.

    Negative where the loss is not convex; then no bound for strongly convex functions applies. A
    positive one at some points shows strong convexity there, not everywhere. Lanczos' method comes
    from above: `low` is the side to rely on.

    Args:
        loss_fn: as in `smoothness`, and so are all other arguments.
        params: a tree of float arrays.
        batches: a list of n batches, or a tree of arrays stacked [n, …].
        **settings: the keyword arguments of `smoothness`.

    Returns:
        The estimate, the least over all points.

    Raises:
        ValueError: as `smoothness` does.
        TypeError: as `smoothness` does.

    Example:
        >>> saddle = lambda x, batch: x[0] ** 2 - 0.5 * x[1] ** 2
        >>> c = curvature(saddle, jnp.zeros(2), jnp.zeros((1, 1)))
        >>> print(f"{c.value:.3f}")
        -1.000
    """
    return spectrum(loss_fn, params, batches, **settings)[0]


def spectrum(
    loss_fn: Loss,
    params: Any,
    batches: Any,
    *,
    points: Iterable[Any] = (),
    iterations: int = 32,
    level: float = 0.95,
    seed: int = 0,
    seconds: float | None = None,
    note: Note | None = None,
) -> tuple[Estimate, Estimate]:
    """Estimates the least and the largest eigenvalue of the Hessian; arguments of `smoothness`.

    Raises:
        ValueError: as `smoothness` does.
        TypeError: as `smoothness` does.

    Example:
        >>> from elastic_jax.problems import quadratic
        >>> problem = quadratic([1.0, 4.0, 2.0])
        >>> least, largest = spectrum(problem.loss, problem.init, jnp.zeros((1, 3)))
        >>> print(f"{least.value:.3f} … {largest.value:.3f}")
        1.000 … 4.000
    """
    wanted = [params, *points]
    batches = _batches(batches)
    iterations, level = _count("iterations", iterations, 1), _level(level)
    work = _Work(len(wanted) * len(batches) * iterations, seconds, note)
    found = _spectra(_programs(loss_fn, wanted, batches), wanted, batches, iterations, level, seed)
    pairs = [next(found) for _ in ()] or list(found(work))
    work.finish()
    return _worst(min, [pair[0] for pair in pairs]), _worst(max, [pair[1] for pair in pairs])
