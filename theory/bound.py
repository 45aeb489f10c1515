"""Bounds as data: numbers, curves, formulas, minima and the proof of what has been proved.

Example:
    Non-convex SGD whose views are within α²B² of the global iterate (`N`):

    >>> import theory
    >>> rate = theory.bounds()["N"]
    >>> rate.at(alpha=0.1, L=1, T=1000, Delta=1, sigma=1, B=2, p=4)
    0.085
    >>> rate.at(alpha=2, L=1, T=1000, Delta=1, sigma=1, B=2, p=4)
    Traceback (most recent call last):
    ValueError: N holds only where αL ≤ 1, which L = 1, α = 2 break
    >>> rate.at(alpha=0.1, L=1, T=1000, Delta=1, sigm=1, B=2, p=4)
    Traceback (most recent call last):
    TypeError: N has no parameter 'sigm': did you mean 'sigma'?
    >>> rate.curve(T=[10, 1000], alpha=0.1, L=1, Delta=1, sigma=1, B=2, p=4).round(3)
    array([2.065, 0.085])
    >>> best = rate.minimise("alpha")
    >>> best.stationary
    Eq(2*B**2*L**2*T*p*α**3 + L*T*α**2*σ**2 - 2*p*Δ, 0)
    >>> step, value = best.at(L=1, T=1000, Delta=1, sigma=1, B=2, p=4)
    >>> round(step, 4), round(value, 4)
    (0.0541, 0.0622)
"""

import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal

import sympy as sp

from theory import symbols
from theory.certificate import Condition, NotProvedError
from theory.evaluate import check_sign, evaluate, holds, number, wrong_sign
from theory.explain import assumptions, definitions, explain, tex
from theory.gram import Scalar
from theory.induction import OF_EACH, Proof
from theory.stated import Link, asked, check_link, vanishes

if TYPE_CHECKING:
    import numpy as np

    from theory.minimum import Minimum

Kind = Literal["upper", "tight", "lower"]
NOISY = Condition("σ > 0", symbols.sigma, symbols.sigma, strict=True)
SEVERAL_STEPS = Condition("T > 1", symbols.T - 1, symbols.T, strict=True)


