"""Setting the views: what an update does to parameters once it is rounded, and what it leaves."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from elastic_jax.precision import add, narrow, narrow_as, wide, wide_dtype


def need(params: Any, name: str) -> Any:
    """Returns the view; refuses an update that is not given it."""
    if params is None:
        raise ValueError(f"params is None: {name} needs the view; pass params to update")
    return params


def settle(params: Any, move: Any) -> tuple[Any, Any]:
    """Rounds a move as `optax.apply_updates` will.

    Args:
        params: the view v.
        move: by how much it is to move, in float32 or wider.

    Returns:
        The update, in the dtypes of `params`; and what it leaves of the move: where v goes is
        rounded to its dtype.
    """

    def left(v, m, u):
        return add(m, wide(v) - wide(narrow(wide(v) + wide(u), v.dtype)))

    out = narrow_as(move, params)
    return out, jax.tree.map(left, params, move, out)


# ---- remainders of narrow leaves ----


def is_narrow(x: jax.Array) -> bool:
    """Says whether a leaf is narrower than float32, so that what rounding leaves is held."""
    return wide_dtype(x.dtype) != x.dtype


def no_remainder(params: Any) -> Any:
    """Returns zeros in float32 for narrow leaves, `MaskedNode` for the others."""
    return only_narrow(params, jax.tree.map(lambda x: jnp.zeros_like(wide(x)), params))


def only_narrow(params: Any, rest: Any) -> Any:
    """Returns what is left, of narrow leaves only."""
    return jax.tree.map(lambda v, r: r if is_narrow(v) else optax.MaskedNode(), params, rest)


def with_remainder(tree: Any, remainder: Any) -> Any:
    """Adds what is held of narrow leaves."""
    leaves, treedef = jax.tree.flatten(tree)
    pairs = zip(leaves, treedef.flatten_up_to(remainder), strict=True)
    return treedef.unflatten(x if isinstance(r, optax.MaskedNode) else add(x, r) for x, r in pairs)
