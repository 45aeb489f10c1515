"""Recorded races once more: event by event as the workers did it, or by one `lax.scan`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.order import relaxed_states
from elastic_jax.precision import squared_norm, wide_dtype
from elastic_jax.racer import compiled, functions
from elastic_jax.recording import COMPUTE, READ, Recording, Task
from elastic_jax.shared import Blocks, Memory, Update


def loop(task: Task, memory: Memory, _: int, recording: Recording, measurable: bool) -> None:
    """Does what the workers did, in one process, one event after the other.

    Args:
        task: what to do.
        memory: that of one worker of a run in blocks; gets parameters, measurements, what is left.
        recording: when it was done.
        measurable: whether what is held is in the unit of the parameters.
    """
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
    if measurable:
        messages = {worker: update.message for worker, update in updates.items()}
        server = program.unpack(memory.server[memory.row[0, memory.version[0]]])
        memory.left[:] = _left(recording, program.mass, states, messages, server)


def _left(
    recording: Recording,
    mass: Callable[..., Any],
    states: Sequence[Any],
    messages: Any,
    server: Any,
) -> np.ndarray:
    """Says where all is that was proposed and not applied: what is held, and what is lost, [2, n].

    Args:
        recording: of the run.
        mass: of an optimizer state, held and lost.
        states: of the workers, after their last updates.
        messages: by worker, the last.
        server: its state at the end.
    """
    held, lost = np.zeros((2, len(recording.start)), wide_dtype(recording.start.dtype))
    for state, dead in zip([*states, server], [*recording.exits, 0], strict=True):
        if any(True for _ in relaxed_states(state)):
            kept, dropped = map(np.asarray, mass(state))
            lost += dropped
            rest = lost if dead else held
            rest += kept
    for b, ticks in enumerate(recording.tick):
        part = slice(recording.bounds[b], recording.bounds[b + 1])
        cut = np.setdiff1d(np.arange(len(recording.worker)), ticks)
        for worker in recording.worker[cut].tolist():  # who died inside its last write
            lost[part] += messages[worker][part].astype(lost.dtype)
    return np.stack([held, lost])


def scanned(
    task: Task, recording: Recording, measurable: bool
) -> tuple[jax.Array, tuple[Any, ...], np.ndarray | None]:
    """Replays a recording by one `lax.scan` over its events, in this process.

    Args:
        task: what to do.
        recording: when it was done.
        measurable: whether what is held is in the unit of the parameters.

    Returns:
        The parameters [n]; loss, norm, moment and gap of each update, [T]; held and lost, [2, n],
        if measurable.
    """
    init, step, server_init, serve, mass = functions(task, recording.start, measurable)
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
            late = t - jnp.asarray(recording.read[:, 0])[t]
            message, server, more, moment = serve(message, params, server, late)
            moved = moved + more if more.size else moved
            norm = jnp.sqrt(squared_norm(message)).astype(jnp.float32)
            numbers = numbers.at[t, 1].set(norm)
            numbers = numbers.at[t, 2].set(moment[0]) if moment.size else numbers
        return carry | {
            "params": jnp.where(here, params + message, params),
            "held": jnp.where(here, carry["held"] + moved, carry["held"]),
            "server": server,
            "numbers": numbers,
            "gap": carry["gap"].at[t].add(share if measurable else jnp.nan),
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
    found = *carry["numbers"].T, carry["gap"]
    if not measurable:
        return carry["params"], found, None
    states = [jax.tree.map(lambda leaf, i=i: leaf[i], carry["states"]) for i in range(p)]
    messages = np.asarray(carry["messages"])
    left = _left(recording, jax.jit(mass), states, messages, carry["server"])
    return carry["params"], found, left
