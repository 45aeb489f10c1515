"""What theory derives for the map of error feedback, cell by cell beside what was measured.

The lines, in α over the fraction k/d that is sent (γ = 1 − k/d, β = √γ/(1 − √γ)):

* *limit*: a γ-contraction with feedback is unstable at worst from αL = 2(1 − √γ)/(1 + √γ) on;
* *proved*: the longest step of `W.both`, feedback behind a delay, 2α²L²(τ² + β²) ≤ 1 − αL;
* *floor*: where feedback's worst penalty, 2L²α²σ²γ/(1 − √γ), is no feedback's worst floor,
  γσ²/(1 − γ): below it, at worst, feedback costs less;
* *slowdown*: with exchangeable noise no feedback is like dense SGD whose step is k/d as long, so
  that dense SGD's best step stands for d/k times it;
* *delay*: plain SGD that is τ steps late is unstable from αL = 2 sin(π/(4τ + 2)) on.

Theory speaks of parallel steps. p single steps α are counted as one parallel step of pα whose
delay is τ/p: a translation, and no theorem. Where β ≤ τ/p asynchrony limits the step already.
L is a range, of what was seen along the best run of a mode and p: a line is a band.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import theory
from experiments.constants import Constants
from experiments.rows import DENSE, FEEDBACK, PLAIN, Row
from experiments.verdict import MODES, best_alpha

BELOW, AGREES, ABOVE = "below", "agrees", "above"


class Range(NamedTuple):
    """A derived step size: for the largest and for the least L."""

    low: float
    high: float


class Stable(NamedTuple):
    """Between which step sizes of the grid a method begins to diverge at some seed."""

    last: float  # 0 if none is stable
    first: float  # infinite if none diverges

    def relation(self, derived: Range) -> str:
        """Says whether the derived range lies below, in or above."""
        if derived.high < self.last:
            return BELOW
        return ABOVE if derived.low > self.first else AGREES


def stable(rows: Sequence[Row]) -> Stable:
    """Returns the last step size below the first at which a seed diverges, and that one."""
    best = best_alpha(rows) or 0.0  # a step much too short may end no better than guessing
    first = min((row.alpha for row in rows if row.diverged and row.alpha > best), default=math.inf)
    return Stable(max((row.alpha for row in rows if best <= row.alpha < first), default=0.0), first)


class Setting(NamedTuple):
    """What the lines of a mode and p depend on, besides the fraction."""

    mode: str
    workers: int
    delay: float  # mean, in applied updates
    L: Range  # least and largest
    sigma: float  # least
    dense_alpha: float | None  # best
    dense: Stable

    @property
    def steps(self) -> int:
        """Single steps that are counted as one parallel step."""
        return self.workers if self.mode == "asynchronous" else 1

    @property
    def delay_alone(self) -> float:
        """The fraction from which on asynchrony limits the step already, β ≤ τ/p."""
        rounds = self.delay / self.steps
        return 1 - (rounds / (1 + rounds)) ** 2


def limit(fractions: Any, setting: Setting, L: float) -> Any:
    """Returns the step sizes at which feedback is unstable at worst."""
    bound = theory.bounds()["feedback.limit"]
    return bound.curve(gamma=1 - np.asarray(fractions)) / (L * setting.steps)


def proved(fractions: Any, setting: Setting, L: float) -> Any:
    """Returns the longest steps for which a rate is proved with feedback and this delay."""
    bound, rounds = theory.bounds()["W.largest.both"], setting.delay / setting.steps
    return bound.curve(L=L, gamma=1 - np.asarray(fractions), tau=rounds) / setting.steps


def floor(fractions: Any, setting: Setting, L: float) -> Any:
    """Returns where feedback's penalty is no feedback's floor: σ and γ cancel but for √γ."""
    root = np.sqrt(1 - np.asarray(fractions))
    return 1 / (setting.steps * L * np.sqrt(2 * (1 + root)))


def delayed(setting: Setting, L: float) -> float:
    """Returns the step size from which on dense SGD is unstable at this delay."""
    return theory.bounds()["delay.limit"].at(tau=round(setting.delay)) / L


def band(line: Any, fraction: float, setting: Setting) -> Range:
    """Returns a line's two step sizes at a fraction."""
    low, high = (float(line([fraction], setting, L)[0]) for L in reversed(setting.L))
    return Range(low, high)


# ---- measured ----


class Comparison(NamedTuple):
    """A cell of the map: mode, p and fraction; lines, and what was measured."""

    setting: Setting
    fraction: float
    memory: float  # β, at worst
    measured_memory: float  # B̂/M̂ at the best step, in parallel steps; staleness is part of it
    with_: Stable
    without: Stable
    limit: Range
    measured_limit: Range  # of a contraction whose memory is the measured one
    proved: Range
    floor: Range
    alpha_with: float | None
    alpha_without: float | None
    slowdown: Range | None  # measured: dense step that ends alike ÷ step without feedback
    floor_ratio: float  # least derived floor of ‖∇f‖² ÷ mean ‖G̃‖² measured without feedback


