"""Every system of the zoo beside its derived elastic constant: one table made by one command.

    python -m experiments.elastic_constants [--tasks constant opposed logistic cnn] [--workers 8] …

Each system runs on instances that attain the lemmas, on logistic regression, where the second
moment M is known, and on a network with real images. Its gap to the global iterate is measured at
every step and stands beside B as `theory` derives it, sharp and classic. The folder gets rows.csv,
rows.json, table.md, a figure, and the verdict.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np

from experiments import runs
from experiments.command import Experiment, refuse, run
from experiments.figures import save
from experiments.zoo import ZOO
from experiments.zoo_runs import Runner, constant, task

MODULE = "experiments.elastic_constants"
TASKS = ("constant", "opposed", "logistic", "cnn")
COLOURS = {"constant": "tab:blue", "opposed": "tab:cyan", "logistic": "tab:green", "cnn": "tab:red"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Every system of the zoo beside its derived elastic constant."""

    out: Path = Path("results/elastic_constants")
    """Folder for rows, table, figure and verdict."""
    tasks: tuple[Literal["constant", "opposed", "logistic", "cnn"], ...] = TASKS
    """What to minimise."""
    systems: tuple[str, ...] = ()
    """Names of the zoo; none takes all."""
    workers: int = 8
    """Workers p."""
    updates: int = 4800
    """Worker gradients in each run; a multiple of workers."""
    seeds: int = 32
    """Runs of each system on the small tasks; the network takes three."""
    data: Literal["digits", "mnist", "fashion"] = "digits"
    """Images of the network."""
    batch: int = 8
    """Examples in each gradient."""
    quick: bool = False
    """A taste in seconds: other defaults."""
    resume: bool = False
    """Go on with the rows that the folder has."""


