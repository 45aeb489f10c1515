"""What elastic schedulers save and cost, from the rows of `experiments.scheduler` and nothing else.

Every row is paired with that of full waiting (norm-bounded, β = 0) at the same ratio and seed: the
same initial parameters, batches and compute times. *Saved* is 1 − exp(mean log(t/t_0)), with t the
simulated time to the target loss, and its 95% interval is Student's t over the seeds. Each cell is
judged alone, without correction for their number, and the best is chosen on the seeds it is judged
by.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.special

from experiments import runs
from experiments.figures import STYLE, plt, save

NORM, VARIANCE = "norm", "variance"
SYMBOLS = {NORM: "β", VARIANCE: "m"}
NAMES = {NORM: "norm-bounded", VARIANCE: "variance-bounded"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One run and what came of it. None: not reached, or not finite."""

    rule: str  # norm | variance
    value: float  # β, or m
    ratio: float  # seconds in which a link sends a gradient / median seconds of computing it
    seed: int
    workers: int
    alpha: float
    steps: int
    target: float  # loss, nats
    seconds_to_target: float | None  # simulated
    seconds: float  # simulated, of all steps, of the last worker
    seconds_waiting: float  # simulated, of the same steps if everybody waited for everything
    train_loss: float | None  # at the end, nats
    test_accuracy: float | None
    drift_rms: float | None  # B̂ of the worst worker, root mean square over the steps
    drift_max: float | None
    moment_max: float | None  # M̂
    bound: float | None  # B from moment_max
    drift_to_bound: float | None  # drift_max / bound
    curve: tuple[float | None, ...]  # loss at the start and at each point
    clock: tuple[float, ...]  # simulated seconds there


def elastic_bound(rule: str, value: float, workers: int, moment: float) -> float:
    """Derives B of a run whose proposals satisfy ||u|| <= alpha·moment.

    Norm-bounded: the contraction lemma, M β/(1 − β). Variance-bounded: |u_i − u_j| <= 2 alpha M,
    so 2 m M/p; the theory's constant, which needs σ and L in place of M, is for the mean.
    """
    return 2 * value * moment / workers if rule == VARIANCE else moment * value / (1 - value)


def finite(value: float) -> float | None:
    """Returns a number, or None in place of NaN and infinity, which JSON has not."""
    return value if math.isfinite(value) else None


class Cell(NamedTuple):
    """A rule at a value and a ratio, against full waiting."""

    rule: str
    value: float
    ratio: float
    seeds: int  # pairs that both reach the target
    missed: int  # seeds at which one of them does not
    saved: float  # part of the time to the target; NaN where nothing can be formed
    low: float  # of its 95% interval; NaN for fewer than two seeds
    high: float
    accuracy: float  # test accuracy less that of full waiting, mean
    worse: bool  # its whole interval is below 0
    drift: float  # B̂ rms, mean over the seeds
    drift_max: float  # the largest, of the seed at which it comes nearest to its B
    bound: float  # B at that seed