def settings_of(rows: Sequence[Row], constants: Sequence[Constants]) -> list[Setting]:
    """Returns a setting for each mode and p that constants are known of."""
    found = []
    keys = dict.fromkeys((point.mode, point.workers) for point in constants)
    for mode, workers in sorted(keys, key=lambda key: (MODES.index(key[0]), key[1])):
        own = [point for point in constants if (point.mode, point.workers) == (mode, workers)]
        here = [row for row in rows if (row.mode, row.workers) == (mode, workers)]
        delay = math.fsum(row.delay_mean for row in here) / len(here)
        curvature = Range(min(point.L for point in own), max(point.L_high for point in own))
        dense = [row for row in here if row.method == DENSE]
        sigma = min(point.sigma for point in own)
        best = best_alpha(dense), stable(dense)
        found.append(Setting(mode, workers, delay, curvature, sigma, *best))
    return found


def compare(rows: Sequence[Row], constants: Sequence[Constants]) -> list[Comparison]:
    """Compares lines with rows, cell by cell.

    Args:
        rows: of the sweep.
        constants: along its best runs; what they do not speak of is left out.

    Returns:
        The cells that have runs with feedback and without, in the order of `settings_of`.
    """
    found = []
    for setting in settings_of(rows, constants):
        here = [row for row in rows if (row.mode, row.workers) == (setting.mode, setting.workers)]
        dense = [row for row in here if row.method == DENSE]
        for fraction in sorted({row.fraction for row in here if row.method != DENSE}, reverse=True):
            plain, fed = (
                [row for row in here if (row.method, row.fraction) == (method, fraction)]
                for method in (PLAIN, FEEDBACK)
            )
            if plain and fed:
                found.append(_compare(setting, fraction, plain, fed, dense))
    return found


def _compare(
    setting: Setting, fraction: float, plain: list[Row], fed: list[Row], dense: list[Row]
) -> Comparison:
    root = math.sqrt(1 - fraction)
    best = best_alpha(plain), best_alpha(fed)
    chosen = [[r for r in rows if r.alpha == a] for rows, a in zip((plain, fed), best, strict=True)]
    ratios = [(row.drift_rms or 0.0) / (row.moment_rms or math.inf) for row in chosen[1]]
    memory = float(np.mean(ratios)) / setting.steps if ratios else math.nan
    like = 1 - (memory / (1 + memory)) ** 2  # the fraction whose β is the measured memory
    moment = float(np.mean([(row.moment_rms or math.nan) ** 2 for row in chosen[0] or plain]))
    least = theory.bounds()["nofeedback.floor"].at(gamma=1 - fraction, sigma=setting.sigma)
    return Comparison(
        setting,
        fraction,
        root / (1 - root),
        memory,
        stable(fed),
        stable(plain),
        band(limit, fraction, setting),
        band(limit, like, setting) if ratios else Range(math.nan, math.nan),
        band(proved, fraction, setting),
        band(floor, fraction, setting),
        best[1],
        best[0],
        slowdown(plain, dense, setting.L.high),
        least / moment,
    )


def slowdown(plain: Sequence[Row], dense: Sequence[Row], L: float) -> Range | None:
    """Measures dense SGD's step ÷ that without feedback, where both end at the same loss.

    Over the steps that are no longer than dense SGD's best and 1/L, beyond which the claim does
    not speak; over the shortest if all are longer. Dense losses are interpolated in logarithms; a
    loss beyond all of them counts as the nearest.
    """
    best, losses, slow = best_alpha(dense), _means(dense), _means(plain)
    if best is None or not slow:
        return None
    steps = sorted(alpha for alpha in losses if alpha <= best)
    known = [math.log(losses[alpha]) for alpha in steps]
    asked = [alpha for alpha in slow if alpha <= min(best, 1 / L)] or [min(slow)]
    falling = np.minimum.accumulate(known)[::-1]  # np.interp wants them to rise
    found = [
        math.exp(np.interp(math.log(slow[alpha]), falling, np.log(steps)[::-1])) / alpha
        for alpha in asked
    ]
    return Range(min(found), max(found))


def _means(rows: Sequence[Row]) -> dict[float, float]:
    """Returns the mean final loss of each step size at which no seed diverged."""
    groups: dict[float, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.alpha, []).append(row)
    return {
        alpha: math.fsum(row.train_loss or 0.0 for row in group) / len(group)
        for alpha, group in groups.items()
        if not any(row.diverged for row in group)
    }
