"""Stability limits: what their checker refuses, and what numpy's roots and runs say."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import sympy as sp
from examples_stability import cyclic, delayed, grows

from theory import roots, symbols
from theory.certificate import NotProvedError
from theory.claims import stability
from theory.roots import (
    DelayStability,
    LinearStability,
    all_inside,
    count_roots,
    enclosure,
    ranges,
)

PROOFS = {proof.claim.name: proof for proof in stability.proofs()}
DELAYED = [proof for proof in PROOFS.values() if isinstance(proof, DelayStability)]
PARAMETERS = (symbols.d, symbols.tau, symbols.k)
KINDS = ("shared", "separate")
LINEAR = [proof for proof in PROOFS.values() if isinstance(proof, LinearStability)]


def limit(blocks: int, tau: int) -> float:
    n = blocks + 2 * tau
    bow = math.sin(math.pi * blocks / (2 * n))
    return 2 * blocks * math.sin(math.pi / (2 * n)) ** 2 / bow


def with_limit(proof: DelayStability, change: Callable[[sp.Expr], sp.Expr]) -> DelayStability:
    (condition,) = proof.claim.conditions
    size = proof.claim.lhs
    changed = change(condition.expr + size)
    below = dataclasses.replace(condition, expr=changed - size)
    claim = dataclasses.replace(proof.claim, rhs=(changed,), conditions=(below,))
    return dataclasses.replace(proof, claim=claim)


def delay_mutants(proof: DelayStability) -> Iterator[tuple[str, DelayStability]]:
    percent = sp.Rational(1, 100)
    yield "1% longer", with_limit(proof, lambda x: x * (1 + percent))
    yield "1% shorter", with_limit(proof, lambda x: x * (1 - percent))
    yield "twice as long", with_limit(proof, lambda x: 2 * x)
    claim = dataclasses.replace(proof.claim, rhs=(proof.claim.rhs[0] * (1 - percent),))
    yield "claim and condition differ", dataclasses.replace(proof, claim=claim)
    yield "no case", dataclasses.replace(proof, cases={})
    yield (
        "a delay one step longer",
        with_limit(proof, lambda x: x.subs(symbols.tau, symbols.tau + 1)),
    )
    for case, points in proof.cases.items():
        wrong = {
            "last range missing": points[:-1],
            "first range missing": points[1:],
            "a range twice": (*points, points[-1] + 1),
            "below moved beyond": (points[1], *points[1:]),
            "below moved to 0": (sp.Integer(0), *points[1:]),
            "above moved below": (*points[:-1], points[0]),
        }
        for kind, moved in wrong.items():
            yield kind, dataclasses.replace(proof, cases={case: moved})
    other = symbols.d / symbols.k if proof.blocks == 1 else sp.S.One
    yield "other blocks", dataclasses.replace(proof, blocks=other)


@pytest.mark.slow
@pytest.mark.parametrize("proof", DELAYED, ids=lambda proof: proof.claim.name)
def test_delay_mutants_are_refused(
    proof: DelayStability, record_property: Callable[[str, Any], None]
) -> None:
    survivors, count = [], 0
    for kind, mutant in delay_mutants(proof):
        count += 1
        try:
            mutant.check()
        except NotProvedError:
            continue
        survivors.append((kind, mutant.cases))
    record_property("mutants", count)
    assert count >= 43
    assert not survivors


@pytest.mark.parametrize("proof", DELAYED, ids=lambda proof: proof.claim.name)
def test_counting_roots_tells_a_delay_from_the_next(proof: DelayStability) -> None:
    for (blocks, tau), points in proof.cases.items():
        at = list(zip(PARAMETERS, (blocks, tau, 1), strict=True))
        first = sp.sympify(proof.claim.rhs[0]).subs(at)
        count_roots(blocks, tau, first, points)
        for wrong in (first * sp.Rational(99, 100), first * sp.Rational(101, 100)):
            with pytest.raises(NotProvedError):
                count_roots(blocks, tau, wrong, points)
        with pytest.raises(NotProvedError):
            count_roots(blocks, tau + 1, first, ranges(blocks, tau + 1))


def test_every_step_of_the_argument_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recursion of another kind has crossings elsewhere, or roots that come back."""
    proof, right = DELAYED[0], roots.characteristic
    z = right(1, 0).gen
    for wrong in (
        lambda D, tau: right(D, tau + 1),
        lambda D, tau: right(D, tau) + sp.Poly(z, z),
        lambda D, tau: right(D, tau).compose(sp.Poly(-z, z)),
    ):
        monkeypatch.setattr(roots, "characteristic", wrong)
        with pytest.raises(NotProvedError):
            proof.check()
    monkeypatch.setattr(roots, "characteristic", right)
    monkeypatch.setattr(roots, "_PI", (Fraction(7, 2), Fraction(18, 5)))  # π² > 12
    with pytest.raises(NotProvedError):
        roots.check_crossings()


