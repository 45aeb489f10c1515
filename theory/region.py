"""Where parameters may lie, and the signs that expressions have there: exact, or unknown.

Expressions are rational functions in normal form, where equal means identical. A condition q ≥ 0 is
solved for one of its parameters: slack s = (scale)·q ≥ 0 parametrises *every* admissible value.
What is left is a rational function of free parameters, whose factors must have coefficients of one
sign.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sympy as sp

from theory.gram import Entry, Scalar


class NotProvedError(ValueError):
    """A certificate that does not prove its claim; `remaining` is what is left over."""

    def __init__(self, message: str, remaining: sp.Expr = sp.S.Zero):
        """Keep the message and what remains."""
        super().__init__(message)
        self.remaining = remaining


@dataclass(frozen=True)
class Condition:
    """A condition `expr ≥ 0` (`> 0` if strict) on parameters, one of which it bounds.

    Attributes:
        text: the condition in words or symbols.
        expr: linear, after multiplication by `scale`, in `solve_for`.
        solve_for: the positive parameter that is written through the slack `scale·expr`.
        scale: a positive factor.
        strict: whether equality is excluded.

    Example:
        A number of workers is just a positive symbol until a condition says more:

        >>> from theory.symbols import p, variance
        >>> several = Condition("p ≥ 1", p - 1, solve_for=p)
        >>> [Region(known).is_nonnegative(variance - variance / p) for known in ((), (several,))]
        [False, True]
    """

    text: str
    expr: sp.Expr
    solve_for: sp.Symbol
    scale: sp.Expr = sp.S.One
    strict: bool = False


@lru_cache(maxsize=4096)
def normal(expr: sp.Expr, first: tuple[sp.Symbol, ...] = ()) -> tuple[Any, Any]:
    """Return a rational function in lowest terms, and its field, whose symbols `first` lead.

    Anything that is not a rational function with rational coefficients is refused.
    """
    others = sorted(expr.free_symbols - {*first}, key=lambda symbol: symbol.sort_key())
    domain = sp.QQ.frac_field(*(first + tuple(others) or (sp.Dummy(),)))
    try:
        if expr.has(sp.Float):
            raise ValueError("floating point")
        return domain, domain.from_sympy(expr)
    except (ValueError, ZeroDivisionError) as error:
        raise NotProvedError(f"not a rational function over the rationals: {expr}", expr) from error


def _fraction(expr: Scalar) -> tuple[sp.Expr, sp.Expr]:
    """Return numerator and denominator in lowest terms."""
    domain, element = normal(sp.sympify(expr))
    numerator, denominator = domain.field(element.numer), domain.field(element.denom)
    return domain.to_sympy(numerator), domain.to_sympy(denominator)


def remainder(expr: sp.Expr, relations: Sequence[tuple[sp.Symbol, sp.Expr]] = ()) -> sp.Expr:
    """Return an expression that is zero only if `expr` is zero wherever the relations hold.

    Example:
        >>> r = sp.Symbol("r")
        >>> remainder((r**4 - 4) / (r + 1), [(r, r**2 - 2)]), remainder(r**3, [(r, r**2 - 2)])
        (0, 2*r)
    """
    if odd := [each for symbol, each in relations if not sp.Poly(each, symbol).is_monic]:
        raise NotProvedError(f"relations not monic in their symbols: {odd}", odd[0])
    # The relations' own symbols lead, so that division reduces powers of them.
    leading, divisors = [symbol for symbol, _ in relations], [each for _, each in relations]
    others = sp.Tuple(expr, *divisors).free_symbols.difference(leading)
    order = (*leading, *sorted(others, key=lambda symbol: symbol.sort_key()))
    domain, element = normal(expr, order)
    rest = element.numer.rem([normal(divisor, order)[1].numer for divisor in divisors])
    return domain.to_sympy(domain.field(rest) / domain.field(element.denom))


@lru_cache(maxsize=4096)
def _slack(condition: Condition) -> sp.Dummy:
    """Return a condition's own slack, the same in every region: what is cached is found again."""
    # "None" is "not said" to be positive.
    return sp.Dummy("slack", nonnegative=True, positive=condition.strict or None)


