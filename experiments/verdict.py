"""Does error feedback help? A verdict computed from the rows of a sweep, and from nothing else.

A *cell* is one place of the map: how workers run, how many, which fraction is sent, and which step
sizes are compared. In a cell the statistic is

    D = mean over seeds of  log(final loss with feedback) − log(final loss without)

paired by seed (the same initial parameters, batches and trace), with its 95% interval by Student's
t over the seeds. Entirely below 0 feedback *helps*, entirely above it *hurts*, else one *cannot
tell*. Where one of the two diverges, at more than half of the seeds, and the other never does,
that alone decides.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import scipy.special

from experiments.rows import DENSE, FEEDBACK, PLAIN, Row

HELPS, HURTS, UNKNOWN, BOTH_DIVERGE = "helps", "hurts", "cannot tell", "both diverge"
OUTCOMES = (HELPS, HURTS, UNKNOWN, BOTH_DIVERGE)
BEST, EQUAL = "best", "equal"  # the two comparisons
LEVEL = 0.95
MODES = ("sequential", "asynchronous", "synchronous")
CLAIM = "error feedback may not help sparsified asynchronous SGD"


class Cell(NamedTuple):
    """Feedback against no feedback in one place of the map."""

    mode: str
    workers: int
    fraction: float
    alpha_without: float | None  # None: every step size diverged
    alpha_with: float | None
    delay: float  # mean, applied updates
    outcome: str  # one of OUTCOMES
    difference: float | None  # D; None where it cannot be formed
    half_width: float | None  # of the interval around D
    seeds: int  # pairs in D
    reason: str  # "" or what decided in place of D


class Verdict(NamedTuple):
    """Everything that the rows say."""

    best: tuple[Cell, ...]  # each method at its own best step size
    equal: tuple[Cell, ...]  # both at the same step size, one cell for each
    dense_alpha: dict[tuple[str, int], float]  # best step size of uncompressed SGD, mode and p
    edges: tuple[str, ...]  # best step sizes at the edge of the grid
    seeds: int
    sentences: tuple[str, ...]  # the verdict in words


def diverges(rows: Sequence[Row]) -> bool:
    """Tells whether more than half of the rows diverged."""
    return 2 * sum(row.diverged for row in rows) > len(rows)


def best_alpha(rows: Iterable[Row]) -> float | None:
    """Returns the step size of least mean final loss; those with a diverged seed do not count.

    Only step sizes that have as many seeds as any other are considered, so that in an unfinished
    sweep none wins by seeds that it has not met.
    """
    by_alpha: dict[float, list[Row]] = {}
    for row in rows:
        by_alpha.setdefault(row.alpha, []).append(row)
    most = max(map(len, by_alpha.values()), default=0)
    means = {
        alpha: math.fsum(row.train_loss or 0.0 for row in group) / len(group)
        for alpha, group in by_alpha.items()
        if len(group) == most and not any(row.diverged for row in group)
    }
    return min(means, key=lambda alpha: (means[alpha], alpha), default=None)


def compare(without: Sequence[Row], with_: Sequence[Row]) -> tuple[str, float, float, int, str]:
    """Compares runs without and with feedback, paired by seed.

    Args:
        without: rows of plain top-k, one for each seed.
        with_: rows of top-k with feedback.

    Returns:
        Outcome, D, half the width of its interval (NaN where there is none), pairs, reason.
    """
    a, b = {row.seed: row for row in without}, {row.seed: row for row in with_}
    nothing = (math.nan, math.nan)
    seeds = sorted(a.keys() & b.keys())
    if len(seeds) < 2:
        return UNKNOWN, *nothing, len(seeds), "fewer than two seeds"
    lost_a, lost_b = ([row.diverged for row in rows] for rows in (a.values(), b.values()))
    if diverges(without) and diverges(with_):
        return BOTH_DIVERGE, *nothing, 0, "both diverge"
    if diverges(with_) and not any(lost_a):
        return HURTS, *nothing, 0, "diverges with feedback only"
    if diverges(without) and not any(lost_b):
        return HELPS, *nothing, 0, "diverges without feedback only"
    if any(lost_a) or any(lost_b):
        return UNKNOWN, *nothing, 0, "some seeds diverge"
    gaps = [math.log(_loss(b[seed])) - math.log(_loss(a[seed])) for seed in seeds]
    n = len(gaps)
    mean = math.fsum(gaps) / n
    deviation = math.sqrt(math.fsum((gap - mean) ** 2 for gap in gaps) / (n - 1))
    half = float(scipy.special.stdtrit(n - 1, (1 + LEVEL) / 2)) * deviation / math.sqrt(n)
    outcome = HELPS if mean + half < 0 else HURTS if mean - half > 0 else UNKNOWN
    return outcome, mean, half, n, ""


def _loss(row: Row) -> float:
    return max(row.train_loss or 0.0, 1e-12)  # an exact zero has no logarithm


def verdict(rows: Sequence[Row]) -> Verdict:
    """Computes the verdict.

    Args:
        rows: of a sweep, complete or not.

    Returns:
        Cells, warnings and sentences. Cells that lack one of the two methods are left out.
    """
    groups: dict[tuple[str, int, str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.mode, row.workers, row.method, row.fraction), []).append(row)
    order = sorted(groups, key=lambda g: (MODES.index(g[0]), g[1], g[2], -g[3]))
    best, equal, edges, dense = [], [], [], {}
    for mode, workers, method, fraction in order:
        plain = groups[mode, workers, method, fraction]
        alpha, grid = best_alpha(plain), {row.alpha for row in plain}
        if alpha is not None and len(grid) > 1 and alpha in (min(grid), max(grid)):
            name = method if method == DENSE else f"{method} {fraction:g}"
            edges.append(f"{mode}, p = {workers}, {name}: best α = {alpha:g}")
        if method == DENSE and alpha is not None:
            dense[mode, workers] = alpha
        fed = groups.get((mode, workers, FEEDBACK, fraction))
        if method != PLAIN or not fed:
            continue
        place = mode, workers, fraction
        delay = math.fsum(row.delay_mean for row in plain) / len(plain)
        best.append(_best_cell(place, delay, plain, fed))
        for step in sorted(grid & {row.alpha for row in fed}):
            pair = [[row for row in method if row.alpha == step] for method in (plain, fed)]
            equal.append(_cell(place, step, step, delay, compare(*pair)))
    seeds = len({row.seed for row in rows})
    sentences = _sentences(best, equal, seeds)
    return Verdict(tuple(best), tuple(equal), dense, tuple(edges), seeds, sentences)


def _cell(
    place: tuple[str, int, float],
    alpha_without: float | None,
    alpha_with: float | None,
    delay: float,
    compared: tuple[str, float, float, int, str],
) -> Cell:
    outcome, mean, half, n, reason = compared
    known = math.isfinite(mean)
    return Cell(
        *place,
        alpha_without,
        alpha_with,
        delay,
        outcome,
        mean if known else None,
        half if known else None,
        n,
        reason,
    )


def _best_cell(
    place: tuple[str, int, float], delay: float, plain: list[Row], fed: list[Row]
) -> Cell:
    alphas = best_alpha(plain), best_alpha(fed)
    chosen = [
        [row for row in rows if alpha is None or row.alpha == alpha]
        for rows, alpha in zip((plain, fed), alphas, strict=True)
    ]
    if None in alphas:  # at every step size some seed diverged: then the method diverges
        enough = len({row.seed for row in plain} & {row.seed for row in fed}) > 1
        outcome, reason = UNKNOWN, "fewer than two seeds"
        if enough and alphas == (None, None):
            outcome, reason = BOTH_DIVERGE, "both diverge"
        elif enough:
            outcome = HELPS if alphas[0] is None else HURTS
            side = "without" if alphas[0] is None else "with"
            reason = f"diverges {side} feedback only"
        return _cell(place, *alphas, delay, (outcome, math.nan, math.nan, 0, reason))
    return _cell(place, *alphas, delay, compare(*chosen))


def count(cells: Iterable[Cell]) -> dict[str, int]:
    """Counts outcomes."""
    found = [cell.outcome for cell in cells]
    return {outcome: found.count(outcome) for outcome in OUTCOMES}


def tally(cells: Sequence[Cell]) -> str:
    """Says how many cells had which outcome, and how large the effect is."""
    counts = count(cells)
    said = [f"{outcome} in {counts[outcome]}" for outcome in (HELPS, HURTS)]
    decisive = sum(c.outcome in (HELPS, HURTS) and c.difference is None for c in cells)
    if decisive:
        said[-1] += f" ({decisive} of these by divergence)"
    said.append(f"cannot be told in {counts[UNKNOWN]}")
    if counts[BOTH_DIVERGE]:
        said.append(f"both diverge in {counts[BOTH_DIVERGE]}")
    effects = [cell.difference for cell in cells if cell.difference is not None]
    ratio = ""
    if effects:
        factor = math.exp(math.fsum(effects) / len(effects))
        ratio = f"; final loss ×{factor:.2g} in the geometric mean"
    cell_or_cells = "cell" if len(cells) == 1 else "cells"
    return f"of {len(cells)} {cell_or_cells}, {', '.join(said)}{ratio}"


def _sentences(best: Sequence[Cell], equal: Sequence[Cell], seeds: int) -> tuple[str, ...]:
    if seeds < 2:
        return (
            f"With {seeds} seed nothing can be told: every difference may be chance. Run at least "
            "2 seeds, better 3 or more.",
        )
    said = []
    for name, cells in (
        ("Feedback, each method at its best α", best),
        ("Feedback, equal α", equal),
    ):
        for mode in MODES:
            here = [cell for cell in cells if cell.mode == mode]
            if here:
                said.append(f"{name}, {mode}: {tally(here)}.")
    for name, cells in (("at the best α of each method", best), ("at equal α", equal)):
        sign = _against_claim([cell for cell in cells if cell.mode == "asynchronous"])
        said.append(f"On the claim “{CLAIM}”, {name}: {sign}")
    return tuple(said)


def _against_claim(cells: Sequence[Cell]) -> str:
    """Compares asynchronous cells with the claim."""
    counts = count(cells)
    helps, hurts, decided = counts[HELPS], counts[HURTS], counts[HELPS] + counts[HURTS]
    if not cells:
        return "no asynchronous cell was run, so it was not tested."
    if not decided:
        return f"nothing could be told in any of {len(cells)} asynchronous cells."
    if not hurts:
        return f"not confirmed here. Feedback helps in {helps} of {len(cells)} and never hurts."
    if not helps:
        return f"confirmed here. Feedback helps in none of {len(cells)} and hurts in {hurts}."
    at = ", ".join(
        f"{fraction:g} ({sum(c.outcome == HELPS for c in group)} : "
        f"{sum(c.outcome == HURTS for c in group)})"
        for fraction in sorted({cell.fraction for cell in cells}, reverse=True)
        for group in [[cell for cell in cells if cell.fraction == fraction]]
    )
    diverged = sum(cell.outcome == HURTS and cell.difference is None for cell in cells)
    how = f" ({diverged} of these by divergence)" if diverged else ""
    return (
        f"it depends. Feedback helps in {helps} and hurts in {hurts}{how} of {len(cells)}; by "
        f"fraction sent (helps : hurts) {at}."
    )
