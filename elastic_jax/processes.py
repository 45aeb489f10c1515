"""The processes of a run: started, watched, ended, and what they left collected."""

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import multiprocessing.reduction
import os
import platform
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from elastic_jax import racer
from elastic_jax.recording import CLOCK, Recording
from elastic_jax.shared import Memory
from elastic_jax.traces import previous_tick

GRACE = 10.0  # seconds that a worker has to finish its last update, after which it is killed
WATCH = 0.1  # seconds between two looks at the workers
NOBODY = "no worker left"
# What XLA and BLAS read when a process imports them.
THREADS = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Progress(NamedTuple):
    """How far a run is."""

    updates: int
    seconds: float  # since all workers were ready; 0 before
    pids: tuple[int | None, ...]  # [p], None for a worker that has ended
    refused: int


class Run:
    """Processes, each with a few cores of XLA, that end with the block that uses them."""

    def __init__(
        self, memory: Memory, payload: bytes, threads: int, start: str, jobs: list[tuple[Any, ...]]
    ):
        """Starts a process for each (job, worker, more): `job(task, memory, worker, *more)`."""
        self.memory, self.start = memory, memory.params[0].copy()
        self.processes: list[Any] = []
        self.died = np.full(len(jobs), np.nan)  # seconds, when that was seen
        self.dismissed: set[int] = set()  # killed by us, after the end
        if start not in ("spawn", "forkserver"):
            raise ValueError(f"start={start!r} is none: pass 'spawn' or 'forkserver'")
        context: Any = multiprocessing.get_context(start)
        if start == "forkserver":
            context.set_forkserver_preload([racer.__name__])
        x64 = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
        try:
            for job, worker, more in jobs:
                settings = worker, threads, x64
                arguments = job, payload, _Inherited(memory.fd), memory.layout, settings, *more
                process = context.Process(target=racer.main, args=arguments, daemon=True)
                with _environment(threads), _no_interrupt():
                    process.start()
                self.processes.append(process)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> "Run":
        """Is itself the context."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Kills whoever is still there."""
        for process in self.processes:
            process.kill()
            process.join()
            process.close()

    @property
    def exits(self) -> np.ndarray:
        """The exit codes of all, once they have ended."""
        codes = [process.exitcode for process in self.processes]
        return np.array([0 if i in self.dismissed else code for i, code in enumerate(codes)])

    def said(self, worker: int) -> str:
        """How a worker ended, and its error if there was one."""
        memory, code = self.memory, self.processes[worker].exitcode
        note = bytes(memory.note[worker]).rstrip(b"\0").decode(errors="replace")
        return f"worker {worker}: exit {code}, {memory.refused[worker]} refused. {note}".rstrip()

    def wait(self, limit: float, watch: Callable[[Progress], object] | None) -> str:
        """Starts the race when all are ready, waits for its end, and says how it ended."""
        memory, end, deadline = self.memory, "", float("inf")
        everyone = range(len(self.processes))
        while alive := [i for i in everyone if self.processes[i].exitcode is None]:
            try:
                now = time.perf_counter()
                if not memory.go[0] and all(memory.ready[i] for i in alive):
                    memory.origin[0] = now
                    memory.go[0] = 1
                passed = now - float(memory.origin[0]) if memory.go[0] else 0.0
                gone = [i for i in everyone if i not in alive and np.isnan(self.died[i])]
                self.died[gone] = passed
                if begun(memory) >= memory.layout.updates:
                    end = end or "done"
                elif passed > limit:
                    end = end or "out of time"
                if end:
                    memory.go[1] = 1
                    deadline = min(deadline, now + GRACE)
                if now > deadline:
                    self.dismissed.update(alive)
                    for i in alive:
                        self.processes[i].kill()
                if watch is not None:
                    pids = tuple(self.processes[i].pid if i in alive else None for i in everyone)
                    watch(Progress(applied(memory), passed, pids, int(memory.refused.sum())))
                multiprocessing.connection.wait([self.processes[i].sentinel for i in alive], WATCH)
            except KeyboardInterrupt:
                if end == "interrupted":  # pressed again
                    deadline = 0.0
                end = "interrupted"
        passed = time.perf_counter() - memory.origin[0] if memory.go[0] else 0.0
        self.died[np.isnan(self.died)] = passed
        if begun(memory) >= memory.layout.updates:
            end = "done"
        said = [self.said(i) for i in everyone]
        if not applied(memory):
            if end == "interrupted":
                raise KeyboardInterrupt
            said.append("(A script must start runs under `if __name__ == '__main__':`.)")
            raise RuntimeError(f"{end or NOBODY}: no update was made.\n" + "\n".join(said))
        end = end or NOBODY
        if end == NOBODY or (self.exits > 0).any():
            warnings.warn(f"{end}. " + "\n".join(said), RuntimeWarning, stacklevel=3)
        return end

    def params(self) -> np.ndarray:
        """The parameters as they are; valid once nobody writes any more."""
        memory, layout = self.memory, self.memory.layout
        params = memory.params[0].copy()
        if layout.mode != "lock-free":
            for block, version in enumerate(memory.version):
                part = slice(layout.bounds[block], layout.bounds[block + 1])
                params[part] = memory.params[memory.row[block, version], part]
        return params

    def recording(self, end: str, threads: int) -> Recording:
        """Collects what the workers wrote down."""
        memory, layout = self.memory, self.memory.layout
        free = layout.mode == "lock-free"
        return Recording(
            mode=layout.mode,
            workers=layout.workers,
            bounds=np.array(layout.bounds),
            start=self.start,
            params=self.params(),
            **(_free_log(memory, self.died) if free else _blocks_log(memory)),
            refused=memory.refused.copy(),
            exits=self.exits,
            threads=threads,
            seconds=float(np.max(self.died)),
            end=end,
            about=json.dumps(about()),
        )


