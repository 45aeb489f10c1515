"""Lays derived bounds over measured runs: rows, a sentence a bound, and a figure."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import theory
from elastic_jax.intervals import student
from experiments.bound_tasks import Done, Task
from experiments.chains import Part, bounded
from experiments.figures import STYLE, plt
from theory import symbols

RATES = {"N": "gradient", "W": "gradient", "S": "distance"}
HOLDS, BROKEN, UNCLEAR = "holds", "broken", "cannot tell"


@dataclasses.dataclass(frozen=True)
class Row:
    """A bound and what it bounds, after T steps."""

    problem: str
    rate: str  # N, W or S
    quantity: str  # "gradient", (1/T) Σ E‖∇f(x_t)‖², or "distance", E‖x_T − x*‖²
    alpha: float
    steps: int  # T
    measured: float  # mean over the seeds
    half_width: float  # of its 95% interval, Student's t; NaN of one seed, in files None
    bound: float
    slack: float  # bound / measured
    outcome: str  # holds: the whole interval is below; broken: above; cannot tell


def rates(
    task: Task, parts: Sequence[Part], workers: int
) -> tuple[theory.Chain, dict[str, theory.Bound], list[str]]:
    """Returns the chain, its rates that are proved for a task, and why others are not."""
    x = task.params(0)
    chain = bounded(parts, x, workers)
    found, missing = {}, []
    for name, quantity in RATES.items():
        if quantity == "distance" and task.minimiser is None:
            continue
        try:
            found[name] = chain.rate(name)
        except ValueError as error:
            missing.append(f"{task.name}, {name}: no bound: {error}")
    return chain, found, missing


def worst(constants: Sequence[Mapping[str, Sequence[float]]]) -> dict[Any, float]:
    """Returns the safe side of each constant's interval, over several estimates."""
    safe = {name: max(each[name][2] for each in constants) for name in ("L", "sigma", "M", "Delta")}
    safe["c"] = min(each["c"][1] for each in constants)
    return {getattr(symbols, name): value for name, value in safe.items()}


