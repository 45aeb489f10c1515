"""The markdown report of the error-feedback experiment, made from its rows."""

from collections.abc import Sequence
from typing import Any

from experiments.derived_lines import Comparison
from experiments.derived_verdict import HEAD, line_of, sentences
from experiments.rows import DENSE, LAST, Row, Settings
from experiments.verdict import HELPS, HURTS, MODES, Cell, Verdict, best_alpha, count


def report(
    rows: Sequence[Row],
    verdict: Verdict,
    compared: Sequence[Comparison],
    settings: Settings,
    about: dict[str, Any],
    warnings: Sequence[str],
    figures: Sequence[str],
) -> str:
    """Writes the report.

    Args:
        rows: of the sweep.
        verdict: of these rows.
        compared: derived lines, cell by cell; none if their constants are not known.
        settings: common to them.
        about: the command line, the versions and the constants.
        warnings: what the reader must know first.
        figures: names of files beside the report.

    Returns:
        Markdown.
    """
    first = rows[0]
    seeds = sorted({row.seed for row in rows})
    out = ["# Does error feedback help sparsified SGD when it runs asynchronously?", ""]
    out += [f"> **{warning}**" for warning in warnings]
    out += ["", "## Verdict", "", *(f"* {line}" for line in verdict.sentences), ""]
    out += ["![phase diagram](phase.png)", ""] if "phase.png" in figures else []
    if compared:
        out += ["## Derived lines", ""]
        out += [f"* {line}" for line in sentences(compared, verdict.equal)]
        out += ["", *_table(HEAD, [line_of(cell) for cell in compared]), ""]
        out += ["L, σ and M on the best run of each mode and p, after so many gradients:", ""]
        out += [*_constants_table(about["constants"]), ""]
    out += [
        "## What was run",
        "",
        f"`{about['command']}`",
        "",
        f"* {settings.model} with d = {first.d:,} parameters on {settings.data}; "
        f"{settings.gradients:,} worker gradients of {settings.batch} images in every run, "
        f"whatever p; seeds {', '.join(map(str, seeds))}; {len(rows)} runs.",
        "* Asynchronous: one worker applies its whole update a tick, on a trace drawn from "
        f"{settings.speed} durations; the residual of error feedback stays at its worker. "
        "Synchronous: p updates are averaged a step. Sequential: p = 1.",
        "* Runs that are compared share initial parameters, batches and trace: they are paired by "
        "seed.",
        f"* Final loss: mean cross entropy of the first {settings.eval_images:,} training "
        f"images, mean of the last {LAST} of {settings.points} evaluations. Diverged: a "
        f"loss that is not finite or above {settings.diverged:g} times the first one at any "
        "evaluation, or a final loss no better than guessing.",
        "* Statistic of a cell: the mean over seeds of log(final loss with feedback ÷ without), "
        "with its 95% interval by Student's t. Helps: entirely below 0. Hurts: entirely above. "
        "Where one method diverges at more than half of the seeds and the other never does, that "
        "decides. Each cell is judged alone, without correction for their number.",
        "* Best α: least mean final loss over seeds; an α at which a seed diverged is excluded. "
        "α is chosen on the same seeds that are compared.",
        f"* {', '.join(f'{name} {version}' for name, version in about['versions'].items())}.",
        "",
    ]
    out += ["## Each method at its best α", "", *_best_table(verdict.best), ""]
    if verdict.edges:
        out += [
            "**Best α on the edge of its grid**, so that a better one may lie beyond:",
            "",
            *(f"* {edge}" for edge in verdict.edges),
            "",
        ]
    else:
        out += ["Every best α lies inside its grid.", ""]
    out += ["## Equal α", "", *_equal_table(verdict), ""]
    out += ["## Every method at its best α", "", *_method_table(rows), ""]
    out += [f"![{name}]({name})" for name in figures if name != "phase.png"]
    return "\n".join(out).rstrip() + "\n"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---"] * len(head)
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *lines)]


