"""What figures share, and two of the error-feedback experiment: its curves and the drift."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from experiments.rows import DENSE, FEEDBACK, PLAIN, Row
from experiments.runs import replacing
from experiments.verdict import best_alpha

METHOD_COLOURS = {DENSE: "#000000", PLAIN: "#D55E00", FEEDBACK: "#0072B2"}
NAMES = {DENSE: "dense", PLAIN: "top-k", FEEDBACK: "top-k + feedback"}
CARRIED = "rows"  # the key of the text in a png
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.4,
    "figure.dpi": 110,
}


def save(folder: Path, figures: dict[str, Any], holds: dict[str, Any] | None = None) -> list[str]:
    """Writes figures, each complete or untouched, and closes them.

    Args:
        folder: where the png files go.
        figures: by name.
        holds: by name, what a file carries with it, as JSON; see `held_by`.

    Returns:
        The names.
    """
    with plt.rc_context(STYLE):
        for name, figure in figures.items():
            carried = PngInfo()
            if name in (holds or {}):
                text = json.dumps((holds or {})[name], separators=(",", ":"), allow_nan=False)
                carried.add_text(CARRIED, text, zip=True)
            drawn = io.BytesIO()
            figure.savefig(drawn, format="png")
            with replacing(folder / name) as part, Image.open(drawn) as image:
                small = image.convert("RGB").quantize(dither=Image.Dither.NONE)  # 256 colours do
                small.save(part, format="png", optimize=True, pnginfo=carried)
            plt.close(figure)
    return list(figures)


def held_by(path: Path) -> Any:
    """Returns what a file of `save` carries with it."""
    with Image.open(path) as image:
        return json.loads(dict(image.info)[CARRIED])


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
