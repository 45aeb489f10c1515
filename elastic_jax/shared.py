"""Parameters that several processes share: blocks with versions, and locks that die with a holder.

The memory is a file without a name, which the kernel frees when the last process that maps it ends,
however it ends. Locks are POSIX record locks, which the kernel releases when their holder dies.

A block is written into a spare row, then its log entry, then its version: the version is the one
store that publishes both, so a writer that is killed at any moment leaves the old version or the
new one, and never half of either. What is read is valid if the version is still the same after:
its row is written again only after the next version is published.
"""

import contextlib
import mmap
import os
import platform
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

MODES = ("lock-free", "block", "leashed", "locked")
TRIES = 3  # to read a version that is not replaced meanwhile, before the lock is taken
NOTE = 4096  # bytes for the last words of a worker
# x86 keeps the order of stores, and that of loads; elsewhere readers take the lock, a barrier.
ORDERED = platform.machine().lower() in ("x86_64", "amd64", "i686")


class Layout(NamedTuple):
    """What determines the memory of a run."""

    mode: str
    workers: int
    updates: int
    bounds: tuple[int, ...]  # of blocks, from 0 to n
    dtype: Any  # of the parameters
    wide: Any  # of what is held
    gap: bool  # whether gaps are sampled
    held: bool  # whether x − params is carried along for that, as chains hold updates back
    server: int  # bytes of the server's state

    @property
    def rows(self) -> int:
        """How many copies of the parameters there are: one, a spare, or a pair for each worker."""
        return {"lock-free": 1, "leashed": 2 * self.workers + 1}.get(self.mode, 2)

    def arrays(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Names, shapes and dtypes. What is never written to takes no memory."""
        n, blocks, updates = self.bounds[-1], len(self.bounds) - 1, self.updates
        free = self.mode == "lock-free"
        logs = self.workers if free else 1  # lock-free, each worker writes a log of its own
        return {
            "go": ((2,), np.int64),  # 1 from the start on; 1 to stop
            "origin": ((1,), np.float64),  # the clock at the start
            "ready": ((self.workers,), np.int64),
            "refused": ((self.workers,), np.int64),
            "note": ((self.workers, NOTE), np.uint8),
            "params": ((self.rows, n), self.dtype),
            "held": ((self.rows, n if self.held else 0), self.wide),
            "server": ((self.rows, self.server), np.uint8),
            "version": ((blocks,), np.int64),
            "row": ((blocks, updates + 1), np.int32),  # where each version of a block is, or was
            "tick": ((blocks, updates), np.int32),
            "time": ((blocks, updates), np.float64),
            "share": ((self.workers if free else blocks, updates), np.float32),  # in the gap
            "read": ((updates, blocks), np.int32),
            "begun": ((self.workers,), np.int64),  # lock-free writes
            "done": ((self.workers,), np.int64),
            "worker": ((logs, updates), np.int32),
            "step": ((logs, updates), np.int32),
            "retries": ((logs, updates), np.int32),
            "loss": ((logs, updates), np.float32),
            "norm": ((logs, updates), np.float32),
            "moment": ((logs, updates), np.float32),
            "window": ((logs, updates if free else 0, 4), np.float64),
            "left": ((2, n), self.wide),  # held and lost at the end of a replay
        }


class Memory:
    """The arrays of a layout, in memory that other processes map too."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> np.ndarray:
            """Each of `Layout.arrays`."""
            ...

    def __init__(self, layout: Layout, fd: int | None = None):
        """Maps the memory of a file descriptor, or makes it, all zeros."""
        places, size = {}, 0
        for name, (shape, dtype) in layout.arrays().items():
            places[name] = size
            size += -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 64) * 64  # cache lines
        try:
            import fcntl
        except ImportError as error:
            raise RuntimeError("elastic_jax.hogwild needs a POSIX system: fcntl's locks") from error
        self.layout, self.fcntl = layout, fcntl
        self.fd = _nameless(size) if fd is None else fd
        weakref.finalize(self, os.close, self.fd)
        memory = mmap.mmap(self.fd, size)
        for name, (shape, dtype) in layout.arrays().items():
            setattr(self, name, np.ndarray(shape, dtype, memory, places[name]))

    @contextlib.contextmanager
    def lock(self, block: int) -> Iterator[None]:
        """Holds the lock of a block. Threads of one process do not exclude each other."""
        self.fcntl.lockf(self.fd, self.fcntl.LOCK_EX, 1, block)
        try:
            yield
        finally:
            self.fcntl.lockf(self.fd, self.fcntl.LOCK_UN, 1, block)