def _constants_table(points: Sequence[dict[str, Any]]) -> list[str]:
    names = ["mode", "workers", "method", "fraction", "alpha", "seed", "gradients"]
    found = ["L", "sigma", "M"]
    lines = [
        [f"{point[n]}" for n in names] + [f"{point[n]:.3g}" for n in found] for point in points
    ]
    return _table(names + found, lines)


def _best_table(cells: Sequence[Cell]) -> list[str]:
    head = ("mode", "p", "mean delay", "fraction", "α without", "α with", "D", "outcome")
    lines = [
        (
            cell.mode,
            str(cell.workers),
            f"{cell.delay:.1f}",
            f"{cell.fraction:g}",
            _number(cell.alpha_without),
            _number(cell.alpha_with),
            _difference(cell),
            cell.outcome + (f" ({cell.reason})" if cell.reason not in ("", cell.outcome) else ""),
        )
        for cell in cells
    ]
    return _table(head, lines)


def _equal_table(verdict: Verdict) -> list[str]:
    head = ("mode", "p", "fraction", "helps / hurts / rest", "at each α", "at dense SGD's best α")
    lines = []
    places = dict.fromkeys((cell.mode, cell.workers, cell.fraction) for cell in verdict.equal)
    for mode, workers, fraction in places:
        here = [
            c for c in verdict.equal if (c.mode, c.workers, c.fraction) == (mode, workers, fraction)
        ]
        counts = count(here)
        rest = len(here) - counts[HELPS] - counts[HURTS]
        alpha = verdict.dense_alpha.get((mode, workers))
        at_dense = [
            f"α = {alpha:g}: {c.outcome}, D = {_difference(c)}"
            for c in here
            if c.alpha_with == alpha
        ]
        each = ", ".join(f"{c.alpha_with:g} {c.outcome}" for c in here)
        lines.append(
            (
                mode,
                str(workers),
                f"{fraction:g}",
                f"{counts[HELPS]} / {counts[HURTS]} / {rest}",
                each,
                (at_dense or ["not run"])[0],
            )
        )
    return _table(head, lines)


def _method_table(rows: Sequence[Row]) -> list[str]:
    head = (
        "mode",
        "p",
        "method",
        "fraction",
        "α",
        "final loss",
        "test accuracy",
        "diverged α",
        "B̂ rms",
        "B̂ max",
        "M̂",
        "B",
        "B̂/B",
        "lost",
    )
    groups: dict[tuple[str, int, str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.mode, row.workers, row.method, row.fraction), []).append(row)
    methods = [DENSE, "topk", "topk+feedback"]
    lines = []
    for key in sorted(groups, key=lambda g: (MODES.index(g[0]), g[1], methods.index(g[2]), -g[3])):
        group, alpha = groups[key], best_alpha(groups[key])
        grid = sorted({row.alpha for row in group})
        bad = sorted({row.alpha for row in group if row.diverged})
        chosen = [row for row in group if row.alpha == alpha]

        def mean(name: str, chosen: list[Row] = chosen) -> str:
            found = [getattr(row, name) for row in chosen if getattr(row, name) is not None]
            return f"{sum(found) / len(found):.3g}" if found else "–"

        values = ("train_loss", "test_accuracy")
        drifts = ("drift_rms", "drift_max", "moment_rms", "bound", "drift_to_bound", "lost_norm")
        mode, workers, method, fraction = key
        lines.append(
            (
                mode,
                str(workers),
                method,
                f"{fraction:g}",
                _number(alpha),
                *(mean(name) for name in values),
                f"{len(bad)} of {len(grid)}" + (f", from {bad[0]:g}" if bad else ""),
                *(mean(name) for name in drifts),
            )
        )
    return _table(head, lines)


def _number(value: float | None) -> str:
    return "all diverge" if value is None else f"{value:g}"


def _difference(cell: Cell) -> str:
    if cell.difference is None:
        return "–"
    return f"{cell.difference:+.3f} ± {cell.half_width:.3f}"
