"""The k largest entries of an array by magnitude: exact, deterministic, with `k` traced.

A sort moves every entry; here nothing moves. With b the bits of |x| read as an unsigned integer
(their order is the order of |x|) a threshold t with #{i : b_i ≥ t} = k *is* the selection, and a
count is one vectorised pass over memory. Long arrays make the passes short: a strided sample
brackets t, each entry is coded in one byte as its place in the bracket, and the passes run over
the bytes; the class that holds t is the next bracket. A sample that misleads costs a round, never
the answer. Equal entries at the threshold are ordered in the same way, by index.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

_SHORT = 1 << 15  # up to this length the passes run over the bits themselves
_SAMPLE = 1 << 13  # about how many entries bracket the threshold of a long array
_SIGMAS = 3.0  # half-width of the bracket, in standard deviations of the sample's rank


def magnitude(x: Array) -> Array:
    """Unsigned integers in the order of |x|; NaN counts as infinite.

    Args:
        x: Floats of any width, or unsigned integers of which the highest bit is clear; those are
            returned as they are.

    Returns:
        The bits of |x|, in the unsigned type of the same width and the same shape.

    Example:
        >>> magnitude(jnp.array([-2.0, 0.5, -0.0])).argsort()
        Array([2, 1, 0], dtype=int32)
    """
    if jnp.issubdtype(x.dtype, jnp.unsignedinteger):
        return x
    bits = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    infinity = lax.bitcast_convert_type(jnp.asarray(jnp.inf, x.dtype), bits)
    return jnp.minimum(lax.bitcast_convert_type(jnp.abs(x), bits), infinity)


def top_mask(x: Array, k: ArrayLike) -> Array:
    """Marks the k largest |x|; of equal entries those of lowest index.

    Args:
        x: Floats, or the `magnitude` of floats. # [d]
        k: Entries to mark, an int or a traced int32; taken as 0 below 0 and as d above d.

    Returns:
        Booleans, exactly k of them True. # [d]

    Example:
        >>> top_mask(jnp.array([1.0, -3.0, 2.0, -2.0]), 2)
        Array([False,  True,  True, False], dtype=bool)
    """
    return _select(x, k, zeros=True)


def top_indices(x: Array, k: int) -> Array:
    """The indices that `top_mask` marks, ascending.

    Args:
        x: Floats, or the `magnitude` of floats. # [d]
        k: How many, 0 ≤ k ≤ d.

    Returns:
        int32. # [k]

    Example:
        >>> top_indices(jnp.array([1.0, -3.0, 2.0, -2.0]), 2)
        Array([1, 2], dtype=int32)
    """
    if not k:
        return jnp.zeros(0, jnp.int32)
    # Ranks are counted in words of 32 marks: a running sum is the slowest of passes.
    mask = top_mask(x, k)
    bit = jnp.arange(32, dtype=jnp.uint32)[None]
    marks = jnp.pad(mask, (0, -len(mask) % 32)).reshape(-1, 32).astype(jnp.uint32)
    words = jnp.sum(marks << bit, axis=1, dtype=jnp.uint32)
    count = lax.population_count(words).astype(jnp.int32)
    end = jnp.cumsum(count)
    rank = jnp.arange(k, dtype=jnp.int32)
    word = jnp.searchsorted(end, rank, side="right").astype(jnp.int32)
    rank_in_word = rank - (end - count)[word]
    up_to = words[word][:, None] & ((jnp.uint32(2) << bit) - jnp.uint32(1))  # [k, 32]
    before = lax.population_count(up_to).astype(jnp.int32) <= rank_in_word[:, None]
    return 32 * word + jnp.sum(before, axis=1, dtype=jnp.int32)


def dense_top_k(x: Array, k: ArrayLike) -> Array:
    """`x` where it is among the k largest, 0 elsewhere: where(top_mask(x, k), x, 0).

    Args:
        x: Floats. # [d]
        k: Entries to keep, an int or a traced int32.

    Returns:
        An array like `x`. # [d]

    Example:
        >>> dense_top_k(jnp.array([1.0, -3.0, 2.0, -2.0]), 2)
        Array([ 0., -3.,  2.,  0.], dtype=float32)
    """
    # Which zeros are kept makes no difference, so those are not told apart.
    return jnp.where(_select(x, k, zeros=False), x, jnp.zeros((), x.dtype))


def _select(x: Array, k: ArrayLike, zeros: bool) -> Array:
    """The mask. Without `zeros`, a threshold of zero ends the search and marks everything."""
    x = _whole(x)
    (d,) = x.shape
    uint = jnp.dtype(jnp.uint64 if x.dtype.itemsize == 8 else jnp.uint32)
    zero, one = uint.type(0), uint.type(1)
    top = uint.type(1 << (8 * x.dtype.itemsize - 1))  # above every magnitude
    # Added to what the loops start from: zero, but under shard_map as much each device's own as x.
    nil = jnp.sum(magnitude(x[:1]).astype(jnp.int32), dtype=jnp.int32) & 0
    k = jnp.clip(jnp.asarray(k, jnp.int32), 0, d) + nil

    def keys(x, pivot, ties):  # the magnitudes; where `ties` is d, the order of the pivot's equals
        bits = magnitude(x).astype(uint)
        order = jnp.where(bits == pivot, ties - lax.iota(uint, d), zero)
        return jnp.where(ties > 0, jnp.where(bits > pivot, uint.type(d + 1), order), bits)

    def unfinished(state):
        low, high, _, _, n, _, ties, _ = state
        return (n != k) & ((high - low > 1) | (ties == 0) & (zeros | (low > 0)))

    def body(state):  # threshold in [low, high), likely in [first, last); n entries ≥ low
        low, high, first, last, n, pivot, ties, guess = state
        # Without the barrier XLA would compute keys' parts ahead of the loop, and store them.
        y, pivot, ties = lax.optimization_barrier((x, pivot, ties))
        y = keys(y, pivot, ties)
        if d <= _SHORT:
            low, high, n, _ = _search(y, k, low, high, n)
        else:
            wide = 8 * uint.itemsize - 8 - lax.clz(last - first).astype(jnp.int32)
            shift = jnp.maximum(wide, 0).astype(uint)
            base = jnp.maximum(first - jnp.minimum(first, one << shift), low)
            code = jnp.minimum((jnp.maximum(y, base) - base) >> shift, uint.type(255))
            code = code.astype(jnp.uint8)
            found, _, n, guess = _search(code, k, jnp.int32(0), jnp.int32(256), jnp.int32(d), guess)
            edge = base + (found.astype(uint) << shift)
            high = jnp.where(found == 255, high, jnp.minimum(high, edge + (one << shift)))
            low = jnp.where(found == 0, low, edge)
        tied = (n != k) & (high - low == 1) & (ties == 0) & (zeros | (low > 0))
        pivot = jnp.where(tied, low, pivot)
        ties = jnp.where(tied, uint.type(d), ties)
        low, high = jnp.where(tied, zero, low), jnp.where(tied, uint.type(d + 2), high)
        return low, high, low, high, jnp.where(tied, d, n), pivot, ties, guess

    first, last, guess = (zero, top, None) if d <= _SHORT else _bracket(x, k, uint, top)
    state = zero, top, first, last, jnp.int32(d), zero, zero
    state = (*(value + nil.astype(value.dtype) for value in state), guess)
    low, _, _, _, _, pivot, ties, _ = lax.while_loop(unfinished, body, state)
    bits = magnitude(x).astype(uint)
    cut = jnp.where(ties > 0, jnp.int32(d) - low.astype(jnp.int32), d)  # the last equal to mark
    pivot = jnp.where(ties > 0, pivot, low)
    return (bits > pivot) | (bits == pivot) & (lax.iota(jnp.int32, d) <= cut)


def _whole(x: Array) -> Array:
    """Has `x` whole on each device where some mesh axes are manual and XLA shards over others.

    Workers leave the loops below after passes of their own number: a collective inside, which XLA
    would put there for a sharded `x`, might wait for a device that is through.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.manual_axes or not mesh.auto_axes:
        return x
    return lax.with_sharding_constraint(x, jax.sharding.PartitionSpec())