def given(rate: theory.Bound, values: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns those of the values, by symbol, on which a rate depends."""
    return {symbol.name: values[symbol] for symbol in rate.parameters if symbol in values}


def choose(task: Task, parts: Sequence[Part], workers: int, steps: int) -> float:
    """Returns the α that makes W, or else N, least after so many steps; two digits, rounded down.

    Where L is not known it is that of x_0, and grows on the way: a quarter of that α.

    Raises:
        ValueError: if the bound has no least value.
    """
    x = task.params(0)
    away = 0.0 if task.minimiser is None else math.sqrt(_start(task))
    found = rates(task, parts, workers)[1]
    values = worst([task.constants([x], [x], away)._asdict()]) | {symbols.T: steps}
    rate = found.get("W", found["N"])
    alpha = rate.minimise("alpha").at(**given(rate, values))[0]
    alpha = alpha / 4 if task.minimiser is None else alpha
    digit = 10.0 ** (math.floor(math.log10(alpha)) - 1)
    return float(f"{math.floor(alpha / digit) * digit:.2g}")


def _start(task: Task) -> float:
    """Returns ‖x_0 − x*‖²."""
    return float(np.sum(np.square(np.asarray(task.params(0)) - np.asarray(task.minimiser))))


def compare(
    task: Task, parts: Sequence[Part], workers: int, steps: int, done: Sequence[Done]
) -> tuple[list[Row], list[str]]:
    """Lays the bounds over the mean of the runs.

    Args:
        task: of the runs.
        parts: of the chain.
        workers: p.
        steps: of each run.
        done: the runs, one for each seed.

    Returns:
        Rows, and the verdict, a sentence a rate.
    """
    chain, found, said = rates(task, parts, workers)
    values = worst([dataclasses.asdict(each) for each in done])
    alpha, M = done[0].alpha, values[symbols.M]
    points = len(done[0].gradient)
    totals = np.arange(1, points + 1) * (steps // points)
    moment = math.sqrt(np.mean([each.moment for each in done], axis=0).max())
    numbers = ", ".join(f"{s} = {value:.3g}" for s, value in values.items())
    B = f"{chain.constant(M):.3g}" if M < math.inf else "∞"
    line = f"{task.name}: α = {alpha:g}, B = {B}, {numbers} ({task.said}); M̂ = {moment:.3g}"
    said.insert(0, line if moment <= M else f"{line}: above M, so N and S say nothing")
    values |= {symbols.alpha: alpha, symbols.T: totals}
    if task.minimiser is not None:
        values[symbols.dist_0] = _start(task)
    rows = []
    for name, rate in found.items():
        quantity = RATES[name]
        try:
            bound = rate.curve(**given(rate, values))
        except ValueError as error:
            said.append(f"{task.name}, {name}: no bound at this α: {error}")
            continue
        curves = np.array([getattr(each, quantity) for each in done])
        mean, half = curves.mean(0), np.full(len(totals), math.nan)
        if len(done) > 1:
            deviation = curves.std(0, ddof=1) / math.sqrt(len(done))
            half = student(0.975, len(done) - 1) * deviation
        own = []
        for T, m, h, b in zip(totals, mean, half, bound, strict=True):
            numbers = {"measured": m, "half_width": h, "bound": b, "slack": b / m}
            numbers = {key: float(number) for key, number in numbers.items()}
            place = task.name, name, quantity, alpha, int(T)
            own.append(Row(*place, **numbers, outcome=outcome(m, h, b)))
        rows += own
        said.append(sentence(own, len(done)))
    return rows, said


def outcome(mean: float, half: float, bound: float) -> str:
    """Compares a mean and its interval with a bound."""
    half = 0.0 if math.isnan(half) else half
    return HOLDS if mean + half <= bound else UNCLEAR if mean - half <= bound else BROKEN


def sentence(rows: Sequence[Row], seeds: int) -> str:
    """Says where a bound holds, and with how much slack."""
    first, last = rows[0], rows[-1]
    least = min(rows, key=lambda row: row.slack)
    places = {
        each: [str(row.steps) for row in rows if row.outcome == each] for each in (BROKEN, UNCLEAR)
    }
    text = f"holds at all {len(rows)} T" if not any(places.values()) else ""
    text += f"is BROKEN at T = {', '.join(places[BROKEN])}" * bool(places[BROKEN])
    text += " and " * all(map(bool, places.values()))
    text += f"cannot be told at T = {', '.join(places[UNCLEAR])}" * bool(places[UNCLEAR])
    count = f"mean of {seeds} seeds" if seeds > 1 else "one seed, a bound is for the mean of many"
    return (
        f"{first.problem}, {first.rate}: the bound {text} ({count}); slack ×{least.slack:.3g} at "
        f"the least (T = {least.steps}), ×{last.slack:.3g} at T = {last.steps}"
    )


def draw(rows: Sequence[Row]) -> Any:
    """Bound and run over T, and below them their ratio."""
    panels = list(dict.fromkeys((row.problem, row.quantity) for row in rows))
    colours = dict(zip(RATES, ("#D55E00", "#0072B2", "#009E73"), strict=True))
    labels = {"gradient": "(1/T) Σ‖∇f(x_t)‖²", "distance": "‖x_T − x*‖²"}
    handles: dict[str, Any] = {}
    with plt.rc_context(STYLE):
        size = (3.1 * len(panels) + 0.3, 4.4)
        figure, axes = plt.subplots(
            2, len(panels), figsize=size, squeeze=False, sharex="col", layout="constrained"
        )
        for (above, below), (problem, quantity) in zip(axes.T, panels, strict=True):
            here = [row for row in rows if (row.problem, row.quantity) == (problem, quantity)]
            for name in dict.fromkeys(row.rate for row in here):
                own = [row for row in here if row.rate == name]
                T = [row.steps for row in own]
                (handles[name],) = above.plot(T, [r.bound for r in own], color=colours[name])
                below.plot(T, [row.slack for row in own], color=colours[name])
            mean, half = (
                np.array([getattr(r, k) for r in own]) for k in ("measured", "half_width")
            )
            (handles["run"],) = above.plot(T, mean, color="black")
            above.fill_between(T, mean - half, mean + half, color="black", alpha=0.25, linewidth=0)
            below.axhline(1, color="black", linewidth=0.8)
            above.set_title(f"{problem}: {labels[quantity]}")
            for axis in (above, below):
                axis.set_yscale("log")
            below.set_xlabel("T")
        axes[0, 0].set_ylabel("bound and run")
        axes[1, 0].set_ylabel("bound ÷ run")
        figure.legend(handles.values(), handles, loc="outside upper center", ncols=4, frameon=False)
    return figure
