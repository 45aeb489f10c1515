"""Where the derived lines agree with what was measured, in words and in a table."""

import math
from collections.abc import Iterable, Sequence

from experiments.derived_lines import (
    ABOVE,
    AGREES,
    BELOW,
    Comparison,
    Range,
    Setting,
    delayed,
)
from experiments.verdict import HELPS, HURTS, Cell


def sentences(compared: Sequence[Comparison], equal: Sequence[Cell]) -> tuple[str, ...]:
    """Says of every line where it agrees.

    A derived step size is a range, from the largest L that was seen to the least; what was measured
    lies between two step sizes of the grid. They agree where the two overlap.

    Args:
        compared: the cells.
        equal: the comparisons at equal α.

    Returns:
        The sentences; none without cells.
    """
    if not compared:
        return ()
    settings = list(dict.fromkeys(cell.setting for cell in compared))
    said = [_constants(settings), *_limit(compared), _proved(compared), _floor(compared, equal)]
    return (*said, _delay(settings), *_slowdown(compared), _step(compared))


def _span(numbers: Iterable[float]) -> str:
    found = [number for number in numbers if math.isfinite(number)]
    if not found:
        return "–"
    low, high = _shown(min(found)), _shown(max(found))
    return low if low == high else f"{low} to {high}"


def _shown(number: float) -> str:
    return f"{float(f'{number:.2g}'):,.0f}" if number >= 100 else f"{number:.2g}"


def _relations(found: Sequence[str]) -> str:
    """Counts, in words."""
    counts = {each: found.count(each) for each in (AGREES, BELOW, ABOVE)}
    names = {AGREES: "agrees", BELOW: "lies below", ABOVE: "lies ABOVE"}
    said = [f"{names[each]} in {count}" for each, count in counts.items() if count]
    return f"{', '.join(said)} of {len(found)}"


def _constants(settings: Sequence[Setting]) -> str:
    return (
        "Derived lines take L from what was seen at the start, early and at the end of the best "
        f"run of each mode and p: largest {_span(s.L.high for s in settings)}, least "
        f"{_span(s.L.low for s in settings)}. p single steps count as one parallel step of pα."
    )


def _limit(compared: Sequence[Comparison]) -> Iterable[str]:
    worst = [cell.with_.relation(cell.limit) for cell in compared]
    yield (
        "Feedback's stability limit at worst, 2(1 − √γ)/((1 + √γ)L), against the step from which "
        f"on feedback diverges: {_relations(worst)}; the longest stable step is "
        f"×{_span(cell.with_.last / cell.limit.high for cell in compared)} of it, at the least L."
    )
    actual = [cell.with_.relation(cell.measured_limit) for cell in compared]
    ratios = [cell.with_.last / cell.measured_limit.high for cell in compared]
    yield (
        "With the memory that was measured, B̂/M̂ = "
        f"{_span(c.measured_memory for c in compared)} steps in place of β = "
        f"{_span(c.memory for c in compared)} at worst, it {_relations(actual)}; the longest "
        f"stable step is ×{_span(ratios)} of it, at the least L."
    )


def _proved(compared: Sequence[Comparison]) -> str:
    broken = sum(cell.with_.first <= cell.proved.low for cell in compared)
    least = [cell.with_.last / cell.proved.low for cell in compared]
    holds = f"BROKEN in {broken} of" if broken else "diverge in none of"
    return (
        f"Steps for which a rate is proved with feedback and delay (W.both) {holds} "
        f"{len(compared)} cells; the longest stable step is ×{_span(least)} of the longest such."
    )


def _floor(compared: Sequence[Comparison], equal: Sequence[Cell]) -> str:
    lines = {(c.setting.mode, c.setting.workers, c.fraction): c.floor for c in compared}
    sides: dict[str, list[str]] = {"below": [], "within": [], "above": []}
    for cell in equal:
        line, alpha = lines.get((cell.mode, cell.workers, cell.fraction)), cell.alpha_with or 0.0
        if line:
            side = "below" if alpha < line.low else "above" if alpha > line.high else "within"
            sides[side].append(cell.outcome)
    counts = [
        f"{name} it feedback helps in {found.count(HELPS)} and hurts in {found.count(HURTS)} of "
        f"{len(found)}"
        for name, found in sides.items()
    ]
    worst = sum(cell.floor_ratio > 1 for cell in compared)
    return (
        "Where feedback's worst penalty is no feedback's worst floor, α = 1/(L√(2 + 2√γ)), at "
        f"equal α: {', '.join(counts)}. That floor, γσ²/(1 − γ), is above the mean square of the "
        f"gradients that were measured in {worst} of {len(compared)} cells (×"
        f"{_span(cell.floor_ratio for cell in compared)}): there the noise is not the worst."
    )


