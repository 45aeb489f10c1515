"""Claims `c ≥ 0`, and certificates that prove them by exact algebra.

A certificate for the claim c ≥ 0 from the hypotheses h_k ≥ 0 is a list of multipliers and squares

    c = Σ_k λ_k h_k + Σ_j μ_j ‖w_j‖² ,    λ_k ≥ 0, μ_j ≥ 0 .

`Certificate.check` proves both halves or raises `NotProvedError`; "unknown" is a failure.

* The identity is expanded in the field of rational functions of all symbols, where equal means
  identical. Radicals are symbols with a monic polynomial relation, reduced by remainder.
* The signs are proved under the claim's stated conditions. A condition q ≥ 0 is solved for one of
  its parameters: slack s = (scale)·q ≥ 0 parametrises *every* admissible value. What is left
  is a rational function of free parameters whose factors must have coefficients of one sign.

Nothing is evaluated numerically, and no heuristic simplification has a say.

Example:
    The descent lemma: f(x − αa) ≤ f(x) − (α/2)‖a‖² if a = ∇f(x) and αL ≤ 1.

    >>> from theory.gram import norm2, vector
    >>> from theory.symbols import L, alpha, f_next, f_x
    >>> a = vector("a")
    >>> smooth = Hypothesis("smooth", f_x - alpha * norm2(a) + L * alpha**2 * norm2(a) / 2 - f_next)
    >>> short = Condition("αL ≤ 1", 1 - alpha * L, solve_for=alpha, scale=1 / alpha)
    >>> claim = Claim(
    ...     "descent",
    ...     "f(x⁺) ≤ f(x) − (α/2)‖∇f(x)‖²",
    ...     lhs=f_next,
    ...     rhs=(f_x, -alpha * norm2(a) / 2),
    ...     hypotheses=(smooth,),
    ...     conditions=(short,),
    ... )
    >>> Certificate(claim, {"smooth": 1}, ((alpha * (1 - alpha * L) / 2, a),)).check().name
    'descent'
    >>> Certificate(claim, {"smooth": 1}).check()
    Traceback (most recent call last):
    theory.certificate.NotProvedError: descent: not an identity,
        remaining: -L*α**2*⟨a,a⟩/2 + α*⟨a,a⟩/2
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import sympy as sp

from theory.gram import Scalar, Vector, norm2


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
    """

    text: str
    expr: sp.Expr
    solve_for: sp.Symbol
    scale: sp.Expr = sp.S.One
    strict: bool = False


@dataclass(frozen=True)
class Hypothesis:
    """A hypothesis `expr ≥ 0`: an assumption, or an instance of a claim proved elsewhere.

    Attributes:
        name: its unique name within the claim.
        expr: what is at least zero.
        source: the claim of which this is an instance; None for an assumption.
        values: the instance's substitution.
    """

    name: str
    expr: sp.Expr
    source: "Claim | None" = None
    values: tuple[tuple[sp.Symbol, sp.Expr], ...] = ()


@dataclass(frozen=True)
class Claim:
    """The claim `lhs ≤ Σ rhs` (`=` if equality), under conditions, from hypotheses.

    Attributes:
        name: its unique name.
        text: the statement for a reader.
        lhs: the side that is bounded.
        rhs: the terms of the bound.
        hypotheses: what it assumes.
        conditions: where its parameters may lie, besides their signs; in order, so that a later
            condition may be stated in parameters that an earlier one bounds.
        relations: (symbol, polynomial) pairs; the polynomial is zero, and monic in the symbol.
        equality: whether the two sides are equal; then there are no hypotheses.
        remark: what the reader should know besides, such as "refutes: ..." or "corrects: ...".
    """

    name: str
    text: str
    lhs: Scalar
    rhs: tuple[Scalar, ...]
    hypotheses: tuple[Hypothesis, ...] = ()
    conditions: tuple[Condition, ...] = ()
    relations: tuple[tuple[sp.Symbol, sp.Expr], ...] = ()
    equality: bool = False
    remark: str = ""

    @property
    def expr(self) -> sp.Expr:
        """The expression c of the claim c ≥ 0."""
        return sp.Add(*self.rhs) - sp.sympify(self.lhs)

    @property
    def assumptions(self) -> tuple[str, ...]:
        """The names of all assumptions on which the claim rests, through its sources."""
        names = ((h.name,) if h.source is None else h.source.assumptions for h in self.hypotheses)
        return tuple(dict.fromkeys(chain.from_iterable(names)))

    def instance(
        self, values: Mapping[sp.Symbol, Scalar] | None = None, name: str = ""
    ) -> Hypothesis:
        """Return this claim as a hypothesis of another, with `values` substituted.

        A symbol without a sign (a function value, an inner product) may only be renamed. The claim
        that uses the instance inherits this one's conditions as obligations.
        """
        pairs = tuple((key, sp.sympify(value)) for key, value in (values or {}).items())
        renamed = [value for key, value in pairs if not key.is_nonnegative]
        if not all(value.is_Symbol for value in renamed) or len(set(renamed)) < len(renamed):
            raise ValueError(f"{self.name}: a symbol without a sign may only be renamed: {pairs}")
        expr = self.expr.subs(pairs, simultaneous=True)
        return Hypothesis(name or self.name, expr, self, pairs)


