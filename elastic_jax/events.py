"""Asynchronous SGD, event by event: a trace of who applied what, executed by one scan.

Single steps: at each tick one worker applies its whole update `u = -alpha G̃(view)` (not divided by
p), computed on the version of the parameters that it had read. The executed program is exact for
any trace, its memory is p·(parameters + worker state), and a tick costs the same for any p: one
row of views is written and one read.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from elastic_jax.checks import whole
from elastic_jax.mass import lost
from elastic_jax.order import (
    Passage,
    check_apart,
    pass_through,
    proposals,
    record_passages,
    relaxed_states,
)
from elastic_jax.precision import add, squared_norm, wide, wider
from elastic_jax.traces import Schedule
from elastic_jax.workers import fold_in_worker


class EventState(NamedTuple):
    """State of an asynchronous run between ticks."""

    params: optax.Params  # the server's parameters, where the next reader's view is taken
    server_state: optax.OptState
    worker_states: optax.OptState  # [p, ...]
    views: Any  # [slots + 1, ...] each, versions that some worker still computes on
    tick: chex.Array  # int32 [], updates applied so far
    written: chex.Array  # int32 [slots + 1], at which tick each of the views was taken
    away: Any  # x - params, all that is held, carried along by law 1; () where it is not measured


class Ticks(NamedTuple):
    """What happened at each tick; arrays [T].

    Attributes:
        loss: at the applying worker's view and batch.
        gap: `||x - view||²` just before it applies: B̂ is its root by alpha. NaN if not measured.
        moment: `||u||²`, of the base optimizer's proposal: M̂ is its root by alpha. Likewise.
    """

    loss: chex.Array  # at the applying worker's view and batch
    gap: chex.Array  # ||x - view||² just before it applies; NaN where not measured
    moment: chex.Array  # ||u||², squared norm of the base optimizer's proposal; likewise


class Asynchronous(NamedTuple):
    """An asynchronous run as two pure functions.

    Attributes:
        init: `(params, workers, slots) -> EventState`; slots from `Schedule.slots`, default p.
        run: `(EventState, Schedule, batches) -> (EventState, Ticks)`, one compiled `lax.scan` over
            the ticks of the schedule (or of a slice of it); batches stacked [T, ...].
    """

    init: Callable[..., EventState]
    run: Callable[[EventState, Schedule, Any], tuple[EventState, Ticks]]


def asynchronous(
    loss_fn: Callable[[optax.Params, Any], chex.Array],
    optimizer: optax.GradientTransformation,
    server: optax.GradientTransformation | None = None,
    *,
    measure: bool = True,
) -> Asynchronous:
    """Makes the executor of asynchronous SGD on a trace.

    Updates are applied whole, not divided by p, so that what p workers hold adds up: with feedback
    at the workers `B = (pβ + τ)M`, β = √γ/(1 − √γ), τ the trace's longest delay; `B = τM` without.
    (`theory.Chain` is for parallel steps, where it is divided.)

    Args:
        loss_fn: `(params, batch) -> loss`, a float scalar.
        optimizer: each worker's chain, base → relaxation*; every worker has its own state, whose
            counters count that worker's steps. Its update is told `staleness` (how many updates
            were applied since the view was taken) and `server_params`, as they are now.
        server: a chain that the server applies to each arriving message; None applies it as it is.
        measure: carry x - params along and report the gap and the size of proposals at
            every tick, for one pass over the parameters. (Where a whole gradient is elementwise,
            measuring it may change how XLA fuses it, and so its last bit.)

    Returns:
        The executor. Executing a trace in slices gives the bits of executing it at once.

    Raises:
        ValueError: if a chain exchanges between workers (here the server's parameters are the
            exchange), if `absorb` stands at a worker, or if something is to be measured whose
            held mass is no distance of parameters; then pass `measure=False`.

    Example:
        >>> import jax.numpy as jnp, numpy as np, optax
        >>> import elastic_jax as ej
        >>> trace = ej.draw_trace([ej.speeds.constant()] * 3, ticks=6)
        >>> loss = lambda x, batch: jnp.sum(x)  # gradient 1 everywhere
        >>> run = ej.asynchronous(loss, optax.sgd(1.0))
        >>> state, ticks = run.run(run.init(jnp.zeros(1), workers=3), trace.schedule(), np.zeros(6))
        >>> print(state.params, trace.delay, jnp.sqrt(ticks.gap))
        [-6.] [0 1 2 2 2 2] [0. 1. 2. 2. 2. 2.]
    """
    server = pass_through() if server is None else server
    server = optax.with_extra_args_support(server)
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params, workers, slots=None):
        workers = whole("workers", workers, "number of workers")
        rows = 1 + (workers if slots is None else whole("slots", slots, "number of rows"))
        state = optimizer.init(params)
        server_state = server.init(params)
        check_apart(state, server_state)
        return EventState(
            jax.tree.map(jnp.copy, params),  # the caller's own may be donated elsewhere
            fold_in_worker(server_state, workers),
            jax.vmap(fold_in_worker, in_axes=(None, 0))(state, jnp.arange(workers)),
            jax.tree.map(lambda leaf: jnp.zeros((rows, *leaf.shape), leaf.dtype), params),
            jnp.zeros((), jnp.int32),
            jnp.zeros(rows, jnp.int32),
            jax.tree.map(lambda leaf: jnp.zeros_like(wide(leaf)), params) if measure else (),
        )

    def tick(carry, now):
        (params, server_state, stack, views, time, written, away), (last_worker, last_state) = carry
        worker, write, read, batch = now
        # rows are written at the start of a tick and never between two uses of the stack, so that
        # the scan can do it in place
        stack = _set_row(stack, last_worker, last_state)
        views = _set_row(views, write, params)
        written = _set_row(written, write, time)
        worker_state, view = _row(stack, worker), _row(views, read)
        gap = moment = jnp.float32(jnp.nan)
        if measure:
            gap = _squared_norm(
                jax.tree.map(lambda a, x, v: a + (wide(x) - wide(v)), away, params, view)
            )
        loss, pull_back = jax.vjp(lambda view: loss_fn(view, batch), view)
        if jnp.shape(loss):
            raise TypeError(f"loss_fn returned shape {jnp.shape(loss)}; return a scalar")
        # the gradient waits for the gap, so that params and away can then be updated in place
        (grads,) = pull_back(jnp.where(measure & jnp.isnan(gap), jnp.nan, jnp.ones_like(loss)))
        with record_passages() as passages:
            message, worker_state_new = optimizer.update(
                grads, worker_state, view, staleness=time - written[read], server_params=params
            )
        with record_passages() as server_passages:
            updates, server_state_new = server.update(message, server_state, params)
        params_new = optax.apply_updates(params, updates)
        if measure:
            proposed = _proposed(passages, message, server_passages, updates)
            moment = _squared_norm(proposed)
            away = jax.tree.map(_move, away, proposed, updates, params, params_new)
            for before, now in ((worker_state, worker_state_new), (server_state, server_state_new)):
                if any(hasattr(found.state, "lost") for found in relaxed_states(now)):
                    away = jax.tree.map(
                        lambda a, old, new: add(a, add(old, -new)),
                        away,
                        lost(before, params),
                        lost(now, params),
                    )
        main = params_new, server_state_new, stack, views, time + 1, written, away
        new = main, (worker, worker_state_new)
        return new, Ticks(loss, gap, moment)

    def run(state, schedule, batches):
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule is a {type(schedule).__name__}; pass trace.schedule()")
        ticks = len(schedule.worker)
        if not ticks:
            raise ValueError("schedule has no ticks; pass a slice of at least one")
        for leaf in jax.tree.leaves(batches):
            if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != ticks:
                raise ValueError(
                    f"batches hold an array of shape {jnp.shape(leaf)}; stack one batch for each "
                    f"of the {ticks} ticks of the schedule along the first axis"
                )
        rows, workers = _room(state)
        # under the caller's own jit neither is known here; then `execute` answers with NaN
        if not isinstance(schedule.worker, jax.Array) and schedule.worker.max() >= workers:
            raise ValueError(
                f"schedule has a worker {schedule.worker.max()} but state has workers={workers}; "
                "pass workers=trace.workers to init"
            )
        if not isinstance(schedule.slots, jax.Array) and schedule.slots >= rows:
            raise ValueError(
                f"schedule needs slots={schedule.slots} but state has room for {rows - 1}; pass "
                "slots=schedule.slots to init"
            )
        return execute(state, schedule, batches)

    @jax.jit
    def execute(state, schedule, batches):
        rows, workers = _room(state)
        worker, write, read = map(jnp.asarray, schedule[:3])
        fits = (jnp.asarray(schedule.slots) < rows) & (worker.max() < workers)
        state = state._replace(
            params=jax.tree.map(lambda leaf: jnp.where(fits, leaf, jnp.nan), state.params)
        )
        write = jnp.where(write == schedule.slots, rows - 1, write)  # the spare row is the last
        carry = tuple(state), (worker[0], _row(state.worker_states, worker[0]))
        (main, pending), out = jax.lax.scan(tick, carry, (worker, write, read, batches))
        state = EventState(*main)
        return state._replace(worker_states=_set_row(state.worker_states, *pending)), out

    return Asynchronous(init, run)


def _squared_norm(tree: Any) -> jax.Array:
    """Joins a tree to one vector first: a kernel for each small leaf costs more than the pass."""
    leaves = [jnp.ravel(wide(leaf)) for leaf in jax.tree.leaves(tree)]
    dtype = functools.reduce(wider, (leaf.dtype for leaf in leaves), jnp.float32)
    return squared_norm(jnp.concatenate([leaf.astype(dtype) for leaf in leaves]))


def _move(away: Any, proposed: Any, update: Any, old: Any, new: Any) -> jax.Array:
    """Moves x - params on: x by the proposal, a leaf of params by the server's update."""
    if wide(new).dtype != new.dtype:  # rounded to a narrow dtype: by what it really moved
        return add(away, proposed) - (wide(new) - wide(old))
    return away if proposed is update else add(away, add(proposed, -update))