@pytest.mark.parametrize("blocks", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("tau", [0, 1, 4, 15])
def test_crossings_are_where_the_argument_has_them_and_lead_outwards(blocks: int, tau: int) -> None:
    n = blocks + 2 * tau

    def sizes(y: float) -> np.ndarray:
        polynomial = np.zeros(blocks + tau + 1)
        polynomial[:2] = blocks, -blocks
        polynomial[-blocks:] += y
        return abs(np.roots(polynomial))

    angles = np.arange(1, n + 1, 2) * np.pi / (2 * n)  # of w
    edges = 2 * blocks * np.sin(angles) ** 2 / np.sin(blocks * angles)
    edges *= (-1.0) ** np.arange(len(angles))  # wⁿ is i, −i, i, …; y > 0 asks for one of them
    edges = np.sort(edges[(edges > 0) & (edges < 1e9)])
    assert edges[0] == pytest.approx(limit(blocks, tau))
    for edge in edges:
        assert abs(sizes(edge) - 1).min() < 1e-6
    inside = [int((sizes(y) < 1).sum()) for y in (edges[:-1] + edges[1:]) / 2]
    assert inside == sorted(inside, reverse=True)


@pytest.mark.parametrize("proof", LINEAR, ids=lambda proof: proof.claim.name)
def test_linear_mutants_are_refused(proof: LinearStability) -> None:
    # A step 1% longer, or shorter where it is shown to be too long.
    change = sp.Rational(101, 100) ** (1 if proof.stable else -1)
    scaled = [(symbols.alpha, change * symbols.alpha)]
    matrices = [
        tuple(tuple(entry.subs(scaled) for entry in row) for row in proof.matrix),
        (),
        ((sp.S.One, sp.S.Zero),),
    ]
    mutants = [dataclasses.replace(proof, stable=not proof.stable)]
    mutants += [dataclasses.replace(proof, matrix=matrix) for matrix in matrices]
    for mutant in mutants:
        with pytest.raises(NotProvedError):
            mutant.check()


def test_schur_cohn_agrees_with_numpy() -> None:
    rng, verdicts = np.random.default_rng(0), set()
    for _ in range(300):
        coefficients = rng.integers(-5, 6, size=rng.integers(2, 6))
        coefficients[0] = rng.integers(1, 9)
        radius = abs(np.roots(coefficients)).max(initial=0)
        if abs(radius - 1) > 1e-3:
            exact: list[sp.Expr] = [sp.Integer(int(c)) for c in coefficients]
            assert all_inside(exact) == (radius < 1)
            verdicts.add(radius < 1)
    assert verdicts == {True, False}


@pytest.mark.parametrize("expr", ["sin(pi/7)", "cos(pi/5)", "sqrt(2 + sqrt(2))/3 - 1/7", "1/pi"])
def test_enclosures_are_narrow_and_right(expr: str) -> None:
    number = sp.sympify(expr)
    low, high = enclosure(number)
    assert high - low < 1e-15
    shown = sp.Rational(str(sp.N(number, 30)))
    assert sp.Rational(low.numerator, low.denominator) < shown
    assert shown < sp.Rational(high.numerator, high.denominator)


@pytest.mark.parametrize("expr", ["exp(1)", "sin(3)", "2**(1/3)", "1/(1 - pi)", "x"])
def test_no_enclosure_is_guessed(expr: str) -> None:
    with pytest.raises(NotProvedError):
        enclosure(sp.sympify(expr))


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5, 8, 20, 50])
@pytest.mark.parametrize("tau", [0, 1, 2, 5, 8, 30])
def test_limits_hold_far_beyond_the_counted_cases(blocks: int, tau: int) -> None:
    def radius(step: float) -> float:
        polynomial = np.zeros(blocks + tau + 1)
        polynomial[:2] = 1, -1
        polynomial[-blocks:] += step / blocks
        return abs(np.roots(polynomial)).max()

    edge = limit(blocks, tau)
    assert radius(edge) == pytest.approx(1, abs=1e-6)
    assert radius(0.99 * edge) < 1 < radius(1.01 * edge)
    assert all(radius(share * edge) > 1 for share in (1.5, 2, 5, 20))
    assert all(radius(share * edge) < 1 for share in (0.01, 0.1, 0.5, 0.9))


