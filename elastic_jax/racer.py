"""What happens inside a worker's process: its compiled program, its race, or a replay of all."""

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

from elastic_jax.mass import held
from elastic_jax.order import proposals, record_passages, relaxed_states
from elastic_jax.precision import squared_norm, wide_dtype
from elastic_jax.recording import COMPUTE, READ, Recording, Task
from elastic_jax.shared import NOTE, Blocks, Layout, LockFree, Memory, Update
from elastic_jax.workers import fold_in_worker

REFUSALS = 100  # gradients that are not finite, in a row: this worker will not find another


class Functions(NamedTuple):
    """A task on flat vectors, to be traced."""

    init: Callable[[int], optax.OptState]  # of a worker
    step: Callable[..., Any]  # (view, state, batch) -> message, state, numbers [3], moved
    server_init: Callable[[], optax.OptState]
    serve: Callable[..., Any]  # (message, params, state) -> update, state, moved


class Program(NamedTuple):
    """The same, compiled once; the server's state is bytes, which lie beside the parameters."""

    init: Callable[[int], optax.OptState]
    step: Callable[..., Any]
    serve: Callable[..., Any] | None  # (message, params, state) -> update, norm, state, moved


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

    def serve(message, params, state):
        params, message = unravel(params), unravel(message)
        with record_passages() as passages:
            updates, new = server.update(message, state, params)
        arrived = proposals(passages, updates)
        if arrived is None or any(
            a is not b
            for a, b in zip(jax.tree.leaves(arrived), jax.tree.leaves(message), strict=True)
        ):
            _refuse_gap(gap, "server has a base optimizer")
        return flat(updates, dtype), new, moved(new, state, params)

    params = unravel(jnp.array(start))
    return Functions(
        lambda worker: fold_in_worker(task.optimizer.init(params), worker),
        step,
        lambda: fold_in_worker(server.init(params), 0),
        serve,
    )


def _refuse_gap(gap: bool, why: str) -> None:
    if gap:
        raise ValueError(
            f"{why}: what is held is then no distance of parameters, and there is no gap to "
            "sample; pass gap_every=0"
        )


def compiled(task: Task, start: np.ndarray, gap: bool) -> Program:
    """Compiles a task, for batches like the first."""
    init, step, server_init, serve = functions(task, start, gap)
    step = jax.jit(step, donate_argnums=1).lower(start, init(0), task.batch(0, 0)).compile()
    if task.server is None:
        return Program(init, step, None)
    leaves, treedef = jax.tree.flatten(server_init())
    like = [np.asarray(leaf) for leaf in leaves]
    serve = jax.jit(serve).lower(start, start, server_init()).compile()

    def served(message, params, stored):
        leaves, at = [], 0
        for leaf in like:
            leaves.append(stored[at : at + leaf.nbytes].copy().view(leaf.dtype).reshape(leaf.shape))
            at += leaf.nbytes
        update, new, moved = serve(message, params.copy(), treedef.unflatten(leaves))
        update = np.asarray(update)
        norm = float(np.sqrt(np.square(update.astype(wide_dtype(update.dtype))).sum()))
        return update, norm, stored_bytes(new), np.asarray(moved)

    return Program(init, step, served)


