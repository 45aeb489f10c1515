"""Messages between neighbours: what a worker gets from the others, weighted by a graph's matrix.

All of it returns differences, `Σ_j W_ij (m_j − m_i)`: they are small where messages are near each
other, so that little is rounded, and rows of W sum to one however they are rounded.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.exchange import device_axes, gather, mean, shift, varying, worker_index
from elastic_jax.graphs import Graph, matrices_of
from elastic_jax.precision import wide, zeros
from elastic_jax.types import Compressor
from elastic_jax.wire import Sender, next_key, send


def workers_on(names: tuple[str, ...]) -> int:
    """Returns how many workers stand on some axes."""
    return math.prod(jax.lax.axis_size(name) for name in names)


def pull(messages: Any, names: tuple[str, ...], graph: Graph, now: Any) -> tuple[Any, Any]:
    """Pulls towards the neighbours by the present round of a graph.

    Args:
        messages: this worker's, m_i, a tree of float arrays in the dtypes in which they travel.
        names: the workers' axes, innermost first.
        graph: who gets from whom.
        now: the round, an int32 scalar alike on all workers; anything for a static graph.

    Returns:
        `Σ_j W_ij (m_j − m_i)` in float32 or wider, and the round that is next.
    """
    rounds = matrices_of(graph, workers_on(names))
    turns = [functools.partial(_pull_by, names=names, matrix=matrix) for matrix in rounds]
    if not graph.varies:
        if len(turns) > 1:
            raise ValueError(
                f"graph={graph.name} has {len(turns)} rounds; make it with varies=True"
            )
        return turns[0](messages), now
    at = now
    for name in names:
        if name not in device_axes(names):  # alike on all; says so to vmap, which takes one branch
            at = jax.lax.pmax(at, name)
    pulled = jax.lax.switch(at, turns, varying(messages, names))
    return pulled, (now + 1) % len(turns)


def _offsets(matrix: np.ndarray) -> dict[int, np.ndarray]:
    """The weights of those `o` places on, [p], for the offsets o where there are any."""
    p, here = len(matrix), np.arange(len(matrix))
    weights = {o: matrix[here, (here + o) % p] for o in range(1, p)}
    return {o: w for o, w in weights.items() if w.any()}


def _way(matrix: np.ndarray) -> str:
    p = len(matrix)
    if p > 1 and np.abs(matrix - 1 / p).max() < 1e-12:
        return "mean"
    return "shift" if len(_offsets(matrix)) <= max(2, (p - 1) // 2) else "gather"


def _pull_by(messages: Any, names: tuple[str, ...], matrix: np.ndarray) -> Any:
    """Returns `Σ_j W_ij (m_j − m_i)`; differences, so that nothing cancels where views are near."""
    way = _way(matrix)
    if way == "mean":
        average = mean(jax.tree.map(wide, messages), names)
        return jax.tree.map(lambda a, m: a - wide(m), average, messages)
    if way == "shift":
        return _shifted(messages, messages, names, matrix, lambda message: message)

    def mixed(together, own):
        away = wide(together) - wide(together[:1])  # from the first worker's, alike on all
        row = _at(matrix, names, away.dtype)
        flat = away.reshape(len(matrix), -1)
        pulled = jnp.matmul(row[None], flat, precision=jax.lax.Precision.HIGHEST)
        return pulled.reshape(own.shape) - (wide(own) - wide(together[0]))

    return jax.tree.map(mixed, gather(messages, names), messages)


def _at(weights: np.ndarray, names: tuple[str, ...], dtype: Any) -> jax.Array:
    """This worker's row of an array [p, ...] of weights; a constant where all are alike."""
    if (weights == weights[:1]).all():
        return jnp.asarray(weights[0], dtype)
    return jnp.asarray(weights, dtype)[worker_index(names)]


def _shifted(
    said: Any, own: Any, names: tuple[str, ...], matrix: np.ndarray, decode: Callable[[Any], Any]
) -> Any:
    """Gets what was said at each offset, decodes it, and sums up weighted differences from own."""
    total = zeros(own)
    for offset, weights in _offsets(matrix).items():
        other = decode(shift(said, names, offset))
        total = jax.tree.map(
            lambda t, m, o, w=weights: t + _at(w, names, t.dtype) * (wide(o) - wide(m)),
            total,
            own,
            other,
        )
    return total


def pull_compressed(
    tree: Any, names: tuple[str, ...], matrix: np.ndarray, compressor: Compressor, sender: Sender
) -> tuple[Any, Any, Sender]:
    """Compresses a tree into this worker's message, and pulls towards its neighbours' messages.

    Between devices it is payloads that travel, where they are smaller than what they stand for.

    Args:
        tree: what it has to say, in the dtypes in which it is said.
        names: the workers' axes, innermost first.
        matrix: W [p, p].
        compressor: C.
        sender: this worker's.

    Returns:
        Its message `q = C(tree)`; `Σ_j W_ij (q_j − q_i)`, in float32 or wider; the next sender.
    """
    way = _way(matrix)
    if way == "mean":
        message, average, sender = send(compressor, names, sender, tree)
        return message, jax.tree.map(lambda a, q: a - wide(q), average, message), sender
    key, data = next_key(compressor, sender)
    if not _encodes(compressor, key, sender.state, tree, names):
        message, state = compressor.dense(key, sender.state, tree)
        return message, _pull_by(message, names, matrix), Sender(state, data)
    payload, state = compressor.encode(key, sender.state, tree)
    message = compressor.decode(payload, tree)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)

    def decode(other):
        return compressor.decode(other, like)

    if way == "shift":
        return message, _shifted(payload, message, names, matrix, decode), Sender(state, data)

    def add_next(total, one):
        other, *weight = one
        pulled = jax.tree.map(
            lambda t, q, o: t + weight[0].astype(t.dtype) * (wide(o) - wide(q)),
            total,
            message,
            decode(other),
        )
        return pulled, None

    row = _at(matrix, names, None)
    start = varying(zeros(message), names)
    change, _ = jax.lax.scan(add_next, start, (gather(payload, names), row))
    return message, change, Sender(state, data)


def _encodes(
    compressor: Compressor, key: Any, state: Any, tree: Any, names: tuple[str, ...]
) -> bool:
    """Whether payloads travel: between devices, and where they are smaller than the message."""
    if not device_axes(names):
        return False
    try:
        payload, _ = jax.eval_shape(compressor.encode, key, state, tree)
    except ValueError:  # a traced amount has no payload
        return False
    return _bytes(payload) < _bytes(tree)


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
