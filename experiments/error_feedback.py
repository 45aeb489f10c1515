"""Does error feedback help sparsified SGD when it runs asynchronously?

    python -m experiments.error_feedback [--quick] [--resume] [--out DIR] …

Trains a small network on real images: sequentially, with asynchronous and with synchronous
workers; dense, with top-k sparsification, and with top-k and error feedback; over numbers of
workers, fractions sent, step sizes and seeds. The folder gets rows.csv, rows.json, figures and
report.md with a verdict computed from the rows.
"""

import dataclasses
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from experiments import constants, data, models, runs
from experiments.progress import Progress
from experiments.report import report
from experiments.rows import DENSE, FEEDBACK, LAST, PIECE, PLAIN, Run, Settings
from experiments.verdict import verdict

MODULE = "experiments.error_feedback"
EVIDENCE = (
    *("mode", "workers", "method", "fraction", "alpha", "seed", "train_loss", "diverged"),
    *("drift_rms", "moment_rms", "delay_mean"),
)  # what verdict and lines are made of: the phase diagram carries it along


@dataclasses.dataclass(frozen=True)
class Config:
    """Does error feedback help sparsified SGD when it runs asynchronously?"""

    out: Path = Path("results/error_feedback")
    """Folder for rows, figures and report."""
    data: Literal["mnist", "fashion", "digits", "cifar10"] = "mnist"
    """Images to classify."""
    data_dir: Path | None = None
    """Folder with the files of fashion or cifar10."""
    model: Literal["cnn", "resnet20"] = "cnn"
    """Network."""
    workers: tuple[int, ...] = (1, 4, 16, 32)
    """Numbers of workers p; 1 is sequential."""
    fractions: tuple[float, ...] = (1.0, 0.1, 0.01, 0.001)
    """Fractions of the entries that a message keeps; 1 is dense."""
    alphas: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    """Step sizes of sequential and asynchronous runs."""
    synchronous_alphas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
    """Step sizes of synchronous runs, which take gradients/p steps with averaged updates."""
    slower: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    """Dense runs also take the least step size times these: no feedback may be as slow as they."""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """Seeds of parameters, batches and traces."""
    gradients: int = 3072
    """Worker gradients in each run; a multiple of points times each p."""
    batch: int = 8
    """Images for each gradient."""
    points: int = 16
    """Evaluations in each run."""
    eval_images: int = 2000
    """Training images that the loss is evaluated on."""
    speed: Literal["lognormal", "exponential", "constant"] = "lognormal"
    """How the workers' durations are distributed."""
    diverged: float = 4.0
    """A loss above this many times the first one counts as diverged and ends the run."""
    processes: int = os.cpu_count() or 1
    """Runs at the same time."""
    quick: bool = False
    """A taste in seconds: other defaults, a tiny grid."""
    resume: bool = False
    """Go on with the rows that the folder has."""


QUICK = Config(
    out=Path("results/error_feedback_quick"),
    data="digits",
    workers=(1, 16),
    fractions=(1.0, 0.01),
    alphas=(0.02, 0.1, 0.5),
    synchronous_alphas=(0.2, 1.0, 5.0),
    slower=(0.05, 0.3),
    seeds=(0, 1, 2),
    gradients=1536,
    points=8,
    eval_images=1000,
    quick=True,
)


