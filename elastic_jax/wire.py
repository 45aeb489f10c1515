"""What crosses the wire: compressed messages, averaged over the workers.

Under `jax.vmap` there is no wire, and the mean of the decompressed messages costs the least. Where
an axis is one of devices (`jax.shard_map`, `jax.pmap`) one of three things crosses it, whichever
is the least by arithmetic when the program is traced:

    gather   every device sends its workers' payloads to all, and each decodes them all
    reduce   payloads that may be averaged as they are (see `Compressor.linear`) are
    dense    decompressed messages are averaged, where payloads would be no smaller

Some compressors need their workers to meet (see `Compressor.meet`): theirs is always

    reduce   what they average, in float32
    scatter  or in bfloat16 or float16: each worker averages its part of all, and sends the rounded
             mean to the others. No sum is taken in a narrow dtype, by which mass would be lost
             unseen, and whoever rounds a mean keeps what that drops.

Every device decodes the same payloads in the same order, so all compute the same mean, bit by bit.
(A scatter that adds would be faster, but on a GPU its order is not fixed: views would drift apart.)
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from elastic_jax.checks import whole
from elastic_jax.exchange import (
    AxisName,
    alike,
    axis_names,
    bits_dtype,
    device_axes,
    mean,
    means,
    shard_axes,
    varying,
)
from elastic_jax.precision import plus, wide, wide_dtype
from elastic_jax.types import Compressor


class Wire(NamedTuple):
    """How messages are averaged between devices, and what that costs a device each step."""

    kind: str  # gather | reduce | scatter | dense
    nbytes: int  # bytes that it hands to the collectives
    sent: int  # bytes that it then sends, with devices in a ring


def wire(compressor: Compressor, like: Any, workers: int, *, on_each: int = 1) -> Wire:
    """Says how a step's messages cross the wire, and how many bytes that takes.

    With n devices in a ring, gathering b bytes from each sends (n-1) b from each; reducing b bytes
    sends 2 (n-1)/n b, and so does a scatter of b bytes, of which each device then gathers its part:
    its collectives get (1 + 1/n) b. The kind that sends the fewest bytes is taken, for the whole
    tree at once.
    Devices on several axes are counted as if on one; collectives then go over one axis at a time.

    Args:
        compressor: as given to `error_feedback`, `compress` or `ef21` with an `axis_name`.
        like: a tree of arrays or `ShapeDtypeStruct`s, shaped like the updates.
        workers: p, an int >= 1.
        on_each: how many of them one device simulates; a divisor of p.

    Returns:
        A `Wire`. Means are reduced in float32 or wider, payloads gathered in their own dtypes. A
        compressor whose amount is a JAX array has no payload: it is dense.

    Raises:
        ValueError: for numbers of workers that are no ints >= 1, or do not divide.

    Example:
        >>> import jax.numpy as jnp
        >>> from elastic_jax import identity, low_rank, sign, top_k
        >>> gradient = jnp.zeros((1000, 1000))
        >>> for compressor in (top_k(0.01), sign(), top_k(0.5), low_rank(2), identity("bfloat16")):
        ...     print(*wire(compressor, gradient, workers=8))
        gather 80000 560000
        gather 125004 875028
        dense 4000000 7000000
        reduce 16000 28000
        scatter 2250000 3500000
    """
    if not isinstance(compressor, Compressor):
        raise TypeError(
            f"compressor={compressor!r} is no Compressor; pass one, as in wire(top_k(0.01), …)"
        )
    workers = whole("workers", workers, "number of workers")
    on_each = whole("on_each", on_each, "number of workers")
    if workers % on_each:
        raise ValueError(f"on_each={on_each} does not divide workers={workers}; pass a divisor")
    key = jax.random.key(0)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype), like)
    state = jax.eval_shape(compressor.init, key, shapes)
    return _cheapest(compressor, key, state, shapes, workers // on_each, on_each)


def _ring(kind: str, nbytes: int, devices: int) -> Wire:
    return Wire(kind, nbytes, -(-2 * (devices - 1) * nbytes // devices))


def _cheapest(
    compressor: Compressor, key: Any, state: Any, tree: Any, devices: int, on_each: int
) -> Wire:
    if compressor.meet is not None:
        return _met(compressor.meet, key, state, tree, devices, on_each)
    ways = [_ring("dense", _wide_bytes(tree), devices)]
    try:
        payload, _ = jax.eval_shape(compressor.encode, key, state, tree)
    except ValueError:  # a traced amount; whatever else is wrong, the dense path says too
        return ways[0]
    if compressor.linear:
        ways.append(_ring("reduce", _wide_bytes(payload), devices))
    nbytes = on_each * sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(payload))
    ways.append(Wire("gather", nbytes, (devices - 1) * nbytes))
    return min(ways, key=lambda way: way.sent)


def _met(
    meet: Callable[..., Any], key: Any, state: Any, tree: Any, devices: int, on_each: int
) -> Wire:
    """What the arrays that meeting workers average cost; see `means`."""
    said, gathered = 0, 0

    def note(arrays):
        nonlocal said, gathered
        floats = [x for x in arrays if _is_float(x)]
        for dtype in {x.dtype for x in floats}:
            size = sum(x.size for x in floats if x.dtype == dtype)
            if on_each > 1 or wide_dtype(dtype) == dtype:
                said += size * wide_dtype(dtype).itemsize
            else:
                part = -(-size // devices) * dtype.itemsize
                said, gathered = said + devices * part, gathered + part
        averaged = [wide(x) if _is_float(x) else x for x in arrays]
        return averaged, averaged

    jax.eval_shape(lambda *args: meet(*args, note), key, state, tree)
    way = _ring("scatter" if gathered else "reduce", said, devices)
    return way._replace(nbytes=said + gathered)


def _wide_bytes(tree: Any) -> int:
    """Bytes of the floats in a tree, in the dtypes in which they are averaged."""
    floats = filter(_is_float, jax.tree.leaves(tree))
    return sum(math.prod(x.shape) * wide_dtype(x.dtype).itemsize for x in floats)


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


# ---- messages ----


class Sender(NamedTuple):
    """A compressor's own memory and its worker's randomness."""

    state: Any
    worker_key: Any  # key data [2] uint32; () where the compressor is deterministic


def new_sender(compressor: Compressor, seed: int, params: optax.Params) -> Sender:
    """Makes a sender; every worker starts with the same (see `fold_in_worker`)."""
    key, start = jax.random.split(jax.random.key(seed))
    data = jax.random.key_data(key)
    return Sender(compressor.init(start, params), () if compressor.deterministic else data)


def next_key(compressor: Compressor, sender: Sender) -> tuple[Any, Any]:
    """Returns the key of this step's message, and the key data to keep."""
    if compressor.deterministic:
        return jax.random.key(0), sender.worker_key  # ignored
    carry, key = jax.random.split(jax.random.wrap_key_data(sender.worker_key))
    return key, jax.random.key_data(carry)


