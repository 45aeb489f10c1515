"""What the commands of experiments share: arguments, and rows that survive being stopped."""

import dataclasses
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import tyro

from experiments import runs
from experiments.progress import Progress


class Experiment(NamedTuple):
    """An experiment as a command.

    Attributes:
        module: its name, for `python -m`.
        config: the default, a dataclass with `out`, `quick` and `resume`.
        quick: the default with `--quick`.
        free: fields of the config on which no row depends by itself.
        kind: the dataclass of a row in the journal.
        grid: config -> all that is to be run, dataclasses of numbers and strings; ValueError for a
            config that cannot be.
        do: `(config, what is still to do, step)` -> pairs of it and its row, one after the other.
            `step()` counts work that is finer than rows, if `parts` says so.
        conclude: `(config, rows, about, warnings)` -> the lines to print, having written tables and
            figures, and whether the rows refute what the command claims; rows are in the order of
            the grid.
        parts: config -> how many steps a row counts for.
        failed: whether a row is of something that went wrong: then --resume does it again.
    """

    module: str
    config: Any
    quick: Any
    free: tuple[str, ...]
    kind: type
    grid: Callable[[Any], Sequence[Any]]
    do: Callable[[Any, Sequence[Any], Callable[[], None]], Iterable[tuple[Any, Any]]]
    conclude: Callable[[Any, Mapping[Any, Any], dict[str, Any], list[str]], tuple[list[str], bool]]
    parts: Callable[[Any], int] | None = None
    failed: Callable[[Any], bool] = lambda row: False


def refuse(config: Any, name: str, remedy: str) -> NoReturn:
    """Raises ValueError for a field of a config: its flag, its value, what would be right."""
    value = getattr(config, name)
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
    raise ValueError(f"--{name.replace('_', '-')} {shown}: {remedy}")


def check_common(config: Any, counts: Sequence[str]) -> None:
    """Refuses counts below 1, steps that points do not divide, bad seeds, a file for a folder.

    Args:
        config: with `steps`, `points`, `seeds` and `out`.
        counts: the fields that are whole numbers of at least 1.

    Raises:
        ValueError: naming the argument, its value, and what would be right.
    """
    for name in counts:
        if getattr(config, name) < 1:
            refuse(config, name, "give a whole number of at least 1")
    if config.steps % config.points:
        refuse(config, "steps", f"give a multiple of --points, {config.points}")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        refuse(config, "seeds", "give at least one, each once")
    if not all(0 <= seed < 2**31 for seed in config.seeds):
        refuse(config, "seeds", "give whole numbers from 0, below 2^31")
    if config.out.exists() and not config.out.is_dir():
        refuse(config, "out", "that is a file; name a folder")


class _Stopped(BaseException):
    """A signal asked to stop."""


def _stop(number: int, _frame: Any) -> None:
    raise _Stopped(number)


def run(experiment: Experiment, arguments: Sequence[str] | None = None) -> int:
    """Makes the rows that the folder lacks, each on disk before the next is begun, and concludes.

    Args:
        experiment: which.
        arguments: of the command line; None takes the process's own.

    Returns:
        The exit status: 0, 1 if the rows refute the claim, 2 for bad arguments, 128 + n after
        signal n.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    default = experiment.quick if "--quick" in arguments else experiment.config
    command = f"python -m {experiment.module}"
    config = tyro.cli(type(default), args=arguments, default=default, prog=command)
    try:
        grid = experiment.grid(config)
        config.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    free = {
        name: getattr(experiment.config, name) for name in (*experiment.free, "quick", "resume")
    }
    settings = dataclasses.replace(config, **{**free, "out": ""})  # as JSON has it
    keys = {item: runs.key_of(item, settings) for item in grid}
    journal = runs.Journal(config.out / "rows.jsonl", config.resume, experiment.kind)
    done = {key for key, row in journal.rows.items() if not experiment.failed(row)}
    to_do = [item for item, key in keys.items() if key not in done]
    each = 1 if experiment.parts is None else experiment.parts(config)
    unit = "runs" if experiment.parts is None else "parts"
    progress = Progress(each * len(keys), each * (len(keys) - len(to_do)), unit=unit)
    before = {sign: signal.signal(sign, _stop) for sign in (signal.SIGINT, signal.SIGTERM)}
    status = 0
    try:
        for item, row in experiment.do(config, to_do, progress.step):
            journal.append(keys[item], row)
            if experiment.parts is None:
                progress.step()
    except _Stopped as stop:
        status = 128 + stop.args[0]
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    finally:
        for sign in before:
            signal.signal(sign, signal.SIG_IGN)  # the rows are written whatever is pressed now
        progress.stop()
        rows = {item: journal.rows[key] for item, key in keys.items() if key in journal.rows}
        plain = {name: str(v) if isinstance(v, Path) else v for name, v in vars(config).items()}
        said = f"{command} {shlex.join(arguments)}".strip()
        about = {"command": said, "versions": runs.versions(), "settings": plain}
        warnings = []
        if config.quick:
            warnings.append("A quick run: it shows that everything works; it is not the evidence.")
        if len(rows) < len(keys):
            warnings.append(f"Incomplete: {len(keys) - len(rows)} of {len(keys)} runs are missing.")
        lines, refuted = experiment.conclude(config, rows, about, warnings)
        print("\n".join(lines))
        for sign, handler in before.items():
            signal.signal(sign, handler)
    if status:
        again = shlex.join(arguments if config.resume else [*arguments, "--resume"])
        print(
            f"stopped: {len(rows)} of {len(keys)} runs are kept in {config.out}; to go on: "
            f"{command} {again}",
            file=sys.stderr,
        )
    return status or int(refuted)
