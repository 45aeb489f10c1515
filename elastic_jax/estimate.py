"""Estimates of the constants of a real loss, L, c, σ, M and Δ, each with an interval.

A bound asks for constants that hold everywhere; samples tell them at given parameters. So every
estimate is *local*: at `params` or, with `points=` (checkpoints of a run, say), the worst over
`params` and these. No interval speaks of parameters that were not looked at.

Batches are a list of batches, or a tree of arrays stacked [n, …]. For L and c, f is the mean of
their losses: give all the data, or mind that a part of them has a larger λ_max and a smaller λ_min
in the mean. For σ, M and Δ they are n independent draws, and f is the expectation.
"""

from typing import Any, NamedTuple, Unpack

from elastic_jax import lanczos
from elastic_jax.intervals import Estimate, above, modulus, root_mean_square, worst
from elastic_jax.sweeps import Loss, Settings, Sweeps, finite
from elastic_jax.types import Tree

ULPS = 16  # of rounding, for which the intervals of L and c allow


class Constants(NamedTuple):
    """What the bounds ask for. To be on the safe side of a bound, put `high` (of c, `low`)."""

    L: Estimate  # smoothness: the largest |eigenvalue| of the Hessian
    c: Estimate  # its least eigenvalue; negative where f is not convex
    sigma: Estimate  # noise, (E‖G̃ − ∇f‖²)^½
    M: Estimate  # second moment, (E‖G̃‖²)^½
    Delta: Estimate  # f − f*


def constants(
    loss_fn: Loss,
    params: Tree,
    batches: Any,
    *,
    lower_bound: float = 0.0,
    **settings: Unpack[Settings],
) -> Constants:
    """Estimates L, c, σ, M and Δ together, from n gradients and n·iterations Hessian products.

    See `smoothness`, `curvature`, `noise`, `second_moment` and `gap` for what each is. Δ is that of
    `params`; the others are the worst over `params` and `points`. Each interval holds by itself.

    Args:
        loss_fn: `(params, batch) -> loss`, a float scalar; differentiable, for L and c twice (by
            `jax.jvp` of `jax.grad`). It is compiled, and kept, once for each function: pass the
            same one again, not a new lambda.
        params: a tree of float arrays; sums over them are in float32 or wider.
        batches: a list of batches, which count alike whatever their sizes, or a tree of arrays
            stacked [n, …]. n ≥ 3 for σ, M and Δ, else n ≥ 1.
        lower_bound: of f, in the unit of the loss.
        **settings: see `elastic_jax.sweeps.Settings`. With `seconds`, half of it is for the
            gradients; three of them, and one Lanczos iteration, are finished at each point in any
            case.

    Returns:
        The estimates.

    Raises:
        ValueError: for bad arguments, or a loss, gradient or Hessian that is not finite.
        TypeError: for parameters or batches of another kind.

    Example:
        >>> import jax
        >>> from elastic_jax.problems import quadratic
        >>> problem = quadratic([1.0, 4.0, 2.0], noise=0.5)
        >>> batches = problem.sample(jax.random.key(0), (200,))
        >>> found = constants(problem.loss, problem.init, batches)
        >>> print(f"{found.L.value:.3f} {found.c.value:.3f}")
        4.000 1.000
        >>> found.sigma.low < 0.5 < found.sigma.high
        True
    """
    floor = finite("lower_bound", lower_bound)
    sweeps = Sweeps(loss_fn, params, batches, **settings, gradients=True, products=True)
    found = sweeps.moments()
    least, largest = _spectrum(sweeps)
    return Constants(
        modulus(least, largest),
        least,
        worst(max, [root_mean_square(one.spreads, sweeps.miss) for one in found]),
        worst(max, [root_mean_square(one.lengths, sweeps.miss) for one in found]),
        above(found[0].losses, floor, sweeps.miss),
    )


def smoothness(loss_fn: Loss, params: Tree, batches: Any, **settings: Unpack[Settings]) -> Estimate:
    """Estimates L at the given parameters: the largest |eigenvalue| of the Hessian.

    Lanczos' method from a random unit vector q, d numbers. With its Ritz values θ_1 ≥ … ≥ θ_k, its
    off-diagonals β_1 … β_k (β_k the last residual) and the eigenvector u of λ_max,

        θ_1 ≤ λ_max        and        |⟨u, q⟩|·Π_j (λ_max − θ_j) ≤ Π_j β_j.

    The first is `value` and, but for 16 ulps, `low`. In the second |⟨u, q⟩| ≥ δ·√(π/(2d)) with
    probability 1 − δ, which makes `high`. For λ_min turn the signs. Nothing is assumed of the
    spectrum. Once the Krylov space is exhausted the interval is as narrow as rounding allows.

    Args:
        loss_fn: as in `constants`, like all other arguments.
        params: a tree of float arrays.
        batches: a list of batches, or a tree of arrays stacked [n, …].
        **settings: see `elastic_jax.sweeps.Settings`.

    Returns:
        The estimate, the largest over all points.

    Raises:
        ValueError: for bad arguments, or a Hessian that is not finite.
        TypeError: for parameters or batches of another kind.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda x, a: jnp.mean(jnp.cos(a * x))
        >>> L = smoothness(loss, jnp.zeros(1), jnp.array([[1.0], [3.0]]))
        >>> print(f"{L.value:.3f}, in {L.low:.3f} … {L.high:.3f}")
        5.000, in 5.000 … 5.000

    Reference: see `elastic_jax.lanczos.upper_bound`.
    """
    return modulus(*_spectrum(Sweeps(loss_fn, params, batches, **settings, products=True)))