def send(
    compressor: Compressor, axis_name: AxisName | None, sender: Sender, tree: Any
) -> tuple[Any, Any, Sender]:
    """Compresses a tree into this worker's message, and averages messages over the workers.

    Args:
        compressor: C.
        axis_name: the workers' axis or axes, innermost first; None for one worker.
        sender: this worker's.
        tree: what it has to say, y, in the dtypes in which it is said.

    Returns:
        Its message `m = C(y) = decode(encode(y))`, in the dtypes of `tree` (or, where workers meet,
        in float32 or wider); the mean of all workers' messages, the same on all, in float32 or
        wider; the sender for the next step.
    """
    key, data = next_key(compressor, sender)
    names = () if axis_name is None else axis_names(axis_name)
    if names and compressor.meet is not None:
        average = functools.partial(means, axis_name=names)
        message, middle, state = compressor.meet(key, sender.state, tree, average)
        return message, middle, Sender(state, data)
    wires = device_axes(names)
    kind = "dense"
    if wires:
        devices = math.prod(jax.lax.axis_size(name) for name in wires)
        workers = math.prod(jax.lax.axis_size(name) for name in names)
        kind = _cheapest(compressor, key, sender.state, tree, devices, workers // devices).kind
    if kind == "dense":
        message, state = compressor.dense(key, sender.state, tree)
        average = mean(jax.tree.map(wide, message), names) if names else message
        return message, average, Sender(state, data)
    payload, state = compressor.encode(key, sender.state, tree)
    message = compressor.decode(payload, tree)
    if kind == "reduce":
        average = compressor.decode(_reduced(payload, names), jax.eval_shape(_wide_tree, tree))
    else:
        average = _mean_of_gathered(compressor, payload, tree, names)
    return message, average, Sender(state, data)


def _wide_tree(tree: Any) -> Any:
    return jax.tree.map(wide, tree)


def _reduced(payload: Any, names: tuple[str, ...]) -> Any:
    """Averages the floats of a payload; the rest of it is the same on every worker."""
    return jax.tree.map(
        lambda x: mean(wide(x), names) if _is_float(x) else alike(x, names), payload
    )


def _mean_of_gathered(
    compressor: Compressor, payload: Any, tree: Any, names: tuple[str, ...]
) -> Any:
    """Gathers all payloads, decodes each and averages, in the order of the workers."""
    buffers, unpack = _pack(payload, names)
    wires = device_axes(names)
    for name in names:  # the innermost first: those of simulated workers never touch the wire
        if name in wires:
            buffers = [jax.lax.all_gather(varying(x, name), name, to="invarying") for x in buffers]
        else:
            buffers = [jax.lax.all_gather(x, name) for x in buffers]
    workers = math.prod(jax.lax.axis_size(name) for name in names)
    buffers = [x.reshape(workers, x.shape[-1]) for x in buffers]
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)

    def message(packed):
        return _wide_tree(compressor.decode(unpack(packed), like))

    def add_next(total, packed):
        return plus(total, message(packed)), None

    # from the first message, not from zeros: JAX knows of it along which axes it varies
    first, others = [x[0] for x in buffers], [x[1:] for x in buffers]
    total, _ = jax.lax.scan(add_next, message(first), others, length=workers - 1)
    return jax.tree.map(lambda t: t / workers, total)


