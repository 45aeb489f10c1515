"""Does a derived bound hold on a run, and how much slack has it?

    python -m experiments.bound_vs_run [--chain "topk 0.1 feedback, delay 4"] [--workers 4] …

Runs a chain of relaxations on a quadratic, on logistic regression and on a small network with real
images, measures what the chain's rates bound, and lays one over the other: (1/T) Σ‖∇f(x_t)‖² with N
and, where it is proved, W; where f is strongly convex also ‖x_T − x*‖² with S. Constants that are
not known are estimated along the runs: then a bound is only as good as the estimates. The folder
gets rows.csv, rows.json, a figure, and the verdict.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from experiments import bound_tasks, runs
from experiments.bound_tasks import PIECE, Done, Runner, Task
from experiments.bound_verdict import BROKEN, Row, choose, compare, draw
from experiments.chains import bounded, parse
from experiments.command import Experiment, check_common, refuse
from experiments.command import run as run_command
from experiments.figures import save

MODULE = "experiments.bound_vs_run"


@dataclasses.dataclass(frozen=True)
class Config:
    """Does a derived bound hold on a run, and how much slack has it?"""

    out: Path = Path("results/bound_vs_run")
    """Folder for rows, figure and verdict."""
    chain: str = "topk 0.1 feedback, delay 4"
    """Relaxations in order: delay N; a compressor, its amount and feedback; late N; gossip GRAPH; …
    (all of them: `experiments.chains.parse`)."""
    workers: int = 4
    """Workers p."""
    problems: tuple[Literal["quadratic", "logistic", "cnn"], ...] = ("quadratic", "logistic", "cnn")
    """What to minimise."""
    alpha: float | None = None
    """Step size; none takes the best by W, or by N, with the constants at the start."""
    steps: int = 2000
    """Steps T of each run; a multiple of points."""
    points: int = 50
    """Values of T at which bound and run are compared."""
    looks: int = 4
    """Places along each run at which constants are estimated, with its start."""
    seeds: tuple[int, ...] = tuple(range(8))
    """Seeds of batches, compressors and networks; the bounds are for the mean over all of them."""
    data: Literal["digits", "mnist"] = "digits"
    """Images of the network."""
    images: int = 1000
    """The first so many of them make up f; a multiple of 250."""
    batch: int = 8
    """Examples for each gradient of logistic regression and of the network."""
    quick: bool = False
    """A taste in seconds: other defaults."""
    resume: bool = False
    """Go on with the runs that the folder has."""


QUICK = Config(
    out=Path("results/bound_vs_run_quick"),
    steps=200,
    points=10,
    looks=1,
    seeds=(0, 1, 2),
    images=250,
    quick=True,
)


@dataclasses.dataclass(frozen=True)
class Run:
    """What tells a run from the others, besides the config."""

    problem: str
    alpha: float
    seed: int


def check(config: Config) -> None:
    """Refuses a config that cannot be run.

    Raises:
        ValueError: naming the argument, its value, and what would be right.
    """
    check_common(config, ("workers", "steps", "points", "looks", "batch"))
    if config.images < PIECE or config.images % PIECE:
        refuse(config, "images", f"give a multiple of {PIECE}")
    if config.alpha is not None and not 0 < config.alpha < math.inf:
        refuse(config, "alpha", "give a finite number above 0, or leave it out")
    if not config.problems or len(set(config.problems)) < len(config.problems):
        refuse(config, "problems", "give at least one, each once")
    parse(config.chain)


# ---- the program ----


@functools.cache
def prepare(config: Config) -> list[tuple[Task, float]]:
    """Makes the tasks, and chooses their step sizes."""
    parts = parse(config.chain)
    tasks = [
        bound_tasks.make(name, config.batch, config.images, config.data) for name in config.problems
    ]
    for task in tasks:
        bounded(parts, task.params(0), config.workers)  # or says why not, before anything runs
    return [
        (task, config.alpha or choose(task, parts, config.workers, config.steps)) for task in tasks
    ]


def grid(config: Config) -> list[Run]:
    """Lists all runs."""
    check(config)
    return [Run(task.name, alpha, seed) for task, alpha in prepare(config) for seed in config.seeds]


def do(
    config: Config, to_do: Sequence[Run], step: Callable[[], None]
) -> Iterator[tuple[Run, Done]]:
    """Runs what is to be run, a task after the other."""
    for task, alpha in prepare(config):
        own = [run for run in to_do if run.problem == task.name]
        if not own:
            continue
        each = config.steps // config.points
        runner = Runner(task, parse(config.chain), config.workers, alpha, each)
        for run in own:
            for done in runner.run(run.seed, config.points, config.looks):
                if done is None:
                    step()
                else:
                    yield run, done


def conclude(
    config: Config, done: Mapping[Run, Done], about: dict[str, Any], warnings: list[str]
) -> tuple[list[str], bool]:
    """Writes tables, figure and verdict; returns the verdict, and whether a bound is broken."""
    rows, said = [], [*warnings, f"{config.chain}; p = {config.workers}"]
    for task, _ in prepare(config):
        own = [one for run, one in done.items() if run.problem == task.name]
        if own:
            parts = parse(config.chain)
            more, sentences = compare(task, parts, config.workers, config.steps, own)
            rows, said = rows + more, said + sentences
    columns = [field.name for field in dataclasses.fields(Row)]
    about |= {"seeds": list(config.seeds), "verdict": said}
    runs.write_tables(config.out, rows, about, columns)
    if rows:
        held = runs.evidence(rows, columns, about)
        save(config.out, {"bound_vs_run.png": draw(rows)}, {"bound_vs_run.png": held})
    with runs.replacing(config.out / "verdict.txt") as part:
        part.write_text("\n".join(said) + "\n")
    return said, any(row.outcome == BROKEN for row in rows)


EXPERIMENT = Experiment(
    MODULE,
    Config(),
    QUICK,
    ("problems", "alpha", "seeds"),
    Done,
    grid,
    do,
    conclude,
    parts=lambda config: config.points,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment; see `experiments.command.run`. The status is 1 if a bound is broken."""
    return run_command(EXPERIMENT, arguments)


if __name__ == "__main__":
    sys.exit(main())