@lru_cache(maxsize=4096)
def _normal(expr: sp.Expr, first: tuple[sp.Symbol, ...] = ()) -> tuple[Any, Any]:
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
    domain, element = _normal(sp.sympify(expr))
    numerator, denominator = domain.field(element.numer), domain.field(element.denom)
    return domain.to_sympy(numerator), domain.to_sympy(denominator)


def remainder(expr: sp.Expr, relations: Iterable[tuple[sp.Symbol, sp.Expr]] = ()) -> sp.Expr:
    """Return an expression that is zero only if `expr` is zero wherever the relations hold.

    Example:
        >>> r = sp.Symbol("r")
        >>> remainder((r**4 - 4) / (r + 1), [(r, r**2 - 2)]), remainder(r**3, [(r, r**2 - 2)])
        (0, 2*r)
    """
    relations = tuple(relations)
    for symbol, polynomial in relations:
        if not sp.Poly(polynomial, symbol).is_monic:
            raise NotProvedError(f"relation {polynomial} is not monic in {symbol}", polynomial)
    # The relations' own symbols lead, so that division reduces powers of them.
    divisors = [polynomial for _, polynomial in relations]
    symbols = set().union(expr.free_symbols, *(divisor.free_symbols for divisor in divisors))
    leading = [symbol for symbol, _ in relations]
    others = sorted(symbols.difference(leading), key=lambda symbol: symbol.sort_key())
    order = (*leading, *others)
    domain, element = _normal(expr, order)
    if not divisors:
        return domain.to_sympy(element)
    rest = element.numer.rem([_normal(divisor, order)[1].numer for divisor in divisors])
    return domain.to_sympy(domain.field(rest) / domain.field(element.denom))


class Region:
    """The admissible parameters: those with the symbols' signs that meet the conditions.

    The conditions are written away one by one. Condition q > 0 or q ≥ 0, bounding x, becomes
    x = value(s) with slack s = scale·q; as the equation is linear in x with a coefficient of one
    strict sign, every admissible x is value(s) for an admissible s, so nothing is lost.

    Example:
        >>> from theory.symbols import L, alpha
        >>> region = Region([Condition("αL < 1", 1 - alpha * L, alpha, 1 / alpha, strict=True)])
        >>> region.is_positive(1 - alpha * L), region.is_nonnegative(1 - 2 * alpha * L)
        (True, False)
    """

    def __init__(self, conditions: Iterable[Condition] = ()):
        """Write the conditions away, or raise `NotProvedError`."""
        self._values: list[tuple[sp.Symbol, sp.Expr]] = []
        for condition in conditions:
            self._add(condition)

    def _add(self, condition: Condition) -> None:
        x, product = condition.solve_for, condition.scale * condition.expr
        taken = {y for pair in self._values for part in pair for y in part.free_symbols}
        if not x.is_positive or x in taken:
            raise NotProvedError(f"{condition.text}: cannot be solved for {x}", x)
        if not self.is_positive(condition.scale):
            raise NotProvedError(f"{condition.text}: scale not shown positive", condition.scale)
        signs = {"positive": True} if condition.strict else {"nonnegative": True}
        slack = sp.Dummy(f"slack({condition.text})", real=True, **signs)
        numerator, denominator = _fraction(product)
        equation = sp.Poly(slack * denominator - numerator, x)
        if equation.degree() != 1:
            raise NotProvedError(f"{condition.text}: not linear in {x}", product)
        slope, constant = equation.all_coeffs()
        if not (self.is_positive(denominator) and self._strict(slope)):
            raise NotProvedError(f"{condition.text}: not shown solvable for {x}", slope)
        self._values.append((x, -constant / slope))

    def _strict(self, expr: sp.Expr) -> bool:
        return self.is_positive(expr) or self.is_positive(-expr)

    def _sign(self, expr: Scalar) -> tuple[int, bool]:
        """Return (1, −1 or 0 for ≥ 0, ≤ 0 or unknown; whether zero is excluded)."""
        expr = sp.sympify(expr)
        for x, value in reversed(self._values):
            expr = expr.subs(x, value)
        domain, element = _normal(expr)
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
        if symbol.is_positive:
            return self.is_positive(value)
        return not symbol.is_nonnegative or self.is_nonnegative(value)

    def is_regular(self, expr: Scalar) -> bool:
        """Return whether expr's denominator, in lowest terms, is shown to have no zero."""
        return self._strict(_fraction(expr)[1])


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