def curvature(loss_fn: Loss, params: Tree, batches: Any, **settings: Unpack[Settings]) -> Estimate:
    """Estimates c at the given parameters: the least eigenvalue of the Hessian.

    Negative where f is not convex: then no bound for strong convexity applies. Positive at these
    points does not mean everywhere. As in `smoothness`, but the method comes from above here:
    `high` is sure, and `low` holds with probability `level`.

    Raises:
        ValueError: as `smoothness` does.
        TypeError: as `smoothness` does.

    Example:
        >>> import jax.numpy as jnp
        >>> saddle = lambda x, batch: x[0] ** 2 - 0.5 * x[1] ** 2
        >>> print(f"{curvature(saddle, jnp.zeros(2), jnp.zeros((1, 1))).value:.3f}")
        -1.000
    """
    return _spectrum(Sweeps(loss_fn, params, batches, **settings, products=True))[0]


def noise(loss_fn: Loss, params: Tree, batches: Any, **settings: Unpack[Settings]) -> Estimate:
    """Estimates σ = (E‖G̃ − ∇f‖²)^½ of one batch's gradient at the given parameters.

    σ² without bias, from n gradients in one pass, by the n − 1 terms of Welford's sum,

        σ̂² = mean_k (1 − 1/k)·‖g_k − (g_1 + … + g_{k−1})/(k − 1)‖²,        k = 2 … n.

    Their spread makes Student's t interval of log σ̂²: the terms are independent for Gaussian noise,
    and for other noise the level is met as n grows (single examples of least squares: 78, 88 and
    96% of 95% at n = 10, 40 and 160). Of sampling only, not of rounding. Memory for two gradients.

    Args:
        loss_fn: as in `constants`, like all other arguments.
        params: a tree of float arrays.
        batches: a list of batches, or a tree of arrays stacked [n, …]; drawn independently, or
            without replacement, when the interval is too wide rather than too narrow.
        **settings: see `elastic_jax.sweeps.Settings`; `iterations` and `seed` have no say.

    Returns:
        The estimate, the largest over all points.

    Raises:
        ValueError: for bad arguments, or a loss or gradient that is not finite.
        TypeError: for parameters or batches of another kind.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda x, a: jnp.sum(a * x)  # its gradient is the batch
        >>> sigma = noise(loss, jnp.zeros(1), jnp.array([[1.0], [-1.0], [1.0], [-1.0]]))
        >>> print(f"{sigma.value**2:.3f}")  # 4/(4 − 1)
        1.333
    """
    sweeps = Sweeps(loss_fn, params, batches, **settings, gradients=True)
    return worst(max, [root_mean_square(one.spreads, sweeps.miss) for one in sweeps.moments()])


def second_moment(
    loss_fn: Loss, params: Tree, batches: Any, **settings: Unpack[Settings]
) -> Estimate:
    """Estimates M = (E‖G̃‖²)^½ of one batch's gradient at the given parameters.

    M² without bias, by the mean of ‖g‖²; the interval is Student's t of its logarithm. Otherwise as
    `noise`.

    Raises:
        ValueError: as `noise` does.
        TypeError: as `noise` does.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda x, a: jnp.sum(a * x)  # its gradient is the batch
        >>> M = second_moment(loss, jnp.zeros(1), jnp.array([[3.0], [4.0], [5.0]]))
        >>> print(f"{M.value**2:.3f}")
        16.667
    """
    sweeps = Sweeps(loss_fn, params, batches, **settings, gradients=True)
    return worst(max, [root_mean_square(one.lengths, sweeps.miss) for one in sweeps.moments()])


def gap(
    loss_fn: Loss,
    params: Tree,
    batches: Any,
    *,
    lower_bound: float = 0.0,
    **settings: Unpack[Settings],
) -> Estimate:
    """Estimates f − lower_bound at `params` (not at `points`); at least Δ, and Δ for f* itself.

    The mean of the batches' losses, with Student's t interval. Otherwise as `noise`.

    Raises:
        ValueError: as `noise` does, and where the whole interval lies below the lower bound.
        TypeError: as `noise` does.

    Example:
        >>> import jax.numpy as jnp
        >>> print(gap(lambda x, a: a.sum() * x[0], jnp.ones(1), jnp.array([[1.0], [2.0], [3.0]])))
        Estimate(value=2.0, low=-0.48..., high=4.48...)
    """
    floor = finite("lower_bound", lower_bound)
    here: Settings = {**settings, "points": ()}
    sweeps = Sweeps(loss_fn, params, batches, **here, gradients=True)
    return above(sweeps.moments()[0].losses, floor, sweeps.miss)


def _spectrum(sweeps: Sweeps) -> tuple[Estimate, Estimate]:
    """Estimates λ_min and λ_max, the least and the largest over the points."""
    least, largest = [], []
    for ritz, eps in sweeps.ritz():
        slack = ULPS * eps * float(abs(ritz.values).max())
        low, high = float(ritz.values[0]), float(ritz.values[-1])
        miss = sweeps.miss / 2  # two ends
        least.append(Estimate(low, lanczos.lower_bound(ritz, miss) - slack, low + slack))
        largest.append(Estimate(high, high - slack, lanczos.upper_bound(ritz, miss) + slack))
    return worst(min, least), worst(max, largest)
