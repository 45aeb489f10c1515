"""The phase diagram: where feedback helps, over α, k/d and staleness, under the derived lines."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from experiments import derived_lines
from experiments.derived_lines import Comparison, Setting
from experiments.figures import STYLE, plt
from experiments.rows import DENSE, Row
from experiments.verdict import (
    BOTH_DIVERGE,
    HELPS,
    HURTS,
    UNKNOWN,
    Cell,
    Verdict,
)

# Okabe and Ito's colours, told apart with any colour vision; the hatch, without colour.
COLOURS = {HELPS: "#56B4E9", HURTS: "#E69F00", UNKNOWN: "#E8E8E8", BOTH_DIVERGE: "#8C8C8C"}
HATCHES = {HELPS: "", HURTS: "/////", UNKNOWN: "", BOTH_DIVERGE: ""}
LIMIT, PROVED, FLOOR, SLOW, LATE = "#0072B2", "#000000", "#CC79A7", "#D55E00", "#009E73"


def phase(rows: Sequence[Row], verdict: Verdict, compared: Sequence[Comparison]) -> Any:
    """Draws where feedback helps: each method at its best α, and both at every α.

    Args:
        rows: of the sweep.
        verdict: of these rows.
        compared: with the derived lines; cells that are not in it have none.

    Returns:
        The figure.
    """
    modes = [m for m in ("asynchronous", "synchronous") if any(c.mode == m for c in verdict.best)]
    places = {mode: sorted({c.workers for c in verdict.best if c.mode == mode}) for mode in modes}
    first = [("sequential", 1)] if any(c.mode == "sequential" for c in verdict.best) else []
    lines = [[(mode, p) for p in places[mode]] for mode in modes] or [[]]
    lines[0] = first + lines[0]
    columns = max(len(line) + (i == len(lines) - 1) for i, line in enumerate(lines))
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(8.2, 2.6 + 3.0 * len(lines)), layout="constrained")
        heights = [2.3] + [3.0] * len(lines)
        parts: Any = figure.subfigures(1 + len(lines), 1, height_ratios=heights)
        above, *below = parts
        for axis, mode in zip(
            above.subplots(1, max(1, len(modes)), squeeze=False)[0],
            modes or ["sequential"],
            strict=True,
        ):
            _best(axis, mode, verdict)
        settings = {(c.setting.mode, c.setting.workers): c.setting for c in compared}
        for part, line in zip(below, lines, strict=True):
            axes = part.subplots(1, columns, squeeze=False, sharey=True)[0]
            for axis, key in zip(axes, line, strict=False):
                here = [row for row in rows if (row.mode, row.workers) == key]
                _equal(axis, here, [c for c in verdict.equal if (c.mode, c.workers) == key])
                own = [c for c in compared if (c.setting.mode, c.setting.workers) == key]
                _markers(axis, [c for c in verdict.best if (c.mode, c.workers) == key], verdict)
                if own:
                    _lines(axis, settings[key], own)
                axis.set_title(f"{key[0]}, p = {key[1]}", fontsize=8.5)
            axes[0].set_ylabel("step size α, equal for both")
            for axis in axes[len(line) :]:
                axis.set_axis_off()
        _key(axes[-1])
    return figure


def _best(axis: Any, mode: str, verdict: Verdict) -> None:
    """Fraction × p: the ratio of final losses, each method at its best α."""
    here = [cell for cell in verdict.best if cell.mode in (mode, "sequential")]
    places = sorted({cell.workers for cell in here})
    fractions = sorted({cell.fraction for cell in here})
    for cell in here:
        x, y = places.index(cell.workers), fractions.index(cell.fraction)
        _square(axis, x - 0.49, y - 0.47, 0.98, 0.94, cell.outcome)
        axis.text(x, y, _words(cell), ha="center", va="center", fontsize=7.5)
    delays = {cell.workers: cell.delay for cell in here}
    axis.set_xticks(range(len(places)), [f"p = {p}\ndelay {delays[p]:.0f}" for p in places])
    axis.set_yticks(range(len(fractions)), [f"{f:g}" for f in fractions])
    axis.set_xlim(-0.5, max(len(places), 1) - 0.5)
    axis.set_ylim(-0.5, max(len(fractions), 1) - 0.5)
    axis.set_ylabel("fraction sent k/d")
    axis.set_title(f"{mode}, each at its best α:\nfinal loss with feedback ÷ without", fontsize=9)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _square(axis: Any, x: float, y: float, width: float, height: float, outcome: str) -> None:
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


def _edges(values: Iterable[float]) -> dict[float, tuple[float, float]]:
    """Returns the ends of a cell around each value: half-way to its neighbours, in logarithms."""
    values = sorted(values)
    logs = np.log(values)
    steps = np.diff(logs) if len(logs) > 1 else np.array([math.log(4)])
    inner = (logs[1:] + logs[:-1]) / 2
    ends = np.exp([logs[0] - steps[0] / 2, *inner, logs[-1] + steps[-1] / 2])
    return {value: (float(ends[i]), float(ends[i + 1])) for i, value in enumerate(values)}


def _equal(axis: Any, rows: Sequence[Row], cells: Sequence[Cell]) -> None:
    """Fraction × α: what feedback does at equal α; on the right, whether dense SGD converges."""
    fractions = sorted({cell.fraction for cell in cells} | {1.0})
    across = _edges(fractions)
    up = _edges({row.alpha for row in rows if row.method != DENSE})
    for cell in cells:
        (left, right), (low, high) = across[cell.fraction], up[cell.alpha_with or 0.0]
        _square(axis, left, low, right - left, high - low, cell.outcome)
    lost = {row.alpha for row in rows if row.method == DENSE and row.diverged}
    for alpha in lost & up.keys():
        low, high = up[alpha]
        left, right = across[1.0]
        _square(axis, left, low, right - left, high - low, BOTH_DIVERGE)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(across[fractions[0]][0], 1.7)
    axis.set_xticks(fractions, ["dense" if f == 1 else f"{f:g}" for f in fractions])
    axis.minorticks_off()
    axis.set_xlabel("fraction sent k/d")


def _markers(axis: Any, cells: Sequence[Cell], verdict: Verdict) -> None:
    """The best step sizes; without feedback to the left."""
    for cell in cells:
        for alpha, shift, face in (
            (cell.alpha_without, 0.72, "white"),
            (cell.alpha_with, 1.39, "black"),
        ):
            if alpha is not None:
                look: Any = dict(marker="o", mfc=face, mec="black", ms=4.5, ls="", zorder=5)
                axis.plot([cell.fraction * shift], [alpha], **look)
        alpha = verdict.dense_alpha.get((cell.mode, cell.workers))
        if alpha is not None:
            axis.plot([1.0], [alpha], marker="D", color="black", ms=4, ls="", zorder=5)


def _lines(axis: Any, setting: Setting, compared: Sequence[Comparison]) -> None:
    """The derived lines: solid for the largest L that was seen, a band down to the least."""
    fractions = np.geomspace(axis.get_xlim()[0], 0.999, 200)
    bottom, top = axis.get_ylim()
    least, largest = setting.L
    low, high = (derived_lines.limit(fractions, setting, L) for L in (largest, least))
    axis.plot(fractions, low, color=LIMIT, linewidth=1.3)
    axis.fill_between(fractions, low, high, color=LIMIT, alpha=0.15, linewidth=0, zorder=0)
    axis.plot(fractions, derived_lines.proved(fractions, setting, largest), "--", color=PROVED)
    for L, width in ((largest, 1.5), (least, 0.7)):
        axis.plot(fractions, derived_lines.floor(fractions, setting, L), color=FLOOR, lw=width)
        axis.axhline(derived_lines.delayed(setting, L), color=LATE, lw=width)
    if setting.delay > 0:
        place = setting.delay_alone
        axis.plot(place, derived_lines.proved([place], setting, largest), "v", color=PROVED, ms=4)
    if setting.dense_alpha is not None:
        axis.plot(fractions, setting.dense_alpha / fractions, ":", color=SLOW, linewidth=1.5)
    for cell in compared:
        x = [cell.fraction] * 2
        axis.plot(x, cell.measured_limit, "-_", color="white", linewidth=3.2, ms=7, mew=3)
        axis.plot(x, cell.measured_limit, "-_", color=LIMIT, linewidth=1.6, ms=6, mew=1.6)
    axis.set_ylim(min(bottom, float(low[0]) / 2), top)
    axis.text(0.96, 0.05, "rate proved here", transform=axis.transAxes, ha="right", fontsize=7)


def _key(axis: Any) -> None:
    handles: list[Any] = [
        Patch(facecolor=COLOURS[o], hatch=HATCHES[o], edgecolor="#555555", label=text)
        for o, text in (
            (HELPS, "feedback helps"),
            (HURTS, "feedback hurts"),
            (UNKNOWN, "cannot tell"),
            (BOTH_DIVERGE, "both diverge (dense: it does)"),
        )
    ]
    look: Any = dict(color="black", ls="", ms=4.5)
    bar: Any = dict(marker="|", ms=9, mew=1.8, ls="")
    handles += [
        Line2D([], [], marker="o", label="best α with feedback", **look),
        Line2D([], [], marker="o", mfc="white", label="best α without", **look),
        Line2D([], [], marker="D", label="best α of dense SGD", **look),
        Line2D([], [], color=LIMIT, label="feedback unstable, at worst"),
        Line2D([], [], color=LIMIT, label="… with the memory measured", **bar),
        Line2D([], [], color=PROVED, ls="--", label="feedback: rate proved below"),
        Line2D([], [], marker="v", label="… right of it delay limits α", **look),
        Line2D([], [], color=FLOOR, label="feedback's price = the other's floor"),
        Line2D([], [], color=LATE, label="dense SGD unstable (delay)"),
        Line2D([], [], color=SLOW, ls=":", label="dense SGD's best α ÷ (k/d)"),
    ]
    axis.legend(
        handles=handles,
        loc="center",
        frameon=False,
        fontsize=6.8,
        borderpad=0,
        title="lines: largest L seen;\nband, bars, thin: to the least L",
        title_fontsize=6.8,
    )