class _Inherited(NamedTuple):
    """A file descriptor that a process which is being spawned inherits when it is sent this."""

    fd: int

    def __reduce__(self) -> Any:
        """Arrives as the descriptor's number there."""
        return _detach, (multiprocessing.reduction.DupFd(self.fd),)


def _detach(handle: Any) -> int:
    return handle.detach()


@contextlib.contextmanager
def _environment(threads: int) -> Iterator[None]:
    """Sets the number of threads for processes that start."""
    new = {name: str(threads) for name in THREADS}
    old = {name: os.environ.get(name) for name in new}
    os.environ.update(new)
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Starts processes that Ctrl-C does not reach, not even while they import."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def about() -> dict[str, str]:
    """What the bits of a computation depend on."""
    versions = {"jax": jax.__version__, "numpy": np.__version__}
    machine = {"machine": platform.machine(), "system": platform.system()}
    return versions | machine | {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}


# ---- what they left ----


def applied(memory: Memory) -> int:
    """How many updates there are so far."""
    free = memory.layout.mode == "lock-free"
    return int(memory.done.sum() if free else memory.version[0])


def begun(memory: Memory) -> int:
    """How many there are, with the lock-free ones that are being written or were cut off."""
    free = memory.layout.mode == "lock-free"
    return int(memory.begun.sum() if free else memory.version[0])


def gaps(memory: Memory) -> np.ndarray:
    """The gap of each update, NaN where it was not sampled in all blocks: float32 [T]."""
    total = np.zeros(int(memory.version[0]), np.float32)
    blocks = np.zeros(len(total), np.int64)
    for ticks, share, version in zip(memory.tick, memory.share, memory.version, strict=True):
        total[ticks[:version]] += share[:version]
        blocks[ticks[:version]] += 1
    return np.where(blocks == len(memory.tick), total, np.float32(np.nan))


def _blocks_log(memory: Memory) -> dict[str, Any]:
    updates = int(memory.version[0])
    names = ("worker", "step", "loss", "norm", "moment", "retries")
    found = {name: getattr(memory, name)[0, :updates].copy() for name in names}
    tick, time = memory.tick[:, :updates].copy(), memory.time[:, :updates].copy()
    beyond = np.arange(updates) >= memory.version[:, None]
    tick[beyond], time[beyond] = -1, np.nan
    window, unfinished = np.zeros((0, 4)), np.zeros((0, 4))
    return found | {
        "read": memory.read[:updates].copy(),
        "tick": tick,
        "time": time,
        "gap": gaps(memory),
        "window": window,
        "unfinished": unfinished,
    }


def _free_log(memory: Memory, died: np.ndarray) -> dict[str, Any]:
    """Joins the workers' logs, in the order in which their writes ended."""
    workers = range(memory.layout.workers)
    ended = memory.window[..., 3]
    order = sorted((ended[i, k], i, k) for i in workers for k in range(memory.done[i]))
    places = tuple(np.array([place[1:] for place in order]).T)
    window = memory.window[places]
    cut = [
        (i, memory.window[i, k, 2], died[i], memory.norm[i, k])
        for i in workers
        for k in range(memory.done[i], memory.begun[i])
    ]
    read = np.searchsorted(window[:, 3] + CLOCK, window[:, 0], "right")
    read = np.maximum(read, previous_tick(places[0]) + 1)  # one's own write is seen at once
    names = ("worker", "step", "loss", "norm", "moment", "retries")
    return {name: getattr(memory, name)[places] for name in names} | {
        "read": read.astype(np.int32)[:, None],
        "tick": np.arange(len(read), dtype=np.int32)[None],
        "time": window[None, :, 3],
        "gap": memory.share[places],
        "window": window,
        "unfinished": np.array(cut, np.float64).reshape(-1, 4),
    }
