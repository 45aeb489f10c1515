"""Figures of the error-feedback experiment: curves, the phase diagram, the drift."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch, Rectangle

from experiments.rows import DENSE, FEEDBACK, PLAIN, Row
from experiments.runs import replacing
from experiments.verdict import (
    BOTH_DIVERGE,
    HELPS,
    HURTS,
    OUTCOMES,
    UNKNOWN,
    Cell,
    Verdict,
    best_alpha,
)

# Okabe and Ito's colours, told apart with any colour vision; the hatch, without colour.
COLOURS = {HELPS: "#56B4E9", HURTS: "#E69F00", UNKNOWN: "#E8E8E8", BOTH_DIVERGE: "#8C8C8C"}
HATCHES = {HELPS: "", HURTS: "///", UNKNOWN: "", BOTH_DIVERGE: ""}
METHOD_COLOURS = {DENSE: "#000000", PLAIN: "#D55E00", FEEDBACK: "#0072B2"}
NAMES = {DENSE: "dense", PLAIN: "top-k", FEEDBACK: "top-k + feedback"}
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.4,
    "figure.dpi": 110,
}


def draw_all(folder: Path, rows: Sequence[Row], verdict: Verdict) -> list[str]:
    """Draws the figures that the rows allow.

    Args:
        folder: where the png files go.
        rows: of the sweep.
        verdict: of the rows.

    Returns:
        The names of the files.
    """
    return save(
        folder,
        {"phase.png": phase(verdict), "curves.png": curves(rows), "drift.png": drift(rows)},
    )


def save(folder: Path, figures: dict[str, Any]) -> list[str]:
    """Writes figures, each complete or untouched, and closes them; returns their names."""
    with plt.rc_context(STYLE):
        for name, figure in figures.items():
            with replacing(folder / name) as part:
                figure.savefig(
                    part, format="png", metadata={"Software": None}, pil_kwargs={"optimize": True}
                )
            plt.close(figure)
    return list(figures)


def phase(verdict: Verdict) -> Any:
    """Fraction × staleness: where feedback helps; both comparisons, both modes."""
    modes = [m for m in ("asynchronous", "synchronous") if any(c.mode == m for c in verdict.best)]
    modes = modes or ["sequential"]
    with plt.rc_context(STYLE):
        size = (8.2, 0.9 + 2.5 * len(modes))
        figure, axes = plt.subplots(
            len(modes), 2, figsize=size, squeeze=False, layout="constrained"
        )
        for line, mode in zip(axes, modes, strict=True):
            here = [cell for cell in verdict.best if cell.mode in (mode, "sequential")]
            places = sorted({cell.workers for cell in here})
            fractions = sorted({cell.fraction for cell in here})
            shown = {(c.workers, c.fraction): c for c in here}
            _grid(line[0], places, fractions, shown, {})
            line[0].set_title(f"{mode}: each at its best α")
            same = [cell for cell in verdict.equal if cell.mode in (mode, "sequential")]
            strips: dict[tuple[int, float], list[Cell]] = {}
            for cell in same:
                strips.setdefault((cell.workers, cell.fraction), []).append(cell)
            shown = {
                (cell.workers, cell.fraction): cell
                for cell in same
                if cell.alpha_with == verdict.dense_alpha.get((cell.mode, cell.workers))
            }
            _grid(line[1], places, fractions, shown, strips)
            line[1].set_title(f"{mode}: equal α, dense SGD's best")
            delays = {cell.workers: cell.delay for cell in here}
            for axis in line:
                labels = [f"p = {p}\ndelay {delays[p]:.0f}" for p in places]
                axis.set_xticks(range(len(places)), labels)
                axis.set_yticks(range(len(fractions)), [f"{f:g}" for f in fractions])
            line[0].set_ylabel("fraction sent")
        handles = [
            Patch(
                facecolor=COLOURS[o], hatch=HATCHES[o], edgecolor="#555555", label=f"feedback {o}"
            )
            for o in (HELPS, HURTS)
        ]
        handles += [
            Patch(facecolor=COLOURS[o], hatch=HATCHES[o], edgecolor="#555555", label=o)
            for o in (UNKNOWN, BOTH_DIVERGE)
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
        figure.supxlabel(
            "final loss with feedback ÷ without, with its 95% interval over seeds; "
            "strips: every α of the grid, small to large",
            fontsize=8,
        )
    return figure


def _grid(axis: Any, places: list[int], fractions: list[float], shown: Any, strips: Any) -> None:
    for (workers, fraction), cell in shown.items():
        x, y = places.index(workers), fractions.index(fraction)
        _square(axis, x - 0.49, y - 0.47, 0.98, 0.94, cell.outcome)
        lift = 0.1 if strips else 0.0
        axis.text(x, y + lift, _words(cell), ha="center", va="center", fontsize=7.5)
    for (workers, fraction), cells in strips.items():
        x, y = places.index(workers) - 0.45, fractions.index(fraction) - 0.42
        width = 0.9 / len(cells)
        for i, cell in enumerate(sorted(cells, key=lambda c: c.alpha_with or 0.0)):
            _square(axis, x + i * width, y, width, 0.2, cell.outcome)
    axis.set_xlim(-0.5, len(places) - 0.5)
    axis.set_ylim(-0.5, len(fractions) - 0.5)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _square(axis: Any, x: float, y: float, width: float, height: float, outcome: str) -> None:
    assert outcome in OUTCOMES
    look: dict[str, Any] = dict(facecolor=COLOURS[outcome], edgecolor="white", linewidth=0.8)
    axis.add_patch(Rectangle((x, y), width, height, **look))
    if HATCHES[outcome]:
        look = dict(fill=False, edgecolor="#555555", linewidth=0, hatch=HATCHES[outcome])
        axis.add_patch(Rectangle((x, y), width, height, **look))


def _words(cell: Cell) -> str:
    if cell.difference is None or cell.half_width is None:
        return {
            "diverges with feedback only": "feedback\ndiverges",
            "diverges without feedback only": "only feedback\nconverges",
            "some seeds diverge": "some seeds\ndiverge",
            "both diverge": "both\ndiverge",
        }.get(cell.reason, "one seed")
    low, high = (math.exp(cell.difference + s * cell.half_width) for s in (-1, 1))
    return f"×{math.exp(cell.difference):.2g}\n({_short(low)} – {_short(high)})"


def _short(number: float) -> str:
    return f"{number:.2g}" if 0.01 <= number < 100 else f"{number:.0e}".replace("e-0", "e-")


def curves(rows: Sequence[Row]) -> Any:
    """Training loss against gradients, each method at its best step size; bands hold all seeds."""
    panels = sorted(
        {(row.mode, row.workers) for row in rows},
        key=lambda m: (m[0] == "synchronous", m[1]),
    )
    fractions = sorted({row.fraction for row in rows if row.method != DENSE}, reverse=True)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(panels),
            max(1, len(fractions)),
            figsize=(2.6 * max(1, len(fractions)) + 0.4, 1.8 * len(panels) + 0.6),
            squeeze=False,
            sharex=True,
            sharey=True,
            layout="constrained",
        )
        for line, (mode, workers) in zip(axes, panels, strict=True):
            for axis, fraction in zip(line, fractions or [1.0], strict=True):
                for method in (DENSE, PLAIN, FEEDBACK):
                    group = [
                        row
                        for row in rows
                        if (row.mode, row.workers, row.method) == (mode, workers, method)
                        and (method == DENSE or row.fraction == fraction)
                    ]
                    _band(axis, group, method)
                axis.set_yscale("log")
                axis.text(0.97, 0.93, f"{fraction:g}", transform=axis.transAxes, ha="right")
            line[0].set_ylabel(f"{mode}\np = {workers}", fontsize=8)
        axes[0, 0].set_title("fraction sent (upper right) and best α (lower left)", loc="left")
        figure.supxlabel("worker gradients")
        figure.supylabel("training loss")
        handles = [Patch(color=METHOD_COLOURS[m], label=NAMES[m]) for m in (DENSE, PLAIN, FEEDBACK)]
        figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
    return figure


def _band(axis: Any, group: list[Row], method: str) -> None:
    alpha = best_alpha(group)
    if alpha is None:
        return
    lines = [row for row in group if row.alpha == alpha]
    losses = np.array([[np.nan if v is None else v for v in row.curve] for row in lines])
    x = np.linspace(0, lines[0].gradients, losses.shape[1])
    colour = METHOD_COLOURS[method]
    axis.plot(x, np.exp(np.log(np.maximum(losses, 1e-12)).mean(0)), color=colour, linewidth=1.2)
    axis.fill_between(x, losses.min(0), losses.max(0), color=colour, alpha=0.25, linewidth=0)
    height = 0.06 + 0.11 * [FEEDBACK, PLAIN, DENSE].index(method)
    text = f"α = {alpha:g}"
    axis.text(0.04, height, text, color=colour, fontsize=7, transform=axis.transAxes)


def drift(rows: Sequence[Row]) -> Any:
    """Largest measured B̂ of each method at its best step size against p, with the derived B."""
    modes = [m for m in ("asynchronous", "synchronous") if any(r.mode == m for r in rows)]
    modes = modes or ["sequential"]
    fractions = sorted({row.fraction for row in rows if row.method == FEEDBACK}, reverse=True)
    lines = [(DENSE, 1.0)] + [(m, f) for m in (PLAIN, FEEDBACK) for f in fractions]
    marks = dict(zip(fractions, "os^Dv<>ph*" * len(fractions), strict=False))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(modes), figsize=(4.3 * len(modes), 3.9), squeeze=False, layout="constrained"
        )
        for axis, mode in zip(axes[0], modes, strict=True):
            for method, fraction in lines:
                points = []
                for p in sorted({row.workers for row in rows}):
                    group = [
                        row
                        for row in rows
                        if (row.method, row.fraction, row.workers) == (method, fraction, p)
                        and row.mode in (mode, "sequential")
                    ]
                    chosen = [r for r in group if r.alpha == best_alpha(group) and r.drift_max]
                    if chosen and all(row.bound for row in chosen):
                        sizes = [(row.drift_max or 0.0, row.bound or 0.0) for row in chosen]
                        points.append((p, *np.mean(sizes, axis=0)))
                if points:
                    x, measured, bound = zip(*points, strict=True)
                    label = NAMES[method] + ("" if method == DENSE else f" {fraction:g}")
                    look = dict(color=METHOD_COLOURS[method], marker=marks.get(fraction, "x"))
                    axis.plot(x, measured, label=label, markersize=4, linewidth=1.1, **look)
                    axis.plot(x, bound, linestyle=":", markersize=2.5, linewidth=0.8, **look)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            ticks = sorted({row.workers for row in rows})
            axis.set_xticks(ticks, [str(p) for p in ticks])
            axis.minorticks_off()
            axis.set_xlabel("workers p")
            axis.set_title(mode)
        axes[0, 0].set_ylabel("largest B̂ (solid) and derived B (dotted)")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        if handles:
            figure.legend(
                handles,
                labels,
                loc="outside lower center",
                ncols=2 * len(modes),
                frameon=False,
                fontsize=8,
            )
    return figure
