"""Asynchrony for real: processes that race on shared memory, recorded, and replayed.

Each worker is a process with one core's XLA. It takes a view of parameters in shared memory,
computes a gradient on its own batch, runs its own chain, and applies the update in place. What
happened is a `Recording`; `replay` does it again, to the same bits or with another chain.

Needs a POSIX system (`fcntl`): Linux or macOS.
"""

import contextlib
import io
import pickle
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

from elastic_jax import racer, replays
from elastic_jax.checks import positive, steps, whole
from elastic_jax.order import check_apart, relaxed_states
from elastic_jax.precision import wide_dtype
from elastic_jax.processes import Progress, Run, gaps
from elastic_jax.recording import Recording, Task
from elastic_jax.shared import MODES, Layout, Memory

__all__ = ["Progress", "Recording", "Replay", "Task", "replay", "train"]


class Replay(NamedTuple):
    """What a replay found; trees are shaped like the parameters.

    Every update u that was proposed is somewhere, to the rounding of the parameters' dtype:

        start + Σ u = params + held + lost

    Where gaps cannot be measured, what is held is no distance of parameters: then these are None.
    """

    params: optax.Params  # a tree
    loss: np.ndarray  # float32 [T]; this and the next two as in the recording
    norm: np.ndarray
    moment: np.ndarray
    gap: np.ndarray  # at every update; NaN if a run that sampled none is replayed in a loop
    held: optax.Params | None  # by the workers that were alive at the end, and by the server
    lost: optax.Params | None  # by chains that lose, and with the workers that died


def train(
    task: Callable[[], Task],
    *,
    workers: int,
    updates: int,
    mode: str = "block",
    blocks: int | None = None,
    gap_every: int = 1,
    seconds: float | None = None,
    threads: int = 1,
    start: str = "spawn",
    watch: Callable[[Progress], object] | None = None,
) -> Recording:
    """Trains with p processes that race on parameters in shared memory, and records the race.

    A worker that dies, even inside a write, leaves the others going; its exit code and its last
    update are in the recording, and `Replay.lost` has what it held. One that is stopped, not
    killed, is a straggler, unless it holds a lock: then the others wait for it, or for `seconds`.
    A gradient that is not finite is refused and counted, and a worker that finds nothing else fails
    as one with an error does. Ctrl-C ends the run with what there is. Nothing is left behind,
    whoever is killed.

    Args:
        task: makes the `Task`, anew in each process: a function of a module, or
            `functools.partial` of one.
        workers: p.
        updates: in all; "lock-free" may end with up to p − 1 more.
        mode: how they share. "lock-free": views while others write, unsynchronised in-place
            addition (sparse where the update is). "block": each block of the parameters is read at
            one version and written as a whole, under a lock of its own. "leashed": snapshots
            prepared outside any lock and published by compare-and-swap (a lock for those few
            stores). "locked": one lock around each read and each write, the baseline.
        blocks: of equal size, for mode "block"; None means 8, or n if that is less.
        gap_every: each worker samples `‖x − view‖²` at every so many of its updates; 0 never.
        seconds: end the run after this long; counted, as `Recording.time`, from when all workers
            have compiled.
        threads: of each worker's XLA.
        start: multiprocessing's start method, "spawn", or "forkserver", which imports once for all
            the runs of this process.
        watch: called about ten times a second, in this process.

    Returns:
        The recording.

    Raises:
        ValueError: for bad arguments, or a task that no other process could make.
        TypeError: if it makes no `Task`.
        RuntimeError: where there is no `fcntl`; if all workers died before the first update.
        KeyboardInterrupt: after Ctrl-C before the first update.
    """
    workers = whole("workers", workers, "number of workers")
    updates = whole("updates", updates, "number of updates", most=2**31 - 2)
    threads = whole("threads", threads, "number of threads")
    gap_every = steps("gap_every", gap_every)
    limit = float("inf") if seconds is None else positive("seconds", seconds)
    payload, made, params = prepared(task)
    bounds = _bounds(mode, blocks, len(params), made.server is not None)
    memory = _memory(made, params, (mode, workers, updates, bounds), gap_every > 0)
    jobs = [(racer.race, worker, (gap_every,)) for worker in range(workers)]
    with Run(memory, payload, threads, start, jobs) as run:
        end = run.wait(limit, watch)
        return run.recording(end, threads)


