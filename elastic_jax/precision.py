"""Rounding that says what it does: sums in float32 or wider, and explicit narrowing."""

from typing import Any

import jax
import jax.numpy as jnp


def wider(a: Any, b: Any) -> Any:
    """Returns the float dtype that holds both a and b, whatever promotion JAX is set to allow."""
    for dtype in (a, b):
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"the tree holds an array of {dtype}: only real floats are held, averaged or "
                "measured; keep other arrays out of it, or wrap the relaxation in optax.masked"
            )
    a, b = jnp.dtype(a), jnp.dtype(b)
    if a == b:
        return a
    if jnp.finfo(a).bits == jnp.finfo(b).bits:
        return jnp.dtype(jnp.float32)  # float16 and bfloat16
    return a if jnp.finfo(a).bits > jnp.finfo(b).bits else b


def wide_dtype(dtype: Any) -> Any:
    """Returns the dtype in which sums are kept: float32, or the dtype itself where wider."""
    return wider(dtype, jnp.float32)


def wide(x: jax.Array) -> jax.Array:
    """Casts an array to the dtype in which sums are kept.

    A narrow array that XLA still carries unrounded (as `apply_updates` in the same program leaves
    it) is rounded first.
    """
    dtype = wide_dtype(x.dtype)
    return _rounded(x, x.dtype).astype(dtype)


def narrow(x: jax.Array, dtype: Any) -> jax.Array:
    """Casts an array to a dtype, rounding for certain.

    XLA may drop a cast to bfloat16 and back as excess precision, and a remainder computed from it
    would be zero; an explicit reduction of precision stays.
    """
    return x if x.dtype == dtype else _rounded(x, dtype).astype(dtype)


def _rounded(x: jax.Array, dtype: Any) -> jax.Array:
    info = jnp.finfo(dtype)
    if dtype == jnp.bfloat16:
        return jax.lax.reduce_precision(x, info.nexp, info.nmant)
    if info.bits < 32:  # a reduction of precision would flush float16's subnormals
        return jax.lax.optimization_barrier(x.astype(dtype))
    return x


def add(a: jax.Array, b: jax.Array) -> jax.Array:
    """Adds two arrays in the wider of their dtypes."""
    dtype = wider(a.dtype, b.dtype)
    a, b = (x if x.dtype == dtype else wide(x).astype(dtype) for x in (a, b))
    return a + b


def squared_norm(x: jax.Array) -> jax.Array:
    """Returns the squared Euclidean norm of an array, summed in float32 or wider."""
    x = wide(x)
    return jnp.sum(x * x)


def norm(x: jax.Array, axis: int | None = None) -> jax.Array:
    """Returns the Euclidean norm of an array, or of its rows, in float32 or wider.

    Scaled before it is squared, so that it is right wherever it is a number of its dtype; the
    squares of float32's own numbers are not.
    """
    x = wide(x)
    top = jnp.max(jnp.abs(x), axis=axis, keepdims=True, initial=0)
    top = jnp.where((top > 0) & jnp.isfinite(top), top, jnp.ones_like(top))
    root = jnp.sqrt(jnp.sum(jnp.square(x / top), axis=axis, keepdims=True)) * top
    return jnp.squeeze(root, axis=axis)


# ---- trees ----


def zeros(params: Any) -> Any:
    """Returns zeros shaped like a tree, in float32 or wider."""
    return jax.tree.map(lambda x: jnp.zeros_like(wide(x)), params)


def plus(tree: Any, more: Any) -> Any:
    """Adds two trees, each pair of leaves in the wider of their dtypes."""
    return jax.tree.map(add, tree, more)


def minus(tree: Any, less: Any) -> Any:
    """Subtracts a tree, each leaf in the wider of the two dtypes."""
    return jax.tree.map(lambda y, m: add(y, -m), tree, less)


def narrow_as(tree: Any, like: Any) -> Any:
    """Rounds a tree to the dtypes of another."""
    return jax.tree.map(lambda y, u: narrow(y, u.dtype), tree, like)
