"""Where a bound is least in one of its parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import sympy as sp

from theory.bound import Bound
from theory.certificate import Region


@dataclass(frozen=True)
class Minimum:
    """Where a bound is least in one of its parameters.

    Attributes:
        bound: the bound.
        symbol: the parameter.
        polynomial: zero at every stationary point inside the bound's conditions.
    """

    bound: Bound
    symbol: sp.Symbol
    polynomial: sp.Poly

    @property
    def stationary(self) -> sp.Basic:
        """The equation of the stationary points."""
        return sp.Equality(self.polynomial.as_expr(), 0, evaluate=False)

    @property
    def unique(self) -> bool:
        """Whether exactly one positive stationary point is shown: its terms change sign once."""
        region = Region()
        signs = []
        for coefficient in self.polynomial.coeffs():
            above = region.is_nonnegative(coefficient)
            if not above and not region.is_nonnegative(-coefficient):
                return False
            signs.append(above)
        return sum(now != before for now, before in pairwise(signs)) == 1

    @property
    def closed_form(self) -> sp.Expr | None:
        """The only positive stationary point, where a square or a single root gives it."""
        if not self.unique:
            return None
        terms = {power: value for (power,), value in self.polynomial.terms()}
        low, high = min(terms), max(terms)
        if len(terms) == 2:
            return sp.root(sp.cancel(-terms[low] / terms[high]), high - low)
        if high - low == 2:
            a, half, c = terms[high], terms[low + 1] / 2, terms[low]
            return sp.cancel((sp.sqrt(half**2 - a * c) - half) / a)
        return None

    def at(self, **values: float) -> tuple[float, float]:
        """Return (the parameter's best value, the bound there) for the other parameters' values.

        Every stationary point and every end of the admissible range is compared.

        Raises:
            TypeError: on an unknown or missing name.
            ValueError: if there is no least value among them.
        """
        name = self.symbol.name
        if any(self.bound.symbol(key) == self.symbol for key in values):
            raise TypeError(f"{self.symbol} is what is sought: give the others")
        known = self.bound.known({name: 1.0, **values})
        del known[self.symbol]
        exprs = [self.polynomial.as_expr(), *(c.expr for c in self.bound.conditions)]
        points = {root for expr in exprs for root in positive_roots(expr, self.symbol, known)}
        # Far out on both sides, it must be larger: or it falls towards 0 or ∞.
        ends = [min(points, default=1.0) * 1e-6, max(points, default=1.0) * 1e6]
        found = []
        for point in (*points, *ends):
            try:
                found.append((self.bound.at(**{**values, name: point}), point))
            except ValueError:  # outside the conditions
                continue
        if not found or min(found)[1] in ends:
            raise ValueError(f"{self.bound.name} has no least value in {self.symbol}")
        value, point = min(found)
        return point, value


def positive_roots(
    expr: sp.Expr, symbol: sp.Symbol, known: Mapping[sp.Symbol, float]
) -> list[float]:
    """Return the positive zeros in `symbol` of a rational function, the others being known."""
    exact = sp.nsimplify(expr.subs(list(known.items()), simultaneous=True), rational=True)
    numerator = sp.numer(sp.together(exact))
    if symbol not in numerator.free_symbols:
        return []
    polynomial = sp.Poly(numerator, symbol)
    roots: Any = polynomial.real_roots(radicals=False)
    return [float(root) for root in roots if root.is_positive]
