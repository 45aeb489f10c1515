"""Extreme eigenvalues of a symmetric operator, from products with vectors, and how far off."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.precision import norm

DOT = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Ritz(NamedTuple):
    """What k steps of Lanczos' method found."""

    values: np.ndarray  # θ [k], ascending
    residuals: np.ndarray  # β [k], the off-diagonals and, last, what is left of the Krylov space
    dimension: int  # d


def lanczos(
    product: Callable[[jax.Array], jax.Array | None], start: jax.Array, iterations: int
) -> Ritz:
    """Runs Lanczos' method with full reorthogonalisation, until the Krylov space is exhausted.

    Args:
        product: q [d] → A q [d], A symmetric; or None, which ends the method there.
        start: q_1 up to its length, [d]; its dtype is that of all vectors.
        iterations: k at most; memory k·d.

    Returns:
        The Ritz values, in float64; none where the first product was None.

    Raises:
        FloatingPointError: where a product is not finite.

    Example:
        >>> ritz = lanczos(lambda q: jnp.array([1.0, 2.0, 4.0]) * q, jnp.ones(3), 10)
        >>> print(ritz.values.round(3))
        [1. 2. 4.]
    """
    (d,) = start.shape
    k = min(iterations, d)
    eps = float(jnp.finfo(start.dtype).eps)
    basis = jnp.zeros((k, d), start.dtype)
    vector = start / norm(start)
    diagonal: list[float] = []
    off: list[float] = []
    for j in range(k):
        image = product(vector)
        if image is None:
            break
        basis, vector, alpha, beta = _advance(basis, vector, image, np.int32(j))
        if not (math.isfinite(float(alpha)) and math.isfinite(float(beta))):
            raise FloatingPointError("a product of the operator and a vector is not finite")
        diagonal.append(float(alpha))
        off.append(float(beta))
        if off[-1] <= 4 * eps * max(map(abs, diagonal + off)):
            break  # nothing but rounding is left
    matrix = np.diag(diagonal) + np.diag(off[:-1], 1) + np.diag(off[:-1], -1)
    return Ritz(np.linalg.eigvalsh(matrix), np.array(off), d)


@functools.partial(jax.jit, donate_argnums=(0, 2))
def _advance(
    basis: jax.Array, vector: jax.Array, image: jax.Array, j: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    basis = basis.at[j].set(vector)
    first = DOT(basis, image)  # rows that are not there yet are zeros
    image = image - DOT(first, basis)
    second = DOT(basis, image)  # twice is enough
    image = image - DOT(second, basis)
    beta = norm(image)
    following = image / jnp.where(beta > 0, beta, jnp.ones_like(beta))
    return basis, following, first[j] + second[j], beta


def upper_bound(ritz: Ritz, miss: float) -> float:
    """Bounds λ_max from above, but for a probability over the start.

    With u the eigenvector of λ_max, |⟨u, q⟩|·Π_j (λ_max − θ_j) ≤ Π_j β_j. For q of uniform
    direction the density of ⟨u, q⟩ is at most √(d/(2π)), and so |⟨u, q⟩| ≥ miss·√(π/(2d)) with
    probability 1 − miss.

    Args:
        ritz: from a start of uniform direction, as a Gaussian vector has it.
        miss: the probability, in (0, 1).

    Returns:
        The bound: the λ above all θ_j at which both sides are equal.

    Example:
        >>> ritz = lanczos(lambda q: jnp.arange(100.0) * q, jnp.cos(jnp.arange(100.0) ** 2), 20)
        >>> ritz.values[-1] < 99 < upper_bound(ritz, 0.05) < 105
        True

    Reference: van Dorsselaer, Hochstenbach, van der Vorst, Computing Probabilistic Bounds for
    Extreme Eigenvalues of Symmetric Matrices with the Lanczos Method, 2000.
    """
    top = float(ritz.values[-1])
    if not ritz.residuals.all():
        return top
    overlap = min(1.0, miss * math.sqrt(math.pi / (2 * ritz.dimension)))
    right = float(np.log(ritz.residuals).sum()) - math.log(overlap)
    # (λ − θ_1)^k is at most the product of all k factors.
    low, high = top, top + math.exp(right / len(ritz.values))
    for _ in range(60):
        middle = (low + high) / 2
        with np.errstate(divide="ignore"):
            above = np.log(middle - ritz.values).sum() >= right
        low, high = (low, middle) if above else (middle, high)
    return high


def lower_bound(ritz: Ritz, miss: float) -> float:
    """Bounds λ_min from below, but for a probability over the start; see `upper_bound`."""
    return -upper_bound(ritz._replace(values=-ritz.values[::-1]), miss)