@dataclass(frozen=True, repr=False)
class Bound:
    """A proved bound: `quantity` is at most (kind "lower": at least) the sum of `terms`.

    Attributes:
        name: its unique name.
        quantity: what is bounded.
        terms: expressions in parameters that a user knows; the bound is their sum.
        proof: what proves it.
        kind: "upper"; "tight" if some instance attains it; "lower" if one shows it necessary.
        conditions: where it holds, besides the parameters' signs.
        reference: where the statement comes from.
        link: maps the bound to the right side of the proof's claim, such as B to α²B².
    """

    name: str
    quantity: str
    terms: tuple[sp.Expr, ...]
    proof: Proof
    kind: Kind = "upper"
    conditions: tuple[Condition, ...] = ()
    reference: str = ""
    link: Link = lambda bound: bound

    @classmethod
    def of(
        cls,
        proof: Proof,
        quantity: str,
        *terms: Scalar,
        name: str = "",
        kind: Kind = "upper",
        values: Mapping[sp.Symbol, Scalar] | None = None,
        needs: tuple[sp.Symbol, ...] = (),
        whatever: tuple[sp.Symbol, ...] = (),
        where: tuple[Condition, ...] = (),
        link: Link = lambda bound: bound,
    ) -> "Bound":
        """Return the bound that a proof shows, taken at its word: it is not checked here.

        Those of the catalogue are: `theory.prove()` checks them, as `python -m theory` and the
        tests do; and `proof.check()` any other.

        Args:
            proof: the proof; its claim's conditions become the bound's, and so does what its
                hypotheses ask of parameters alone (`theory.stated.asked`). A hypothesis of every
                step about its own state is none on the last one's, and cannot be asked for.
            quantity: what is bounded.
            terms: the bound's terms in the proof's own symbols; the claim's right side if none.
            name: the claim's name if empty.
            kind: as in `Bound`.
            values: what symbols of the claim, besides `symbols.DEFINITIONS`, stand for.
            where: conditions that give the parameters their meaning, such as k ≤ d.
            needs: parameters of conditions only, of which the terms do not speak.
            whatever: parameters that only hypotheses speak of, and for which users are not asked.
                The hypotheses stay assumptions: they hold by definition (a probability, a power of
                1 − y), or say what is sought (an affordable B).
            link: as in `Bound`: link(sum of terms) is checked to be the claim's right side, and to
                grow with it, or fall if the kind is "lower" (`theory.stated.check_link`).

        Raises:
            NotProvedError: if the claim does not say this.
        """
        claim, stated = proof.claim, tuple(sp.sympify(term) for term in terms or proof.claim.rhs)
        check_link(claim, sp.Add(*stated), link, kind == "lower")
        known, last = {**symbols.DEFINITIONS, **(values or {})}, {symbols.noisy: symbols.sigma}

        def put(expr: sp.Expr) -> sp.Expr:
            return _put(_put(expr, known), last)

        conditions = where + tuple(replace(each, expr=put(each.expr)) for each in claim.conditions)
        # A user knows one σ and T; where the proof divides by σ, or by ln T, that is a condition.
        used = symbols.used(*stated, *(_put(term, known) for term in stated))
        conditions += (NOISY,) if symbols.noisy in used else ()
        conditions += (SEVERAL_STEPS,) if symbols.log_T in used else ()
        shown = tuple(term for term in map(put, stated) if term != 0) or (sp.S.Zero,)
        own = {*symbols.used(*shown, *(condition.expr for condition in conditions)), *needs}
        # A relation is an identity, or defines what the bound does not speak of.
        for symbol, polynomial in claim.relations:
            left = put(polynomial)
            given = symbol in (values or ()) or own.issuperset(symbols.used(left))
            if given and not vanishes(left):
                raise NotProvedError(f"{claim.name}: {symbol} needs {polynomial} = 0", left)
        waived = {symbol.name for symbol in whatever}
        for text, expr in asked(claim):
            condition = Condition(text, put(expr), symbols.T)
            hidden = {*symbols.used(condition.expr)} - own
            if not hidden:
                conditions += (condition,)
            elif not {symbol.name.removesuffix(OF_EACH) for symbol in hidden} <= waived:
                raise NotProvedError(f"{claim.name} needs {text}: ask for it", condition.expr)
        distinct = tuple({condition.expr: condition for condition in conditions}.values())
        return cls(name or claim.name, quantity, shown, proof, kind, distinct, link=link)

    @cached_property
    def expr(self) -> sp.Expr:
        """The bound."""
        return sp.Add(*self.terms)

    @cached_property
    def parameters(self) -> tuple[sp.Symbol, ...]:
        """The symbols of the bound and of its conditions, by name."""
        return symbols.used(self.expr, *(condition.expr for condition in self.conditions))

    def put(self, **values: Scalar | float) -> "Bound":
        """Return the bound with numbers or expressions for some parameters.

        Raises:
            TypeError: on an unknown name, or for what is no number and no expression.
            ValueError: if a value has not the parameter's sign, or breaks a condition.
        """
        for name, value in values.items():
            if not isinstance(value, (sp.Expr, numbers.Real)):
                raise TypeError(f"{name}={value!r} is no number and no expression of symbols")
        pairs = {self.symbol(name): sp.sympify(value) for name, value in values.items()}
        for symbol, value in pairs.items():
            if value.is_number:
                check_sign(self.name, symbol, number(symbol.name, value))
            elif value.is_negative:
                raise ValueError(f"{self.name}: {symbol} must not be negative, as {value} is")
        signs = tuple(
            Condition(
                f"{symbol} = {value} has its sign", value, symbol, strict=bool(symbol.is_positive)
            )
            for symbol, value in pairs.items()
            if not (value.is_positive or (value.is_nonnegative and not symbol.is_positive))
        )
        conditions = _put_conditions(self.conditions, pairs) + signs
        for condition in conditions:
            if condition.expr.is_number and not holds(condition, {}):
                raise ValueError(f"{self.name} holds only where {condition.text}")
        rest = tuple(condition for condition in conditions if not condition.expr.is_number)
        terms = tuple(_put(term, pairs) for term in self.terms)
        return replace(self, terms=terms, conditions=rest)

    def at(self, **values: float) -> float:
        """Return the bound's value.

        Args:
            **values: a number for every parameter, by the name that it has in
                `theory.symbols` (alpha, L, sigma, …) or by its symbol (α, L, σ, …).

        Raises:
            TypeError: on an unknown or missing name.
            ValueError: if a number has not the parameter's sign, or breaks a condition.
        """
        known = self.known(values)
        for symbol, value in known.items():
            check_sign(self.name, symbol, value)
        for condition in self.conditions:
            if not holds(condition, known):
                involved = symbols.used(condition.expr)
                given = ", ".join(f"{symbol} = {known[symbol]:g}" for symbol in involved)
                verb = "breaks" if len(involved) == 1 else "break"
                raise ValueError(
                    f"{self.name} holds only where {condition.text}, which {given} {verb}"
                )
        try:
            return float(evaluate(self.expr, known))
        except (ArithmeticError, TypeError) as error:
            given = ", ".join(f"{symbol} = {value:g}" for symbol, value in known.items())
            raise ValueError(f"{self.name} has no finite value at {given}") from error

    def curve(self, **values: Any) -> "np.ndarray":
        """Return the bound's values, an array shaped as the values broadcast together.

        Args:
            **values: a number or an array for every parameter, as in `at`.

        Raises:
            TypeError: on an unknown or missing name.
            ValueError: as `at` does, for the first point where it does.
        """
        import numpy as np

        broadcast = np.broadcast_arrays(*(np.asarray(value, float) for value in values.values()))
        columns = dict(zip(values, broadcast, strict=True))
        known = {self.symbol(name): column for name, column in columns.items()}
        if len(known) < len(values):
            raise TypeError(f"{self.name}: a parameter is given twice: {', '.join(values)}")
        self._require(known)
        wrong = [wrong_sign(symbol, column) for symbol, column in known.items()]
        with np.errstate(all="ignore"):  # where one condition fails, others may have no value
            wrong += [~holds(condition, known) for condition in self.conditions]
        where = np.argwhere(np.any(np.broadcast_arrays(False, *wrong), axis=0))
        if len(where):
            self.at(**{name: float(column[tuple(where[0])]) for name, column in columns.items()})
        shape = np.broadcast_shapes(*(column.shape for column in columns.values()))
        return np.broadcast_to(evaluate(self.expr, known), shape).copy()

    def minimise(self, name: str) -> "Minimum":
        """Return where the bound is least in one parameter.

        Args:
            name: the parameter's name; the bound is a rational function of it, or one of the
                unrolled rates S and P, whose best step is found by halving.

        Raises:
            TypeError: on an unknown name.
            ValueError: for another function, or if the bound does not depend on it.
        """
        from theory.minimum import Minimum

        return Minimum.of(self, self.symbol(name))

    def latex(self) -> str:
        """Return `quantity ≤ bound` as LaTeX."""
        relation = r"\ge" if self.kind == "lower" else r"\le"
        return f"{tex(self.quantity)} {relation} {' + '.join(tex(term) for term in self.terms)}"

    def __str__(self) -> str:
        """Return `name: quantity ≤ bound`."""
        relation = "≥" if self.kind == "lower" else "≤"
        return f"{self.name}: {self.quantity} {relation} {self.expr}"

    def __repr__(self) -> str:
        """Return the statement, not the proof."""
        return f"<Bound {self}>"

    def _repr_latex_(self) -> str:
        return f"$\\displaystyle {self.latex()}$"

    def explain(self) -> str:
        """Return the proof as readable steps, each with its rule and multiplier.

        The claims on which it rests come first, with theirs.
        """
        from theory.catalogue import proofs

        return explain(self.proof, proofs())

    def describe(self) -> str:
        """Return formula, kind, conditions, assumptions, reference, parameters, a line each."""
        lines = [f"{self} ({self.kind})"]
        lines += [f"  where {condition.text}" for condition in self.conditions]
        lines += [f"  where {text}" for text in definitions(self.proof.claim)]
        told = {condition.text for condition in self.conditions}
        rest = (text for text in assumptions(self.proof.claim) if text not in told)
        lines += [f"  assumes {text}" for text in rest]
        lines += [f"  reference: {self.reference}"] if self.reference else []
        lines += [f"  {s}: {symbols.MEANINGS.get(s, '')}" for s in self.parameters]
        return "\n".join(lines)

    @cached_property
    def _names(self) -> dict[str, sp.Symbol]:
        """The parameters by both of their names."""
        own = {key: symbol for key, symbol in _by_name().items() if symbol in self.parameters}
        return own | {symbol.name: symbol for symbol in self.parameters}

    def symbol(self, name: str) -> sp.Symbol:
        """Return a parameter by either of its names; refuse any other, with a suggestion."""
        named, own = _by_name(), self._names
        if name in own:
            return own[name]
        near = get_close_matches(name, own, 1, 0.5)
        other = f" (it does not depend on {named[name]})" if name in named else ""
        hint = f": did you mean {near[0]!r}?" if near and not other else other
        hint = hint or f"; it has {', '.join(sorted(own, key=str.lower))}"
        raise TypeError(f"{self.name} has no parameter {name!r}{hint}")

    def known(self, values: Mapping[str, float]) -> dict[sp.Symbol, float]:
        """Return the values by symbol; refuse unknown and missing names."""
        known = {self.symbol(name): number(name, value) for name, value in values.items()}
        if len(known) < len(values):
            raise TypeError(f"{self.name}: a parameter is given twice: {', '.join(values)}")
        self._require(known)
        return known

    def _require(self, known: Mapping[sp.Symbol, Any]) -> None:
        if missing := [symbol for symbol in self.parameters if symbol not in known]:
            shown = "; ".join(f"{s} ({symbols.MEANINGS.get(s, 'a number')})" for s in missing)
            raise TypeError(f"{self.name} also needs {shown}")


def _put(expr: sp.Expr, values: Mapping[sp.Symbol, Scalar]) -> sp.Expr:
    return sp.sympify(expr).subs(list(values.items()), simultaneous=True)


@cache
def _by_name() -> dict[str, sp.Symbol]:
    """Return the symbols of `theory.symbols` by attribute name."""
    return {key: value for key, value in vars(symbols).items() if isinstance(value, sp.Symbol)}


def _put_conditions(
    conditions: Iterable[Condition], values: Mapping[sp.Symbol, Scalar]
) -> tuple[Condition, ...]:
    return tuple(replace(each, expr=_put(each.expr, values)) for each in conditions)
