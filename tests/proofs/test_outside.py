"""Judges from outside: worst cases found by semidefinite programs, and signs decided by z3.

A performance-estimation program (PEPit) maximises over all functions of a class and all points; it
knows nothing of the certificates. It must never exceed a bound; its ratio to the bound is reported,
and is 1 where the bound cannot be improved. z3 decides the signs of multipliers over the reals by
its own means, and must find the counterexample to each that is spoilt; it also looks for growing
modes where stability is proved.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

import pytest
import sympy as sp
import z3
from evaluation import Values, evaluate

from theory import catalogue
from theory.certificate import Claim
from theory.roots import LinearStability
from theory.symbols import L, alpha

PROOFS = catalogue.proofs()
CLAIMS = {proof.claim.name: proof.claim for proof in PROOFS}
Report = Callable[[str, Any], None]


@cache
def pepit() -> Any:
    """Import PEPit where it is used: it takes seconds, also where its tests are left out."""
    with warnings.catch_warnings():
        # Its docstrings hold LaTeX: their backslashes warn when they are first compiled.
        warnings.filterwarnings("ignore", message=".*invalid escape sequence")
        import PEPit.functions
    return PEPit


# A program at the end of a claim's range has no interior, on which the solver remarks.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Solution may be inaccurate:UserWarning"),
]


def bound(name: str, values: Values) -> float:
    """Return a claim's right side without noise, its vectors zero, where its conditions hold."""
    claim = CLAIMS[name]
    parameters = [h.expr for h in claim.hypotheses if h.source is None]
    known = {"σ": 0.0, "p": 1.0, "L": 1.0} | values
    named = set(known)
    for expr in [c.expr for c in claim.conditions] + parameters:
        if {symbol.name for symbol in expr.free_symbols} <= named:
            assert evaluate(expr, known) >= -1e-9
    symbols = set().union(*(sp.sympify(term).free_symbols for term in claim.rhs))
    zeros = {symbol.name: 0.0 for symbol in symbols if symbol.name.startswith(("⟨", "f("))}
    return sum(evaluate(term, zeros | known) for term in claim.rhs)


def worst(problem: Any, metric: Any) -> float:
    problem.set_performance_metric(metric)
    return float(problem.solve(verbose=0, wrapper="cvxpy", solver="CLARABEL"))


def average(squares: list[Any]) -> Any:
    return sum(squares[1:], squares[0]) * (1 / len(squares))


def compare(found: float, limit: float, report: Report, tight: float | None = None) -> None:
    report("ratio", found / limit)
    print(f"worst case / bound = {found / limit:.4f}")
    assert found <= limit * (1 + 1e-5)
    assert found > 0.1 * limit
    assert tight is None or found >= limit * tight


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_smooth_step(alpha: float, record_property: Report) -> None:
    problem = pepit().PEP()
    f = problem.declare_function(pepit().functions.SmoothFunction, L=1)
    x, v = problem.set_initial_point(), problem.set_initial_point()
    following = x - alpha * f.gradient(v)
    problem.set_initial_condition((x - v) ** 2 <= alpha**2)
    found = worst(problem, f(following) - f(x) + alpha / 2 * f.gradient(x) ** 2)
    compare(found, bound("N.step", {"α": alpha, "B": 1.0}), record_property, tight=0.9999)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("c", [0.01, 0.3, 0.9])
def test_strongly_convex_step(alpha: float, c: float, record_property: Report) -> None:
    problem = pepit().PEP()
    f = problem.declare_function(pepit().functions.SmoothStronglyConvexFunction, L=1, mu=c)
    star = f.stationary_point()
    x, v = problem.set_initial_point(), problem.set_initial_point()
    following = x - alpha * f.gradient(v)
    problem.set_initial_condition((x - v) ** 2 <= alpha**2)
    found = worst(problem, (following - star) ** 2 - (1 - alpha * c) * (x - star) ** 2)
    limit = bound("S.step", {"α": alpha, "B": 1.0, "c": c})
    compare(found, limit, record_property, tight=0.999)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_convex_step(alpha: float, record_property: Report) -> None:
    problem = pepit().PEP()
    f = problem.declare_function(pepit().functions.SmoothConvexFunction, L=1)
    star = f.stationary_point()
    x, v = problem.set_initial_point(), problem.set_initial_point()
    following = x - alpha * f.gradient(v)
    problem.set_initial_condition((x - v) ** 2 <= alpha**2)
    gain = 2 * alpha * (f(v) - f(star)) + (following - star) ** 2 - (x - star) ** 2
    compare(worst(problem, gain), bound("C.step", {"α": alpha, "B": 1.0}), record_property, 0.9999)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("alpha", [0.05, 0.5, 0.9])