def _nameless(size: int) -> int:
    """Opens a file of zeros that has no name, and so cannot be left behind."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("elastic_jax")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd


class Update(NamedTuple):
    """What a worker applies, and what it knows about it."""

    message: np.ndarray  # [n]
    moved: np.ndarray  # [n], by how much more the worker holds now; [0] if nothing is held
    step: int
    loss: float
    norm: float
    moment: float
    measured: bool  # whether to sample the gap


class Blocks:
    """A worker's side of blocks with versions: mode block, leashed, or locked."""

    def __init__(self, memory: Memory, worker: int, serve: Callable[..., Any] | None = None):
        """Keeps room for one view; `serve` is the server's part of a `Program`."""
        layout = memory.layout
        self.memory, self.layout, self.worker, self.serve = memory, layout, worker, serve
        self.view = np.empty(layout.bounds[-1], layout.dtype)
        self.versions = np.zeros(len(layout.bounds) - 1, np.int64)
        self.tick = -1
        self.careful = layout.mode == "locked" or not ORDERED

    def read(self) -> None:
        """Takes a view, block by block, each at one version."""
        for block in range(len(self.versions)):
            self.read_block(block)

    def read_block(self, block: int) -> None:
        """Copies a block as it was at one version."""
        for attempt in range(TRIES + 1):
            locked = self.careful or attempt == TRIES
            with self.memory.lock(block) if locked else contextlib.nullcontext():
                version = int(self.memory.version[block])
                row = self.memory.row[block, version]
                part = slice(self.layout.bounds[block], self.layout.bounds[block + 1])
                np.copyto(self.view[part], self.memory.params[row, part])
                if locked or version == self.memory.version[block]:
                    self.versions[block] = version
                    return

    def apply(self, update: Update) -> bool:
        """Applies an update to each block in turn; False if there was no need of it any more."""
        if self.layout.mode == "leashed":
            return self._publish(update)
        return all(self.apply_block(block, update) for block in range(len(self.versions)))

    def apply_block(self, block: int, update: Update) -> bool:
        """Writes the next version of a block, whole or not at all."""
        with self.memory.lock(block):
            version = int(self.memory.version[block])
            if block == 0 and self._over(version):
                return False
            spare = 1 - int(self.memory.row[block, version])
            update, share = self._write(block, version, spare, update)
            self._log(block, version, spare, update, share)
        return True

    def _publish(self, update: Update) -> bool:
        """Prepares a snapshot outside the lock; compares and swaps inside; again if it fails."""
        memory, retries = self.memory, 0
        while True:
            version = int(memory.version[0])
            mine = 1 + 2 * self.worker
            # of the two, the one that is not now published
            spare = mine + (int(memory.row[0, version]) == mine)
            with memory.lock(0) if not ORDERED else contextlib.nullcontext():
                applied, share = self._write(0, version, spare, update)
            with memory.lock(0):
                now = int(memory.version[0])
                if self._over(now):
                    return False
                if now == version:
                    memory.retries[0, version] = retries
                    self._log(0, version, spare, applied, share)
                    return True
            retries += 1

    def _over(self, version: int) -> bool:
        return version >= self.layout.updates or bool(self.memory.go[1])

    def _write(self, block: int, version: int, spare: int, update: Update) -> tuple[Update, float]:
        """Fills a spare row; returns what was applied, and the block's share in the gap."""
        memory, layout = self.memory, self.layout
        source = int(memory.row[block, version])
        part = slice(layout.bounds[block], layout.bounds[block + 1])
        old, share = memory.params[source, part], np.nan
        if update.measured:
            kept = memory.held[source, part] if layout.held else None
            share = gap(old, self.view[part], kept, layout.wide)
        if self.serve is not None:  # there is one block
            late = version - int(self.versions[block])
            update, state = self.serve(update, old, memory.server[source], late)
            memory.server[spare] = state
        if layout.held:
            np.copyto(memory.held[spare, part], memory.held[source, part])
            if update.moved.size:  # of a chain that holds nothing it is empty
                memory.held[spare, part] += update.moved[part]
        np.add(old, update.message[part], out=memory.params[spare, part])
        return update, share

    def _log(self, block: int, version: int, row: int, update: Update, share: float) -> None:
        """Writes the entry of the version to come, then publishes both."""
        memory = self.memory
        if block == 0:
            self.tick = version
            memory.read[version] = self.versions
            memory.worker[0, version] = self.worker
            memory.step[0, version] = update.step
            memory.loss[0, version] = update.loss
            memory.norm[0, version] = update.norm
            memory.moment[0, version] = update.moment
        memory.tick[block, version] = self.tick
        memory.time[block, version] = time.perf_counter() - memory.origin[0]
        memory.share[block, version] = share
        memory.row[block, version + 1] = row
        memory.version[block] = version + 1


