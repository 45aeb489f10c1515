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
from theory.gram import Scalar, Vector, sides
from theory.region import Condition, NotProvedError, Region

Argument = tuple[tuple[Hypothesis, ...], Mapping[str, Scalar], tuple[Square, ...]]
SO_FAR = "so far"
"""The name of the induction hypothesis."""
OF_EACH = " of each step"
"""What the names of the state's symbols end in where every step's are meant, not the last one's."""


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
        """The claim after any number of steps, with the hypotheses of all steps.

        What those say of the state, they say of each step's, which is not the last one's.
        """
        scalars = [old for old in self.now if isinstance(old, sp.Symbol)]
        each = {old: sp.Symbol(old.name + OF_EACH, **old.assumptions0) for old in scalars}
        steps = (step.put(each) for step in self.step_by[0])
        return self._claim("", self.now, *self.start_by[0], *steps)

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
        """Prove the claim, or raise `NotProvedError` as `Certificate.check` does.

        The state is symbols and vectors, which become others of their sign, or kind. Noise of a
        step is new to it. What else the claim speaks of stays as it is: that must not be the
        state's own, nor depend on such noise. A state of other names shows what that is.
        """
        assumed = {*self.start_by[0], *self.step_by[0]}
        if len({hypothesis.name for hypothesis in assumed}) < len(assumed):
            raise NotProvedError(f"{self.name}: two hypotheses have one name")
        region, given = Region(self.conditions), sp.Tuple(*(h.expr for h in self.step_by[0]))
        vectors = [v for v in self.start + self.following if isinstance(v, Vector)]
        noises = tuple({noise for v in vectors for base, _ in v.terms for noise in base.after})
        own, other = list[Any](), list[Any]()
        for old, first, new in zip(self.now, self.start, self.following, strict=True):
            if isinstance(old, Vector):
                lead = {b.deviation for b, x in old.terms if x == 1 and b.name not in own}
                any_such = lead == sides(old) and not any(base.after for base, _ in old.terms)
                fits = all(sides(value) <= sides(old) for value in (first, new))
                own += [base.name for base, _ in old.terms]
                fresh = [(replace(b, name=f"~{b.name}", after=noises), x) for b, x in old.terms]
                other.append(Vector(tuple(fresh)))
            else:
                names = {base.name for base in getattr(old, "bases", ())} or {old}
                any_such = isinstance(old, sp.Symbol) and len(names) == 1 and not names & {*own}
                fits = all(region.has_sign_of(value, old) for value in (first, new))
                own += names
                other.append(sp.Dummy(**old.assumptions0))
            unmoved = old == new or (isinstance(new, sp.Symbol) and new not in given.free_symbols)
            if unmoved or not (any_such and fits):
                raise NotProvedError(f"{self.name}: not the sign or kind of {old}: {first}, {new}")
        spoken = {*self._claim("", tuple(other)).spoken}
        for base in {base for symbol in spoken for base in getattr(symbol, "bases", ())}:
            spoken |= base.tied if base.name[0] != "~" else set()
        if spoken & {*own, *noises}:
            raise NotProvedError(f"{self.name}: not all of {own} moves on")
        for certificate in self.certificates:
            certificate.check()
        return self.claim


Proof = Certificate | Induction
