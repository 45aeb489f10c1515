"""Does feedback help when workers really race? From the rows of `experiments.hogwild` alone.

A *cell* is a mode and a number of workers, or of workers that sleep. Its statistic is that of
`experiments.verdict`, D = mean over seeds of log(final loss with feedback ÷ without), with
Student's 95% interval, and it is taken twice: between races, each with the trace that came about;
and on the traces of the races without feedback, replayed with it, so that chance in the order of
updates is the same on both sides. Each cell is judged alone, without correction for their number.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.special

from experiments import rows as base
from experiments.rows import DENSE, FEEDBACK, PLAIN
from experiments.verdict import Cell, best_alpha, compare, tally

SIMULATED = ("sequential", "asynchronous")  # modes of the rows that chose a step size
ROUNDING = 1e-4  # part of B̂ that float32 sums of 10⁴ entries may be off by, with room


@dataclasses.dataclass(frozen=True)
class Row(base.Row):
    """A race, or a simulated run by which a step size was chosen, and what came of it.

    In a race `mode` is how parameters are shared, `curve` the mean loss of the batches at the
    views, and `bound` is B of what the run measured: τM, and pβM more with feedback.
    """

    sleep: float = 0.0  # mean pause of each worker between reading and writing, ms
    end: str = "simulated"  # a race: done | out of time | no worker left
    window: float | None = None  # τM
    updates_per_second: float | None = None
    retries: float | None = None  # for each update: another snapshot was published first (leashed)
    load: float | None = None  # of the machine before the race, over the last minute
    delays: tuple[int, ...] = ()  # how many updates missed 0, 1, … others
    clock: tuple[float, ...] = ()  # seconds at the points of the curve
    accuracies: tuple[float | None, ...] = ()  # test accuracy there, of a replay
    apart: float | None = None  # ‖replay − race‖ / ‖race − start‖
    own_loss: float | None = None  # training loss at the end of the replay; None if it diverged too
    fed_alpha: float | None = None  # of the replay of this trace with feedback; and so on
    fed_loss: float | None = None
    fed_accuracy: float | None = None
    fed_curve: tuple[float | None, ...] = ()


class Compared(NamedTuple):
    """Feedback against none in one place: between races, and on the same traces."""

    mode: str
    workers: int
    sleep: float
    delay_max: int
    races: Cell
    same: Cell

    @property
    def place(self) -> str:
        """How the place is called."""
        sleep = f", sleeping {self.sleep:g} ms" if self.sleep else ""
        return f"{self.mode}, p = {self.workers}{sleep}"


def races_of(rows: Sequence[Row]) -> list[Row]:
    """Leaves out the rows that chose a step size."""
    return [row for row in rows if row.mode not in SIMULATED]


def places(rows: Sequence[Row]) -> list[tuple[str, int, float]]:
    """Lists mode, p and sleep, in the order of the rows."""
    return list(dict.fromkeys((row.mode, row.workers, row.sleep) for row in races_of(rows)))


def at(rows: Sequence[Row], place: tuple[str, int, float], method: str) -> list[Row]:
    """Selects the races of a place and a method."""
    return [
        row for row in rows if (row.mode, row.workers, row.sleep) == place and row.method == method
    ]


def compared(rows: Sequence[Row]) -> list[Compared]:
    """Compares feedback with none wherever workers raced with both."""
    found = []
    for place in places(rows):
        plain, fed = at(rows, place, PLAIN), at(rows, place, FEEDBACK)
        if plain and fed and place[1] > 1:
            delay_max = max(row.delay_max for row in (*plain, *fed))
            # a lock-free race is not quite its replay: on the same trace, both are replays
            own = [_replayed(row, PLAIN, row.alpha, row.own_loss) for row in plain]
            same = [_replayed(row, FEEDBACK, row.fed_alpha, row.fed_loss) for row in plain]
            cells = _cell(place, plain, fed), _cell(place, own, same)
            found.append(Compared(*place, delay_max, *cells))
    return found


def _replayed(row: Row, method: str, alpha: float | None, loss: float | None) -> Row:
    """The row of a replay, as far as it is compared."""
    values: Any = dict(method=method, alpha=alpha, train_loss=loss, diverged=loss is None)
    return dataclasses.replace(row, **values)


def _cell(place: tuple[str, int, float], plain: Sequence[Row], fed: Sequence[Row]) -> Cell:
    outcome, mean, half, seeds, reason = compare(plain, fed)
    known = math.isfinite(mean)
    return Cell(
        place[0],
        place[1],
        plain[0].fraction,
        plain[0].alpha,
        fed[0].alpha,
        float(np.mean([row.delay_mean for row in (*plain, *fed)])),
        outcome,
        mean if known else None,
        half if known else None,
        seeds,
        reason,
    )


def verdict(rows: Sequence[Row]) -> list[str]:
    """Says what the rows say, and what they cannot."""
    said, found = [], compared(rows)
    seeds = len({row.seed for row in races_of(rows)})
    if seeds < 2:
        said.append(f"With {seeds} seed nothing can be told: every difference may be chance.")
    if found and seeds > 1:
        said.append(
            f"Feedback between races, p > 1, each method at the step size that simulation chose: "
            f"{tally([one.races for one in found])}."
        )
        said.append(f"The same traces with another chain: {tally([one.same for one in found])}.")
        said.append(
            f"With {seeds} seeds a difference must be {_student(seeds):.1f} times its standard "
            "deviation to be told (95% intervals by Student's t); each cell is judged alone."
        )
    said += [_line(one) for one in found]
    return said + _bounds(rows) + _replays(rows) + _speeds(rows) + _edges(rows)


def _student(seeds: int) -> float:
    return float(scipy.special.stdtrit(seeds - 1, 0.975)) / math.sqrt(seeds)


def _line(one: Compared) -> str:
    delay = f"delay {one.races.delay:.1f} on average, {one.delay_max} at most"
    alphas = f"α = {one.races.alpha_without:g} without, {one.races.alpha_with:g} with"
    effects = f"{_effect(one.races)}; same traces {_effect(one.same)}"
    return f"{one.place} ({delay}; {alphas}): {effects}."


def _effect(cell: Cell) -> str:
    if cell.difference is None or cell.half_width is None:
        return f"{cell.outcome} ({cell.reason})"
    low, high = (math.exp(cell.difference + side * cell.half_width) for side in (-1, 1))
    return f"loss ×{math.exp(cell.difference):.2g} ({low:.2g} to {high:.2g}), {cell.outcome}"


def above(rows: Sequence[Row]) -> list[Row]:
    """Selects the races whose B̂ is above the B that they imply, by more than rounding."""
    return [row for row in races_of(rows) if (row.drift_max or 0) > _allowed(row)]


def _allowed(row: Row) -> float:
    return (row.bound or 0) * (1 + ROUNDING) + ROUNDING * (row.moment_max or 0)


def _bounds(rows: Sequence[Row]) -> list[str]:
    said, high = [], above(rows)
    for words, methods in (
        ("without feedback: B̂ and the window lemma's τM", (DENSE, PLAIN)),
        ("with feedback: B̂ and (pβ + τ)M", (FEEDBACK,)),
    ):
        here = [row for row in races_of(rows) if row.method in methods]
        ratios = [row.drift_to_bound for row in here if row.drift_to_bound is not None]
        if ratios:
            broken = sum(row.method in methods for row in high)
            text = (
                f"B̂ is ABOVE its bound in {broken}" if broken else f"B̂ stays below in {len(ratios)}"
            )
            said.append(
                f"Drift {words}: {text} of {len(ratios)} races that miss or hold anything; the "
                f"ratio is {np.median(ratios):.2g} in the median, {max(ratios):.2g} at most."
            )
    return said


def _replays(rows: Sequence[Row]) -> list[str]:
    said = []
    for words, free in (("block, leashed and locked", False), ("lock-free", True)):
        found = [
            row.apart
            for row in races_of(rows)
            if row.apart is not None and (row.mode == "lock-free") == free
        ]
        if found:
            said.append(
                f"Replays of {len(found)} {words} races end at most {max(found):.1g} of the way "
                "from the start apart from the race."
            )
    return said


def speeds(rows: Sequence[Row]) -> dict[str, dict[int, list[float]]]:
    """Collects updates a second by mode and p: dense races of workers that do not sleep."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in races_of(rows):
        if not row.sleep and row.method == DENSE and row.updates_per_second:
            by_workers = found.setdefault(row.mode, {})
            by_workers.setdefault(row.workers, []).append(row.updates_per_second)
    return found