def stored_bytes(tree: Any) -> np.ndarray:
    """Joins the bytes of a tree of arrays."""
    parts = [np.ravel(np.asarray(leaf)).view(np.uint8) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([np.zeros(0, np.uint8), *parts])


def main(job: str, payload: bytes, fd: int, layout: Layout, settings: Any, *more: Any) -> None:
    """Is the whole life of a process that was started; what goes wrong is noted for the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, who tells us
    worker, threads, x64 = settings
    memory = Memory(layout, fd)
    try:
        os.environ["NPROC"] = str(threads)  # XLA has not read it yet
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_x64", x64)
        task = pickle.loads(payload)()
        {"race": _race, "replay": _replay}[job](task, memory, worker, *more)
    except BaseException:
        note = traceback.format_exc().encode()[-NOTE:]
        memory.note[worker, : len(note)] = np.frombuffer(note, np.uint8)
        sys.exit(1)


def _race(task: Task, memory: Memory, worker: int, gap_every: int) -> None:
    layout = memory.layout
    program = compiled(task, memory.params[0].copy(), layout.gap)
    free = layout.mode == "lock-free"
    side = LockFree(memory, worker) if free else Blocks(memory, worker, program.serve)
    state, step, applied, refused = program.init(worker), 0, 0, 0
    parent = multiprocessing.parent_process()
    orphaned = select.poll()
    if parent is not None:
        orphaned.register(parent.sentinel)  # readable once the parent has ended
    memory.ready[worker] = 1
    while not memory.go.any():
        if orphaned.poll(1):
            return
    while not memory.go[1] and not orphaned.poll(0) and refused < REFUSALS:
        side.read()
        message, state, numbers, moved = program.step(side.view, state, task.batch(worker, step))
        loss, norm, moment = np.asarray(numbers).tolist()
        step += 1
        if np.isnan(loss):
            refused += 1
            memory.refused[worker] += 1
            continue
        refused = 0
        measured = bool(gap_every) and applied % gap_every == 0
        update = Update(
            np.asarray(message), np.asarray(moved), step - 1, loss, norm, moment, measured
        )
        if not side.apply(update):
            return
        applied += 1


def _replay(task: Task, memory: Memory, _: int, recording: Recording) -> None:
    """Does what the workers did, in one process, one event after the other."""
    program = compiled(task, memory.params[0].copy(), memory.layout.gap)
    workers = range(recording.workers)
    sides = [Blocks(memory, worker, program.serve) for worker in workers]
    states = [program.init(worker) for worker in workers]
    updates: dict[int, Update] = {}
    for kind, t, block in recording.events().tolist():
        worker, step = int(recording.worker[t]), int(recording.step[t])
        if kind == READ:
            sides[worker].read_block(block)
        elif kind == COMPUTE:
            message, states[worker], numbers, moved = program.step(
                sides[worker].view, states[worker], task.batch(worker, step)
            )
            loss, norm, moment = np.asarray(numbers).tolist()
            parts = np.asarray(message), np.asarray(moved), step, loss, norm, moment
            updates[worker] = Update(*parts, measured=memory.layout.gap)
        else:
            sides[worker].apply_block(block, updates[worker])


def scanned(task: Task, recording: Recording, gap: bool) -> tuple[jax.Array, tuple[Any, ...]]:
    """Replays a recording by one `lax.scan` over its events, in this process.

    Args:
        task: what to do.
        recording: when it was done.
        gap: whether to measure it.

    Returns:
        The parameters [n], and loss, norm, moment and gap of each update, [T].
    """
    init, step, server_init, serve = functions(task, recording.start, gap)
    n, updates, p = len(recording.start), len(recording.worker), recording.workers
    wide = wide_dtype(recording.start.dtype)
    bounds = jnp.asarray(recording.bounds)
    who, steps = recording.worker.tolist(), recording.step.tolist()
    batches = [task.batch(worker, step) for worker, step in zip(who, steps, strict=True)]
    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    place = jnp.arange(n)

    def of(block):
        return (bounds[block] <= place) & (place < bounds[block + 1])

    def read(carry, worker, t, block):
        view = jnp.where(of(block), carry["params"], carry["views"][worker])
        return carry | {"views": carry["views"].at[worker].set(view)}

    def compute(carry, worker, t, block):
        state = jax.tree.map(lambda leaf: leaf[worker], carry["states"])
        batch = jax.tree.map(lambda leaf: leaf[t], batches)
        message, state, numbers, moved = step(carry["views"][worker], state, batch)
        states = jax.tree.map(lambda old, new: old.at[worker].set(new), carry["states"], state)
        moved = moved if moved.size else jnp.zeros(n, wide)
        return carry | {
            "states": states,
            "messages": carry["messages"].at[worker].set(message),
            "moved": carry["moved"].at[worker].set(moved),
            "numbers": carry["numbers"].at[t].set(numbers),
        }

    def apply(carry, worker, t, block):
        params, view, here = carry["params"], carry["views"][worker], of(block)
        away = carry["held"] + (params.astype(wide) - view.astype(wide))
        share = jnp.sum(jnp.where(here, away * away, 0)).astype(jnp.float32)
        message, moved, numbers = (
            carry["messages"][worker],
            carry["moved"][worker],
            carry["numbers"],
        )
        server = carry["server"]
        if task.server is not None:
            message, server, more = serve(message, params, server)
            moved = moved + more if more.size else moved
            norm = jnp.sqrt(squared_norm(message)).astype(jnp.float32)
            numbers = numbers.at[t, 1].set(norm)
        return carry | {
            "params": jnp.where(here, params + message, params),
            "held": jnp.where(here, carry["held"] + moved, carry["held"]),
            "server": server,
            "numbers": numbers,
            "gap": carry["gap"].at[t].add(share if gap else jnp.nan),
        }

    @jax.jit
    def run(carry, events):
        def one(carry, event):
            worker, kind, t, block = event
            return jax.lax.switch(kind, (read, compute, apply), carry, worker, t, block), None

        return jax.lax.scan(one, carry, events)[0]

    states = [init(worker) for worker in range(p)]
    carry = {
        "params": jnp.array(recording.start),
        "held": jnp.zeros(n, wide),
        "views": jnp.zeros((p, n), recording.start.dtype),
        "messages": jnp.zeros((p, n), recording.start.dtype),
        "moved": jnp.zeros((p, n), wide),
        "states": jax.tree.map(lambda *leaves: jnp.stack(leaves), *states),
        "server": server_init(),
        "numbers": jnp.zeros((updates, 3), jnp.float32),
        "gap": jnp.zeros(updates, jnp.float32),
    }
    events = recording.events()
    events = np.column_stack([recording.worker[events[:, 1]], events])
    carry = run(carry, tuple(jnp.asarray(column) for column in events.T))
    return carry["params"], (*carry["numbers"].T, carry["gap"])
