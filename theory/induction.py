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
from dataclasses import dataclass
from typing import Any

import sympy as sp

from theory.certificate import Certificate, Claim, Condition, Hypothesis, NotProvedError, Region
from theory.gram import Scalar, Vector

Argument = tuple[
    tuple[Hypothesis, ...], Mapping[str, Scalar], tuple[tuple[Scalar, Vector | Scalar], ...]
]
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
        lhs, rhs = self.state(*state)
        return Claim(
            self.name + suffix,
            self.text,
            lhs,
            rhs,
            hypotheses,
            self.conditions,
            self.relations,
            remark=self.remark,
        )

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
        region = Region(self.conditions)
        given = set().union(*(h.expr.free_symbols for h in self.step_by[0]))
        for old, new in zip(self.now, self.following, strict=True):
            fresh = not isinstance(new, sp.Symbol) or new in given
            if old == new or not fresh:
                raise NotProvedError(f"{self.name}: {new} is no next value of {old}")
        state = {symbol for symbol in self.now if isinstance(symbol, sp.Symbol)}
        for condition in self.conditions:
            if state & condition.expr.free_symbols:
                raise NotProvedError(f"{self.name}: {condition.text} bounds the run's own state")
        for symbol, *values in zip(self.now, self.start, self.following, strict=True):
            for value in values:
                if isinstance(symbol, sp.Symbol) and not region.has_sign_of(value, symbol):
                    message = f"{self.name}: {value} is not shown to have the sign of {symbol}"
                    raise NotProvedError(message, value)
        for certificate in self.certificates:
            certificate.check()
        return self.claim


Proof = Certificate | Induction
