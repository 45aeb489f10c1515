"""Vectors as formal sums, and one inner product for randomness and workers together.

A vector here is random and has one copy per worker. The inner product is

    ⟨a, b⟩ = E (1/p) Σ_i a_i · b_i ,    ‖a‖² = ⟨a, a⟩ ,

so ‖·‖² is the mean square over noise and workers at once. A vector is a linear combination of
named base vectors, and ⟨·,·⟩ expands to *Gram entries*: one real symbol for each pair of base
vectors, except for the pairs that vanish or are known,

* a vector common to all workers ⟂ a deviation (whose mean over the workers is zero);
* noise ⟂ every vector that does not depend on it (it is unbiased), and ⟂ other noise;
* ‖ξ‖² = V for noise of variance V, and ‖mean ξ‖² = V/p: workers' noises are independent.

An entry knows its vectors. If two of one name, which depend on other noises, have other variances
or are means over other numbers of workers, meet in a claim, the checker refuses it.

Example:
    >>> import sympy as sp
    >>> from theory.symbols import alpha, p, variance
    >>> z, g, xi = vector("z"), per_worker("g"), noise("ξ", variance)
    >>> step = mean(g + xi, p) * alpha
    >>> norm2(z - step)
    V*α**2/p + α**2*⟨g,g⟩ - 2*α*⟨g,z⟩ + ⟨z,z⟩
    >>> norm2(g), norm2(mean(g, p))
    (⟨g,g⟩ + ⟨g~,g~⟩, ⟨g,g⟩)
"""

from dataclasses import dataclass, replace
from typing import Any

import sympy as sp

Scalar = sp.Expr | int


@dataclass(frozen=True)
class Base:
    """A base vector.

    Attributes:
        name: unique; entries are named by it.
        deviation: its mean over the workers is zero.
        variance: for noise, ‖ξ‖²; None for a vector that is not noise.
        workers: for the mean over the workers of a noise, their number.
        after: the names of the noises on which it depends, in alphabetical order; noise, on itself.
    """

    name: str
    deviation: bool = False
    variance: sp.Expr | None = None
    workers: sp.Expr | None = None
    after: tuple[str, ...] = ()

    @property
    def tied(self) -> set[Any]:
        """What its entries rest on: names, its own and its noises', and symbols of a variance."""
        scalars = sp.Tuple(self.variance or 1, self.workers or 1)
        return {self.name, *self.after, *scalars.free_symbols}


class Entry(sp.Symbol):
    """The Gram entry ⟨a, b⟩ of two base vectors; for others of these names it is another symbol.

    ⟨a, a⟩ is non-negative, and ⟨a, b⟩ of any sign.

    Attributes:
        bases: a and b, by name.
    """

    bases: tuple[Base, ...]
    told: str  # all of them, in full
    class_key: Any = sp.Symbol.class_key  # sums print it where they print any symbol

    def __new__(cls, *bases: Base) -> "Entry":
        """Return the entry, named after its vectors."""
        bases = tuple(sorted(bases, key=lambda base: base.name))
        name, square = f"⟨{','.join(base.name for base in bases)}⟩", bases[0] == bases[1]
        entry = sp.Symbol.__xnew__(cls, name, real=True, nonnegative=square or None)
        entry.bases, entry.told = bases, sp.srepr([vars(base) for base in bases])
        return entry

    def __getnewargs_ex__(self) -> tuple[tuple[Base, ...], dict[str, bool]]:
        """Return the arguments that make a copy."""
        return self.bases, {}

    def _hashable_content(self) -> tuple[Any, ...]:
        return (*super()._hashable_content(), self.told)


@dataclass(frozen=True)
class Vector:
    """A linear combination of base vectors, each with its coefficient, which is not zero."""

    terms: tuple[tuple[Base, sp.Expr], ...]

    def __post_init__(self) -> None:
        """Collect the terms of each base vector."""
        terms = dict[Base, Any]()
        for base, value in self.terms:
            terms[base] = terms.get(base, 0) + value
        object.__setattr__(self, "terms", tuple(term for term in terms.items() if term[1] != 0))

    def __add__(self, other: "Vector") -> "Vector":
        """Return the sum."""
        return Vector(self.terms + other.terms)

    def __mul__(self, scalar: Scalar) -> "Vector":
        """Return a multiple."""
        return Vector(tuple((base, sp.sympify(scalar) * value) for base, value in self.terms))

    __rmul__ = __mul__

    def __neg__(self) -> "Vector":
        """Return the negative."""
        return self * -1

    def __sub__(self, other: "Vector") -> "Vector":
        """Return the difference."""
        return self + -other


ZERO = Vector(())
"""The zero vector."""


