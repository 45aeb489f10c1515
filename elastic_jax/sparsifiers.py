"""Sparsifiers: compressors that send some entries and keep the others back.

Indices take two bytes where they can. With a `dtype`, so do values: what rounding drops stays with
what is not sent, and gamma grows from g to `g + (1 - g) 2^-16` (bfloat16, for float32's normal
numbers; for dtypes of a smaller range, to 1).
"""

import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax import selection
from elastic_jax.checks import whole
from elastic_jax.leaves import Leaf, lift, size
from elastic_jax.precision import wide
from elastic_jax.types import Compressor


def _check_amount(amount: Any, name: str = "fraction_or_count") -> Any:
    """Refuses what is neither a fraction in (0, 1] nor a count of at least 1; returns it."""
    remedy = "pass a float fraction in (0, 1], or an int count of entries >= 1"
    if isinstance(amount, jax.Array):
        real = any(jnp.issubdtype(amount.dtype, kind) for kind in (jnp.integer, jnp.floating))
        if amount.ndim or not real:
            raise ValueError(f"{name} has shape {amount.shape} and dtype {amount.dtype}; {remedy}")
        return amount
    if isinstance(amount, bool) or not isinstance(amount, (int, float, np.number)):
        raise TypeError(f"{name}={amount!r} is no number; {remedy}")
    if isinstance(amount, (int, np.integer)):
        if amount < 1:
            raise ValueError(f"{name}={amount} keeps nothing; {remedy}")
        return int(amount)
    if not 0 < amount <= 1:
        raise ValueError(f"{name}={amount} is no fraction; {remedy}")
    return float(amount)


def _count(amount: Any, d: int) -> Any:
    """Entries kept of `d`: a fraction is rounded up; never more than `d`."""
    if isinstance(amount, jax.Array):
        if jnp.issubdtype(amount.dtype, jnp.floating):
            amount = wide(amount)  # less its rounding, which could tip n/d * d over n
            amount = jnp.ceil(amount * d * (1 - 2 * float(jnp.finfo(amount.dtype).eps)))
        return jnp.clip(amount.astype(jnp.int32), min(1, d), d)
    return min(d, amount if isinstance(amount, int) else max(1, math.ceil(amount * d - 1e-9)))


def _static_count(amount: Any, d: int) -> int:
    k = _count(amount, d)
    if isinstance(k, jax.Array):
        raise ValueError(
            "a traced fraction or count has no static payload shape: it can be used densely (as "
            "error_feedback and compress do), but encode, nbytes and gamma need a Python number"
        )
    return k


def _index_dtype(d: int) -> Any:
    return np.uint16 if d <= 2**16 else np.int32


class Sparse(NamedTuple):
    """The payload of a sparsifier: values and where they belong, in ascending order."""

    values: chex.Array  # [k]
    indices: chex.Array  # [k] uint16 where they fit, else int32; d stands for "nothing here"


def _gather(x: chex.Array, indices: chex.Array) -> Sparse:
    flat = jnp.ravel(x)
    return Sparse(flat[indices], indices.astype(_index_dtype(flat.size)))


def _scatter(payload: Sparse, like: Any) -> chex.Array:
    flat = jnp.zeros(size(like), like.dtype)
    return flat.at[payload.indices].set(payload.values).reshape(like.shape)


def _sparse_bytes(k: int, like: Any) -> int:
    return k * (like.dtype.itemsize + np.dtype(_index_dtype(size(like))).itemsize)


def top_k(fraction_or_count: Any, scope: str = "leaf", *, dtype: Any = None) -> Compressor:
    """Keeps the k entries of largest magnitude: gamma = 1 - k/d, biased, deterministic.

    Args:
        fraction_or_count: a float fraction in (0, 1] (rounded up to at least one entry) or an int
            count; a JAX scalar may be traced and is then used densely only.
        scope: `leaf` selects in each array, `tree` among all of them.
        dtype: bfloat16 or float16, in which wider values travel; None for their own.

    Returns:
        The compressor. Its selection is exact, ties go to the lowest index.

    Raises:
        ValueError: for an amount outside those ranges, an unknown scope or another dtype.
        TypeError: for an amount that is no number.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> c = top_k(2)
        >>> y = jnp.array([1.0, -3.0, 0.0, 2.0])
        >>> payload, _ = c.encode(jax.random.key(0), c.init(jax.random.key(0), y), y)
        >>> print(c.decode(payload, y), c.nbytes(y), c.gamma(y))
        [ 0. -3.  0.  2.] 12 0.5

    Reference:
        Stich, Cordonnier, Jaggi, "Sparsified SGD with memory", 2018.
    """
    amount = _check_amount(fraction_or_count)

    def encode(key, state, x):
        k = _static_count(amount, x.size)
        flat = jnp.ravel(x)
        if k == x.size:
            return _gather(x, jnp.arange(k)), state
        return _gather(x, selection.top_indices(selection.magnitude(flat), k)), state

    def dense(key, state, x):
        k = _count(amount, x.size)
        if isinstance(k, int) and k == x.size:
            return x, state
        return selection.dense_top_k(jnp.ravel(x), k).reshape(x.shape), state

    return lift(
        f"top_k({amount}, {scope!r})",
        Leaf(
            encode=encode,
            decode=_scatter,
            dense=dense,
            nbytes=lambda like: _sparse_bytes(_static_count(amount, size(like)), like),
            gamma=lambda like: 1 - _static_count(amount, size(like)) / max(1, size(like)),
        ),
        scope=scope,
        dtype=dtype,
    )