def test_step_without_feedback(alpha: float, gamma: float, record_property: Report) -> None:
    """A γ-contraction of a + ξ or a − ξ, as likely: the best u leaves nothing to improve."""
    problem = pepit().PEP()
    f = problem.declare_function(pepit().functions.SmoothFunction, L=1)
    x = problem.set_initial_point()
    a, xi, left, left_too = f.gradient(x), pepit().Point(), pepit().Point(), pepit().Point()
    problem.add_constraint(xi**2 <= 1)
    problem.add_constraint(left**2 + left_too**2 <= gamma * ((a + xi) ** 2 + (a - xi) ** 2))
    ends = x - alpha * (a + xi - left), x - alpha * (a - xi - left_too)
    mean = (f(ends[0]) + f(ends[1])) / 2
    found = worst(problem, mean - f(x) + alpha * (1 - gamma) / 2 * a**2)
    excess = max(0.0, alpha * (1 + 1 / math.sqrt(gamma)) - 1)
    excess = min(excess, (1 - alpha) * (1 - gamma) / gamma)
    limit = bound("nofeedback.any.step", {"α": alpha, "γ": gamma, "σ": 1.0, "u": excess})
    compare(found, limit, record_property, tight=0.999)


@pytest.mark.parametrize("steps", [4, 6])
@pytest.mark.parametrize("tau", range(5))
def test_delayed_gradient_descent(tau: int, steps: int, record_property: Report) -> None:
    """Views lack the last τ updates; the longest step that W.missing allows."""
    alpha = (math.sqrt(1 + 4 * tau**2) - 1) / (2 * tau**2) if tau else 1.0
    problem = pepit().PEP()
    f = problem.declare_function(pepit().functions.SmoothFunction, L=1)
    x = start = problem.set_initial_point()
    updates, squares = [], []
    for _ in range(steps):
        squares.append(f.gradient(x) ** 2)
        view = x
        for update in updates[len(updates) - tau :] if tau else []:
            view = view + update
        updates.append(alpha * f.gradient(view))
        x = x - updates[-1]
    problem.set_initial_condition(f(start) - f(x) <= 1)
    values = {"α": alpha, "Δ": 1.0, "T": steps, "τ": tau, "τ_max": tau, "y": 1e-12}
    limit = bound("W.missing", values)
    compare(worst(problem, average(squares)), limit, record_property)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9])
def test_error_feedback(gamma: float, steps: int, record_property: Report) -> None:
    """Any γ-contraction with error feedback; the longest step that W.feedback allows."""
    root = math.sqrt(gamma)
    beta = root / (1 - root)
    alpha = (math.sqrt(1 + 4 * beta**2) - 1) / (2 * beta**2)
    problem = pepit().PEP()
    f = problem.declare_function(pepit().functions.SmoothFunction, L=1)
    x = view = start = problem.set_initial_point()
    residual, squares = 0 * start, []
    for _ in range(steps):
        squares.append(f.gradient(x) ** 2)
        update = alpha * f.gradient(view)
        y, residual = residual + update, pepit().Point()
        problem.add_constraint(residual**2 <= gamma * y**2)
        x = x - update
        view = x + residual
    problem.set_initial_condition(f(start) - f(x) <= 1)
    limit = bound("W.feedback", {"α": alpha, "Δ": 1.0, "T": steps, "γ": gamma, "√γ": root})
    compare(worst(problem, average(squares)), limit, record_property)


# The signs of multipliers.

TIMEOUT = 1000  # milliseconds a question
Question = tuple[sp.Expr, tuple[tuple[sp.Expr, bool], ...], tuple[sp.Expr, ...]]


def to_z3(expr: sp.Expr) -> Any:
    """Return a polynomial as a term of z3."""
    if expr.is_Rational:
        return z3.Q(int(expr.p), int(expr.q))
    if expr.is_Symbol:
        return z3.Real(expr.name)
    if expr.is_Pow and expr.exp.is_Integer and expr.exp > 0:
        return z3.Product([to_z3(expr.base)] * int(expr.exp))
    parts = [to_z3(part) for part in expr.args]
    return {sp.Add: z3.Sum, sp.Mul: z3.Product}[expr.func](parts)


@cache
def sign_polynomial(expr: sp.Expr) -> sp.Expr:
    """Return a polynomial with the sign of a rational function."""
    numerator, denominator = sp.fraction(sp.together(expr))
    return numerator * denominator


@cache
def questions() -> dict[Question, str]:
    """Return every multiplier, with the conditions and relations under which it is ≥ 0."""
    asked = {}
    for certificate in (certificate for proof in PROOFS for certificate in proof.certificates):
        claim: Claim = certificate.claim
        where = tuple((condition.expr, condition.strict) for condition in claim.conditions)
        relations = tuple(polynomial for _, polynomial in claim.relations)
        weights = [
            *certificate.multipliers.values(),
            *(weight for weight, _ in certificate.squares),
        ]
        for weight in map(sp.sympify, weights):
            related = _related(weight, where, relations)
            asked.setdefault((weight, *related), claim.name)
    return asked