QUICK = Config(
    out=Path("results/elastic_constants_quick"),
    tasks=("constant", "opposed"),
    updates=320,
    seeds=4,
    quick=True,
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A system on a task. None: not finite, or nothing to state."""

    task: str
    system: str
    workers: int
    alpha: float
    seeds: int
    gradients: int
    moment: float | None  # M: known, or the largest ||u||/alpha
    drift_rms: float | None  # B̂ over steps, workers and seeds
    drift_step: float | None  # its largest over steps, in the mean square over workers and seeds
    drift_max: float | None  # the largest of all
    bounded: float | None  # what B bounds: that, or a mean over workers or draws
    bound: float | None  # B, sharp
    classic: float | None
    ratio: float | None  # of what B bounds to B
    holds: bool | None
    loss_before: float | None
    loss: float | None
    accuracy: float | None
    lost: float | None  # norm of the lost mass
    seconds: float
    why: str


@dataclasses.dataclass(frozen=True)
class Item:
    """What tells a row from the others."""

    task: str
    system: str


def grid(config: Config) -> list[Item]:
    """Lists all rows.

    Raises:
        ValueError: naming the argument, its value, and what would be right.
    """
    for name in config.systems:
        if name not in ZOO:
            raise ValueError(f"--systems {name!r}: give names of {', '.join(map(repr, ZOO))}")
    for name, least in (("workers", 4), ("seeds", 1), ("batch", 1), ("updates", 1)):
        if getattr(config, name) < least:
            refuse(config, name, f"give a whole number of at least {least}")
    if config.updates % config.workers:
        refuse(config, "updates", f"give a multiple of --workers, {config.workers}")
    systems = config.systems or tuple(ZOO)
    return [Item(name, system) for name in config.tasks for system in systems]


def make(config: Config, to_do: Sequence[Item], step: Any) -> Iterator[tuple[Item, Row]]:
    """Yields items and their rows."""
    runners: dict[str, Runner] = {}
    for item in to_do:
        name, system = item.task, item.system
        if name not in runners:
            chosen = task(name, config.updates, config.data, config.batch)
            runners = {name: Runner(chosen, config.workers)}
        runner, start = runners[name], time.monotonic()
        seeds = min(3, config.seeds) if name == "cnn" else config.seeds
        done = [runner.run(system, seed) for seed in range(seeds)]
        facts = runner.facts(done)
        found = constant(ZOO[system], done, facts)
        before = [runner.task.score(runner.task.params(seed))[0] for seed in range(min(3, seeds))]
        after = np.array([runner.task.score(one.params) for one in done[:3]])
        yield (
            item,
            Row(
                task=name,
                system=system,
                workers=config.workers,
                alpha=runner.task.alpha,
                seeds=seeds,
                gradients=config.updates,
                moment=_finite(found.moment),
                drift_rms=_finite(found.rms),
                drift_step=_finite(found.step),
                drift_max=_finite(found.largest),
                bounded=_finite(found.bounded),
                bound=found.bound,
                classic=found.classic,
                ratio=_finite(found.bounded / found.bound) if found.bound else None,
                holds=found.holds,
                loss_before=_finite(np.mean(before)),
                loss=_finite(after[:, 0].mean()),
                accuracy=_finite(after[:, 1].mean()),
                lost=_finite(np.mean([one.lost for one in done])),
                seconds=round(time.monotonic() - start, 2),
                why=ZOO[system].why,
            ),
        )


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as a table in Markdown, a task after the other."""
    head = "| system | B̂ rms | B̂ step | B̂ max | M | B sharp | B classic | B̂/B | holds | loss |"
    lines = []
    for name in dict.fromkeys(row.task for row in rows):
        lines += [f"### {name}", "", head, "|" + "---|" * 10]
        for row in rows:
            if row.task == name:
                numbers = (row.drift_rms, row.drift_step, row.drift_max, row.moment)
                derived = (row.bound, row.classic, row.ratio)
                open_ = "–" if row.bound is None else "by chance"
                holds = {True: "yes", False: "**no**", None: open_}[row.holds]
                cells = [*map(_shown, numbers + derived), holds, _shown(row.loss)]
                lines.append(f"| {row.system} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "–" if value is None else "0" if abs(value) < 1e-4 else f"{value:.3g}"


def verdict(rows: Sequence[Row]) -> list[str]:
    """Returns what the rows say."""
    said = []
    for name in dict.fromkeys(row.task for row in rows):
        own = [row for row in rows if row.task == name]
        bounded = [row for row in own if row.bound is not None]
        held = [row for row in bounded if row.holds]
        broken = [row.system for row in bounded if row.holds is False]
        chance = [row.system for row in bounded if row.holds is None]
        ratios = [row.ratio for row in bounded if row.ratio is not None]
        tight = [row.system for row in bounded if row.ratio is not None and row.ratio > 0.95]
        said.append(
            f"{name}: B̂ ≤ B for {len(held)} of {len(bounded)} systems with a B"
            + (f"; not for {'; '.join(broken)}" if broken else "")
            + (f"; chance decides for {'; '.join(chance)}" if chance else "")
            + (f"; B̂/B is {np.median(ratios):.2g} in the median" if ratios else "")
            + (f"; over 0.95 for {'; '.join(tight)}" if tight else "")
            + "."
        )
        if name == "cnn":
            fell = [row for row in own if (row.loss or math.inf) < (row.loss_before or 0)]
            said.append(f"cnn: the loss fell for {len(fell)} of {len(own)} systems.")
    for name, why in {row.system: row.why for row in rows if row.bound is None}.items():
        tasks = [row.task for row in rows if row.system == name and row.bound is None]
        where = "" if len(tasks) == len({row.task for row in rows}) else f" on {', '.join(tasks)}"
        said.append(f"no B for {name}{where}: {why}.")
    return said


def draw(rows: Sequence[Row]) -> Any:
    """Draws B̂ and B of every system, in units of M."""
    names = list(dict.fromkeys(row.system for row in rows))
    figure, axis = plt.subplots(figsize=(8, 0.27 * len(names) + 1.4), layout="constrained")
    tasks = list(dict.fromkeys(row.task for row in rows))
    for row in rows:
        if not row.moment:
            continue
        place = names.index(row.system) + 0.16 * (tasks.index(row.task) - (len(tasks) - 1) / 2)
        colour = COLOURS[row.task]
        if row.bounded is not None:
            axis.plot(max(row.bounded / row.moment, 1e-4), place, "o", color=colour, ms=4)
        if row.bound:
            axis.plot(row.bound / row.moment, place, "|", color=colour, ms=9, mew=2)
        if row.classic:
            axis.plot(row.classic / row.moment, place, "x", color=colour, ms=4)
    for name in tasks:
        axis.plot([], [], "o", color=COLOURS[name], label=name)
    axis.plot([], [], "k|", ms=9, mew=2, label="B, sharp")
    axis.plot([], [], "kx", ms=4, label="B, classic")
    axis.set_xscale("log")
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("elastic constant / M  (dot: the largest measured; 1e-4 stands for less)")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.3, -0.06))
    return figure


def conclude(
    config: Config, rows: Mapping[Item, Row], about: dict[str, Any], warnings: list[str]
) -> tuple[list[str], bool]:
    """Writes tables, figure and verdict; returns the verdict, and whether a bound is broken."""
    shown = list(rows.values())
    said = [*warnings, *verdict(shown)]
    columns = [field.name for field in dataclasses.fields(Row)]
    runs.write_tables(config.out, shown, {**about, "verdict": said}, columns)
    if shown:
        held = runs.evidence(shown, columns, about)
        save(config.out, {"elastic_constants.png": draw(shown)}, {"elastic_constants.png": held})
    for name, text in (("verdict.txt", "\n".join(said)), ("table.md", table(shown))):
        with runs.replacing(config.out / name) as part:
            part.write_text(text + "\n")
    return said, any(row.holds is False for row in shown)


EXPERIMENT = Experiment(
    MODULE,
    Config(),
    QUICK,
    ("tasks", "systems"),
    Row,
    grid,
    make,
    conclude,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment; see `experiments.command.run`. The status is 1 if a bound is broken."""
    return run(EXPERIMENT, arguments)


if __name__ == "__main__":
    sys.exit(main())