# ---- payloads as few flat arrays ----


def _pack(payload: Any, names: tuple[str, ...]) -> tuple[list[jax.Array], Callable[..., Any]]:
    """Makes one flat array of all numbers of a width: a collective each, in place of many.

    Returns:
        The arrays, and a function from such arrays to a payload like this one.
    """
    leaves, treedef = jax.tree.flatten(payload)
    groups: dict[Any, list[jax.Array]] = {}
    places = []
    for x in leaves:
        bits = x.astype(jnp.uint8) if x.dtype == bool else x
        bits = jax.lax.bitcast_convert_type(bits, bits_dtype(x))
        kind = bits.dtype, shard_axes(x, names)
        group = groups.setdefault(kind, [])
        places.append((kind, sum(part.size for part in group), x.shape, x.dtype))
        group.append(jnp.ravel(bits))

    def unpack(buffers):
        of, out = dict(zip(groups, buffers, strict=True)), []
        for kind, start, shape, dtype in places:
            bits = of[kind][start : start + math.prod(shape)].reshape(shape)
            is_bool = jnp.issubdtype(dtype, jnp.bool_)
            cast = jnp.astype if is_bool else jax.lax.bitcast_convert_type
            out.append(cast(bits, dtype))
        return treedef.unflatten(out)

    return [jnp.concatenate(parts) for parts in groups.values()], unpack
