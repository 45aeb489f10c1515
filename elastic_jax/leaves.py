"""A compressor of one array, lifted to trees."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.precision import narrow, wide
from elastic_jax.types import Compressor


class Leaf(NamedTuple):
    """What a compressor does to one array; `Compressor` lifts it to trees."""

    encode: Callable[..., Any]  # (key, state, x) -> (payload, state)
    decode: Callable[..., Any]  # (payload, like) -> x
    nbytes: Callable[[Any], int]
    gamma: Callable[[Any], float]
    dense: Callable[..., Any] | None = None  # (key, state, x) -> (x, state)
    init: Callable[..., Any] = lambda key, like: ()
    omega: Callable[[Any], float] | None = None


def lift(
    name: str,
    leaf: Leaf,
    *,
    deterministic: bool = True,
    linear: bool = False,
    scope: str = "leaf",
    dtype: Any = None,
    meet: Callable[..., Any] | None = None,
) -> Compressor:
    """Makes a compressor of trees, leaf by leaf or over all leaves as one vector.

    With a dtype the leaf must be a selection: what it sends of an entry is the entry.
    """
    if scope not in ("leaf", "tree"):
        raise ValueError(
            f"scope={scope!r} is unknown; use 'leaf' (each array by itself) or 'tree' (all arrays "
            "as one vector)"
        )
    if dtype is not None:
        name, leaf = f"{name} in {_narrow_dtype(dtype)}", _in_dtype(leaf, _narrow_dtype(dtype))
    omega = leaf.omega

    def decode_encoded(key, state, x):
        payload, state = leaf.encode(key, state, x)
        return leaf.decode(payload, x), state

    def parts(tree):
        """Splits a tree into the arrays that are compressed, each by itself."""
        leaves = jax.tree.leaves(tree)
        if scope == "leaf" or len(leaves) <= 1:
            return leaves
        _same_dtype(leaves)
        return [jnp.concatenate([jnp.ravel(x) for x in leaves])]

    def whole(arrays, like):
        """Undoes `parts`."""
        leaves, treedef = jax.tree.flatten(like)
        if scope == "tree" and len(leaves) > 1:
            ends = np.cumsum([math.prod(x.shape) for x in leaves])[:-1]
            arrays = [
                piece.reshape(x.shape)
                for piece, x in zip(jnp.split(arrays[0], ends), leaves, strict=True)
            ]
        return jax.tree.unflatten(treedef, arrays)

    def shapes(like):
        leaves = [jax.ShapeDtypeStruct(jnp.shape(x), x.dtype) for x in jax.tree.leaves(like)]
        if scope == "leaf" or len(leaves) <= 1:
            return leaves
        _same_dtype(leaves)
        return [jax.ShapeDtypeStruct((sum(math.prod(x.shape) for x in leaves),), leaves[0].dtype)]

    def each(function, key, state, tree):
        arrays = parts(tree)
        keys = [key] * len(arrays) if deterministic else jax.random.split(key, len(arrays))
        done = [function(k, s, x) for k, s, x in zip(keys, state, arrays, strict=True)]
        return tuple(out for out, _ in done), tuple(new for _, new in done)

    def init(key, like):
        arrays = shapes(like)
        keys = jax.random.split(key, max(1, len(arrays)))
        return tuple(leaf.init(k, x) for k, x in zip(keys, arrays, strict=False))

    def decode(payload, like):
        arrays = [leaf.decode(one, x) for one, x in zip(payload, shapes(like), strict=True)]
        return whole(arrays, like)

    def dense(key, state, tree):
        out, state = each(leaf.dense or decode_encoded, key, state, tree)
        return whole(list(out), tree), state

    def meet_narrow(key, state, tree, average):
        payload, state = each(leaf.encode, key, state, tree)
        parts, treedef = jax.tree.flatten(payload)
        like = jax.eval_shape(lambda tree: jax.tree.map(wide, tree), tree)
        own, mean = (decode(treedef.unflatten(said), like) for said in average(parts))
        return own, mean, state

    def worst(constant):
        return lambda like: max((constant(x) for x in shapes(like) if size(x)), default=0.0)

    return Compressor(
        name=name,
        init=init,
        encode=lambda key, state, tree: each(leaf.encode, key, state, tree),
        decode=decode,
        dense=dense,
        nbytes=lambda like: sum(leaf.nbytes(x) for x in shapes(like)),
        gamma=worst(leaf.gamma),
        omega=None if omega is None else worst(omega),
        deterministic=deterministic,
        linear=linear,
        meet=meet_narrow if linear and dtype is not None else meet,
    )


def _narrow_dtype(dtype: Any) -> Any:
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found not in (jnp.bfloat16, jnp.float16):
        raise ValueError(
            f"dtype={dtype!r} is no narrow float; pass 'bfloat16' or 'float16', or None to send "
            "values in the updates' own dtype"
        )
    return found


def _in_dtype(leaf: Leaf, dtype: Any) -> Leaf:
    """Sends the values of a selection in a narrower dtype (where theirs is wider)."""
    info = jnp.finfo(dtype)

    def sent(like):
        return dtype if like.dtype.itemsize > dtype.itemsize else like.dtype

    def rounded(x, like):
        # what is finite stays finite: beyond the largest number, the rest is left to feedback
        largest = float(jnp.finfo(sent(like)).max)
        x = jnp.where(jnp.isfinite(x), jnp.clip(x, -largest, largest), x)
        return narrow(x, sent(like))

    def of_floats(function, payload):
        return jax.tree.map(
            lambda x: function(x) if jnp.issubdtype(x.dtype, jnp.floating) else x, payload
        )

    def encode(key, state, x):
        payload, state = leaf.encode(key, state, x)
        return of_floats(lambda values: rounded(values, x), payload), state

    def decode(payload, like):
        return leaf.decode(of_floats(lambda values: values.astype(like.dtype), payload), like)

    def dense_by(whole: Callable[..., Any]) -> Callable[..., Any]:
        def dense(key, state, x):
            out, state = whole(key, state, x)
            return rounded(out, x).astype(x.dtype), state

        return dense

    def gamma(like):
        if sent(like) == like.dtype:
            return leaf.gamma(like)
        if info.nexp < jnp.finfo(like.dtype).nexp:
            return 1.0  # small numbers vanish, large ones do not fit
        return leaf.gamma(like) + (1 - leaf.gamma(like)) * (float(info.eps) / 2) ** 2

    return leaf._replace(
        encode=encode,
        decode=decode,
        dense=None if leaf.dense is None else dense_by(leaf.dense),
        nbytes=lambda like: leaf.nbytes(jax.ShapeDtypeStruct(like.shape, sent(like))),
        gamma=gamma,
        omega=None,  # rounding to the nearest is biased
    )


def _same_dtype(leaves) -> None:
    dtypes = {str(x.dtype) for x in leaves}
    if len(dtypes) > 1:
        raise ValueError(
            f"scope='tree' needs one dtype for all leaves, got {sorted(dtypes)}; use scope='leaf', "
            "or give each dtype its own compressor with optax.partition"
        )


def size(like: Any) -> int:
    """Returns how many entries an array or a ShapeDtypeStruct has."""
    return math.prod(like.shape)
