"""Traces of asynchronous runs: who applied which update, computed on which version.

Ticks count applied updates. Version t is the global iterate after t updates, so the update applied
at tick t turns version t into version t + 1, and its delay is t − version[t].
"""

import csv
import io
import os
import secrets
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from elastic_jax.checks import whole


class Schedule(NamedTuple):
    """Where each version of a trace is kept while someone will still read it.

    A loop over the ticks needs `slots + 1` rows of memory. At tick t it first writes the current
    parameters (version t) to row `write[t]`, then reads row `read[t]`, which holds version[t].
    """

    worker: np.ndarray  # int32 [T], who applies update t
    write: np.ndarray  # int32 [T], 0 … slots; row `slots` is a spare for versions nobody reads
    read: np.ndarray  # int32 [T], 0 … slots − 1
    slots: int  # rows that are read: the largest number of versions alive at once


class Statistics(NamedTuple):
    """What each worker of a trace did; a worker that never applied has 0, NaN, −1, NaN, −1, NaN."""

    updates: np.ndarray  # int64 [p]
    mean_delay: np.ndarray  # float64 [p], applied updates
    max_delay: np.ndarray  # int64 [p], applied updates
    mean_interval: np.ndarray  # float64 [p], seconds between own updates; NaN where unknown
    last_tick: np.ndarray  # int64 [p]
    last_seen: np.ndarray  # float64 [p], seconds: the time of the last update


