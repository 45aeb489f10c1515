"""Another number of workers: their states moved, and no mass lost on the way."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.checks import whole
from elastic_jax.links import ResendState
from elastic_jax.meter import Running
from elastic_jax.order import relaxed_states
from elastic_jax.workers import WorkerState


def resize(states: WorkerState, workers: int) -> WorkerState:
    """Moves the states of p workers to another number p′ of them.

    All that a worker keeps in floats is linear in its updates, so every new worker gets the mean:

        v′_j = mean_i v_i        h′_j = mean_i h_i        l′_j = mean_i l_i

    and the global iterate stays where it is, `mean_j (v′_j + h′_j) = mean_i (v_i + h_i)` (law 1).
    Updates in flight keep their times of arrival, no residual is longer than the longest was (so
    its bound holds on), and momentum and other averages of the base optimizer are averaged too.
    What pends on the links to a worker (`links.lossy`) is shared out among as many links as there
    are now. What is alike on all workers is copied bit by bit: views after an exchange, counters,
    factors that workers share. Randomness starts anew from the first worker's keys. Of the meter,
    maxima stay maxima and root mean squares are pooled. Simulated clocks are averaged.

    Args:
        states: stacked [p, ...], between two steps; arrays that this process holds whole.
        workers: p′, an int >= 1. For p itself nothing is changed.

    Returns:
        The states, stacked [p′, ...], NumPy arrays (views of one row where workers are alike).

    Raises:
        TypeError: for what is no `WorkerState`.
        ValueError: naming what cannot be moved: integers that differ between workers, floats
            narrower than float32 that differ (their mean would be rounded, and mass lost), and
            states of a mix.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import elastic_jax as ej
        >>> opt = optax.chain(optax.sgd(1.0), ej.error_feedback(ej.top_k(1), axis_name="w"))
        >>> step = ej.worker_step(lambda x, b: jnp.sum(x * b), opt, axis_name="w")
        >>> run = ej.simulate(step, workers=2)
        >>> states, _ = run.step(run.init(jnp.zeros(2)), jnp.array([[4.0, 1.0], [3.0, 2.0]]))
        >>> moved = resize(states, 4)
        >>> print(moved.params.tolist()[3], ej.held(moved.opt_state, moved.params)[3])
        [-3.5, 0.0] [ 0.  -1.5]
    """
    if not isinstance(states, WorkerState):
        raise TypeError(f"states={type(states).__name__} is no WorkerState; pass what init returns")
    workers = whole("workers", workers, "number of workers")
    for part in relaxed_states(states.opt_state):
        if getattr(part.state, "role", "") == "mix":
            raise ValueError(
                f"states hold a {type(part.state).__name__}, a mix: what it keeps about other "
                "workers has no place among another number of them; start anew from the views"
            )
    arrays = jax.tree.map(np.asarray, states)
    stacked = {x.shape[:1] for x in jax.tree.leaves(arrays)}
    if len(stacked) != 1 or () in stacked:
        raise ValueError(
            f"states are stacked {sorted(stacked)}; stack all of them [p, ...], as simulate and "
            "distribute do"
        )
    if stacked == {(workers,)}:
        return arrays

    def move(path, node):
        if isinstance(node, ResendState):
            linked = _relinked(node, workers)
            return jax.tree_util.tree_map_with_path(lambda end, x: move((*path, *end), x), linked)
        if isinstance(node, Running):
            rms = _names(path)[-1] in ("elastic_constant", "second_moment")
            pooled = jax.tree.map(lambda x: _pooled(x, rms), node.mean)
            rest = jax.tree.map(lambda x: x.max(0), (node.max, node.last))
            return jax.tree.map(lambda x: _spread(x, workers), Running(pooled, *rest))
        if "worker_key" in _names(path):
            keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
                jax.random.wrap_key_data(jnp.asarray(node[0])), jnp.arange(workers)
            )
            return np.asarray(jax.random.key_data(keys))
        return _spread(_mean(jax.tree_util.keystr(path), node), workers)

    return jax.tree_util.tree_map_with_path(
        move, arrays, is_leaf=lambda x: isinstance(x, (Running, ResendState))
    )


def _relinked(state: ResendState, workers: int) -> ResendState:
    """Shares out what pends on the links to each worker, [p, p, ...], among p′: [p, p′, ...]."""
    if state.waiting.ndim < 2:  # not drawn link by link
        return state

    def shared_out(x):
        whole = x.sum(axis=1, keepdims=True, dtype=np.float64) / workers
        return np.repeat(whole, workers, axis=1).astype(x.dtype)

    pending, waiting = jax.tree.map(shared_out, (state.pending, state.waiting))
    return state._replace(pending=pending, waiting=waiting)


def _names(path: Any) -> list[str]:
    return [getattr(entry, "name", "") for entry in path]


def _spread(row: Any, workers: int) -> np.ndarray:
    return np.broadcast_to(row, (workers, *np.shape(row)))


def _pooled(x: np.ndarray, rms: bool) -> np.ndarray:
    """The mean over workers of a running mean, or of a running root mean square."""
    y = x.astype(np.float64)
    return (np.sqrt(np.square(y).mean(0)) if rms else y.mean(0)).astype(x.dtype)


def _mean(name: str, x: np.ndarray) -> np.ndarray:
    """The mean of all workers' rows; their common value, bit by bit, where they are alike."""
    rows = np.ascontiguousarray(x).reshape(len(x), -1).view(np.uint8)
    if (rows == rows[:1]).all():
        return x[0]
    if name.endswith(".alarm") and x.dtype == bool:
        return np.asarray(x.any(0))
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"states{name} ({x.dtype}) differs between workers and is no mass that could be "
            "averaged; move the states at a step where it is alike, or restore as many workers"
        )
    if jnp.finfo(x.dtype).bits < 32:
        raise ValueError(
            f"states{name} ({x.dtype}) differs between workers: its mean would be rounded and mass "
            "lost; restore as many workers, or keep it in float32"
        )
    return x.mean(axis=0, dtype=np.float64).astype(x.dtype)
