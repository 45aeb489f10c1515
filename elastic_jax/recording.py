"""What workers that really race leave behind: every update, in the order it was applied.

The parameters are one vector in `B` blocks, each with a version of its own: version t of a block is
what it was after t updates. The order within a block is recorded exactly, as a total order. All
workers apply to block 0 first, so that the ticks of block 0 count the updates of the run.
"""

import io
import os
import secrets
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import numpy as np
import optax

from elastic_jax.checks import positive
from elastic_jax.traces import Trace, make_trace

READ, COMPUTE, APPLY = range(3)  # kinds of event
CLOCK = 1e-6  # seconds: stores of one core may be seen by another this much later


class Task(NamedTuple):
    """What each worker needs, made anew in every process by the same importable function.

    Attributes:
        params: the start; a tree of arrays of one float dtype.
        loss: `(params, batch) -> loss`, a float scalar; pure JAX.
        batch: `(worker, step) -> batch`, a tree of numpy arrays of the same shapes each time. Must
            be the same whenever it is asked, or a run could not be replayed. It is asked for once
            the view is taken: one that comes late makes the view stale.
        optimizer: each worker's chain, base → relaxation*.
        server: a chain applied to each arriving message, whose state all workers share; None
            applies it as it is. For modes with one block. Its update is told `staleness`, how many
            updates the worker's view missed, as `correct.by_staleness` needs. A base optimizer may
            stand here, in place of the workers' (`optimizer=optax.identity()`) or behind it.
    """

    params: optax.Params
    loss: Callable[[optax.Params, Any], Any]
    batch: Callable[[int, int], Any]
    optimizer: optax.GradientTransformation
    server: optax.GradientTransformation | None = None


class Constants(NamedTuple):
    """What elastic consistency says about a run, as it was measured."""

    B: float  # the largest sampled gap^½ / α
    M: float  # the largest ‖u‖ / α, u a base optimizer's proposal
    tau: int  # the most updates that a view missed, wholly or in part

    @property
    def window(self) -> float:
        """What the window lemma allows B to be: τM (for chains that hold nothing back)."""
        return self.tau * self.M


