"""From which number of steps on a chain costs next to nothing: the horizons, in numbers.

Those of N, W and C are formulas. In that of W the noise weight n₁ may depend on α, and so on T; the
T at which both agree is found by halving, as n₁ falls with α. For S and P a proved condition on T
is solved by halving: where it holds once, it holds for every larger T (`horizon.log.lasts`,
`horizon.root.lasts`), from T = e² and κT = e² on. Below, it is checked on a fine grid.
"""

import math
from collections.abc import Callable, Mapping

import sympy as sp

from theory import symbols
from theory.bound import Bound
from theory.catalogue import bounds
from theory.claims import unrolled
from theory.minimum import positive_roots

NEEDS = {
    "N": ("Delta", "M"),
    "W": ("Delta",),
    "C": ("dist_0", "M"),
    "S": ("dist_0", "c", "M"),
    "P": ("Delta", "c", "M"),
}
"""The rates whose horizons are known, and what they need besides L and σ."""
UNROLLED = {"S": unrolled.S, "P": unrolled.P}
FINE = 400
"""Points of the grid."""
NUDGE = 1e-12
"""How much longer than at the longest step, if that itself is not allowed."""
Known = Mapping[sp.Symbol, float]


def _at(bound: Bound, known: Known) -> float:
    """Return a bound's value; it need not depend on all that is known."""
    return bound.at(**{s.name: known[s] for s in bound.parameters if s in known})


def of_formula(
    name: str, known: Known, held: sp.Expr, step: float, strict: bool
) -> tuple[float, float]:
    """Return the horizons of N, W or C at both steps.

    Args:
        name: of the rate.
        known: the parameters' values.
        held: for W, n₁ as a function of α, which grows with it; else 0.
        step: the longest; both steps are as α² = (something)/T.
        strict: whether steps must be shorter.
    """
    start = known[symbols.dist_0] if name == "C" else 2 * known[symbols.Delta] / known[symbols.L]
    squares = {"textbook": 1.0, "tuned": start / known[symbols.sigma] ** 2}
    weight, found = sp.lambdify(symbols.alpha, held), []
    for which, square in squares.items():
        bound, square = bounds()[f"{name}.horizon.{which}"], square * known[symbols.p]

        def needed(T: float, bound: Bound = bound, square: float = square) -> float:
            n1 = weight(math.sqrt(square / T))
            if name == "W" and n1 == 0:
                return 0.0  # nothing is held
            return _at(bound, {**known, symbols.noise_held: n1})

        shortest = square / step**2 * (1 + NUDGE * strict)
        if symbols.alpha in held.free_symbols:
            found.append(_first(lambda T, needed=needed: needed(T) <= T, shortest))
        else:
            found.append(max(needed(1.0), shortest))
    return found[0], found[1]


def of_condition(name: str, known: Known) -> tuple[float, float]:
    """Return the horizons of S or P at both steps."""
    worth = unrolled.starting(UNROLLED[name])[1].expr  # κT > 1
    found = []
    book = bounds()[f"{name}.horizon.textbook"]
    book.put(**{s.name: value for s, value in known.items() if s in book.parameters})  # or refuse
    for which in ("textbook", "tuned"):
        bound = bounds()[f"{name}.horizon.{which}"]
        once = [1.0] if which == "textbook" else positive_roots(worth, symbols.T, known)
        if not once:
            raise ValueError(f"{name}: exact SGD's best step is 0 for a start at the optimum")

        def holds(T: float, bound: Bound = bound) -> bool:
            try:
                return _at(bound, {**known, symbols.T: T}) > 0
            except ValueError:
                return False

        lasting = max(2.0, math.exp(2) * once[0])
        found.append(_earlier(holds, _first(holds, lasting), lasting, once[0]))
    return found[0], found[1]


def _first(holds: Callable[[float], bool], start: float) -> float:
    """Return the first T ≥ start for which a condition holds that then lasts."""
    if holds(start):
        return start
    low, high = start, 2 * start
    while not holds(high):
        low, high = high, 2 * high
        if math.isinf(high):
            raise ValueError(f"no T up to {low:.0g} is large enough")
    return _between(holds, low, high)


def _between(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Return where a condition begins to hold, that fails at `low` and holds at `high`."""
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _earlier(holds: Callable[[float], bool], found: float, lasting: float, once: float) -> float:
    """Return the least T > max(2, once) from which on a condition holds up to `found`.

    It lasts from `lasting` on; if it holds there, the grid's last point where it fails counts.
    """
    least = max(2.0, once * 1.001)  # at `once` the step is 0
    if found > lasting or lasting <= least:
        return found
    ratio = (least / lasting) ** (1 / FINE)
    high = found
    for low in (*(lasting * ratio**i for i in range(1, FINE)), least):
        if not holds(low):
            return _between(holds, low, high)
        high = low
    return high
