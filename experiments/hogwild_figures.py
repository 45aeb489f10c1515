"""Figures of `experiments.hogwild`, from its rows and nothing else."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from experiments.figures import METHOD_COLOURS, NAMES, STYLE, plt
from experiments.hogwild_verdict import Compared, Row, at, compared, places, races_of, speeds
from experiments.rows import DENSE, FEEDBACK, PLAIN

METHODS = (DENSE, PLAIN, FEEDBACK)
MODE_COLOURS = {
    "lock-free": "#E69F00",
    "block": "#009E73",
    "leashed": "#56B4E9",
    "locked": "#CC79A7",
}
SAME = "the traces without feedback, replayed with it"


def draw(rows: Sequence[Row]) -> Any:
    """Six panels: curves, speed, delays, drift beside its bound, and the verdict."""
    place = _busiest(rows)[0]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(11.5, 6.6), layout="constrained")
        _losses(axes[0, 0], rows, place, "updates")
        _accuracies(axes[0, 1], rows, place, "seconds")
        for axis in axes[0, :2]:
            axis.set_title(_name(place))
        _speeds(axes[0, 2], rows)
        _delays(axes[1, 0], rows)
        _drift(axes[1, 1], rows)
        _forest(axes[1, 2], compared(rows))
        figure.legend(handles=_handles(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def curves(rows: Sequence[Row]) -> Any:
    """Loss and accuracy against updates and seconds, for each mode with the most workers."""
    columns = _busiest(rows)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            4,
            len(columns),
            figsize=(2.5 * len(columns) + 0.6, 8.4),
            squeeze=False,
            sharey="row",
            layout="constrained",
        )
        for place, column in zip(columns, axes.T, strict=True):
            column[0].set_title(_name(place), fontsize=9)
            _losses(column[0], rows, place, "updates")
            _losses(column[1], rows, place, "seconds")
            _accuracies(column[2], rows, place, "updates")
            _accuracies(column[3], rows, place, "seconds")
        for axis in axes[:, 1:].flat:
            axis.set_ylabel("")
        figure.legend(handles=_handles(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def _busiest(rows: Sequence[Row]) -> list[tuple[str, int, float]]:
    """The place of each mode, awake and asleep, with the most workers."""
    found: dict[tuple[str, float], tuple[str, int, float]] = {}
    for place in places(rows):
        mode, p, sleep = place
        if p >= found.get((mode, sleep), place)[1]:
            found[mode, sleep] = place
    return list(found.values())


def _name(place: tuple[str, int, float]) -> str:
    mode, p, sleep = place
    return f"{mode}, p = {p}" + (", sleeping" if sleep else "")


def _handles() -> list[Line2D]:
    found = [Line2D([], [], color=METHOD_COLOURS[m], label=NAMES[m]) for m in METHODS]
    look: Any = dict(color=METHOD_COLOURS[FEEDBACK], linestyle=(0, (2, 1.5)))
    return [*found, Line2D([], [], label=SAME, **look)]


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _ends(row: Row, axis: str) -> np.ndarray:
    """Where the points of a curve are."""
    if axis == "seconds":
        return np.array(row.clock)
    return row.gradients * np.arange(1, len(row.clock) + 1) / len(row.clock)


def _losses(axes: Any, rows: Sequence[Row], place: tuple[str, int, float], axis: str) -> None:
    """A band that holds all seeds, and their geometric mean."""
    lines = [(m, [(row, row.curve) for row in at(rows, place, m)], "-") for m in METHODS]
    fed = [(row, row.fed_curve) for row in at(rows, place, PLAIN)]
    for method, group, style in (*lines, (FEEDBACK, fed, (0, (2, 1.5)))):
        if group:
            losses = np.array([_floats(curve) for _, curve in group])
            x = np.mean([_ends(row, axis) for row, _ in group], axis=0)
            colour = METHOD_COLOURS[method]
            mean = np.exp(np.log(losses).mean(0))
            axes.plot(x, mean, color=colour, linestyle=style, linewidth=1.3)
            if style == "-":
                low, high = losses.min(0), losses.max(0)
                axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_yscale("log")
    for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        which(FuncFormatter(_few))
    axes.set_xlim(left=0)
    axes.set_xlabel(axis)
    axes.set_ylabel("loss at the views")


def _few(value: float, _: Any) -> str:
    """Labels 1, 2 and 5."""
    digit = round(value / 10 ** math.floor(math.log10(value)))
    return f"{value:g}" if digit in (1, 2, 5) else ""


def _accuracies(axes: Any, rows: Sequence[Row], place: tuple[str, int, float], axis: str) -> None:
    for method in METHODS:
        for row in at(rows, place, method):
            if row.accuracies:
                y = 100 * _floats(row.accuracies)
                look: Any = dict(color=METHOD_COLOURS[method], linewidth=1.2, markersize=3)
                axes.plot(_ends(row, axis), y, "o-", **look)
    axes.set_xlim(left=0)
    axes.set_xlabel(axis)
    axes.set_ylabel("test accuracy (%)")


def _speeds(axes: Any, rows: Sequence[Row]) -> None:
    """Each race, and a line through the medians."""
    found = speeds(rows)
    for mode, by_workers in found.items():
        x = sorted(by_workers)
        look: Any = dict(color=MODE_COLOURS[mode], linewidth=1.2, markersize=4)
        axes.plot(x, [np.median(by_workers[p]) for p in x], "o-", label=mode, **look)
        for p in x:
            points = by_workers[p]
            axes.plot([p] * len(points), points, ".", color=MODE_COLOURS[mode], alpha=0.4)
    axes.set_xticks(sorted({p for by_workers in found.values() for p in by_workers}))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("workers p")
    axes.set_ylabel("updates a second, dense")
    if found:
        axes.legend(frameon=False, fontsize=8)


def _delays(axes: Any, rows: Sequence[Row]) -> None:
    """The share of updates with each delay, all methods and seeds together."""
    for place in _busiest(rows):
        counts = [row.delays for row in races_of(rows) if _place(row) == place]
        total = np.zeros(max(map(len, counts)))
        for count in counts:
            total[: len(count)] += count
        style = "--" if place[2] else "-"
        look: Any = dict(color=MODE_COLOURS[place[0]], linestyle=style, label=_name(place))
        (seen,) = np.nonzero(total)
        axes.plot(seen, total[seen] / total.sum(), marker=".", linewidth=1, **look)
    axes.set_yscale("log")
    _count(axes, rows)
    axes.set_xlabel("updates that a view missed")
    axes.set_ylabel("share of updates")
    axes.legend(frameon=False, fontsize=7, loc="lower left", bbox_to_anchor=(0, 0.06))


def _count(axes: Any, rows: Sequence[Row]) -> None:
    """Has room for 0 and for the largest delay."""
    axes.set_xscale("symlog", linthresh=4)
    most = max(row.delay_max for row in races_of(rows))
    ticks = [0, 1, 2, *(4**i for i in range(1, 10) if 4**i <= most)]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlim(-0.3, 1.1 * most + 0.5)
    axes.minorticks_off()


def _place(row: Row) -> tuple[str, int, float]:
    return row.mode, row.workers, row.sleep


def _drift(axes: Any, rows: Sequence[Row]) -> None:
    """B̂ as a part of the race's own bound, one mark for each race."""
    for method in METHODS:
        here = [r for r in races_of(rows) if r.method == method and r.drift_to_bound]
        x, y = [r.delay_max for r in here], [r.drift_to_bound for r in here]
        axes.plot(x, y, ".", color=METHOD_COLOURS[method], alpha=0.6)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.text(1, 1, "B̂ = B ", ha="right", va="bottom", transform=axes.get_yaxis_transform())
    axes.set_yscale("log")
    _count(axes, rows)
    axes.set_xlabel("most updates that a view missed, τ")
    axes.set_ylabel("largest B̂ of the race ÷ its B")
    known = "B = τM; with feedback (pβ + τ)M"
    axes.text(0.02, 0.3, known, fontsize=7, transform=axes.transAxes)


def _forest(axes: Any, found: Sequence[Compared]) -> None:
    """The loss with feedback ÷ without, with 95% intervals: between races, on the same traces."""
    for i, one in enumerate(found):
        for cell, shift, fill in ((one.races, -0.15, True), (one.same, 0.15, False)):
            if cell.difference is not None and cell.half_width is not None:
                mid, half = cell.difference, cell.half_width
                colour = METHOD_COLOURS[FEEDBACK]
                axes.plot(np.exp([mid - half, mid + half]), [i + shift] * 2, color=colour, lw=1)
                face = colour if fill else "white"
                axes.plot(np.exp(mid), i + shift, "o", color=colour, mfc=face, markersize=4)
            elif fill:
                axes.text(1, i, f" {cell.outcome}", va="center", fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(found)), [_name((f.mode, f.workers, f.sleep)) for f in found])
    axes.tick_params(axis="y", labelsize=7)
    axes.set_ylim(max(len(found), 1) - 0.5, -0.5)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_formatter(FuncFormatter(_few))
    axes.xaxis.set_minor_formatter(FuncFormatter(_few) if high < 50 * low else "")
    axes.set_xlabel("loss with feedback ÷ without\n(filled: races; hollow: same traces)")