class LockFree:
    """A worker's side of one live vector that all read and write at once."""

    def __init__(self, memory: Memory, worker: int):
        """Keeps room for one view."""
        layout = memory.layout
        self.memory, self.layout, self.worker = memory, layout, worker
        self.view = np.empty(layout.bounds[-1], layout.dtype)
        names = ("worker", "step", "loss", "norm", "moment", "share")
        self.log = [getattr(memory, name)[worker] for name in names]
        self.begun = self.ended = self.origin = 0.0
        self.count = 0  # of own writes

    def read(self) -> None:
        """Copies the vector while others write to it."""
        self.origin = float(self.memory.origin[0])
        self.begun = time.perf_counter()
        np.copyto(self.view, self.memory.params[0])
        self.ended = time.perf_counter()

    def apply(self, update: Update) -> bool:
        """Adds an update in place; False if there was no need of it any more."""
        memory, layout, worker = self.memory, self.layout, self.worker
        if memory.begun.sum() >= layout.updates or memory.go[1]:
            return False
        live, share = memory.params[0], np.nan
        if update.measured:
            share = gap(live, self.view, memory.held[0] if layout.held else None, layout.wide)
        where, values = sparse(update.message)
        k, origin = self.count, self.origin
        entry = worker, update.step, update.loss, update.norm, update.moment, share
        for row, value in zip(self.log, entry, strict=True):
            row[k] = value
        window = memory.window[worker, k]
        window[0], window[1] = self.begun - origin, self.ended - origin
        window[2] = time.perf_counter() - origin
        memory.begun[worker] = k + 1
        add(live, where, values)
        if layout.held:
            np.add(memory.held[0], update.moved, out=memory.held[0])
        window[3] = time.perf_counter() - origin
        memory.done[worker] = self.count = k + 1
        return True


def gap(params: np.ndarray, view: np.ndarray, held: np.ndarray | None, wide: Any) -> float:
    """‖x − view‖², where x is the parameters and all that is held."""
    narrow = params.dtype != wide  # to say a dtype costs numpy more than to subtract
    away = np.subtract(params, view, dtype=wide) if narrow else params - view
    if held is not None:
        away += held
    return float(np.dot(away, away))


def sparse(message: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """Finds where a message is not zero, and what it is there; None: in an eighth or more of it."""
    there = message != 0
    if 8 * np.count_nonzero(there) >= len(message):
        return None, message
    where = np.flatnonzero(there)
    return where, message[where]


def add(live: np.ndarray, where: np.ndarray | None, values: np.ndarray) -> None:
    """Adds in place: each element is read and stored, and another may store between."""
    if where is None:
        np.add(live, values, out=live)
    else:
        np.add.at(live, where, values)