def block_top_k(fraction_or_count: Any, block: int = 1024, *, dtype: Any = None) -> Compressor:
    """Keeps the k largest entries of every block of consecutive entries: gamma = 1 - k/block.

    Cheaper than `top_k` on accelerators, and each block is sure to be served.

    Args:
        fraction_or_count: how many entries of each block, as in `top_k`; static.
        block: entries a block; the last one may be shorter.
        dtype: bfloat16 or float16, in which wider values travel; None for their own.

    Returns:
        The compressor, biased and deterministic; ties go to the lowest index.

    Raises:
        ValueError: for a block or an amount out of range, or another dtype.
    """
    amount = _check_amount(fraction_or_count)
    block = whole("block", block, "block size")
    if isinstance(amount, jax.Array):
        raise ValueError("fraction_or_count is a JAX array; block_top_k needs a Python number")

    def blocks(d):
        """Block length, kept in each block, number of blocks."""
        width = max(1, min(block, d))
        return width, _static_count(amount, width), -(-d // width)

    def kept(x):
        width, k, count = blocks(x.size)
        padded = jnp.pad(jnp.ravel(x), (0, count * width - x.size)).reshape(count, width)
        size = jnp.where(jnp.isnan(padded), jnp.inf, jnp.abs(padded))
        inside = jnp.arange(count * width).reshape(count, width) < x.size
        _, columns = jax.lax.top_k(jnp.where(inside, size, -1), k)
        return padded, columns, width

    def encode(key, state, x):
        padded, columns, width = kept(x)
        indices = (
            jnp.sort(columns, axis=1)
            + width * jnp.arange(len(padded), dtype=columns.dtype)[:, None]
        )
        # a short last block repeats its padding: send index 0 of nothing, value 0, past the end
        flat = indices.reshape(-1)
        values = padded.reshape(-1)[flat]
        return Sparse(values, jnp.minimum(flat, x.size).astype(_index_dtype(x.size + 1))), state

    def decode(payload, like):
        flat = jnp.zeros(size(like) + 1, like.dtype).at[payload.indices].set(payload.values)
        return flat[:-1].reshape(like.shape)

    def dense(key, state, x):
        padded, columns, _ = kept(x)
        rows = jnp.arange(len(padded))[:, None]
        out = jnp.zeros_like(padded).at[rows, columns].set(padded[rows, columns])
        return out.reshape(-1)[: x.size].reshape(x.shape), state

    def nbytes(like):
        _, k, count = blocks(size(like))
        index = np.dtype(_index_dtype(size(like) + 1)).itemsize
        return k * count * (like.dtype.itemsize + index)

    def gamma(like):
        width, k, _ = blocks(size(like))
        return 1 - k / width

    return lift(
        f"block_top_k({amount}, {block})",
        Leaf(encode=encode, decode=decode, dense=dense, nbytes=nbytes, gamma=gamma),
        dtype=dtype,
    )


def threshold(value: Any, capacity: Any = 1.0, *, dtype: Any = None) -> Compressor:
    """Keeps entries of magnitude >= value, at most `capacity` of them, the first by index.

    `||C(y) - y|| <= ||y||` (gamma = 1: it may send nothing). With room for all of them it is an
    absolute compressor, `||C(y) - y||² < d value²`. What does not fit stays behind: a residual
    whose every step has more large entries than fit grows without bound.

    Args:
        value: the threshold, > 0, in the unit of the updates; may be traced.
        capacity: entries that the payload has room for, as a fraction of each array or a count.
        dtype: bfloat16 or float16, in which wider values travel; None for their own.

    Returns:
        The compressor, biased and deterministic.

    Raises:
        ValueError: for a threshold that is not positive, a capacity out of range or another dtype.

    Reference:
        Strom, "Scalable distributed DNN training using commodity GPU cloud computing", 2015.
    """
    if not isinstance(value, jax.Array) and not value > 0:
        raise ValueError(f"value={value!r} would send everything; pass a threshold > 0")
    amount = _check_amount(capacity, "capacity")
    if isinstance(amount, jax.Array):
        raise ValueError("capacity is a JAX array; a payload's shape needs a Python number")

    def large(x):
        flat = jnp.ravel(x)
        size = jnp.where(jnp.isnan(flat), jnp.inf, jnp.abs(flat))
        return flat, size >= jnp.asarray(value).astype(x.dtype)

    def encode(key, state, x):
        flat, mask = large(x)
        k = _static_count(amount, x.size)
        (indices,) = jnp.nonzero(mask, size=k, fill_value=x.size)
        values = jnp.where(indices < x.size, flat[jnp.minimum(indices, x.size - 1)], 0)
        return Sparse(values, indices.astype(_index_dtype(x.size + 1))), state

    def decode(payload, like):
        flat = jnp.zeros(size(like) + 1, like.dtype).at[payload.indices].set(payload.values)
        return flat[:-1].reshape(like.shape)

    def dense(key, state, x):
        flat, mask = large(x)
        k = _static_count(amount, x.size)
        if k < x.size:
            mask = mask & (jnp.cumsum(mask, dtype=jnp.int32) <= k)
        return jnp.where(mask, flat, 0).reshape(x.shape), state

    def nbytes(like):
        index = np.dtype(_index_dtype(size(like) + 1)).itemsize
        return _static_count(amount, size(like)) * (like.dtype.itemsize + index)

    return lift(
        f"threshold({value}, {amount})",
        Leaf(encode=encode, decode=decode, dense=dense, nbytes=nbytes, gamma=lambda like: 1.0),
        dtype=dtype,
    )


def random_k(
    fraction_or_count: Any,
    *,
    unbiased: bool = False,
    shared_seed: int | None = None,
    dtype: Any = None,
) -> Compressor:
    """Keeps k entries drawn uniformly without replacement.

    The draw does not look at the entries, so a NaN waits until it is drawn. Unscaled this is a
    contraction, gamma = 1 - k/d. With `unbiased=True` what is kept is multiplied by d/k: then
    omega = d/k - 1, and gamma is the same (above 1 for k < d/2: not fit for error feedback).

    Args:
        fraction_or_count: as in `top_k`, static.
        unbiased: scale by d/k.
        shared_seed: None draws for each worker apart; an int makes all workers draw the same
            entries at the same step, so that no indices need to be sent, and values can be
            averaged on their way (with a `dtype`, the mean is rounded too, and the rest held).
        dtype: bfloat16 or float16, in which wider values travel; None for their own.

    Returns:
        The compressor; not deterministic.

    Raises:
        ValueError: for an amount out of range, another dtype, or a dtype with `unbiased=True`.

    Reference:
        Stich, Cordonnier, Jaggi, "Sparsified SGD with memory", 2018.
    """
    amount = _check_amount(fraction_or_count)
    if unbiased and dtype is not None:
        raise ValueError(
            f"dtype={dtype!r} rounds to the nearest, and unbiased=True promises no bias; pass one "
            "of them"
        )
    if isinstance(amount, jax.Array):
        raise ValueError("fraction_or_count is a JAX array; random_k needs a Python number")
    if shared_seed is not None and (
        isinstance(shared_seed, bool) or not isinstance(shared_seed, int)
    ):
        raise ValueError(f"shared_seed={shared_seed!r} is no seed; pass an int, or None")

    def init(key, like):
        # a shared draw depends on the number of this step alone, not on the worker's key
        return () if shared_seed is None else jnp.zeros((), jnp.int32)

    def ranks(key, step, like):
        """Random ranks of the entries; the k highest are kept."""
        if shared_seed is not None:
            key = jax.random.fold_in(jax.random.key(shared_seed), step)
        return jax.random.bits(key, (size(like),), jnp.uint32) >> jnp.uint32(1)

    def scaled(x):
        factor = x.size / max(1, _static_count(amount, x.size)) if unbiased else 1
        return jnp.ravel(x) * jnp.asarray(factor, x.dtype)

    def encode(key, state, x):
        kept = selection.top_indices(ranks(key, state, x), _static_count(amount, x.size))
        payload = _gather(scaled(x), kept)
        if shared_seed is None:
            return payload, state
        return (payload.values, state), state + 1

    def decode(payload, like):
        if shared_seed is None:
            return _scatter(payload, like)
        values, step = payload
        kept = selection.top_indices(ranks(None, step, like), len(values))
        return _scatter(Sparse(values, kept), like)

    def dense(key, state, x):
        kept = selection.top_mask(ranks(key, state, x), _static_count(amount, x.size))
        out = jnp.where(kept, scaled(x), 0).reshape(x.shape)
        return out, state if shared_seed is None else state + 1

    def nbytes(like):
        k = _static_count(amount, size(like))
        return _sparse_bytes(k, like) if shared_seed is None else k * like.dtype.itemsize + 4

    def contraction(like):
        d = size(like)
        k = _static_count(amount, d)
        return (d / k - 1) if unbiased else 1 - k / max(1, d)

    name = f"random_k({amount}{', unbiased=True' if unbiased else ''}"
    return lift(
        name + (")" if shared_seed is None else f", shared_seed={shared_seed})"),
        Leaf(
            encode=encode,
            decode=decode,
            dense=dense,
            init=init,
            nbytes=nbytes,
            gamma=contraction,
            omega=contraction if unbiased else None,
        ),
        deterministic=False,
        linear=shared_seed is not None,
        dtype=dtype,
    )