def load(rows: Sequence[Row]) -> float:
    """Returns the median load of the machine before a race, NaN if there was no race."""
    return float(np.median([row.load for row in rows if row.load is not None] or [math.nan]))


def _speeds(rows: Sequence[Row]) -> list[str]:
    said = [
        f"{mode} " + ", ".join(f"{np.median(v):.0f} (p = {p})" for p, v in by_workers.items())
        for mode, by_workers in speeds(rows).items()
    ]
    head = (
        f"Updates a second, dense, medians, at a load of {load(rows):.1f} on the machine, which "
        "races themselves make"
    )
    return [f"{head}: {'; '.join(said)}."] if said else []


def _edges(rows: Sequence[Row]) -> list[str]:
    simulated = [row for row in rows if row.mode in SIMULATED]
    edges = []
    for p, method in dict.fromkeys((row.workers, row.method) for row in simulated):
        here = [row for row in simulated if (row.workers, row.method) == (p, method)]
        alphas, best = {row.alpha for row in here}, best_alpha(here)
        if best is None:
            edges.append(f"p = {p}, {method}: all diverge")
        elif len(alphas) > 1 and best in (min(alphas), max(alphas)):
            edges.append(f"p = {p}, {method}: {best:g}")
    return [f"Chosen step sizes on the edge of their grid: {'; '.join(edges)}."] if edges else []