def first_time(clock: Sequence[float], curve: Sequence[float], target: float) -> float | None:
    """Returns when a loss curve first meets the target, between points in a straight line."""
    for i, loss in enumerate(curve):
        if loss <= target:
            if i == 0:
                return clock[0]
            part = (curve[i - 1] - target) / (curve[i - 1] - loss)
            return clock[i - 1] + part * (clock[i] - clock[i - 1])
    return None


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and half the width of its 95% interval, NaN where there is none."""
    n = len(values)
    if n == 0:
        return math.nan, math.nan
    mean = math.fsum(values) / n
    if n < 2:
        return mean, math.nan
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    return mean, float(scipy.special.stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)


def cells(rows: Sequence[Row]) -> list[Cell]:
    """Compares every rule, value and ratio with full waiting; those without a pair are left out."""
    waiting = {(r.ratio, r.seed): r for r in rows if (r.rule, r.value) == (NORM, 0)}
    groups: dict[tuple[str, float, float], list[tuple[Row, Row]]] = {}
    for row in rows:
        if (row.rule, row.value) != (NORM, 0) and (row.ratio, row.seed) in waiting:
            pair = row, waiting[row.ratio, row.seed]
            groups.setdefault((row.rule, row.value, row.ratio), []).append(pair)
    found = []
    for (rule, value, ratio), pairs in sorted(groups.items()):
        logs = [
            math.log(a.seconds_to_target / b.seconds_to_target)
            for a, b in pairs
            if a.seconds_to_target and b.seconds_to_target  # 0: met at the start
        ]
        mean, half = interval(logs)
        kept = [
            a.test_accuracy - b.test_accuracy
            for a, b in pairs
            if a.test_accuracy is not None and b.test_accuracy is not None
        ]
        change, width = interval(kept)
        drifts = [a.drift_rms or math.nan for a, _ in pairs]
        nearest = max((a for a, _ in pairs), key=lambda row: row.drift_to_bound or 0.0)
        found.append(
            Cell(
                rule,
                value,
                ratio,
                len(logs),
                len(pairs) - len(logs),
                1 - math.exp(mean),
                1 - math.exp(mean + half),
                1 - math.exp(mean - half),
                change,
                change + width < 0,
                float(np.mean(drifts)),
                nearest.drift_max or math.nan,
                nearest.bound or math.nan,
            )
        )
    return found


def verdict(rows: Sequence[Row]) -> list[str]:
    """Says, for each ratio and rule, how much time is saved for certain and what it costs."""
    said = []
    found = cells(rows)
    for ratio in sorted({cell.ratio for cell in found}):
        for rule in dict.fromkeys(cell.rule for cell in found):
            here = [cell for cell in found if (cell.rule, cell.ratio) == (rule, ratio)]
            if here:
                said.append(f"ratio {ratio:g}, {NAMES[rule]}: {_best(here)}.")
    known = [row for row in rows if row.drift_to_bound is not None]
    if known:
        worst = max(known, key=lambda row: row.drift_to_bound or 0.0)
        above = sum((row.drift_to_bound or 0.0) > 1 + 1e-4 for row in known)  # rounding
        text = f"B̂ is ABOVE B in {above} of" if above else "B̂ ≤ B in all"
        said.append(
            f"{text} {len(known)} runs that hold anything; at the most B̂/B = "
            f"{worst.drift_to_bound:.2g} ({NAMES[worst.rule]}, {SYMBOLS[worst.rule]} = "
            f"{worst.value:g}, ratio {worst.ratio:g})."
        )
    longer = sum(row.seconds > row.seconds_waiting * (1 + 1e-4) for row in rows)
    if longer:
        said.append(f"{longer} runs took LONGER than the same steps with full waiting.")
    return said


def _best(here: Sequence[Cell]) -> str:
    """The value that saves most, of those that save for certain and are not certainly worse."""
    symbol = SYMBOLS[here[0].rule]
    tested = f"of {len(here)} values of {symbol}"
    if all(math.isnan(cell.low) for cell in here):
        return f"nothing can be told {tested}: fewer than two seeds reach the target loss"
    good = [cell for cell in here if cell.low > 0 and not cell.worse and not cell.missed]
    if not good:
        slower = sum(cell.high < 0 for cell in here)
        return f"no value saves time for certain, {tested}; {slower} cost time for certain"
    best = max(good, key=lambda cell: cell.saved)
    edge = ", the largest tried" if best.value == max(cell.value for cell in here) else ""
    return (
        f"{len(good)} {tested} save time for certain, with no certain loss of accuracy; most is "
        f"saved at {symbol} = {best.value:g}{edge}: {best.saved:.1%} ({best.low:.1%} to "
        f"{best.high:.1%}) of the time to the target loss, with test accuracy "
        f"{best.accuracy:+.2%}, B̂ = {best.drift:.2g} (root mean square; where it is "
        f"nearest to its bound {best.drift_max:.2g}, and B = {best.bound:.2g})"
    )


def draw(rows: Sequence[Row]) -> Any:
    """Time saved, and B̂ with B, over β and over m, a line for each ratio."""
    found = cells(rows)
    rules = [rule for rule in NAMES if any(cell.rule == rule for cell in found)] or [NORM]
    ratios = sorted({cell.ratio for cell in found})
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            2,
            len(rules),
            figsize=(3.6 * len(rules) + 0.4, 4.8),
            squeeze=False,
            sharex="col",
            layout="constrained",
        )
        for rule, (above, below) in zip(rules, axes.T, strict=True):
            for ratio, colour in zip(ratios, colours * len(ratios), strict=False):
                line = [c for c in found if (c.rule, c.ratio) == (rule, ratio)]
                x = [cell.value for cell in line]
                look: Any = dict(color=colour, linewidth=1.2)
                label = f"sending takes {ratio:g} × computing"
                above.plot(x, [100 * c.saved for c in line], "o-", label=label, ms=3.5, **look)
                low, high = ([100 * getattr(c, side) for c in line] for side in ("low", "high"))
                above.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
                below.plot(x, [c.drift_max for c in line], "o-", ms=3.5, **look)
                below.plot(x, [c.bound for c in line], ":", **look)
            above.axhline(0, color="black", linewidth=0.8)
            text: Any = dict(fontsize=7, ha="right", va="bottom", in_layout=False)
            above.text(0.98, 0, "full waiting", transform=above.get_yaxis_transform(), **text)
            above.set_title(NAMES[rule])
            below.set_yscale("log")
            styles: Any = ((":", "B, derived"), ("o-", "B̂, at the seed where it is nearest to B"))
            for style, text in styles:
                below.plot([], [], style, color="black", ms=3.5, linewidth=1.2, label=text)
            below.legend(frameon=False, fontsize=7.5)
            if rule == VARIANCE:
                below.set_xticks(sorted({cell.value for cell in found if cell.rule == rule}))
            below.set_xlabel(
                {
                    NORM: "β, part of the mass that may be missing",
                    VARIANCE: "m, gradients that may be missing",
                }[rule]
            )
        axes[0, 0].set_ylabel("time to the target saved (%)")
        axes[1, 0].set_ylabel("elastic constant")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


def conclude(
    folder: Path, rows: Sequence[Row], about: dict[str, Any], warnings: Sequence[str]
) -> list[str]:
    """Writes tables, figure and verdict.

    Args:
        folder: where to.
        rows: in the order of the grid.
        about: what else rows.json says: the command line, versions, settings.
        warnings: what the reader must know first.

    Returns:
        The warnings and the verdict.
    """
    said = [*warnings, *verdict(rows)]
    names = [field.name for field in dataclasses.fields(Row)]
    columns = [name for name in names if name not in ("curve", "clock")]
    runs.write_tables(folder, rows, {**about, "verdict": said}, columns)
    if rows:
        held = runs.evidence(rows, columns, about)
        save(folder, {"scheduler.png": draw(rows)}, {"scheduler.png": held})
    with runs.replacing(folder / "verdict.txt") as part:
        part.write_text("\n".join(said) + "\n")
    return said