def _delay(settings: Sequence[Setting]) -> str:
    found = [setting.dense.relation(_late(setting)) for setting in settings]
    ratios = [setting.dense.last / _late(setting).high for setting in settings]
    return (
        "Dense SGD's limit at the mean delay, 2 sin(π/(4τ + 2))/L (Levin and May): "
        f"{_relations(found)} modes and p; the longest stable step is ×{_span(ratios)} of it, at "
        "the least L."
    )


def _late(setting: Setting) -> Range:
    low, high = (delayed(setting, L) for L in reversed(setting.L))
    return Range(low, high)


def _slowdown(compared: Sequence[Comparison]) -> Iterable[str]:
    parts, holds = [], []
    for fraction in sorted({cell.fraction for cell in compared}, reverse=True):
        here = [cell for cell in compared if cell.fraction == fraction and cell.slowdown]
        if here:
            ends = [end for cell in here for end in cell.slowdown or ()]
            parts.append(f"{_span(ends)} at {fraction:g}")
            holds += [min(cell.slowdown or (0.0,)) >= fraction for cell in here]
    if parts:
        yield (
            "Without feedback short steps end where dense SGD's would that are s times as long: "
            f"s = {', '.join(parts)}; at least k/d, as derived for exchangeable noise, in "
            f"{sum(holds)} of {len(holds)} cells."
        )


def _step(compared: Sequence[Comparison]) -> str:
    ratios = {
        name: [
            alpha / cell.setting.dense_alpha
            for cell in compared
            if (alpha := getattr(cell, f"alpha_{name}")) and cell.setting.dense_alpha
        ]
        for name in ("with", "without")
    }
    said = "; ".join(
        f"{name} feedback {sum(math.isclose(ratio, 1) for ratio in found)} of {len(found)} times "
        f"(×{_span(found)})"
        for name, found in ratios.items()
    )
    late = [cell.setting.delay_alone for cell in compared if cell.setting.delay > 0]
    met = sum(cell.fraction >= cell.setting.delay_alone for cell in compared)
    where = f"k/d ≥ {_span(late)}; {met} of {len(compared)} cells" if late else "no cell is late"
    return (
        f"The best step is dense SGD's own {said}. That feedback keeps the step that a delay "
        f"leaves, but for √2, is proved where asynchrony limits it already, β ≤ τ/p ({where})."
    )


# ---- the table ----


HEAD = (
    "mode", "p", "fraction", "L", "β", "B̂/M̂", "unstable at worst", "as measured", "stable to",
    "diverges at", "proved to", "price = floor", "α dense", "α without", "α with", "slowdown",
    "floor ÷ M̂²",
)  # fmt: skip


def line_of(cell: Comparison) -> tuple[str, ...]:
    """Returns a cell's line of the table."""
    setting, with_ = cell.setting, cell.with_
    return (
        setting.mode,
        str(setting.workers),
        f"{cell.fraction:g}",
        _span(setting.L),
        _shown(cell.memory),
        _shown(cell.measured_memory),
        f"{_span(cell.limit)} ({with_.relation(cell.limit)})",
        f"{_span(cell.measured_limit)} ({with_.relation(cell.measured_limit)})",
        f"{with_.last:g}",
        f"{with_.first:g}",
        _span(cell.proved),
        _span(cell.floor),
        *("–" if a is None else f"{a:g}" for a in _alphas(cell)),
        "–" if cell.slowdown is None else _span(cell.slowdown),
        f"{cell.floor_ratio:.2g}",
    )


def _alphas(cell: Comparison) -> tuple[float | None, float | None, float | None]:
    return cell.setting.dense_alpha, cell.alpha_without, cell.alpha_with
