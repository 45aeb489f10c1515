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
    theory.region.NotProvedError: descent: not an identity,
        remaining: -L*α**2*⟨a,a⟩/2 + α*⟨a,a⟩/2
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy as sp

from theory.gram import Entry, Scalar, Vector, norm2
from theory.region import Condition, NotProvedError, Region, normal, remainder

Square = tuple[Scalar, Vector | Scalar]


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
        relations: (symbol, polynomial) pairs; the polynomial is zero, and monic in the symbol,
            which it defines: for all values of the others it has a root of the symbol's sign.
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

    @cached_property
    def _spoken(self) -> frozenset[Any]:
        """The symbols of the claim and of all that it rests on."""
        spoken = set(self.expr.free_symbols)
        for hypothesis in self.hypotheses:
            spoken |= hypothesis.expr.free_symbols
            if hypothesis.source is not None:
                values = dict(hypothesis.values)
                for symbol in hypothesis.source._spoken:
                    spoken |= sp.sympify(values.get(symbol, symbol)).free_symbols
        return frozenset(spoken)

    def _check_renaming(self, pairs: tuple[tuple[sp.Symbol, sp.Expr], ...]) -> None:
        """Refuse what would tear the Gram entries of one vector apart."""
        if not all(isinstance(key, sp.Symbol) for key, _ in pairs):
            raise ValueError(f"{self.name}: only symbols can be given values: {pairs}")
        keys = {key for key, _ in pairs}
        kept, others = self._spoken - keys, self.expr.free_symbols - keys
        for key, value in pairs:
            # A vector of which only assumptions speak is any vector: it gives way to a namesake.
            if value in (others if isinstance(key, Entry) else kept) and not key.is_nonnegative:
                raise ValueError(f"{self.name}: {key} cannot become {value}, which it speaks of")
            if isinstance(key, Entry):
                squares = all(len({*e.bases}) == 1 for e in sp.Tuple(key, value).atoms(Entry))
                signed = value.is_nonnegative or isinstance(value, Entry)
                alone = not any(key.bases[0] in getattr(e, "bases", ()) for e in others)
                if not (squares and signed and alone):
                    raise ValueError(f"{self.name}: {key} cannot become {value}: it is no square")

    def instance(
        self, values: Mapping[sp.Symbol, Scalar] | None = None, name: str = ""
    ) -> Hypothesis:
        """Return this claim as a hypothesis of another, with `values` substituted.

        A symbol without a sign (a function value, an inner product) may only be renamed. The claim
        that uses the instance inherits this one's conditions as obligations.
        """
        pairs = tuple((key, sp.sympify(value)) for key, value in (values or {}).items())
        self._check_renaming(pairs)
        renamed = [value for key, value in pairs if not key.is_nonnegative]
        if not all(value.is_Symbol for value in renamed) or len(set(renamed)) < len(renamed):
            raise ValueError(f"{self.name}: a symbol without a sign may only be renamed: {pairs}")
        return Hypothesis(name or self.name, self.expr.subs(pairs, simultaneous=True), self, pairs)


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
    squares: tuple[Square, ...] = ()

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
        later: set[sp.Basic] = set()  # a relation may speak of symbols that later ones define
        for symbol, polynomial in reversed(claim.relations):
            if symbol in later or not region.has_root(polynomial, symbol):
                raise NotProvedError(f"{polynomial} = 0 does not define {symbol}", polynomial)
            later |= polynomial.free_symbols
        for hypothesis in claim.hypotheses:
            if hypothesis.source is not None:
                self._discharge(hypothesis, hypothesis.source, region)
        weights = [*self.multipliers.values(), *(weight for weight, _ in self.squares)]
        for weight in weights:
            if not region.is_nonnegative(weight):
                raise NotProvedError(f"not shown non-negative: {weight}", sp.sympify(weight))
        for _, w in self.squares:
            # A square is one of reals: of rational functions, where roots are symbols.
            for part in dict(w.terms).values() if isinstance(w, Vector) else (sp.sympify(w),):
                normal(part)
        squares = [norm2(w) if isinstance(w, Vector) else w**2 for _, w in self.squares]
        parts_used = [hypotheses[name].expr for name in self.multipliers]
        exprs = [sp.sympify(expr) for expr in (claim.lhs, *claim.rhs, *parts_used, *squares)]
        bases = {base for entry in sp.Tuple(*exprs).atoms(Entry) for base in entry.bases}
        if len({base.name for base in bases}) < len(bases):
            raise NotProvedError(f"two vectors have one name: {sorted(b.name for b in bases)}")
        for expr in exprs:
            if not all(symbol.is_real for symbol in expr.free_symbols):
                raise NotProvedError(f"not shown real: {expr}", expr)
            if not region.is_regular(expr):
                raise NotProvedError(f"denominator not shown non-zero: {expr}", expr)
        products = (x * y for x, y in zip(weights, [*parts_used, *squares], strict=True))
        if rest := remainder(claim.expr - sp.Add(*products), claim.relations):
            raise NotProvedError(f"not an identity, remaining: {sp.expand(rest)}", rest)

    def _discharge(self, hypothesis: Hypothesis, source: Claim, region: Region) -> None:
        """Show that an instance of another claim is used where that claim holds."""
        values = hypothesis.values
        if remainder(hypothesis.expr - source.instance(dict(values)).expr):
            raise NotProvedError(f"{hypothesis.name} is no instance of its source")
        for symbol, value in values:
            if not region.has_sign_of(value, symbol):
                raise NotProvedError(f"{value} is not shown to have the sign of {symbol}", value)
        for condition in source.conditions:
            expr = condition.expr.subs(values, simultaneous=True)
            shown = region.is_positive if condition.strict else region.is_nonnegative
            if not shown(expr):
                raise NotProvedError(f"{hypothesis.name} needs {condition.text}", expr)
        for _, polynomial in source.relations:
            rest = remainder(polynomial.subs(values, simultaneous=True), self.claim.relations)
            if rest:
                raise NotProvedError(f"{hypothesis.name} needs {polynomial} = 0", rest)