class Trace(NamedTuple):
    """T updates by p workers, in the order they were applied; build one with `make_trace`."""

    worker: np.ndarray  # int32 [T], 0 … workers − 1
    version: np.ndarray  # int32 [T], 0 ≤ version[t] ≤ t, the version update t was computed on
    time: np.ndarray  # float64 [T], seconds, nondecreasing; NaN where unknown
    workers: int  # p

    @property
    def delay(self) -> np.ndarray:
        """How many updates were applied between read and application: int32 [T], t − version[t]."""
        return np.arange(len(self.version), dtype=np.int32) - self.version

    @property
    def one_view(self) -> bool:
        """Whether each worker reads only after it has applied, so that it has one view at a time.

        True of every drawn trace and of every recording of workers that work alone. Lists of
        (worker, delay) from elsewhere may break it; they still have an exact schedule.
        """
        return bool(np.all(self.version > previous_tick(self.worker)))

    def histogram(self) -> np.ndarray:
        """How many updates had each delay: int64 [τ_max + 1]."""
        return np.bincount(self.delay)

    def statistics(self) -> Statistics:
        """Per worker: updates, delays, mean interval, last tick and last time; arrays [p]."""

        def total(worker: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
            return np.bincount(worker, weights, minlength=self.workers)

        updates = total(self.worker)
        max_delay = np.full(self.workers, -1, np.int64)
        np.maximum.at(max_delay, self.worker, self.delay)
        last_tick = np.full(self.workers, -1, np.int64)
        last_tick[self.worker] = np.arange(len(self.worker))  # the last of several writes stays
        previous = previous_tick(self.worker)
        interval = np.where(previous < 0, np.nan, self.time - self.time[previous])
        known = ~np.isnan(interval)
        intervals = total(self.worker[known])
        with np.errstate(invalid="ignore"):  # 0/0 is the NaN that stands for "unknown"
            mean_delay = total(self.worker, self.delay) / updates
            mean_interval = total(self.worker[known], interval[known]) / intervals
        last_seen = np.where(last_tick < 0, np.nan, self.time[last_tick])
        return Statistics(updates, mean_delay, max_delay, mean_interval, last_tick, last_seen)

    def schedule(self) -> Schedule:
        """Allocate rows for the versions, so that a scan over the ticks needs only a few of them.

        Version u is alive from tick u, when it is written, to its last read; readers share its row.
        Exact for any 0 ≤ version[t] ≤ t, and `slots` is the fewest rows possible. Always
        slots ≤ τ_max + 1; with one view per worker also slots ≤ p.

        Example:
            >>> schedule = make_trace([0, 1, 0], version=[0, 0, 1]).schedule()
            >>> schedule.write.tolist(), schedule.read.tolist(), schedule.slots
            ([0, 1, 2], [0, 0, 1], 2)
        """
        # slots ≤ p with one view per worker: a version u ≤ t alive at tick t is read at some tick
        # s ≥ t by a worker i. If i had applied at a tick r with t ≤ r < s, it would have read after
        # that, a version ≥ r + 1 > u; so s is i's first tick from t on, and u the only version
        # that i keeps alive. slots ≤ τ_max + 1: u ≥ s − τ_max ≥ t − τ_max. Fewest possible: a row
        # is added only when all others hold live versions.
        ticks, versions = len(self.version), self.version.tolist()
        last_read = np.full(ticks, -1)
        last_read[self.version] = np.arange(ticks)  # the last of several writes stays
        ends = last_read.tolist()
        rows, free, slots = [-1] * ticks, [], 0
        for t, version in enumerate(versions):
            if ends[t] >= 0:
                if not free:
                    free.append(slots)
                    slots += 1
                rows[t] = free.pop()
            if ends[version] == t:
                free.append(rows[version])
        row = np.array(rows, np.int32)
        write = np.where(row < 0, np.int32(slots), row)
        return Schedule(self.worker, write, row[self.version], slots)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace to a .npz or .csv file: whole or not at all, and exact.

        The csv has columns worker, version, time, after a line `# workers=p` where the workers in
        the column do not tell p.

        Raises:
            ValueError: for any other suffix.
        """
        path = Path(path)
        if _known_suffix(path) == ".npz":
            buffer = io.BytesIO()
            np.savez_compressed(buffer, allow_pickle=False, **self._asdict())
            contents = buffer.getvalue()
        else:
            head = "" if self.workers == self.worker.max() + 1 else f"# workers={self.workers}\n"
            rows = zip(self.worker.tolist(), self.version.tolist(), self.time.tolist(), strict=True)
            lines = "".join(f"{worker},{version},{time!r}\n" for worker, version, time in rows)
            contents = f"{head}worker,version,time\n{lines}".encode()
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            part.write_bytes(contents)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Trace":
        """Read a trace that `save` wrote, or a csv with columns worker and version or delay.

        Other columns than worker, version, delay and time are ignored.

        Raises:
            ValueError: for another suffix, missing columns, or contents that are no trace.
            OSError: if the file cannot be opened.
        """
        path = Path(path)
        read = _read_npz if _known_suffix(path) == ".npz" else _read_csv
        try:
            return make_trace(**read(path))
        except (
            ValueError,
            LookupError,
            EOFError,
            csv.Error,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise ValueError(f"path={str(path)!r} holds no readable trace: {error}") from error


def make_trace(
    worker: Any,
    version: Any = None,
    delay: Any = None,
    time: Any = None,
    workers: int | None = None,
) -> Trace:
    """Build a trace from checked parts.

    Args:
        worker: who applied update t; integers [T], T ≥ 1.
        version: the version that update t was computed on; integers [T] with 0 ≤ version[t] ≤ t.
        delay: instead of `version`: t − version[t]; integers [T].
        time: when update t was applied, in seconds; [T], nondecreasing, NaN where unknown.
            None means unknown throughout.
        workers: p; None means 1 + the largest worker.

    Returns:
        The trace. Nothing is clipped or reordered.

    Raises:
        ValueError: naming the argument, its value, and what would be right.

    Example:
        >>> trace = make_trace(worker=[0, 1, 0, 1], delay=[0, 1, 1, 1])
        >>> trace.version.tolist(), trace.workers, trace.histogram().tolist()
        ([0, 0, 1, 2], 2, [1, 3])
    """
    who = _integers("worker", worker)
    ticks = np.arange(len(who))
    if who.min() < 0:
        raise ValueError(f"worker holds {who.min()}: number the workers from 0")
    least = int(who.max()) + 1
    p = least if workers is None else whole("workers", workers, "number of workers")
    if p < least:
        raise ValueError(f"workers={p} but worker holds {least - 1}: give workers ≥ {least}")
    if max(p, len(who)) > np.iinfo(np.int32).max:
        raise ValueError(f"worker holds {least - 1}: indices beyond int32, so renumber the workers")
    if (version is None) == (delay is None):
        given = "neither" if version is None else "both"
        raise ValueError(f"version and delay: {given} given; give exactly one of them")
    name, given = ("version", version) if delay is None else ("delay", delay)
    values = _integers(name, given)
    if len(values) != len(who):
        raise ValueError(
            f"{name} has {len(values)} entries but worker has {len(who)}: give one each"
        )
    bad = np.flatnonzero((values < 0) | (values > ticks))
    if bad.size:
        t = bad[0]
        raise ValueError(
            f"{name}[{t}] = {values[t]} is not in 0 … {t}: tick {t} follows {t} updates, so count "
            f"ticks from 0 and leave out updates that were computed before the first tick"
        )
    seconds = np.full(len(who), np.nan) if time is None else np.array(time)
    if seconds.shape != who.shape or seconds.dtype.kind not in "iuf":
        raise ValueError(
            f"time has shape {seconds.shape} and dtype {seconds.dtype}: "
            f"give {len(who)} real numbers, or None"
        )
    seconds = seconds.astype(np.float64)
    known = seconds[~np.isnan(seconds)]
    if np.isinf(known).any() or (np.diff(known) < 0).any():
        raise ValueError(
            "time is infinite or decreases: give seconds in the order of application, "
            "with NaN where unknown"
        )
    versions = values if delay is None else ticks - values
    return Trace(who.astype(np.int32), versions.astype(np.int32), seconds, p)


def previous_tick(worker: np.ndarray) -> np.ndarray:
    """The tick of the same worker's previous update, −1 where there is none: int64 [T]."""
    order = np.argsort(worker, kind="stable")
    previous = np.full(len(worker), -1)
    same = worker[order[1:]] == worker[order[:-1]]
    previous[order[1:][same]] = order[:-1][same]
    return previous


def _known_suffix(path: Path) -> str:
    if path.suffix not in (".npz", ".csv"):
        raise ValueError(f"path={str(path)!r} ends in {path.suffix!r}: use .npz or .csv")
    return path.suffix


def _read_npz(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        arrays = np.load(file, allow_pickle=False)
        parts = {name: arrays[name] for name in Trace._fields}
    return parts | {"workers": parts["workers"].item()}


def _read_csv(path: Path) -> dict[str, Any]:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    workers = None
    if lines and lines[0].startswith("# workers="):
        workers = int(lines.pop(0).removeprefix("# workers="))
    rows = csv.DictReader(lines, skipinitialspace=True)
    have = set(rows.fieldnames or ())
    if "worker" not in have or not have & {"version", "delay"}:
        raise ValueError(
            f"its columns are {rows.fieldnames}; it needs worker, and version or delay"
        )
    parsers = {"worker": int, "version": int, "delay": int, "time": float}
    columns: dict[str, list[Any]] = {name: [] for name in parsers if name in have}
    for row in rows:
        try:
            for name, column in columns.items():
                column.append(parsers[name](row[name]))
        except (TypeError, ValueError):
            raise ValueError(f"its row {row} needs whole numbers, and seconds for time") from None
    return {**columns, "workers": workers}


def _integers(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} has shape {array.shape} and dtype {array.dtype}: give a 1-d array of at least "
            f"one integer"
        )
    return array.astype(np.int64)