@pytest.mark.parametrize("tau", [0, 1, 3, 9])
def test_runs_know_the_limits(tau: int) -> None:
    for share, unstable in ((0.95, False), (1.05, True)):
        assert grows(delayed(share * limit(1, tau), tau)) == unstable
        even = np.ones((4, 4)) / 4  # curvature along (1, 1, 1, 1) only
        assert grows(cyclic(even, share * limit(4, tau), 4, tau, 1000)) == unstable


def test_a_delay_can_stabilise_feedback() -> None:
    """An entry that is sent every 8th step: a delay of 2 doubles the longest stable step."""
    eye, step = np.eye(8), 0.4
    assert grows(cyclic(eye, step, 8, 0))
    assert not grows(cyclic(eye, step, 8, 2))
    assert grows(cyclic(eye, step, 8, 5))


def test_bounds_are_the_limits() -> None:
    bounds = {bound.name: bound for bound in stability.bounds()}
    assert bounds["delay.limit"].at(tau=4) == pytest.approx(limit(1, 4))
    assert bounds["cyclic.shared"].at(d=40, k=10, tau=2) == pytest.approx(limit(4, 2))
    assert bounds["cyclic.shared"].at(d=1000, k=10, tau=30) == pytest.approx(limit(100, 30))
    assert bounds["cyclic.shared"].at(d=7, k=7, tau=3) == pytest.approx(limit(1, 3))
    with pytest.raises(ValueError, match="a whole number"):
        bounds["cyclic.shared"].at(d=10, k=20, tau=2)
    for name, given in (("delay.limit", {}), *((f"cyclic.{x}", {"d": 40, "k": 10}) for x in KINDS)):
        with pytest.raises(ValueError, match=r"τ is a whole number, which τ = 0\.5 breaks"):
            bounds[name].at(tau=0.5, **given)
        with pytest.raises(ValueError, match="τ is a whole number"):
            bounds[name].put(tau=1.5)
        if given:
            with pytest.raises(ValueError, match="d/k is a whole number, which d = 25, k = 10"):
                bounds[name].at(tau=1, d=25, k=10)
    for tau, expected in ((0, 2 / 10), (2, 2 / 6), (5, 1 / 5)):
        single = bounds["cyclic.separate"].at(d=100, k=10, tau=tau)
        assert single == pytest.approx(expected)
    assert bounds["feedback.limit"].at(gamma=0.81) == pytest.approx(0.2 / 1.9)
    assert bounds["nofeedback.limit"].at(gamma=0.81) == pytest.approx(2 / 1.9)