def _related(weight: sp.Expr, where: tuple, relations: tuple) -> tuple[tuple, tuple]:
    """Return the conditions and relations that speak of the weight's symbols, however remotely."""
    symbols = set(weight.free_symbols)
    while True:
        near = tuple(pair for pair in where if pair[0].free_symbols & symbols)
        tied = tuple(relation for relation in relations if relation.free_symbols & symbols)
        wider = symbols.union(*(e.free_symbols for e in (*(pair[0] for pair in near), *tied)))
        if wider == symbols:
            return near, tied
        symbols = wider


def ask(expr: sp.Expr, question: Question, *zeros: sp.Expr) -> tuple[str, Any]:
    """Return whether `expr < 0` is possible under a question's conditions, and where.

    Args:
        expr: a rational function.
        question: of which the conditions and the relations are taken.
        *zeros: what is zero besides the relations.
    """
    _, where, relations = question
    solver = z3.SolverFor("QF_NRA")
    solver.set("timeout", TIMEOUT)
    exprs = [expr, *(condition for condition, _ in where), *relations, *zeros]
    for symbol in set().union(*(e.free_symbols for e in exprs)):
        if symbol.is_nonnegative:
            real = z3.Real(symbol.name)
            solver.add(real > 0 if symbol.is_positive else real >= 0)
    for condition, strict in where:
        value = to_z3(sign_polynomial(condition))
        solver.add(value > 0 if strict else value >= 0)
    for zero in (*relations, *zeros):
        solver.add(to_z3(sign_polynomial(zero)) == 0)
    solver.add(to_z3(sign_polynomial(expr)) < 0)
    answer = str(solver.check())
    return answer, solver.model() if answer == "sat" else None


def value_at(expr: sp.Expr, model: Any) -> sp.Expr | None:
    """Return the exact value of an expression at a counterexample, if that is rational."""
    values = {}
    for symbol in expr.free_symbols:
        value = model.eval(z3.Real(symbol.name), model_completion=True)
        if not z3.is_rational_value(value):
            return None
        fraction = Fraction(value.numerator_as_long(), value.denominator_as_long())
        values[symbol] = sp.Rational(fraction.numerator, fraction.denominator)
    return expr.subs(values)


def test_z3_agrees_on_every_multiplier(record_property: Report) -> None:
    asked = questions()
    count = Counter(ask(question[0], question)[0] for question in asked)
    record_property("signs", dict(count))
    print(f"signs of {len(asked)} multipliers: {dict(count)}")
    assert count["sat"] == 0
    assert count["unknown"] <= len(asked) // 50


def test_z3_refutes_spoilt_multipliers(record_property: Report) -> None:
    """A multiplier negated, and one less than 1% of its terms where that can be negative."""
    count, spoilt = Counter[str](), 0
    for question in questions():
        weight = question[0]
        if weight == 0:
            continue
        spoilt += 1
        answer, model = ask(-weight, question)
        count[f"negated: {answer}"] += 1
        if answer == "sat" and (value := value_at(-weight, model)) is not None:
            assert value < 0
        numerator, denominator = sp.fraction(sp.together(weight))
        terms = sp.Add.make_args(sp.expand(numerator))
        if len(terms) > 1:
            sizes = sp.Add(*(-t if t.could_extract_minus_sign() else t for t in terms))
            smaller = (numerator - sizes / 100) / denominator
            answer, model = ask(smaller, question)
            count[f"1% smaller: {answer}"] += 1
            if answer == "sat" and (value := value_at(smaller, model)) is not None:
                assert value < 0
    record_property("refuted", dict(count))
    print(f"{spoilt} spoilt multipliers: {dict(count)}")
    assert count["negated: sat"] >= spoilt * 0.98
    assert count["negated: unsat"] == 0
    assert count["1% smaller: sat"] >= 10


STABLE = [proof for proof in PROOFS if isinstance(proof, LinearStability) and proof.stable]


@pytest.mark.parametrize("proof", STABLE, ids=lambda proof: proof.claim.name)
def test_z3_finds_no_growing_mode_where_stability_is_proved(proof: LinearStability) -> None:
    """No z with |z| > 1 is a characteristic root; without any one condition some is."""
    re, im = sp.symbols("re im", real=True)
    z = re + sp.I * im
    matrix = sp.Matrix(proof.matrix)
    root = sp.expand((z * sp.eye(matrix.rows) - matrix).det())
    outside = 1 - re**2 - im**2
    where = tuple((condition.expr, condition.strict) for condition in proof.claim.conditions)
    assert ask(outside, (root, where, ()), *root.as_real_imag())[0] == "unsat"
    for condition in where:
        others = tuple(pair for pair in where if pair != condition)
        if any(symbol in condition[0].free_symbols for symbol in (alpha, L)):
            assert ask(outside, (root, others, ()), *root.as_real_imag())[0] == "sat"