def replay(
    recording: Recording, task: Callable[[], Task], *, how: str = "loop", start: str = "spawn"
) -> Replay:
    """Does again what was recorded: every view as it was read, every update as it was applied.

    With the task of the run, and on the same machine and versions (`Recording.about`), how="loop"
    ends with the bits of the run: a spawned process with the recorded number of threads calls the
    workers' own compiled functions in a loop. A lock-free run it follows as if each read and each
    write had been atomic; `Recording.race_bound` says how far that may lead. how="scan" is one
    `lax.scan` in this process, and agrees to rounding. Another task replays the same trace with
    another chain, step size or loss.

    Args:
        recording: of a run.
        task: the run's, or another with as many parameters.
        how: "loop" or "scan".
        start: as in `train`.

    Returns:
        The parameters at the end, what was measured at each update, and what is held or lost.

    Raises:
        ValueError: for bad arguments, another number of parameters, a server for a recording in
            blocks, or a recording that is none.
        RuntimeError: if the process ended before the replay did.
    """
    payload, made, params = prepared(task)
    if params.shape != recording.start.shape or params.dtype != recording.start.dtype:
        raise ValueError(
            f"task has {params.size} parameters of {params.dtype}, but recording has "
            f"{recording.start.size} of {recording.start.dtype}: pass a task of the same shape"
        )
    if made.server is not None and len(recording.tick) > 1:
        raise ValueError(
            f"task has a server, but the updates of the {len(recording.tick)} blocks of recording "
            "arrived in parts: replay it without, or record with blocks=1"
        )
    if how not in ("loop", "scan"):
        raise ValueError(f"how={how!r} is none: pass 'loop' or 'scan'")
    unravel = jax.flatten_util.ravel_pytree(made.params)[1]
    plan = "block", recording.workers, len(recording.worker), tuple(recording.bounds.tolist())
    memory = None
    with contextlib.suppress(ValueError):  # where what is held is no distance, there is no gap
        memory = _memory(made, recording.start, plan, gap=True)
    measurable = memory is not None
    if memory is None or (how == "loop" and np.isnan(recording.gap).all()):
        # what measures is another program, with other bits than one that does not
        memory = _memory(made, recording.start, plan, gap=False)
    if how == "scan":
        last, found, left = replays.scanned(made, recording, measurable)
    else:
        jobs = [(replays.loop, 0, (recording, measurable))]
        with Run(memory, payload, recording.threads, start, jobs) as run:
            run.processes[0].join()
            if run.processes[0].exitcode:
                raise RuntimeError(f"the replay did not end: {run.said(0)}")
            last, left = run.params(), memory.left.copy() if measurable else None
            logs = (memory.loss[0], memory.norm[0], memory.moment[0], gaps(memory))
            found = [log.copy() for log in logs]
    rest = (None, None) if left is None else map(unravel, jnp.asarray(left))
    return Replay(unravel(jnp.asarray(last)), *map(np.asarray, found), *rest)


class _Pickler(pickle.Pickler):
    """Refuses what is known to this session alone."""

    def reducer_override(self, obj: Any) -> Any:
        here = callable(obj) and getattr(obj, "__module__", None) == "__main__"
        if here and not hasattr(sys.modules["__main__"], "__file__"):
            raise pickle.PicklingError(f"{obj!r} is in no file")
        return NotImplemented


def prepared(task: Callable[[], Task]) -> tuple[bytes, Task, np.ndarray]:
    """Pickles a task's function, calls it, and joins its parameters to a vector."""
    if not callable(task):
        raise TypeError(f"task is a {type(task).__name__}: pass the function that makes the Task")
    buffer = io.BytesIO()
    try:
        _Pickler(buffer).dump(task)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"task={task!r} cannot be made in another process ({error}): pass a function defined "
            "at the top of a module, with functools.partial to give it arguments; from a notebook, "
            "write it to a file with %%writefile and import that"
        ) from error
    found = task()
    if not isinstance(found, Task):
        raise TypeError(f"task() returned a {type(found).__name__}: return an ej.hogwild.Task")
    leaves = jax.tree.leaves(found.params)
    odd = [leaf for leaf in leaves if np.asarray(leaf).dtype == object]
    if odd:
        raise TypeError(f"params holds {odd[0]!r}: give a tree of float arrays")
    dtypes = {jnp.asarray(leaf).dtype for leaf in leaves}
    if len(dtypes) != 1 or not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        names = ", ".join(sorted(dtype.name for dtype in dtypes)) or "no kind"
        raise ValueError(f"params holds arrays of {names}: cast all to one float dtype")
    start = np.array(jax.flatten_util.ravel_pytree(found.params)[0])
    if not start.size:
        raise ValueError("params holds no numbers: give it at least one")
    return buffer.getvalue(), found, start


def _bounds(mode: str, blocks: int | None, n: int, server: bool) -> tuple[int, ...]:
    """Divides n parameters among blocks."""
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is none: pass one of {', '.join(MODES)}")
    if mode != "block" and blocks not in (None, 1):
        raise ValueError(f"blocks={blocks} in mode {mode!r}, which has one: leave blocks out")
    usual = min(8, n) if mode == "block" and not server else 1
    blocks = usual if blocks is None else whole("blocks", blocks, "number of blocks", most=n)
    if server and (blocks > 1 or mode == "lock-free"):
        raise ValueError(
            f"mode={mode!r} with blocks={blocks} has nobody to run task.server on whole messages: "
            "pass blocks=1, or take mode 'leashed' or 'locked'"
        )
    return tuple(n * b // blocks for b in range(blocks + 1))


def laid_out(
    task: Task, start: np.ndarray, plan: tuple[str, int, int, tuple[int, ...]], gap: bool
) -> tuple[Layout, np.ndarray]:
    """Checks the chains of a run that begins at `start`; returns also the server's first bytes."""
    mode, workers, updates, bounds = plan
    functions = racer.functions(task, start, gap)
    optimizer, server = functions.init(0), functions.server_init()
    check_apart(optimizer, server)
    try:
        message, *_ = jax.eval_shape(functions.step, start, optimizer, task.batch(0, 0))
    except TypeError as error:
        if "not told" in str(error):
            error.add_note(
                "A worker that races knows how stale its update is once it holds the lock. Let "
                "task.server scale it: server=by_staleness(…). What needs server_params runs "
                "under asynchronous, on recording.trace."
            )
        raise
    if task.server is not None:
        jax.eval_shape(functions.serve, message, start, server, np.int32(0))
    both = relaxed_states((optimizer, server))
    holds = any(callable(getattr(found.state, "held", None)) for found in both)
    stored = racer.stored_bytes(server)
    wide = np.dtype(wide_dtype(start.dtype))
    sizes = bounds, start.dtype, wide, gap, gap and holds, len(stored)
    return Layout(mode, workers, updates, *sizes), stored


def _memory(
    task: Task, start: np.ndarray, plan: tuple[str, int, int, tuple[int, ...]], gap: bool
) -> Memory:
    """Maps memory for a run that begins at `start`."""
    layout, stored = laid_out(task, start, plan, gap)
    memory = Memory(layout)
    memory.params[0], memory.server[0] = start, stored
    return memory
