"""Compression operators, as data: encode → payload → decode, with their constants.

Two families. A *contraction* keeps `E||C(y) - y||² <= gamma ||y||²` with gamma < 1 and is biased:
give it to `error_feedback`. An *unbiased* compressor has `E C(y) = y` and a variance
`E||C(y) - y||² <= omega ||y||²`: `compress` alone will do.

Odd inputs have one outcome each. Zeros are sent as zeros. Ties go to the lowest index. NaN counts
as infinitely large, so selection by size sends it at once: it surfaces, where a residual would hide
it. Compressors that scale by a norm return non-finite values throughout. `k >= d` sends everything.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.checks import whole
from elastic_jax.leaves import Leaf, lift, size
from elastic_jax.precision import wide, wide_dtype
from elastic_jax.types import Compressor


def identity(dtype: Any = None) -> Compressor:
    """Sends everything: C(y) = y, gamma = 0, omega = 0; with a dtype, rounded to the nearest.

    `error_feedback(identity())` and `compress(identity())` are `optax.identity()`. With a narrow
    dtype, `error_feedback(identity("bfloat16"), axis_name)` is an all-reduce of half the bytes:
    gamma = 2^-16 in float32's normal numbers (in float16, 1), and the mean is rounded too. What
    either rounding drops is held: B is about M/128.

    Args:
        dtype: bfloat16 or float16, in which wider entries travel; None for their own.

    Returns:
        The compressor, deterministic; with a dtype, biased.

    Raises:
        ValueError: for another dtype.
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
        dtype=dtype,
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
    `P = orth(Y Q)`, `Q⁺ = Yᵀ P` and `C(Y) = P Pᵀ Y`: a projection, so `||C(Y) - Y|| <= ||Y||`
    (gamma = 1; on fixed Y the warm start drives it to the best rank-r error). Biased; random only
    in its start. Leaves that are vectors, or for which two factors are no smaller, are sent whole.

    Workers that meet (given an `axis_name`) agree on one basis, in two reductions a step of
    r (n + m) numbers in all, however many they are:

        P = orth(mean_i Y_i Q)      Q⁺ = mean_i Y_iᵀ P      mean_i C_i = P Q⁺ᵀ

    Each worker's own message is `C_i = P Pᵀ Y_i`, so that its residual is its own projection's.

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
    matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

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

    def flat(x):
        return wide(x).reshape(matrix(x))

    def kept(right, before):
        # a factor of zeros would be the last: keep the direction until there is one again
        alive = jnp.max(jnp.abs(right), axis=0, keepdims=True) > 0
        return jnp.where(alive, right, before)

    def encode(key, state, x):
        if matrix(x) is None:
            return (x,), state
        left, _ = jnp.linalg.qr(matmul(flat(x), state))
        right = matmul(flat(x).T, left)
        return (left, right), kept(right, state)

    def decode(payload, like):
        if matrix(like) is None:
            return payload[0]
        left, right = payload
        return matmul(left, right.T).astype(like.dtype).reshape(like.shape)

    def meet(key, state, tree, average):
        leaves, treedef = jax.tree.flatten(tree)
        at = [i for i, x in enumerate(leaves) if matrix(x) is not None]
        first = [wide(x) for x in leaves]  # what is sent whole goes along with the left factors
        for i in at:
            first[i] = matmul(flat(leaves[i]), state[i])
        message, mean = average(first)
        lefts = {i: jnp.linalg.qr(mean[i])[0] for i in at}
        rights = average([matmul(flat(leaves[i]).T, lefts[i]) for i in at])
        state = list(state)
        for i, own, right in zip(at, *rights, strict=True):
            for out, factor in ((message, own), (mean, right)):
                out[i] = matmul(lefts[i], factor.T).reshape(leaves[i].shape)
            state[i] = kept(right, state[i])
        return treedef.unflatten(message), treedef.unflatten(mean), tuple(state)

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
        meet=meet,
    )
