"""Claims about runs of every length, proved at the start and from each step to the next.

Example:
    |h⁺| ≤ |h| + α and h_0 = 0 give |h_t| ≤ tα.

    >>> from theory.symbols import alpha, held, held_next, steps
    >>> step = Hypothesis("step", held + alpha - held_next)
    >>> sums = Induction(
    ...     "sums",
    ...     "|h_t| ≤ tα",
    ...     lambda h, t: (h, (t * alpha,)),
    ...     start=(0, 0),
    ...     now=(held, steps),
    ...     following=(held_next, steps + 1),
    ...     start_by=((), {}, ()),
    ...     step_by=((step,), {"step": 1, SO_FAR: 1}, ()),
    ... )
    >>> sums.check().expr
    t*α - |h|
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import sympy as sp

from theory.certificate import Certificate, Claim, Hypothesis, Square
from theory.gram import Entry, Scalar, Vector
from theory.region import Condition, NotProvedError, Region

Argument = tuple[tuple[Hypothesis, ...], Mapping[str, Scalar], tuple[Square, ...]]
SO_FAR = "so far"
"""The name of the induction hypothesis."""


@dataclass(frozen=True)
class Induction:
    """A proof, by induction, of a claim about every length of a run.

    Attributes:
        name: the claim's name; its two certificates are called `name[start]` and `name[step]`.
        text: the statement for a reader.
        state: maps what changes from step to step to the claim's (lhs, rhs).
        start: the state at the start.
        now: the state after some number of steps.
        following: the state after one step more.
        start_by: the certificate's (hypotheses, multipliers, squares) at the start.
        step_by: the same for a step; SO_FAR names the claim itself, before the step.
        conditions: as in `Claim`.
        relations: as in `Claim`.
        remark: as in `Claim`.
    """

    name: str
    text: str
    state: Callable[..., tuple[Scalar, tuple[Scalar, ...]]]
    start: tuple[Any, ...]
    now: tuple[Any, ...]
    following: tuple[Any, ...]
    start_by: Argument
    step_by: Argument
    conditions: tuple[Condition, ...] = ()
    relations: tuple[tuple[sp.Symbol, sp.Expr], ...] = ()
    remark: str = ""

    def _claim(self, suffix: str, state: tuple[Any, ...], *hypotheses: Hypothesis) -> Claim:
        says = (self.name + suffix, self.text, *self.state(*state))
        return Claim(*says, hypotheses, self.conditions, self.relations, remark=self.remark)

    @property
    def claim(self) -> Claim:
        """The claim after any number of steps, with the hypotheses of all steps."""
        return self._claim("", self.now, *self.start_by[0], *self.step_by[0])

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """The certificates at the start and of a step."""
        so_far = Hypothesis(SO_FAR, self._claim("", self.now).expr)
        start, step = self.start_by, self.step_by
        return (
            Certificate(self._claim("[start]", self.start, *start[0]), *start[1:]),
            Certificate(self._claim("[step]", self.following, *step[0], so_far), *step[1:]),
        )

    def check(self) -> Claim:
        """Prove the claim, or raise `NotProvedError` as `Certificate.check` does."""
        self._check_vectors()
        region = Region(self.conditions)
        given = set().union(*(h.expr.free_symbols for h in self.step_by[0]))
        self._check_closed()
        for old, first, new in zip(self.now, self.start, self.following, strict=True):
            if old == new or (isinstance(new, sp.Symbol) and new not in given):
                raise NotProvedError(f"{self.name}: {new} is no next value of {old}")
            for value in (first, new) if isinstance(old, sp.Symbol) else ():
                if not region.has_sign_of(value, old):
                    raise NotProvedError(f"{self.name}: sign of {old} not shown: {value}", value)
        for certificate in self.certificates:
            certificate.check()
        return self.claim

    def _check_closed(self) -> None:
        """Refuse what speaks of the run's own state, but not as `state` says: it would not move on.

        A symbol that an expression in the state keeps from step to step is a constant.
        """
        own, fresh = set(), []
        for old, new in zip(self.now, self.following, strict=True):
            if isinstance(old, Vector):
                own |= {base.name for base, _ in old.terms}
                renamed = ((replace(base, name=f"next {base.name}"), x) for base, x in old.terms)
                fresh.append(Vector(tuple(renamed)))
            else:
                moves = () if isinstance(old, sp.Symbol) else sp.sympify(new).free_symbols
                own |= sp.sympify(old).free_symbols.difference(moves)
                fresh.append(sp.Dummy(**sp.sympify(old).assumptions0))
        relations = [part for relation in self.relations for part in relation]
        said = (self._claim("", tuple(fresh)).expr, *(c.expr for c in self.conditions), *relations)
        for symbol in set().union(*(expr.free_symbols for expr in said)):
            if own & {symbol, *(base.name for base in getattr(symbol, "bases", ()))}:
                raise NotProvedError(
                    f"{self.name}: {symbol} is the run's own, and does not move on"
                )

    def _check_vectors(self) -> None:
        """Refuse a start or a next state that is none of the vectors of which the claim speaks.

        Noise of a step is new to the state; so nothing else in the claim may depend on it.
        """
        entries = self._claim("", self.now).expr.atoms(Entry)
        others = {noise for entry in entries for base in entry.bases for noise in base.after}
        for now, *values in zip(self.now, self.start, self.following, strict=True):
            own = {base for base, _ in now.terms} if isinstance(now, Vector) else set()
            fixed = others.difference(*(base.after for base in own))
            for base in {base for v in values if isinstance(v, Vector) for base, _ in v.terms}:
                noises = {*base.after, *((base.name,) if base.variance is not None else ())}
                apart = base.deviation or (base.variance is not None and base.workers is None)
                if (apart and not any(each.deviation for each in own)) or noises & fixed:
                    raise NotProvedError(f"{self.name}: {base.name} is no part of such a vector")


Proof = Certificate | Induction