def _room(state: EventState) -> tuple[int, int]:
    """Rows for views, and workers; a state without arrays serves any number of workers."""
    stacks = jax.tree.leaves(state.worker_states)
    return len(jax.tree.leaves(state.views)[0]), len(stacks[0]) if stacks else 2**31 - 1


def _row(stack: Any, index: chex.Array) -> Any:
    row = jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), stack
    )
    # a read fused with the write before it needs the old stack too, and XLA would copy all of it
    return jax.lax.optimization_barrier(row)


def _set_row(stack: Any, index: chex.Array, row: Any) -> Any:
    return jax.tree.map(
        lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, index, 0), stack, row
    )


def _proposed(
    passages: list[Passage], message: Any, server_passages: list[Passage], updates: Any
) -> Any:
    proposed = proposals(passages, message)
    arrived = proposals(server_passages, updates)
    sent = {id(leaf) for leaf in jax.tree.leaves(message)}
    if (
        proposed is None
        or arrived is None
        or any(id(leaf) not in sent for leaf in jax.tree.leaves(arrived))
    ):
        raise ValueError(
            "optimizer or server changes updates after a relaxation (a base optimizer at the "
            "server, or a relaxation before the worker's base): held mass is then no distance of "
            "parameters and there is no gap to measure; pass measure=False"
        )
    return proposed