def check(config: Config) -> None:
    """Refuses a config that cannot be run.

    Args:
        config: any.

    Raises:
        ValueError: naming the argument, its value, and what would be right.
        FileNotFoundError: if the data are missing.
        ImportError: if a package that ships data is missing.
    """

    def refuse(name: str, remedy: str) -> None:
        flag = "--" + name.replace("_", "-")
        raise ValueError(f"{flag} {_shown(getattr(config, name))}: {remedy}")

    for name in ("workers", "fractions", "alphas", "synchronous_alphas", "slower", "seeds"):
        values = getattr(config, name)
        if not values and name != "slower":
            refuse(name, "give at least one")
        if len(set(values)) < len(values):
            refuse(name, "give each value once")
    for name, least in (("workers", 1), ("seeds", 0)):
        if not all(least <= value < 2**31 for value in getattr(config, name)):
            refuse(name, f"give whole numbers from {least}, below 2^31")
    for name in ("gradients", "batch", "points", "processes"):
        if getattr(config, name) < 1:
            refuse(name, "give a whole number of at least 1")
    for name in ("alphas", "synchronous_alphas"):
        if not all(0 < value < math.inf for value in getattr(config, name)):
            refuse(name, "give finite numbers above 0")
    if not all(0 < value < 1 for value in config.slower):
        refuse("slower", "give numbers above 0, below 1, or none")
    if not all(0 < value <= 1 for value in config.fractions):
        refuse("fractions", "give numbers in (0, 1], for example 0.01; 1 is dense")
    if config.points < LAST:
        refuse("points", f"give at least {LAST}: the final loss is the mean of the last {LAST}")
    if not 1 < config.diverged < math.inf:
        refuse("diverged", "give a finite number above 1")
    unit = config.points * math.lcm(*config.workers)
    if config.gradients % unit:
        right = -(-config.gradients // unit) * unit
        refuse(
            "gradients",
            f"every p of --workers must divide gradients/points, so give a multiple of {unit}, "
            f"for example {right}",
        )
    if config.eval_images < PIECE or config.eval_images % PIECE:
        refuse("eval_images", f"give a multiple of {PIECE}")
    if config.out.exists() and not config.out.is_dir():
        refuse("out", "that is a file; name a folder")
    dataset = data.load(config.data, config.data_dir)
    if config.eval_images > len(dataset.train_labels):
        there = len(dataset.train_labels)
        refuse(
            "eval_images", f"there are {there} training images: at most {there // PIECE * PIECE}"
        )
    if config.batch > len(dataset.train_labels):
        refuse("batch", f"give at most {len(dataset.train_labels)}, the number of training images")
    models.make(config.model, dataset)


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def settings_of(config: Config) -> Settings:
    """Returns what all runs have in common."""
    names = [field.name for field in dataclasses.fields(Settings)]
    values = {name: getattr(config, name) for name in names}
    folder = config.data_dir
    return Settings(**{**values, "data_dir": None if folder is None else str(folder)})


def grid(config: Config) -> list[Run]:
    """Lists all runs: a fraction of 1 is dense, p = 1 is sequential."""
    methods = [(DENSE, 1.0)] if 1.0 in config.fractions else []
    fractions = [fraction for fraction in config.fractions if fraction < 1]
    methods += [(method, fraction) for method in (PLAIN, FEEDBACK) for fraction in fractions]
    found = []
    for p in config.workers:
        for mode in ("sequential",) if p == 1 else ("asynchronous", "synchronous"):
            alphas = config.synchronous_alphas if mode == "synchronous" else config.alphas
            slower = tuple(part * min(alphas) for part in config.slower)
            found += [
                Run(mode, p, method, fraction, alpha, seed)
                for method, fraction in methods
                for alpha in ((*slower, *alphas) if method == DENSE else alphas)
                for seed in config.seeds
            ]
    return found


class _Stopped(BaseException):
    """A signal asked for the end."""


def _stop(number: int, _frame: Any) -> None:
    raise _Stopped(number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment.

    Args:
        arguments: of the command line; None takes the process's own.

    Returns:
        The exit status: 0, 1 if runs are missing, 2 for bad arguments, 128 + n after signal n.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    default = QUICK if "--quick" in arguments else Config()
    config = tyro.cli(Config, args=arguments, default=default, prog=f"python -m {MODULE}")
    try:
        check(config)
        config.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    start = time.monotonic()
    everything, settings = grid(config), settings_of(config)
    keys = {run: runs.key_of(run, settings) for run in everything}
    journal = runs.Journal(config.out / "rows.jsonl", config.resume)
    known = runs.Journal(config.out / "constants.jsonl", config.resume, constants.Constants)
    to_do = [run for run in everything if keys[run] not in journal.rows]
    if config.resume:
        print(f"{len(everything) - len(to_do)} of {len(everything)} runs are done already")
    command = f"python -m {MODULE} {shlex.join(arguments)}".strip()
    common = dataclasses.asdict(settings)
    del common["data_dir"]
    seeds = list(config.seeds)
    about = {"command": command, "versions": runs.versions(), "seeds": seeds, "settings": common}

    def rows() -> list[runs.Row]:
        return [journal.rows[key] for key in keys.values() if key in journal.rows]

    def points() -> dict[str, constants.Place]:
        found = constants.places(rows(), settings)
        return {runs.key_of(place, settings): place for place in found}

    number, crashed = 0, ""
    progress = Progress(len(everything), len(everything) - len(to_do))
    sweep = runs.sweep(to_do, settings, config.processes, progress.note)
    before = {sign: signal.signal(sign, _stop) for sign in (signal.SIGINT, signal.SIGTERM)}
    try:
        for run, row in sweep:
            journal.append(keys[run], row)
            progress.step()
        wanted = {place: key for key, place in points().items() if key not in known.rows}
        if wanted:
            progress.note(f"L, σ and M at {len(wanted)} places of the best runs …")
        for place, found in constants.measure(list(wanted), settings):
            known.append(wanted[place], found)
    except _Stopped as stop:
        number = stop.args[0]
    except runs.Crashed as error:
        crashed = str(error)
    finally:
        for sign in before:
            signal.signal(sign, signal.SIG_IGN)  # the rows are written whatever is pressed now
        sweep.close()
        progress.stop()
        at = [known.rows[key] for key in points() if key in known.rows]
        about["constants"] = [dataclasses.asdict(point) for point in at]
        runs.write_tables(config.out, rows(), about)
        for sign, handler in before.items():
            signal.signal(sign, handler)
    missing = len(everything) - len(rows())
    again = arguments if config.resume else [*arguments, "--resume"]
    if number or crashed or missing:
        if crashed:
            print(crashed, file=sys.stderr)
        print(
            f"{'stopped' if number else 'incomplete'}: {len(rows())} of {len(everything)} runs are "
            f"kept in {config.out}; to go on: python -m {MODULE} {shlex.join(again)}",
            file=sys.stderr,
        )
    if number:
        return 128 + number
    if rows():
        _conclude(config, settings, rows(), at, about, missing)
        print(
            f"{len(to_do)} runs in {time.monotonic() - start:.0f} s; all of it is in {config.out}"
        )
    return 1 if missing else 0


def _conclude(
    config: Config,
    settings: Settings,
    rows: list[runs.Row],
    at: list[constants.Constants],
    about: dict[str, Any],
    missing: int,
) -> None:
    """Draws, reports, and prints the verdict."""
    from experiments import derived_verdict, figures  # matplotlib: the processes do without it
    from experiments.derived_lines import compare
    from experiments.phase import phase

    found, compared = verdict(rows), compare(rows, at)
    warnings = []
    if config.quick:
        warnings.append(
            "A quick run: a small grid on small images. It shows that everything works; it is not "
            "the evidence."
        )
    if missing:
        warnings.append(f"Incomplete: {missing} runs are missing.")
    if found.seeds < 2:
        warnings.append("One seed: nothing can be told.")
    drawn = {
        "phase.png": phase(rows, found, compared),
        "curves.png": figures.curves(rows),
        "drift.png": figures.drift(rows),
    }
    held = {"phase.png": runs.evidence(rows, EVIDENCE, about)}
    names = figures.save(config.out, drawn, held)
    text = report(rows, found, compared, settings, about, warnings, names)
    with runs.replacing(config.out / "report.md") as part:
        part.write_text(text)
    edges = [f"Best α on the edge of its grid: {edge}" for edge in found.edges]
    lines = derived_verdict.sentences(compared, found.equal)
    print("\n".join([*warnings, *found.sentences, *lines, *edges]))


if __name__ == "__main__":
    sys.exit(main())