class Region:
    """The admissible parameters: those with the symbols' signs that meet the conditions.

    The conditions are written away one by one. Condition q > 0 or q ≥ 0, bounding x, becomes
    x = value(s) with slack s = scale·q; as the equation is linear in x with a coefficient of one
    strict sign, every admissible x is value(s) for an admissible s, so nothing is lost. There is
    one, but for special values of the others: value(s) is shown non-negative, and is not zero.

    Example:
        >>> from theory.symbols import L, alpha
        >>> region = Region([Condition("αL < 1", 1 - alpha * L, alpha, 1 / alpha, strict=True)])
        >>> region.is_positive(1 - alpha * L), region.is_nonnegative(1 - 2 * alpha * L)
        (True, False)
    """

    def __init__(self, conditions: Iterable[Condition] = ()):
        """Write the conditions away, or raise `NotProvedError`."""
        self._values: dict[sp.Symbol, sp.Expr] = {}
        for condition in conditions:
            self._add(condition)

    def _add(self, condition: Condition) -> None:
        x, product = condition.solve_for, condition.scale * condition.expr
        if not x.is_positive or x in sp.Tuple(*self._values.items()).free_symbols:
            raise NotProvedError(f"{condition.text}: cannot be solved for {x}", x)
        if not self.is_positive(condition.scale):
            raise NotProvedError(f"{condition.text}: scale not shown positive", condition.scale)
        slack = _slack(condition)
        numerator, denominator = _fraction(product)
        equation = sp.Poly(slack * denominator - numerator, x)
        if equation.degree() != 1:
            raise NotProvedError(f"{condition.text}: not linear in {x}", product)
        slope, constant = equation.all_coeffs()
        if not (self.is_positive(denominator) and self._strict(slope)):
            raise NotProvedError(f"{condition.text}: not shown solvable for {x}", slope)
        if constant == 0 or not self.is_nonnegative(-constant / slope):
            raise NotProvedError(f"{condition.text}: not shown that any {x} meets it", product)
        self._values[x] = -constant / slope

    def put(self, expr: Scalar) -> sp.Expr:
        """Return an expression with the parameters that conditions bound written away."""
        expr = sp.sympify(expr)
        for x, value in reversed(self._values.items()):
            expr = expr.subs(x, value)
        return expr

    def _strict(self, expr: sp.Expr) -> bool:
        return self.is_positive(expr) or self.is_positive(-expr)

    def _sign(self, expr: Scalar) -> tuple[int, bool]:
        """Return (1, −1 or 0 for ≥ 0, ≤ 0 or unknown; whether zero is excluded)."""
        domain, element = normal(self.put(expr))
        if not element:
            return 1, False
        above, strict_above = _polynomial_sign(element.numer, domain.symbols)
        below, strict_below = _polynomial_sign(element.denom, domain.symbols)
        return (above * below, strict_above) if strict_below else (0, False)

    def is_nonnegative(self, expr: Scalar) -> bool:
        """Return whether expr ≥ 0 is shown, everywhere in the region."""
        return self._sign(expr)[0] == 1

    def is_positive(self, expr: Scalar) -> bool:
        """Return whether expr > 0 is shown, everywhere in the region."""
        return self._sign(expr) == (1, True)

    def has_sign_of(self, value: Scalar, symbol: sp.Symbol) -> bool:
        """Return whether `value` is shown to be a value that `symbol` may take."""
        shown = self.is_positive if symbol.is_positive else self.is_nonnegative
        return not symbol.is_nonnegative or shown(value)

    def has_root(self, polynomial: sp.Expr, symbol: Any) -> bool:
        """Return whether a polynomial is shown to have a root that `symbol` may be.

        A polynomial that is at most zero at zero, and grows, has a non-negative root. Where it is
        zero at zero, a positive symbol leaves that boundary out. Gram entries are not for choosing.
        """
        numerator = sp.Poly(_fraction(polynomial)[0], symbol)
        first, last = numerator.LC(), numerator.TC()
        if numerator.degree() < 1 or isinstance(symbol, Entry) or not symbol.is_real:
            return False
        below = last != 0 and self.is_nonnegative(-last / first)
        return self._strict(first) and (below if symbol.is_nonnegative else numerator.degree() == 1)

    def is_regular(self, expr: Scalar) -> bool:
        """Return whether expr's denominator, in lowest terms, is shown to have no zero."""
        return self._strict(_fraction(expr)[1])


@lru_cache(maxsize=4096)
def _polynomial_sign(polynomial: Any, symbols: tuple[sp.Symbol, ...]) -> tuple[int, bool]:
    """Return (sign, strict) as `Region._sign` does, from the signs of the factors."""
    constant, factors = polynomial.factor_list()
    sign, strict = (1 if constant > 0 else -1), True
    for factor, power in factors:
        factor_sign, factor_strict = _factor_sign(factor, symbols)
        sign *= factor_sign**power if factor_sign or power % 2 else 1
        strict = strict and factor_strict
    return sign, strict and sign != 0


def _factor_sign(factor: Any, symbols: tuple[sp.Symbol, ...]) -> tuple[int, bool]:
    """Return (sign, strict) of a polynomial whose coefficients have one sign; else (0, False)."""
    signs, strict = set(), False
    for powers, coefficient in factor.terms():
        used = [symbol for symbol, power in zip(symbols, powers, strict=True) if power]
        if not all(symbol.is_nonnegative for symbol in used):
            return 0, False
        signs.add(1 if coefficient > 0 else -1)
        strict = strict or all(symbol.is_positive for symbol in used)
    return (signs.pop(), strict) if len(signs) == 1 else (0, False)
