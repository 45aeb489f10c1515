"""Runs a sweep in several processes; a row that is finished is on disk and stays there.

The parent alone writes. `rows.jsonl` only grows, one line a row, flushed to the disk before the
next; each line carries a key, a hash of all that its run depends on, so that `--resume` knows
which runs are done. The tables are made from it.
"""

import collections
import csv
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import signal
import traceback
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import elastic_jax
from experiments.rows import Row, Run, Settings
from experiments.simulation import Trainer

PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy")
COLUMNS = [field.name for field in dataclasses.fields(Row) if field.name != "curve"]


def versions() -> dict[str, str]:
    """Returns the versions that rows may depend on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    own = {"python": platform.python_version(), "elastic_jax": elastic_jax.__version__}
    return own | found


def key_of(run: Any, settings: Any) -> str:
    """Hashes all that a row depends on: the run, the settings (dataclasses), and the versions."""
    common = dataclasses.asdict(settings) | {"data_dir": None}  # the same data wherever they lie
    parts = dataclasses.asdict(run), common, versions()
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class Journal:
    """The rows of a folder, `rows.jsonl`."""

    def __init__(self, path: Path, resume: bool, kind: Any = Row):
        """Reads the rows that are there, or puts the file of an earlier sweep aside.

        Args:
            path: of the file.
            resume: go on with its rows.
            kind: the dataclass of a row, of numbers, strings and tuples of them.
        """
        self.path = path
        self.rows: dict[str, Any] = {}
        if path.exists() and not resume:
            os.replace(path, path.with_name(f"{path.stem}.previous.jsonl"))
        if path.exists():
            text = path.read_text(errors="replace")
            whole, _, torn = text.rpartition("\n")  # a kill may leave half a line at the end
            for line in filter(None, whole.split("\n")):
                key, row = _parse(line, kind)
                if row is not None:
                    self.rows[key] = row
            if torn:
                os.truncate(path, len((whole + "\n").encode()) if whole else 0)

    def append(self, key: str, row: Any) -> None:
        """Adds a row, on disk before this returns."""
        self.rows[key] = row
        with self.path.open("a") as file:
            file.write(json.dumps({"key": key, **dataclasses.asdict(row)}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _parse(line: str, kind: Any) -> tuple[str, Any]:
    """Reads a line of the journal; a row of another layout counts as absent."""
    try:
        values = json.loads(line)
    except ValueError:
        return "", None
    if not isinstance(values, dict):
        return "", None
    key = values.pop("key", "")
    if sorted(values) != sorted(field.name for field in dataclasses.fields(kind)):
        return key, None
    return key, kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def write_tables(
    folder: Path, rows: Sequence[Any], about: dict[str, Any], columns: Sequence[str] = ()
) -> None:
    """Writes rows.csv and rows.json, each complete or untouched.

    Args:
        folder: where to.
        rows: in the order of the grid.
        about: what else rows.json says: the command line, versions, settings.
        columns: the attributes of a row that are shown; COLUMNS if none.
    """
    columns = columns or COLUMNS
    plain = [{name: _finite(getattr(row, name)) for name in columns} for row in rows]
    with replacing(folder / "rows.csv") as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(plain)
    with replacing(folder / "rows.json") as part:
        part.write_text(json.dumps({**about, "rows": plain}, indent=1) + "\n")


def evidence(rows: Sequence[Any], columns: Sequence[str], about: dict[str, Any]) -> dict[str, Any]:
    """Returns what a figure carries with it: what it is made of, and by which command.

    Args:
        rows: of which it is drawn.
        columns: the attributes that matter.
        about: as in `write_tables`.
    """
    table = [[_finite(getattr(row, name)) for name in columns] for row in rows]
    return {**about, "columns": list(columns), "rows": table}


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class replacing:
    """`with replacing(path) as part`: what is written to part replaces path at the end."""

    def __init__(self, path: Path):
        """Keeps the path."""
        self.path = path
        self.part = path.with_name(f".part.{path.name}")

    def __enter__(self) -> Path:
        """Returns the path to write to."""
        return self.part

    def __exit__(self, kind: Any, *_: Any) -> None:
        """Puts the file in place, unless writing failed."""
        if kind is None:
            os.replace(self.part, self.path)
        else:
            self.part.unlink(missing_ok=True)


# ---- the processes ----


class Crashed(RuntimeError):
    """Processes keep crashing before they finish anything."""


def _serve(pipe: Connection, settings: Settings) -> None:
    """A child: takes lists of runs, sends rows."""
    try:
        trainer = Trainer(settings)
        while True:
            for run in pipe.recv():
                pipe.send(("row", (run, trainer.run(run))))
            pipe.send(("done", None))
    except (EOFError, BrokenPipeError):
        return  # the parent is gone
    except BaseException:
        pipe.send(("error", traceback.format_exc()))


@dataclasses.dataclass
class _Child:
    process: Any
    pipe: Connection
    task: tuple[Run, ...] = ()
    left: set[Run] = dataclasses.field(default_factory=set)
    compiled: set[tuple[str, int, str]] = dataclasses.field(default_factory=set)
    said: str = ""


def _start(settings: Settings) -> _Child:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, settings), daemon=True)
    # One thread each: two such processes do nearly twice the work of one with two threads.
    os.environ["NPROC"] = "1"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Ctrl-C reaches the whole group, and the parent alone decides: what is blocked here stays
    # blocked in the child, from its first instruction on.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    there.close()
    return _Child(process, here)


def tasks_of(runs: Sequence[Run]) -> list[tuple[Run, ...]]:
    """Groups runs that share a program and a fraction, the longest groups first."""
    groups: dict[Any, list[Run]] = collections.defaultdict(list)
    for run in runs:
        groups[*run.program, run.fraction].append(run)

    def cost(group: list[Run]) -> float:
        first = group[0]
        slow = 3.0 if first.mode == "synchronous" else 1.0
        return len(group) * slow * (1.0 if first.method == "dense" else 1.3)

    return [tuple(group) for group in sorted(groups.values(), key=cost, reverse=True)]


def sweep(
    runs: Sequence[Run],
    settings: Settings,
    processes: int,
    note: Callable[[str], None],
) -> Generator[tuple[Run, Row], None, None]:
    """Does all runs in child processes and yields each row as it is finished.

    Close the iterator (or let it end) and the children are gone. A group of runs whose process
    crashed is tried once more; then it is given up, noted, and yields nothing.

    Args:
        runs: what to do.
        settings: common to all.
        processes: how many at once.
        note: told about crashes, one line each.

    Yields:
        A run and its row.

    Raises:
        Crashed: if processes keep crashing before any row is finished.
    """
    waiting = tasks_of(runs)
    processes = min(processes, len(waiting))
    tries: dict[Run, int] = collections.Counter()
    children: list[_Child] = []
    in_a_row = 0
    try:
        while waiting or any(child.left for child in children):
            while waiting and len(children) < processes:
                children.append(_start(settings))
            for child in children:
                if not child.left and waiting:
                    _give(child, waiting)
            for pipe in wait([child.pipe for child in children if child.left]):
                child = next(child for child in children if child.pipe is pipe)
                content: Any = None
                try:
                    kind, content = child.pipe.recv()
                except (EOFError, OSError):
                    kind = "gone"
                if kind == "row":
                    in_a_row = 0
                    child.left.discard(content[0])
                    yield content
                elif kind == "error":
                    child.said = content
                elif kind == "gone":
                    children.remove(child)
                    in_a_row += 1
                    again = _after_crash(child, tries, note)
                    if in_a_row >= 3:
                        raise Crashed(child.said or "a process ended without a word")
                    if again:
                        waiting.insert(0, again)
    finally:
        for child in children:
            child.process.terminate()
        for child in children:
            child.process.join()
            child.pipe.close()


def _give(child: _Child, waiting: list[tuple[Run, ...]]) -> None:
    """Hands out the longest task, one whose program the child has compiled if there is one."""
    known = (i for i, task in enumerate(waiting) if task[0].program in child.compiled)
    child.task = waiting.pop(next(known, 0))
    child.left = set(child.task)
    child.compiled.add(child.task[0].program)
    try:
        child.pipe.send(child.task)
    except OSError:
        pass  # it crashed; reading from it will tell


def _after_crash(
    child: _Child, tries: dict[Run, int], note: Callable[[str], None]
) -> tuple[Run, ...]:
    """Reports a crash; returns the runs to try again."""
    child.process.join()
    left = tuple(run for run in child.task if run in child.left)
    why = child.said.strip().splitlines()[-1] if child.said else "no message"
    again = tuple(run for run in left if not tries[run])
    for run in left:
        tries[run] += 1
    note(
        f"a process crashed (exit code {child.process.exitcode}: {why}) with {len(left)} of its "
        f"{len(child.task)} runs ({left[0].mode}, p={left[0].workers}, {left[0].method}) to do: "
        + ("trying them again" if again else "given up")
    )
    return again