def _bracket(x: Array, k: Array, uint: jnp.dtype, top: Array):
    """Keys that likely enclose the threshold, from a sample, and by how many entries they miss."""
    sample = magnitude(x[:: (x.size // _SAMPLE) | 1]).astype(uint)  # odd: few periods divide it
    m = sample.size
    rank = k.astype(jnp.float32) * (m / x.size)
    margin = _SIGMAS * jnp.sqrt(rank * (1 - rank / m)) + 1
    ranks = jnp.clip(jnp.stack([jnp.ceil(rank + margin), rank - margin]), 0, m).astype(jnp.int32)
    search = jax.vmap(lambda r: _search(sample, r, uint.type(0), top, jnp.int32(m))[0])
    first, last = search(ranks)
    first = jnp.where(ranks[0] < m, first, uint.type(0))
    last = jnp.where(ranks[1] > 0, jnp.maximum(first, last) + uint.type(1), top)
    return first, last, (margin * (x.size / m), margin * (x.size / m), k & 0)


def _search(y: Array, k: Array, low: Array, high: Array, n: Array, guess=None):
    """Finds t in [low, high) with #{y ≥ t} = k or, where ties leave none, the last with more.

    Args:
        y: Unsigned integers. # [d]
        k: The count wanted.
        low: Least t; `n` counts the entries from there on.
        high: Has fewer than k entries from there on.
        n: #{y ≥ low}.
        guess: The excess over k at `low`, what k lacks at `high`, both as guessed, and the passes
            so far: two passes in three interpolate between them. None bisects.

    Returns:
        t, a bound above it, #{y ≥ t}, and the guess brought up to date.
    """

    def body(state):
        low, high, n, guess = state
        t = low + (high - low) // 2
        if guess is not None:
            share = guess[0] / (guess[0] + guess[1])
            line = low + ((high - low).astype(jnp.float32) * share).astype(low.dtype)
            t = jnp.where(guess[2] % 3 == 2, t, jnp.clip(line, low + 1, high - 1))
        count = _count(y, t.astype(y.dtype))
        enough = count >= k
        if guess is not None:
            excess = (count - k).astype(jnp.float32) + 0.5
            over, under, passes = guess
            guess = jnp.where(enough, excess, over), jnp.where(enough, under, -excess), passes + 1
        low, high = jnp.where(enough, t, low), jnp.where(enough, high, t)
        return low, high, jnp.where(enough, count, n), guess

    low, high, n = (value + (k & 0).astype(value.dtype) for value in (low, high, n))
    return lax.while_loop(
        lambda state: (state[1] - state[0] > 1) & (state[2] != k), body, (low, high, n, guess)
    )


def _count(y: Array, t: Array) -> Array:
    """#{y ≥ t}. XLA for CPU vectorises a sum of arrays, but not the sum over a fused array."""
    total, rest = _fold(y, lambda piece: (piece >= t).astype(y.dtype))
    if y.size > _SHORT:
        total, more = _fold(total, lambda piece: piece.astype(jnp.int32))
        rest += more
    return jnp.sum(total.astype(jnp.int32), dtype=jnp.int32) + rest


def _fold(y: Array, f: Callable[[Array], Array]) -> tuple[Array, Array]:
    """The sum of f over 16 pieces of y (whole cache lines, if long), and that over the rest."""
    parts, line = 16, 64 if y.size > _SHORT else 1
    width = y.size // (parts * line) * line
    total = f(y[:width])
    for i in range(1, parts):
        total += f(y[i * width : (i + 1) * width])
    return lax.optimization_barrier(total), jnp.sum(f(y[parts * width :]), dtype=jnp.int32)
