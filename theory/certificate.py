"""Claims `c ≥ 0`, and certificates that prove them by exact algebra.

A certificate for the claim c ≥ 0 from the hypotheses h_k ≥ 0 is a list of multipliers and squares

    c = Σ_k λ_k h_k + Σ_j μ_j ‖w_j‖² ,    λ_k ≥ 0, μ_j ≥ 0 .

`Certificate.check` proves both halves or raises `NotProvedError`; "unknown" is a failure.

* The identity is expanded in the field of rational functions of all symbols, where equal means
  identical. Radicals are symbols with a monic polynomial relation, reduced by remainder.
* The signs are proved under the claim's stated conditions. A condition q ≥ 0 is solved for one of
  its parameters: slack s = (scale)·q ≥ 0 parametrises *every* admissible value. What is left
  is a rational function of free parameters whose factors must have coefficients of one sign.

* Some values meet all conditions and relations: a claim about nothing is refused. Whether there is
  a run that meets the hypotheses is for the reader to judge, who sees each of them by name.

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
from dataclasses import dataclass, replace
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

    def put(self, names: Mapping[sp.Symbol, sp.Symbol]) -> "Hypothesis":
        """Return the hypothesis with other names for some symbols."""
        values = {**names, **{key: value.xreplace(names) for key, value in self.values}}
        return replace(self, expr=self.expr.xreplace(names), values=tuple(values.items()))


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
    def spoken(self) -> frozenset[Any]:
        """The symbols of the claim and of all that it rests on."""
        own = [self.expr, *(condition.expr for condition in self.conditions)]
        spoken = sp.Tuple(*own, *self.relations).free_symbols
        for hypothesis in self.hypotheses:
            spoken |= hypothesis.expr.free_symbols
            values = dict(hypothesis.values)
            for symbol in hypothesis.source.spoken if hypothesis.source else ():
                spoken |= sp.sympify(values.get(symbol, symbol)).free_symbols
        return frozenset(spoken)

    def _may_become(self, key: Any, value: sp.Expr, given: Mapping[Any, sp.Expr]) -> bool:
        """Return whether `value` may take a symbol's place, beside what else is `given`.

        What has no sign may be renamed, to what the claim does not speak of. A Gram entry may if it
        is a square: to another or to a number, so that it is not torn from its vector's products.
        """
        bases = {base for entry in self.expr.atoms(Entry) for base in entry.bases}
        if not isinstance(key, sp.Symbol) or any(key in base.tied for base in bases):
            return False
        if key.is_nonnegative and not isinstance(key, Entry):
            return True
        # A vector of which only assumptions speak is any vector: it gives way to a namesake.
        kept = (self.expr.free_symbols if isinstance(key, Entry) else self.spoken) - {*given}
        new = value.is_Symbol and value not in kept and [*given.values()].count(value) == 1
        if isinstance(key, Entry):
            torn = any(key.bases[0] in e.bases for e in sp.Tuple(*kept).atoms(Entry))
            new = new and not torn and key.is_nonnegative and value.is_nonnegative
        return bool(new)

    def instance(self, values: Mapping[Any, Scalar] | None = None, name: str = "") -> Hypothesis:
        """Return this claim as a hypothesis of another, with `values` substituted.

        A symbol without a sign (a function value, an inner product) may only be renamed. The claim
        that uses the instance inherits this one's conditions as obligations.
        """
        pairs = tuple((key, sp.sympify(value)) for key, value in (values or {}).items())
        for key, value in pairs:
            if not self._may_become(key, value, dict(pairs)):
                raise ValueError(f"{self.name}: {key} may only be renamed, not become {value}")
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
        # A relation defines its symbol, and may speak of those that later ones define. And some
        # values meet the conditions and all relations: a symbol of each is left to solve it for.
        later = set[sp.Basic]()
        for symbol, polynomial in reversed(claim.relations):
            written = region.put(polynomial)
            defined = symbol not in later and region.has_root(polynomial, symbol)
            free = sorted(written.free_symbols - later, key=lambda x: x != symbol)
            if not (defined and any(region.has_root(written, x) for x in free)):
                raise NotProvedError(f"{polynomial} = 0 does not define {symbol}", polynomial)
            later |= polynomial.free_symbols | written.free_symbols
        for hypothesis in claim.hypotheses:
            if hypothesis.source is not None:
                self._discharge(hypothesis, hypothesis.source, region)
        parts = [(weight, hypotheses[name].expr) for name, weight in self.multipliers.items()]
        for weight, w in self.squares:
            # A square is one of reals: of rational functions, where roots are symbols.
            for _, value in w.terms if isinstance(w, Vector) else [(w, w)]:
                normal(sp.sympify(value))
            parts.append((weight, norm2(w) if isinstance(w, Vector) else sp.sympify(w) ** 2))
        if negative := [weight for weight, _ in parts if not region.is_nonnegative(weight)]:
            raise NotProvedError(f"not shown non-negative: {negative[0]}", sp.sympify(negative[0]))
        exprs = [sp.sympify(each) for each in (claim.lhs, *claim.rhs, *(expr for _, expr in parts))]
        bases = {base for entry in sp.Tuple(*exprs).atoms(Entry) for base in entry.bases}
        if len({base.name for base in bases}) < len(bases):
            raise NotProvedError(f"two vectors have one name: {sorted(b.name for b in bases)}")
        symbols = sp.Tuple(*exprs, *(weight for weight, _ in parts)).free_symbols
        if unreal := [symbol for symbol in symbols if not symbol.is_real]:
            raise NotProvedError(f"not shown real: {unreal}")
        if open_at := [expr for expr in exprs if not region.is_regular(expr)]:
            raise NotProvedError(f"denominator not shown non-zero: {open_at[0]}", open_at[0])
        proved = sp.Add(*(weight * expr for weight, expr in parts))
        if rest := remainder(claim.expr - proved, claim.relations):
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
            if rest := remainder(polynomial.subs(values, simultaneous=True), self.claim.relations):
                raise NotProvedError(f"{hypothesis.name} needs {polynomial} = 0", rest)
