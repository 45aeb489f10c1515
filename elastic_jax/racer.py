"""What happens inside a worker's process: its compiled program, and its race."""

import multiprocessing
import os
import pickle
import select
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

from elastic_jax.mass import held, lost
from elastic_jax.order import proposals, record_passages, relaxed_states
from elastic_jax.precision import squared_norm, wide_dtype
from elastic_jax.recording import Task
from elastic_jax.shared import NOTE, Blocks, Layout, LockFree, Memory, Update
from elastic_jax.workers import fold_in_worker

REFUSALS = 100  # gradients that are not finite, in a row: this worker will not find another


class Functions(NamedTuple):
    """A task on flat vectors, to be traced."""

    init: Callable[[int], optax.OptState]  # of a worker
    step: Callable[..., Any]  # (view, state, batch) -> message, state, numbers [3], moved
    server_init: Callable[[], optax.OptState]
    serve: Callable[..., Any]  # (message, params, state, late) -> update, state, moved, moment
    mass: Callable[[optax.OptState], Any]  # of any of them -> held, lost


class Program(NamedTuple):
    """The same, compiled once; the server's state is bytes, which lie beside the parameters."""

    init: Callable[[int], optax.OptState]
    step: Callable[..., Any]
    serve: Callable[..., Any] | None  # (Update, params, bytes, late) -> what it makes of it, bytes
    unpack: Callable[[np.ndarray], optax.OptState]  # of the server's bytes
    mass: Callable[[optax.OptState], Any]


def functions(task: Task, start: np.ndarray, gap: bool) -> Functions:
    """Writes a task in terms of flat vectors.

    Args:
        task: what to do.
        start: the first parameters, [n].
        gap: whether what is held is to be carried along, so that the gap can be measured.
    """
    unravel = jax.flatten_util.ravel_pytree(task.params)[1]
    optimizer = optax.with_extra_args_support(task.optimizer)
    server = optax.with_extra_args_support(task.server or optax.identity())
    dtype, sums = start.dtype, wide_dtype(start.dtype)
    params = unravel(jnp.array(start))
    holds = any(True for _ in relaxed_states(jax.eval_shape(task.optimizer.init, params)))

    def flat(tree, dtype):
        return jnp.concatenate([jnp.ravel(leaf).astype(dtype) for leaf in jax.tree.leaves(tree)])

    def moved(new, old, params):
        if not gap or not any(True for _ in relaxed_states(new)):
            return jnp.zeros(0, sums)
        return flat(held(new, params), sums) - flat(held(old, params), sums)

    def step(view, state, batch):
        params = unravel(view)
        loss, grads = jax.value_and_grad(task.loss)(params, batch)
        with record_passages() as passages:
            updates, new = optimizer.update(grads, state, params)
        proposed = proposals(passages, updates)
        if proposed is None:
            _refuse_gap(gap, "optimizer changes updates after a relaxation")
            proposed = updates
        message = flat(updates, dtype)
        numbers = (loss, jnp.sqrt(squared_norm(message)), squared_norm(flat(proposed, sums)))
        numbers = jnp.stack([number.astype(jnp.float32) for number in numbers])
        fine = jnp.isfinite(numbers).all() & jnp.isfinite(squared_norm(flat(grads, sums)))
        more = moved(new, state, params)
        # a gradient that is refused leaves no mark; and no output is an input, whose memory changes
        new = jax.tree.map(lambda now, before: jnp.where(fine, now, before), new, state)
        return message, new, jnp.where(fine, numbers, jnp.nan), more

    def serve(message, params, state, late):
        params, message = unravel(params), unravel(message)
        with record_passages() as passages:
            updates, new = server.update(message, state, params, staleness=late)
        arrived = proposals(passages, updates)
        changed = arrived is None or any(
            a is not b
            for a, b in zip(jax.tree.leaves(arrived), jax.tree.leaves(message), strict=True)
        )
        after = arrived is None or holds
        _refuse_gap(gap and changed and after, "server changes updates after a relaxation")
        moment = jnp.zeros(0, jnp.float32)  # what arrives is what was proposed
        if changed and arrived is not None:  # a base optimizer: what it proposes moves x
            moment = squared_norm(flat(arrived, sums)).astype(jnp.float32)[None]
        return flat(updates, dtype), new, moved(new, state, params), moment

    return Functions(
        lambda worker: fold_in_worker(task.optimizer.init(params), worker),
        step,
        lambda: fold_in_worker(server.init(params), 0),
        serve,
        lambda state: (flat(held(state, params), sums), flat(lost(state, params), sums)),
    )


def _refuse_gap(gap: bool, why: str) -> None:
    if gap:
        raise ValueError(
            f"{why}: what is held is then no distance of parameters, and there is no gap to "
            "sample; pass gap_every=0"
        )