class Recording(NamedTuple):
    """T updates by p racing workers on n parameters in B blocks; seconds count from the start."""

    mode: str
    workers: int  # p
    bounds: np.ndarray  # int64 [B + 1], where blocks begin and end
    start: np.ndarray  # [n], the parameters before the first update
    params: np.ndarray  # [n], and after the last
    worker: np.ndarray  # int32 [T], whose update it was
    step: np.ndarray  # int32 [T], by the gradient of which of its batches
    read: np.ndarray  # int32 [T, B], the version of each block in the view of that gradient
    tick: np.ndarray  # int32 [B, T], the update that turned version t of a block into t + 1; or −1
    time: np.ndarray  # float64 [B, T], when
    loss: np.ndarray  # float32 [T], at the view
    norm: np.ndarray  # float32 [T], ‖what was applied‖
    moment: np.ndarray  # float32 [T], ‖u‖², u the base optimizer's proposal, worker's or server's
    gap: np.ndarray  # float32 [T], ‖x − view‖² just before application; NaN where not sampled
    retries: np.ndarray  # int32 [T], how often another snapshot was published first (leashed)
    window: (
        np.ndarray
    )  # float64 [T, 4], read begun, ended, write begun, ended; (0, 4) if not needed
    unfinished: (
        np.ndarray
    )  # float64 [·, 4], worker, begun, seen dead, norm: lock-free writes cut off
    refused: np.ndarray  # int64 [p], gradients that were not finite
    exits: np.ndarray  # int64 [p], 0; −9 after SIGKILL; > 0 after an error
    threads: int  # of each worker's XLA
    seconds: float
    end: str  # "done", "interrupted", "out of time", or "no worker left"
    about: str  # JSON: versions and machine, on which a replay has the same bits

    def __repr__(self) -> str:
        """Says in a line what happened."""
        late = np.arange(len(self.worker)) - self.read[:, 0]
        gone, refused = int(np.count_nonzero(self.exits)), int(self.refused.sum())
        parts = [self.mode, f"{self.workers} worker{'s' * (self.workers > 1)}"]
        parts += [f"{len(late)} update{'s' * (len(late) > 1)}", f"mean delay {late.mean():.1f}"]
        parts += [f"{gone} gone"] * bool(gone) + [f"{refused} refused"] * bool(refused)
        return f"Recording({', '.join([*parts, self.end])})"

    @property
    def traces(self) -> tuple[Trace, ...]:
        """One `Trace` for each block; in the lock-free mode, in the order in which writes ended."""
        found = []
        for b, (ticks, time) in enumerate(zip(self.tick, self.time, strict=True)):
            ticks = ticks[ticks >= 0]
            seconds = time[: len(ticks)]
            found.append(
                make_trace(self.worker[ticks], self.read[ticks, b], None, seconds, self.workers)
            )
        return tuple(found)

    @property
    def trace(self) -> Trace:
        """The `Trace` of a run with one block.

        Raises:
            ValueError: if it has several; `traces` has one for each.
        """
        if len(self.tick) > 1:
            raise ValueError(f"the recording has {len(self.tick)} blocks: take one of its traces")
        return self.traces[0]

    @property
    def delay(self) -> np.ndarray:
        """How many updates each view missed, at least in part, when its own was applied: [T].

        With one block that is the trace's delay. Lock-free, it counts every update that was being
        written after the view was begun, or that one of those may have overwritten.
        """
        updates = np.arange(len(self.worker))
        if self.mode == "lock-free":
            begin, end, _ = self._writes()
            order = np.argsort(end)
            earliest = np.minimum.accumulate(begin[order][::-1])[::-1]  # of this and later ends
            first = np.searchsorted(end[order], self.window[:, 0], "right")
            since = np.minimum(self.window[:, 0], np.append(earliest, np.inf)[first])
            begun = np.searchsorted(np.sort(begin), self.window[:, 2], "left")
            return begun - np.searchsorted(end[order], since, "right")
        if len(self.tick) == 1:
            return updates - self.read[:, 0]
        places = [dict(zip(ticks.tolist(), updates.tolist(), strict=True)) for ticks in self.tick]
        missed = []
        for t in updates:
            spans = [
                ticks[self.read[t, b] : places[b][t]]
                for b, ticks in enumerate(self.tick)
                if t in places[b]
            ]
            missed.append(len(np.unique(np.concatenate(spans))))
        return np.array(missed)

    def constants(self, learning_rate: float) -> Constants:
        """Returns B̂, the largest M and τ of the run; B is NaN where no gap was sampled."""
        alpha = positive("learning_rate", learning_rate)
        sampled = self.gap[np.isfinite(self.gap)]
        largest = float(np.sqrt(sampled.max())) if sampled.size else float("nan")
        most = float(np.sqrt(self.moment.max()))
        return Constants(largest / alpha, most / alpha, int(self.delay.max()))

    def tree(self, task: Callable[[], Task]) -> optax.Params:
        """Returns the parameters after the last update, shaped as the task has them."""
        return jax.flatten_util.ravel_pytree(task().params)[1](jax.numpy.asarray(self.params))

    def race_bound(self, lipschitz: float) -> float:
        """How far a replay of a lock-free run may end from the run, for races nobody recorded.

        A write adds u_s element by element, reading and storing each. Whoever reads meanwhile sees
        some elements of it; whoever writes meanwhile may overwrite some. So an element of a view is
        its start plus c_s u_s, c_s ∈ {0, 1}, over all writes: c_s = 1 where the write ended before
        the view was begun and overlapped no other (raced), 0 where it begins after the view ended,
        and unknown for the rest (in doubt). Against a replay, whose view is the prefix of writes
        that ended before it,

            D_t ≤ Σ_{s in prefix} (e_s + [s raced] ‖u_s‖) + Σ_{s in doubt} ‖u_s‖,    e_s ≤ λ D_s,

        and the last parameters differ by the same sum over all s, to rounding.

        Args:
            lipschitz: λ of the map from view to update: α L for `optax.sgd(alpha)` alone.

        Returns:
            The bound on the Euclidean distance, without rounding.

        Raises:
            ValueError: for another mode, in which nothing is unrecorded.
        """
        if self.mode != "lock-free":
            raise ValueError(f"mode={self.mode!r} leaves no race unrecorded: its replay is exact")
        factor = positive("lipschitz", lipschitz)
        begin, end, norm = self._writes()
        order = np.argsort(begin)
        latest = np.append(-np.inf, np.maximum.accumulate(end[order])[:-1])
        next_begin = np.append(begin[order][1:], np.inf)
        raced = np.zeros(len(norm))
        raced[order] = np.where((latest > begin[order]) | (next_begin < end[order]), norm[order], 0)
        updates = len(self.worker)
        cut = norm[updates:].sum()  # by whom nobody knows how much was written
        begun = np.append(0, np.cumsum(norm[order]))
        ended = np.append(0, np.cumsum(norm[np.argsort(end)]))
        doubt = begun[np.searchsorted(begin[order], self.window[:, 1], "left")]
        doubt = doubt - ended[np.searchsorted(np.sort(end), self.window[:, 0], "right")] + cut
        total = np.zeros(updates + 1)  # over prefixes
        for t, (version, unknown) in enumerate(zip(self.read[:, 0].tolist(), doubt, strict=True)):
            total[t + 1] = total[t] + factor * (total[version] + unknown) + raced[t]
        return float(total[-1] + cut)

    def _writes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Begin, end and norm of each write, those cut off last."""
        begin = np.append(self.window[:, 2], self.unfinished[:, 1])
        end = np.append(self.window[:, 3], self.unfinished[:, 2]) + CLOCK
        return begin, end, np.append(self.norm, self.unfinished[:, 3]).astype(np.float64)

    def events(self) -> np.ndarray:
        """Puts all reads, gradients and writes in one order that gives every view as it was read.

        Returns:
            int32 [E, 3]: kind (0 reads a block, 1 computes, 2 applies to a block), update, block.

        Raises:
            ValueError: if there is no such order: the recording is not that of a run.
        """
        updates, blocks = self.read.shape
        logs = [ticks[ticks >= 0].tolist() for ticks in self.tick]
        where = [set(log) for log in logs]
        readers = [np.bincount(self.read[:, b], minlength=updates + 1) for b in range(blocks)]
        programs: list[list[list[tuple[int, int, int]]]] = [[] for _ in range(self.workers)]
        for t, worker in enumerate(self.worker.tolist()):
            reads = [(READ, t, b) for b in range(blocks)]  # in any order
            writes = [[(APPLY, t, b)] for b in range(blocks) if t in where[b]]
            programs[worker] += [reads, [(COMPUTE, t, 0)], *writes]
        now, found = [0] * blocks, []

        def happens(kind: int, t: int, b: int) -> bool:
            if kind == READ:
                if now[b] != self.read[t, b]:
                    return False
                readers[b][now[b]] -= 1
            elif kind == APPLY:
                if logs[b][now[b]] != t or readers[b][now[b]]:
                    return False  # an earlier update, or a reader of this version, comes first
                now[b] += 1
            found.append((kind, t, b))
            return True

        for program in programs:
            program.reverse()
        while any(programs):
            before = len(found)
            for program in programs:
                while program:
                    program[-1] = [event for event in program[-1] if not happens(*event)]
                    if program[-1]:
                        break
                    program.pop()
            if len(found) == before:
                raise ValueError("the recording has no order of events: it is not that of a run")
        return np.array(found, np.int32)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the recording to a .npz file: whole or not at all, and exact.

        Raises:
            ValueError: for any other suffix.
        """
        path = _npz(path)
        arrays = {name: np.asarray(value) for name, value in self._asdict().items()}
        for name in ("start", "params"):  # numpy's files know no bfloat16
            arrays[name] = arrays[name].view(np.uint8)
        buffer = io.BytesIO()
        dtype = np.asarray(self.params.dtype.name)
        np.savez_compressed(buffer, allow_pickle=False, dtype=dtype, **arrays)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            part.write_bytes(buffer.getvalue())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Recording":
        """Reads what `save` wrote.

        Raises:
            ValueError: for another suffix, or contents that are no recording.
            OSError: if the file cannot be opened.
        """
        path = _npz(path)
        try:
            with open(path, "rb") as file:
                arrays = np.load(file, allow_pickle=False)
                parts = {name: arrays[name] for name in cls._fields}
                dtype = jax.numpy.dtype(arrays["dtype"].item())
        except (LookupError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"path={str(path)!r} holds no readable recording: {error}") from error
        for name in ("start", "params"):
            parts[name] = parts[name].view(dtype)
        return cls(**{k: v if v.ndim else v.item() for k, v in parts.items()})


def _npz(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"path={str(path)!r} ends in {path.suffix!r}: use .npz")
    return path
