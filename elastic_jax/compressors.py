"""Compression operators, as data: encode → payload → decode, with their constants.

Two families. A *contraction* keeps `E||C(y) - y||² <= gamma ||y||²` with gamma < 1 and is biased:
give it to `error_feedback`. An *unbiased* compressor has `E C(y) = y` and a variance
`E||C(y) - y||² <= omega ||y||²`: `compress` alone will do.

Odd inputs have one outcome each. Zeros are sent as zeros. Ties go to the lowest index. NaN counts
as infinitely large, so selection by size sends it at once: it surfaces, where a residual would hide
it. Compressors that scale by a norm return non-finite values throughout. `k >= d` sends everything.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.checks import whole
from elastic_jax.precision import wide, wide_dtype
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
) -> Compressor:
    """Makes a compressor of trees, leaf by leaf or over all leaves as one vector."""
    if scope not in ("leaf", "tree"):
        raise ValueError(
            f"scope={scope!r} is unknown; use 'leaf' (each array by itself) or 'tree' (all arrays "
            "as one vector)"
        )
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


def identity() -> Compressor:
    """Sends everything: C(y) = y, gamma = 0, omega = 0.

    `error_feedback(identity())` and `compress(identity())` are `optax.identity()`.
    """
    return lift(
        "identity",
        Leaf(
            encode=lambda key, state, x: (x, state),
            decode=lambda payload, like: payload,
            dense=lambda key, state, x: (x, state),
            nbytes=lambda like: size(like) * like.dtype.itemsize,
            gamma=lambda like: 0.0,
            omega=lambda like: 0.0,
        ),
        linear=True,
    )


def sign() -> Compressor:
    """Sends one bit an entry, and one scale.

    `C(y) = (||y||_1 / d) sign(y)`, so `||C(y) - y||² = ||y||² - ||y||_1²/d`: in the worst case
    (a single entry apart from zero) gamma = 1 - 1/d. Biased, deterministic; zero counts as +.

    Reference:
        Karimireddy, Rebjock, Stich, Jaggi, "Error feedback fixes SignSGD", 2019.
    """

    def scale(x):
        # a power of two first, so that the sum does not overflow
        shrink = 2.0 ** -(x.size.bit_length())
        total = jnp.sum(jnp.abs(wide(x)) * shrink)
        return (total / (max(1, x.size) * shrink)).astype(x.dtype)

    def encode(key, state, x):
        return (scale(x), jnp.packbits(jnp.signbit(jnp.ravel(x)))), state

    def decode(payload, like):
        magnitude, packed = payload
        negative = jnp.unpackbits(packed, count=size(like)).astype(bool).reshape(like.shape)
        return jnp.where(negative, -magnitude, magnitude)

    return lift(
        "sign()",
        Leaf(
            encode=encode,
            decode=decode,
            dense=lambda key, state, x: (jnp.where(jnp.signbit(x), -scale(x), scale(x)), state),
            nbytes=lambda like: -(-size(like) // 8) + like.dtype.itemsize,
            gamma=lambda like: 1 - 1 / max(1, size(like)),
        ),
    )


def quantize(bits: int = 8) -> Compressor:
    """Rounds each entry at random to one of `2^bits - 1` levels between ±||y|| (QSGD).

    With s = 2^(bits-1) - 1 levels a side, `C(y)_j = ||y|| sign(y_j) (l + Bernoulli(a - l)) / s`,
    where `a = s |y_j| / ||y||` and l its floor: unbiased, omega = min(d/s², √d/s).

    Args:
        bits: 2 to 8 an entry, the sign included; they are packed.

    Returns:
        The compressor; not deterministic.

    Raises:
        ValueError: for another number of bits.

    Reference:
        Alistarh, Grubic, Li, Tomioka, Vojnovic, "QSGD", 2017.
    """
    bits = whole("bits", bits, "number of bits", 2, 8)
    side = 2 ** (bits - 1) - 1

    def levels(key, x):
        y = wide(jnp.ravel(x))
        # scaled by the largest entry first, so that squares neither overflow nor vanish
        top = jnp.max(jnp.abs(y), initial=0)
        top = jnp.minimum(top, jnp.finfo(y.dtype).max / 8)  # 1/top is not flushed to zero
        unit = y / jnp.where(top == 0, 1, top)
        length = jnp.sqrt(jnp.sum(unit * unit))
        share = jnp.abs(unit) / jnp.where(length == 0, 1, length)
        level = jnp.floor(share * side + jax.random.uniform(key, y.shape, y.dtype))
        return top * length, jnp.copysign(jnp.minimum(level, side), y)

    def restore(norm, level, like):
        return (norm * (level / side)).astype(like.dtype).reshape(like.shape)

    def encode(key, state, x):
        norm, level = levels(key, x)
        code = (jnp.nan_to_num(level).astype(jnp.int32) + side).astype(jnp.uint8)
        spread = (code[:, None] >> jnp.arange(bits, dtype=jnp.uint8)[None, :]) & jnp.uint8(1)
        return (norm, jnp.packbits(spread.reshape(-1))), state

    def decode(payload, like):
        norm, packed = payload
        spread = jnp.unpackbits(packed, count=size(like) * bits).reshape(-1, bits)
        weights = jnp.asarray(2 ** np.arange(bits), jnp.int32)[None, :]
        level = jnp.sum(spread.astype(jnp.int32) * weights, axis=1) - side
        return restore(norm, level.astype(norm.dtype), like)

    def dense(key, state, x):
        norm, level = levels(key, x)
        return restore(norm, jnp.nan_to_num(level) + 0.0, x), state

    def omega(like):
        d = size(like)
        return min(d / side**2, math.sqrt(d) / side)

    return lift(
        f"quantize({bits})",
        Leaf(
            encode=encode,
            decode=decode,
            dense=dense,
            nbytes=lambda like: -(-size(like) * bits // 8) + max(4, like.dtype.itemsize),
            gamma=omega,
            omega=omega,
        ),
        deterministic=False,
    )


def natural() -> Compressor:
    """Rounds each entry at random to one of the two powers of two around it: omega = 1/8.

    `C(y) = sign(y) 2^e` or `sign(y) 2^(e+1)`, where `2^e <= |y| < 2^(e+1)`, unbiased. Sends sign
    and exponent only. Subnormal numbers go to zero or to the smallest normal one, unbiased too but
    of larger variance; numbers above the largest power of two may, and NaN will, come out infinite.

    Reference:
        Horváth, Ho, Horváth, Sahu, Canini, Richtárik, "Natural compression", 2019.
    """

    def layout(dtype):
        info = jnp.finfo(dtype)
        uint = jnp.dtype(f"uint{info.bits}")
        exponent = np.uint8 if info.nexp <= 8 else np.uint16
        return info, uint, exponent

    def exponents(key, x):
        info, uint, _ = layout(x.dtype)
        bits = jax.lax.bitcast_convert_type(jnp.abs(jnp.ravel(x)), uint)
        fraction = bits & jnp.asarray((1 << info.nmant) - 1, uint)
        exponent = (bits >> jnp.asarray(info.nmant, uint)).astype(jnp.int32)
        draw = jax.random.bits(key, bits.shape, uint) >> jnp.asarray(info.bits - info.nmant, uint)
        return jnp.minimum(exponent + (draw < fraction).astype(jnp.int32), 2**info.nexp - 1)

    def restore(exponent, negative, like):
        info, uint, _ = layout(like.dtype)
        bits = exponent.astype(uint) << jnp.asarray(info.nmant, uint)
        power = jax.lax.bitcast_convert_type(bits, like.dtype)
        return jnp.where(negative, -power, power).reshape(like.shape)

    def encode(key, state, x):
        _, _, dtype = layout(x.dtype)
        return (exponents(key, x).astype(dtype), jnp.packbits(jnp.signbit(jnp.ravel(x)))), state

    def decode(payload, like):
        exponent, packed = payload
        return restore(exponent, jnp.unpackbits(packed, count=size(like)).astype(bool), like)

    def dense(key, state, x):
        return restore(exponents(key, x), jnp.signbit(jnp.ravel(x)), x), state

    def nbytes(like):
        return size(like) * np.dtype(layout(like.dtype)[2]).itemsize + -(-size(like) // 8)

    return lift(
        "natural()",
        Leaf(
            encode=encode,
            decode=decode,
            dense=dense,
            nbytes=nbytes,
            gamma=lambda like: 1 / 8,
            omega=lambda like: 1 / 8,
        ),
        deterministic=False,
    )


def low_rank(rank: int = 2) -> Compressor:
    """Sends a rank-r approximation of each matrix, by one warm-started power iteration (PowerSGD).

    A leaf of shape [n, …] is taken as a matrix [n, m]. With the last step's right factor Q,
    `P = orth(Y Q)`, `C(Y) = P Pᵀ Y`: a projection, so `||C(Y) - Y|| <= ||Y||` (gamma = 1; on fixed
    Y the warm start drives it to the best rank-r error). Biased; random only in its start. Leaves
    that are vectors, or for which two factors are no smaller, are sent whole.

    Args:
        rank: of the approximation, an int >= 1.

    Returns:
        The compressor, whose state holds one right factor [m, r] a matrix.

    Raises:
        ValueError: for a rank below 1.

    Reference:
        Vogels, Karimireddy, Jaggi, "PowerSGD", 2019.
    """
    rank = whole("rank", rank, "rank")

    def matrix(like):
        """Shape [n, m], or None where the leaf is sent whole."""
        if len(like.shape) < 2 or 0 in like.shape:
            return None
        n, m = like.shape[0], size(like) // like.shape[0]
        return (n, m) if rank * (n + m) < n * m else None

    def init(key, like):
        shape = matrix(like)
        if shape is None:
            return ()
        return jax.random.normal(key, (shape[1], rank), wide_dtype(like.dtype))

    def encode(key, state, x):
        shape = matrix(x)
        if shape is None:
            return (x,), state
        y = x.reshape(shape).astype(state.dtype)
        highest = jax.lax.Precision.HIGHEST
        left, _ = jnp.linalg.qr(jnp.matmul(y, state, precision=highest))
        right = jnp.matmul(y.T, left, precision=highest)
        # a factor of zeros would be the last: keep the direction until there is one again
        alive = jnp.max(jnp.abs(right), axis=0, keepdims=True) > 0
        return (left, right), jnp.where(alive, right, state)

    def decode(payload, like):
        shape = matrix(like)
        if shape is None:
            return payload[0]
        left, right = payload
        product = jnp.matmul(left, right.T, precision=jax.lax.Precision.HIGHEST)
        return product.astype(like.dtype).reshape(like.shape)

    def nbytes(like):
        shape = matrix(like)
        if shape is None:
            return size(like) * like.dtype.itemsize
        return rank * sum(shape) * max(4, like.dtype.itemsize)

    return lift(
        f"low_rank({rank})",
        Leaf(
            encode=encode,
            decode=decode,
            init=init,
            nbytes=nbytes,
            gamma=lambda like: 0.0 if matrix(like) is None else 1.0,
        ),
    )
