"""Where a bound is least in one of its parameters.

Rational functions of it have their stationary points and edges compared, exactly found. The
unrolled bounds Dr + Sα + Cα² and Dr + (1 − r)(Sα + Cα² + C′α²/(1 − hα)), r = (1 − αc)^T, fall and
then rise: `power.best`, `.edge` and `.root`, and `fading.edge`, `.past` and `.far`, prove that
every α rules out one side of it, and so halving finds the least value.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import sympy as sp

from theory.bound import Bound
from theory.certificate import Region


@dataclass(frozen=True)
class Unrolled:
    """The coefficients of Dr + Sα + Cα², or Dr + (1 − r)(Sα + Cα² + C′α²/(1 − hα)) if `fades`."""

    fades: bool
    start: sp.Expr  # D
    noise: sp.Expr  # S
    drift: sp.Expr  # C
    bend: sp.Expr  # C′
    pole: sp.Expr  # h
    rate: sp.Expr  # c
    length: sp.Expr  # T

    @classmethod
    def of(cls, expr: sp.Expr, alpha: sp.Symbol) -> "Unrolled | None":
        """Return the coefficients of a bound, or None if it has no such shape."""
        expr = sp.nsimplify(expr, rational=True)
        powers = [each for each in expr.atoms(sp.Pow) if _is_power(each, alpha)]
        if len(powers) != 1:
            return None
        base, length = powers[0].as_base_exp()
        r = sp.Dummy()
        by_power = sp.Poly(expr.xreplace({powers[0]: r}), r)
        if by_power.degree() != 1 or alpha in length.free_symbols:
            return None
        start, floor = (sp.cancel(value) for value in by_power.all_coeffs())
        fades = alpha in start.free_symbols
        start = sp.cancel(start + floor) if fades else start
        numerator, denominator = (sp.Poly(each, alpha) for each in sp.fraction(floor))
        if alpha in start.free_symbols or denominator.degree() > 1:
            return None
        whole, rest = (sp.Poly(each, alpha) for each in sp.div(numerator, denominator))
        beside = denominator.coeff_monomial(1)  # the floor is whole + rest/(beside·(1 − hα))
        pole = -denominator.coeff_monomial(alpha) / beside
        share = rest.as_expr() / beside
        noise = whole.coeff_monomial(alpha) + share * pole
        if whole.degree() > 2 or sp.cancel(whole.coeff_monomial(1) + share) != 0:
            return None
        drift, bend = whole.coeff_monomial(alpha**2), share * pole**2
        costs: list[Any] = [sp.factor(sp.cancel(each)) for each in (noise, drift, bend, pole)]
        S, C, C1, h = costs
        return cls(fades, start, S, C, C1, h, -sp.diff(base, alpha), length)

    def slope(self, alpha: sp.Symbol) -> sp.Expr:
        """Return the derivative: the bound falls where it is negative."""
        r = 1 - self.rate * alpha
        worth = self.rate * self.length * r ** (self.length - 1)
        bent = self.bend * alpha**2 / (1 - self.pole * alpha)
        floor = self.noise * alpha + self.drift * alpha**2 + bent
        grows = sp.diff(floor, alpha)
        if not self.fades:
            return grows - worth * self.start
        return grows * (1 - r**self.length) - worth * (self.start - floor)

    def least(self, known: Mapping[sp.Symbol, float], edge: float) -> float | None:
        """Return the best α ≤ edge; None if the bound rises from α = 0 on, or a sign is wrong.

        Its slope at α → 0 is S − DcT or, where the floor fades in, −DcT.
        """
        costs = (self.start, self.noise, self.drift, self.bend, self.pole)
        D, S, C, bend, h = (float(each.subs(list(known.items()))) for each in costs)
        c, T = (float(each.subs(list(known.items()))) for each in (self.rate, self.length))
        edge = min(edge, 1 / c)
        if min(D, S, C, bend, h) < 0 or h * edge >= 1 or T < 1:
            return None
        if D == 0 or (not self.fades and S >= D * c * T):
            return None

        def slope(a: float) -> float:
            """Return `self.slope` at α = a, accurate where αc is tiny."""
            logarithm = math.log1p(-a * c) if a * c < 1 else -math.inf
            worth = c * T * (math.exp((T - 1) * logarithm) if T > 1 else 1.0)
            grows = S + 2 * C * a + bend * a * (2 - h * a) / (1 - h * a) ** 2
            if not self.fades:
                return grows - worth * D
            floor = S * a + C * a**2 + bend * a**2 / (1 - h * a)
            return grows * -math.expm1(T * logarithm) - worth * (D - floor)

        if slope(edge) <= 0:
            return edge
        low = edge
        while slope(low) > 0:
            low /= 2
        high = 2 * low
        while low < (middle := math.sqrt(low * high)) < high:
            low, high = (middle, high) if slope(middle) <= 0 else (low, middle)
        return low


def _is_power(power: sp.Pow, alpha: sp.Symbol) -> bool:
    """Return whether this is (1 − αc)^T, c and T positive."""
    base, exponent = power.as_base_exp()
    slope = sp.diff(base, alpha)
    straight = alpha in base.free_symbols and alpha not in slope.free_symbols
    return bool(
        straight and base.subs(alpha, 0) == 1 and slope.is_negative and exponent.is_positive
    )


@dataclass(frozen=True)
class Minimum:
    """Where a bound is least in one of its parameters.

    Attributes:
        bound: the bound.
        symbol: the parameter.
        slope: zero at every stationary point inside the bound's conditions.
        unrolled: the coefficients of an unrolled bound; None for a rational function.
    """

    bound: Bound
    symbol: sp.Symbol
    slope: sp.Expr
    unrolled: Unrolled | None = None

    @classmethod
    def of(cls, bound: Bound, symbol: sp.Symbol) -> "Minimum":
        """Return where a bound is least; refuse other functions than this module's."""
        if symbol in bound.expr.free_symbols:
            if unrolled := Unrolled.of(bound.expr, symbol):
                return cls(bound, symbol, unrolled.slope(symbol), unrolled)
            numerator = sp.numer(sp.together(sp.diff(bound.expr, symbol)))
            if numerator.is_polynomial(symbol):
                return cls(bound, symbol, sp.expand(numerator))
        raise ValueError(f"{bound.name} is no rational function of {symbol}: {bound.expr}")

    @property
    def stationary(self) -> sp.Basic:
        """The equation of the stationary points."""
        return sp.Equality(self.slope, 0, evaluate=False)

    @property
    def unique(self) -> bool:
        """Whether one positive stationary point is shown, or, unrolled, one at most.

        A polynomial has one if its terms change sign once.
        """
        if self.unrolled:
            return True
        region = Region()
        signs = []
        for coefficient in sp.Poly(self.slope, self.symbol).coeffs():
            above = region.is_nonnegative(coefficient)
            if not above and not region.is_nonnegative(-coefficient):
                return False
            signs.append(above)
        return sum(now != before for now, before in pairwise(signs)) == 1

    @property
    def closed_form(self) -> sp.Expr | None:
        """The only positive stationary point, where a square or a single root gives it."""
        if self.unrolled or not self.unique:
            return None
        polynomial = sp.Poly(self.slope, self.symbol)
        terms = {power: value for (power,), value in polynomial.terms()}
        low, high = min(terms), max(terms)
        if len(terms) == 2:
            return sp.root(sp.cancel(-terms[low] / terms[high]), high - low)
        if high - low == 2:
            a, half, c = terms[high], terms[low + 1] / 2, terms[low]
            return sp.cancel((sp.sqrt(half**2 - a * c) - half) / a)
        return None

    def at(self, **values: float) -> tuple[float, float]:
        """Return (the parameter's best value, the bound there) for the other parameters' values.

        Every stationary point and every end of the admissible range is compared; an unrolled bound
        is least where it stops falling, or at the end.

        Raises:
            TypeError: on an unknown or missing name.
            ValueError: if there is no least value among them.
        """
        name = self.symbol.name
        if any(self.bound.symbol(key) == self.symbol for key in values):
            raise TypeError(f"{self.symbol} is what is sought: give the others")
        known = self.bound.known({name: 1.0, **values})
        del known[self.symbol]
        limits = [c.expr for c in self.bound.conditions if self.symbol in c.expr.free_symbols]
        if self.unrolled:
            ends = [root for expr in limits for root in positive_roots(expr, self.symbol, known)]
            step = self.unrolled.least(known, min(ends, default=math.inf))
            if step is None:
                raise ValueError(f"{self.bound.name} has no least value in {self.symbol}")
            return step, self.bound.at(**{**values, name: step})
        exprs = [self.slope, *limits]
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
    coefficients = [
        # roots of numbers, to 60 digits; an exact zero among them stays one
        x if x.is_Rational else sp.Rational(sp.N(x, 60, chop=True))
        for x in sp.Poly(numerator, symbol).all_coeffs()
    ]
    roots: Any = sp.Poly(coefficients, symbol).real_roots(radicals=False)
    return [float(root) for root in roots if root.is_positive]