@dataclass(frozen=True)
class Certificate:
    """A proof of a claim.

    Attributes:
        claim: what is proved.
        multipliers: λ_k by the hypothesis's name.
        squares: pairs (μ_j, w_j); w_j is a vector, or a scalar whose square is meant.
    """

    claim: Claim
    multipliers: Mapping[str, Scalar]
    squares: tuple[tuple[Scalar, Vector | Scalar], ...] = ()

    @property
    def certificates(self) -> "tuple[Certificate, ...]":
        """The certificate itself: an `Induction` has two."""
        return (self,)

    def check(self) -> Claim:
        """Prove the claim, or raise.

        Returns:
            The claim.

        Raises:
            NotProvedError: with what remains: the rest of the identity, a multiplier not shown
                non-negative, a denominator not shown non-zero, or a source's condition not met.
        """
        try:
            self._check()
        except NotProvedError as error:
            raise NotProvedError(f"{self.claim.name}: {error}", error.remaining) from error
        return self.claim

    def _check(self) -> None:
        claim, region = self.claim, Region(self.claim.conditions)
        hypotheses = {h.name: h for h in claim.hypotheses}
        if len(hypotheses) < len(claim.hypotheses):
            raise NotProvedError("two hypotheses have one name")
        if unknown := sorted(set(self.multipliers) - set(hypotheses)):
            raise NotProvedError(f"multipliers of hypotheses that it does not have: {unknown}")
        if claim.equality and (hypotheses or self.squares):
            raise NotProvedError("an equality has neither hypotheses nor squares")
        for hypothesis in hypotheses.values():
            self._discharge(hypothesis, region)
        weights = [*self.multipliers.values(), *(weight for weight, _ in self.squares)]
        for weight in weights:
            if not region.is_nonnegative(weight):
                raise NotProvedError(f"not shown non-negative: {weight}", sp.sympify(weight))
        squares = [
            norm2(w) if isinstance(w, Vector) else sp.sympify(w) ** 2 for _, w in self.squares
        ]
        used = [hypotheses[name].expr for name in self.multipliers]
        for expr in chain([claim.lhs], claim.rhs, used, squares):
            if not region.is_regular(expr):
                raise NotProvedError(f"denominator not shown non-zero: {expr}", sp.sympify(expr))
        parts = zip(weights, [*used, *squares], strict=True)
        total = claim.expr - sp.Add(*(weight * part for weight, part in parts))
        if rest := remainder(total, claim.relations):
            raise NotProvedError(f"not an identity, remaining: {sp.expand(rest)}", rest)

    def _discharge(self, hypothesis: Hypothesis, region: Region) -> None:
        """Show that an instance of another claim is used where that claim holds."""
        if hypothesis.source is None:
            return
        values = hypothesis.values
        if remainder(hypothesis.expr - hypothesis.source.instance(dict(values)).expr):
            raise NotProvedError(f"{hypothesis.name} is no instance of its source")
        for symbol, value in values:
            if not region.has_sign_of(value, symbol):
                raise NotProvedError(f"{value} is not shown to have the sign of {symbol}", value)
        for condition in hypothesis.source.conditions:
            expr = condition.expr.subs(values, simultaneous=True)
            shown = region.is_positive if condition.strict else region.is_nonnegative
            if not shown(expr):
                raise NotProvedError(f"{hypothesis.name} needs {condition.text}", expr)
        for _, polynomial in hypothesis.source.relations:
            rest = remainder(polynomial.subs(values, simultaneous=True), self.claim.relations)
            if rest:
                raise NotProvedError(f"{hypothesis.name} needs {polynomial} = 0", rest)