def compiled(task: Task, start: np.ndarray, gap: bool) -> Program:
    """Compiles a task, for batches like the first."""
    init, step, server_init, serve, mass = functions(task, start, gap)
    step = jax.jit(step, donate_argnums=1).lower(start, init(0), task.batch(0, 0)).compile()
    leaves, treedef = jax.tree.flatten(server_init())
    like = [np.asarray(leaf) for leaf in leaves]

    def unpack(stored):
        leaves, at = [], 0
        for leaf in like:
            leaves.append(stored[at : at + leaf.nbytes].copy().view(leaf.dtype).reshape(leaf.shape))
            at += leaf.nbytes
        return treedef.unflatten(leaves)

    if task.server is None:
        return Program(init, step, None, unpack, jax.jit(mass))
    serve = jax.jit(serve).lower(start, start, server_init(), np.int32(0)).compile()

    def served(update, params, stored, late):
        found = serve(update.message, params.copy(), unpack(stored), np.int32(late))
        message, more, moment = (np.asarray(found[i]) for i in (0, 2, 3))
        norm = float(np.sqrt(np.square(message.astype(wide_dtype(message.dtype))).sum()))
        held = update.moved, more  # of a chain that holds nothing it is empty
        update = update._replace(
            message=message,
            moved=sum(held) if len(held[0]) == len(held[1]) else max(held, key=len),
            norm=norm,
            moment=float(moment[0]) if moment.size else update.moment,
        )
        return update, stored_bytes(found[1])

    return Program(init, step, served, unpack, jax.jit(mass))


def stored_bytes(tree: Any) -> np.ndarray:
    """Joins the bytes of a tree of arrays."""
    parts = [np.ravel(np.asarray(leaf)).view(np.uint8) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([np.zeros(0, np.uint8), *parts])


def main(
    job: Callable[..., None], payload: bytes, fd: int, layout: Layout, settings: Any, *more: Any
) -> None:
    """Is the whole life of a process that was started; what goes wrong is noted for the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, who tells us
    worker, threads, x64 = settings
    memory = Memory(layout, fd)
    try:
        os.environ["NPROC"] = str(threads)  # XLA has not read it yet
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_x64", x64)
        job(pickle.loads(payload)(), memory, worker, *more)
    except BaseException:
        note = traceback.format_exc().encode()[-NOTE:]
        memory.note[worker, : len(note)] = np.frombuffer(note, np.uint8)
        sys.exit(1)


def race(task: Task, memory: Memory, worker: int, gap_every: int) -> None:
    """Reads, computes and writes, until there is no need of it any more."""
    layout = memory.layout
    program = compiled(task, memory.params[0].copy(), layout.gap)
    free = layout.mode == "lock-free"
    side = LockFree(memory, worker) if free else Blocks(memory, worker, program.serve)
    parent = multiprocessing.parent_process()
    orphaned = select.poll()
    if parent is not None:
        orphaned.register(parent.sentinel)  # readable once the parent has ended
    memory.ready[worker] = 1
    while not memory.go.any():
        if orphaned.poll(1):
            return

    def read():
        if memory.go[1] or orphaned.poll(0):
            return None
        side.read()
        return side.view

    def refuse():
        memory.refused[worker] += 1

    work(program, task.batch, worker, gap_every, read, side.apply, refuse)


def work(
    program: Program,
    batch: Callable[[int, int], Any],
    worker: int,
    gap_every: int,
    read: Callable[[], np.ndarray | None],
    apply: Callable[[Update], bool],
    refuse: Callable[[], None],
) -> None:
    """Is a worker: reads, computes and applies, until there is no need of it any more.

    Args:
        program: of the task.
        batch: of the task.
        worker: which one.
        gap_every: how many updates apart the gap is to be measured; 0 never.
        read: takes a view; None at the end.
        apply: an update; False at the end.
        refuse: counts a gradient that is not finite.

    Raises:
        ArithmeticError: after `REFUSALS` of those in a row.
        ValueError: for a batch unlike the first.
    """
    state, step, applied, refused = program.init(worker), 0, 0, 0
    while (view := read()) is not None:
        given = batch(worker, step)
        try:
            message, state, numbers, moved = program.step(view, state, given)
        except TypeError:  # of a compiled program: it is for arrays like the first batch's
            kinds = [(np.shape(x), np.asarray(x).dtype.name) for x in jax.tree.leaves(given)]
            raise ValueError(
                f"task.batch({worker}, {step}) has arrays {kinds}, unlike task.batch(0, 0): make "
                "all batches of the same shapes and dtypes"
            ) from None
        loss, norm, moment = np.asarray(numbers).tolist()
        step += 1
        if np.isnan(loss):
            refused += 1
            refuse()
            if refused == REFUSALS:
                raise ArithmeticError(f"{REFUSALS} gradients in a row were not finite")
            continue
        refused = 0
        measured = bool(gap_every) and applied % gap_every == 0
        update = Update(
            np.asarray(message), np.asarray(moved), step - 1, loss, norm, moment, measured
        )
        if not apply(update):
            return
        applied += 1