def _single(base: Base) -> Vector:
    if not base.name or set(base.name) & set("~⟨⟩,"):
        raise ValueError(f"a vector's name must be non-empty and free of ~ ⟨ ⟩ and comma: {base}")
    return Vector(((base, sp.S.One),))


def vector(name: str, after: Vector = ZERO) -> Vector:
    """Return a vector that is the same on every worker.

    Args:
        name: its unique name.
        after: a combination of the noises on which it depends, or of vectors that depend on them;
            of all other noises it is independent.

    Example:
        >>> xi = noise("ξ", sp.Symbol("V"))
        >>> inner(vector("a"), xi), inner(vector("b", after=xi), xi)
        (0, ⟨b,ξ⟩)
    """
    names = {noise for base, _ in after.terms for noise in base.after}
    return _single(Base(name, after=tuple(sorted(names))))


def per_worker(name: str, after: Vector = ZERO) -> Vector:
    """Return a vector that differs between workers: its mean plus a deviation, `name` and `name~`.

    Args:
        name: as in `vector`.
        after: as in `vector`; on worker i, it may depend on the noise of worker i in its own way.

    Example:
        >>> xi = noise("ξ", sp.Symbol("V"))
        >>> inner(per_worker("r", after=xi), xi), inner(per_worker("r", after=xi), mean(xi, 2))
        (⟨r,ξ⟩ + ⟨r~,ξ⟩, ⟨r,ξ⟩)
    """
    ((base, _),) = vector(name, after).terms
    return _single(base) + Vector(((replace(base, name=name + "~", deviation=True), sp.S.One),))


def noise(name: str, variance: sp.Expr) -> Vector:
    """Return unbiased noise of variance ‖ξ‖² = `variance`, independent across workers.

    Raises:
        ValueError: for a variance that is negative.

    Example:
        >>> norm2(noise("ξ", sp.Integer(3)) * 2)
        12
    """
    if sp.sympify(variance).is_negative:
        raise ValueError(f"noise {name} has the negative variance {variance}")
    return _single(Base(name, variance=sp.sympify(variance), after=(name,)))


def mean(v: Vector, p: Scalar) -> Vector:
    """Return the mean over p workers: deviations vanish, noise keeps 1/p of its variance.

    Raises:
        ValueError: for a p that is not positive, or a number below 1.

    Example:
        >>> norm2(mean(noise("ξ", sp.Integer(12)) + per_worker("g"), 4))
        ⟨g,g⟩ + 3
    """
    workers = sp.sympify(p)
    if not workers.is_positive or (workers.is_number and workers < 1):
        raise ValueError(f"p = {p} is no number of workers")

    def averaged(base: Base) -> Base:
        return base if base.variance is None else replace(base, workers=base.workers or workers)

    return Vector(tuple((averaged(base), x) for base, x in v.terms if not base.deviation))


def sides(v: Vector) -> set[bool]:
    """Return which parts a vector has: what all workers share (False), deviations from it (True).

    Example:
        >>> (
        ...     sides(per_worker("g")) == {True, False},
        ...     sides(per_worker("g") - mean(per_worker("g"), 4)),
        ... )
        (True, {True})
    """
    common = mean(v, next((base.workers for base, _ in v.terms if base.workers), 1))
    return {side for side, part in ((False, common), (True, v - common)) if part.terms}


def _entry(a: Base, b: Base) -> sp.Expr:
    """Return ⟨a, b⟩ of two base vectors."""
    if a.name == b.name and a.variance is not None:
        if a.variance != b.variance or (a.workers and b.workers and a.workers != b.workers):
            raise ValueError(f"two noises, or means of other numbers of workers: {a}, {b}")
        # (1/p²) Σ_i Σ_j E ξ_i·ξ_j has only its p diagonal terms.
        return a.variance / (a.workers or b.workers or sp.S.One)
    if a.name == b.name and a != b:
        raise ValueError(f"two vectors are named {a.name}")
    # What does not depend on a noise is independent of it; deviations from a mean sum to zero.
    free = any(x.variance is not None and x.name not in y.after for x, y in ((a, b), (b, a)))
    own = any(base.variance is not None and base.workers is None for base in (a, b))
    return sp.S.Zero if free or (a.deviation != b.deviation and not own) else Entry(a, b)


def inner(v: Vector, w: Vector) -> sp.Expr:
    """Return ⟨v, w⟩ in Gram entries.

    Raises:
        ValueError: if two vectors have one name.

    Example:
        >>> inner(vector("a"), vector("a") * 2 - vector("b"))
        2*⟨a,a⟩ - ⟨a,b⟩
    """
    products = (x * y * _entry(a, b) for a, x in v.terms for b, y in w.terms)
    return sp.expand(sp.Add(*products), deep=False)


def norm2(v: Vector) -> sp.Expr:
    """Return ‖v‖² = ⟨v, v⟩ in Gram entries."""
    return inner(v, v)
