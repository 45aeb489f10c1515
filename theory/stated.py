"""Whether a claim shows what a bound states: its link, its relations, its hypotheses."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import sympy as sp

from theory.certificate import Claim, NotProvedError, Region, remainder
from theory.explain import assumed
from theory.gram import Scalar
from theory.induction import OF_EACH
from theory.symbols import RUN

Link = Callable[[sp.Expr], Scalar]
_RUN = frozenset(symbol.name for symbol in RUN)


def check_link(claim: Claim, stated: sp.Expr, link: Link, falls: bool) -> None:
    """Refuse a link under which the claim does not bound the quantity by what is stated.

    Args:
        claim: says that link(quantity) ≤ its right side, which is link(stated).
        stated: the bound.
        link: grows with the quantity, or falls; where it does so for quantities ≥ 0 only, as a
            square does, `stated` is to be shown non-negative.
        falls: whether it falls: the bound is a lower one.

    Raises:
        NotProvedError: if any of this is not shown.

    Example:
        >>> from theory.symbols import M, alpha
        >>> claim = Claim("drift", "‖h‖² ≤ α²M²", sp.Symbol("square"), (alpha**2 * M**2,))
        >>> check_link(claim, M, lambda B: (alpha * B) ** 2, False)
        >>> check_link(claim, -M, lambda B: (alpha * B) ** 2, False)
        Traceback (most recent call last):
        theory.region.NotProvedError: drift: -M is not shown non-negative
    """
    if remainder(link(stated) - sp.Add(*claim.rhs), claim.relations):
        raise NotProvedError(f"{claim.name} does not show this bound", stated)
    region, x = Region(claim.conditions), sp.Dummy("x", nonnegative=True)
    slope = sp.diff(link(x), x) * (-1 if falls else 1)
    if slope == 0 or not region.is_nonnegative(slope):
        raise NotProvedError(f"{claim.name}: its link does not {'fall' if falls else 'rise'}")
    if x in slope.free_symbols:
        rational, radicals = _rational(stated, region)
        if not all(map(region.is_nonnegative, (rational, *(base for base, _ in radicals)))):
            raise NotProvedError(f"{claim.name}: {stated} is not shown non-negative", stated)


def vanishes(expr: sp.Expr) -> bool:
    """Return whether an expression is shown to be zero, by exact division.

    Example:
        >>> x, y = sp.symbols("x y", positive=True)
        >>> vanishes(sp.sqrt(x + y) ** 4 - x**2 - 2 * x * y - y**2), vanishes(sp.sqrt(x) - x)
        (True, False)
    """
    expr, radicals = _rational(expr, Region())
    relations = [(root, root**degree - base) for (base, degree), root in radicals.items()]
    return remainder(expr, relations[::-1]) == 0


Radicals = dict[tuple[sp.Expr, int], sp.Symbol]


def _rational(expr: sp.Expr, region: Region) -> tuple[sp.Expr, Radicals]:
    """Return an expression with symbols for its radicals, by base and degree, inner ones first."""
    radicals: Radicals = {}

    def root(power: Any) -> sp.Expr:
        base, degree = power.base, int(power.exp.q)
        if (base, degree) not in radicals:
            positive = region.is_positive(base) or None  # "None" is "not said" to be
            radicals[base, degree] = sp.Dummy("root", nonnegative=True, positive=positive)
        return radicals[base, degree] ** power.exp.p

    rational: Any = expr.replace(lambda e: e.is_Pow and e.exp.is_Rational and e.exp.q > 1, root)
    return rational, radicals


def asked(claim: Claim) -> Iterator[tuple[str, sp.Expr]]:
    """Yield what a claim's hypotheses ask of parameters alone, by name, as expressions ≥ 0.

    They are the factors in which no quantity of a run is, and of which no sign is known.

    Raises:
        NotProvedError: if one stands beside a factor of a run whose sign is not known either.

    Example:
        >>> from theory.certificate import Hypothesis
        >>> from theory.symbols import L, alpha, grad_T
        >>> short = Hypothesis("(1 − αL)A_T ≥ 0", (1 - alpha * L) * grad_T)
        >>> [*asked(Claim("hidden", "αLA_T ≤ A_T", alpha * L * grad_T, (grad_T,), (short,)))]
        [('(1 − αL)A_T ≥ 0', -L*α + 1)]
    """
    region = Region(claim.conditions)
    for text, expr in assumed(claim):
        run, settings = _factors(expr)
        unknown = [factor for factor in settings if not region.is_nonnegative(factor)]
        if run and all(region.is_nonnegative(-factor) for factor in unknown):
            continue  # their signs are known: it is an assumption about the run
        if unknown and not all(map(region.is_nonnegative, run)):
            raise NotProvedError(f"{claim.name}: {text}: no sign of {unknown} is known", expr)
        if unknown:
            yield text, sp.Mul(*unknown)


def of_run(symbol: sp.Basic) -> bool:
    """Return whether a symbol is a quantity of a run, or of each of its steps.

    Example:
        >>> from theory.symbols import L, grad_T
        >>> of_run(grad_T), of_run(L)
        (True, False)
    """
    name = str(symbol).removesuffix(OF_EACH)
    return name in _RUN or name.startswith("⟨")


@cache
def _factors(expr: sp.Expr) -> tuple[list[sp.Expr], list[sp.Expr]]:
    """Return the factors in which quantities of a run are, and those of parameters alone."""
    for term in sp.Add.make_args(expr):
        if term.free_symbols and all(map(of_run, term.free_symbols)):
            return [expr], []  # as nothing of parameters can be factored out of this term
    run, settings = list[sp.Expr](), list[sp.Expr]()
    factored: Any = sp.factor(expr)
    for factor in sp.Mul.make_args(factored):
        (run if any(map(of_run, factor.free_symbols)) else settings).append(factor)
    return run, settings
