"""Bounds as data: values, refusals, curves, minima, formulas, for every bound of the catalogue."""

import re
from typing import Any

import numpy as np
import pytest
import sympy as sp

import theory
from theory import symbols
from theory.bound import Bound
from theory.certificate import Certificate, Claim, Hypothesis, NotProvedError
from theory.induction import SO_FAR, Induction

PARTS = 8  # of the list of bounds, which is long in the making: not while tests are collected
VALUES = {"alpha": 0.1, "L": 1, "T": 1000, "Delta": 1, "sigma": 1, "B": 2, "p": 4}
INTEGERS = {"p", "T", "n", "τ", "d", "k", "m", "f", "H"}


def draw(rng: np.random.Generator, bound: Bound) -> dict[str, float]:
    """Return values of the right signs, which may break the bound's conditions."""
    values = {}
    for symbol in bound.parameters:
        whole = symbol.name in INTEGERS
        size = rng.integers(1, 50) if whole else np.exp(rng.uniform(-4, 2))
        values[symbol.name] = float(size)
    return values


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_bound_has_values_where_it_holds_and_only_there(part: int) -> None:
    for bound in list(theory.bounds().values())[part::PARTS]:
        has_values(bound)


def has_values(bound: Bound) -> None:
    rng, inside, broken = np.random.default_rng(0), [], set()
    for _ in range(1500):
        values = draw(rng, bound)
        try:
            inside.append((bound.at(**values), values))
        except ValueError as error:
            (text,) = re.findall(r"holds only where (.*), which", str(error))
            broken.add(text)
        if len(inside) >= 20 and len(broken) == len(bound.conditions):
            break
    assert len(inside) >= 5
    assert all(np.isfinite(value) and value >= 0 for value, _ in inside)
    assert broken <= {condition.text for condition in bound.conditions}
    columns = {name: [v[name] for _, v in inside] for name in inside[0][1]}
    curve = bound.curve(**columns)
    np.testing.assert_allclose(curve, [value for value, _ in inside], rtol=1e-12)
    exact = {symbol: sp.Rational(inside[0][1][symbol.name]) for symbol in bound.parameters}
    assert float(bound.expr.subs(exact)) == pytest.approx(inside[0][0])
    for name, value in inside[0][1].items():
        put = bound.put(**{name: value})
        rest = {key: other for key, other in inside[0][1].items() if key != name}
        needed = {symbol.name for symbol in put.parameters}
        kept = {key: other for key, other in rest.items() if key in needed}
        assert put.at(**kept) == pytest.approx(inside[0][0], rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_bound_speaks(part: int) -> None:
    for bound in list(theory.bounds().values())[part::PARTS]:
        speaks(bound)


def speaks(bound: Bound) -> None:
    assert set(bound.parameters) <= set(symbols.MEANINGS)
    assert bound.name in bound.describe()
    assert bound.reference
    assert bound.explain().count("\n") > 1
    assert bound.proof.claim.name in bound.explain()
    latex = bound.latex()
    assert not set(latex) & set("αβγστρΔ∇‖√₁²")
    assert latex.count("{") == latex.count("}")
    assert bound._repr_latex_().startswith("$")


def test_values_and_their_names() -> None:
    rate = theory.bounds()["N"]
    assert rate.at(**VALUES) == pytest.approx(0.02 + 0.04 + 0.025)
    greek = {"α": 0.1, "Δ": 1, "σ": 1}
    latin = {key: value for key, value in VALUES.items() if key in "LTBp"}
    assert rate.at(**greek, **latin) == rate.at(**VALUES)
    # The largest step in floating point: 1/49·49 rounds below 1, others above.
    for L in (3, 7, 49, 0.1, 1e-3):
        rate.at(**{**VALUES, "L": L, "alpha": 1 / L})


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"alpha": 2}, ValueError, "αL ≤ 1, which L = 1, α = 2 break"),
        ({"alpha": 0}, ValueError, r"α \(step size\) must be positive and finite, not 0"),
        ({"sigma": -1}, ValueError, "σ .* must be non-negative"),
        ({"L": float("nan")}, ValueError, "L .* must be positive and finite, not nan"),
        ({"T": float("inf")}, ValueError, "T .* finite"),
        ({"sigm": 1}, TypeError, "did you mean 'sigma'"),
        ({"gamma": 0.5}, TypeError, "does not depend on γ"),
        ({"zzz": 1}, TypeError, "it has α?.*B"),
    ],
)
def test_what_a_bound_refuses(change: dict[str, float], error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        theory.bounds()["N"].at(**{**VALUES, **change})
    with pytest.raises(error, match=match):
        theory.bounds()["N"].curve(
            **{**VALUES, **{key: [1, value] for key, value in change.items()}}
        )


def test_missing_parameters_are_named_with_their_meaning() -> None:
    with pytest.raises(TypeError, match=r"N also needs L .smoothness.*; σ .noise"):
        theory.bounds()["N"].at(**{k: v for k, v in VALUES.items() if k not in ("L", "sigma")})
    with pytest.raises(KeyError, match=r"near it: .*feedback"):
        theory.bounds()["feedbak"]


def test_put_keeps_conditions() -> None:
    rate = theory.bounds()["N"]
    drifting = rate.put(B=symbols.M * symbols.tau)
    assert drifting.at(**{k: v for k, v in VALUES.items() if k != "B"}, M=0.5, tau=4) == (
        pytest.approx(rate.at(**VALUES))
    )
    with pytest.raises(ValueError, match="αL ≤ 1"):
        rate.put(alpha=2, L=1)
    with pytest.raises(ValueError, match="positive"):
        rate.put(L=-1)


def test_curves_have_the_shape_of_their_arguments() -> None:
    rate = theory.bounds()["N"]
    T, p = np.geomspace(10, 1e4, 5), np.array([[1], [4]])
    curve = rate.curve(**{**VALUES, "T": T, "p": p})
    assert curve.shape == (2, 5)
    assert curve[1, 2] == pytest.approx(rate.at(**{**VALUES, "T": T[2]}))
    assert rate.curve(**VALUES).shape == ()


@pytest.mark.parametrize("name", ["N", "C", "S", "P"])
def test_minimum_is_the_least_of_a_grid(name: str) -> None:
    bound, rng = theory.bounds()[name], np.random.default_rng(1)
    best = bound.minimise("alpha")
    assert best.symbol == symbols.alpha
    for _ in range(5):
        values = draw(rng, bound)
        del values["α"]
        if "c" in values:  # a start that is worth some steps, and c < L
            values |= {"c": 0.3 * values["L"], "Z_0" if name == "S" else "Δ": 1e3}
        step, value = best.at(**values)
        grid = np.geomspace(1e-4, 0.9999, 20001) / values["L"]
        curve = bound.curve(alpha=grid, **values)
        assert value <= curve.min() * (1 + 1e-9)
        assert value == pytest.approx(curve.min(), rel=1e-2)
        assert bound.at(alpha=step, **values) == value


def test_a_value_that_a_condition_rules_out_need_not_be_finite() -> None:
    """At T = 1 the closed form of the best step divides by zero; the refusal comes first."""
    bound = theory.bounds()["S.optimal.exact"]
    values = {"L": 2.0, "c": 0.3, "sigma": 0.7, "p": 3, "Z_0": 4.0}
    with pytest.raises(ValueError, match="holds only where T > 1"):
        bound.at(T=1, **values)
    with pytest.raises(ValueError, match="holds only where T > 1"):
        bound.curve(T=[60, 1], **values)


def test_minimum_in_closed_form() -> None:
    exact = theory.bounds()["N"].put(B=0).minimise("alpha")
    p, L, T, Delta, sigma = symbols.p, symbols.L, symbols.T, symbols.Delta, symbols.sigma
    assert exact.unique
    assert exact.closed_form is not None
    assert sp.expand(exact.closed_form**2 - 2 * Delta * p / (L * T * sigma**2)) == 0
    cubic = theory.bounds()["N"].minimise("alpha")
    assert cubic.unique
    assert cubic.closed_form is None
    with pytest.raises(ValueError, match="no rational function"):
        theory.bounds()["N"].minimise("alpha").bound.put(B=sp.exp(symbols.alpha)).minimise("alpha")
    with pytest.raises(ValueError, match="no least value"):
        theory.bounds()["N"].minimise("T").at(**{k: v for k, v in VALUES.items() if k != "T"})
    with pytest.raises(TypeError, match="is what is sought"):
        cubic.at(**VALUES)


def test_a_bound_says_what_its_proof_shows() -> None:
    (proof,) = (proof for proof in theory.proofs() if proof.claim.name == "N")
    better = [sp.Rational(99, 100) * term for term in proof.claim.rhs]
    with pytest.raises(NotProvedError, match="does not show"):
        Bound.of(proof, "too good", *better)


def test_values_must_meet_the_relations_of_a_claim() -> None:
    (proof,) = (proof for proof in theory.proofs() if proof.claim.name == "N.optimal.exact")
    L, T, Delta, p, sigma = symbols.L, symbols.T, symbols.Delta, symbols.p, symbols.sigma
    step = sp.sqrt(2 * Delta * p / (L * T * sigma**2))
    assert "where Δ = " in Bound.of(proof, "mean", values={symbols.best: step}).describe()
    with pytest.raises(NotProvedError, match="needs"):
        Bound.of(proof, "mean", values={symbols.best: step / 1000})


def test_a_hypothesis_about_parameters_that_a_bound_hides_is_asked_for() -> None:
    p, T, tau = symbols.p, symbols.T, symbols.tau
    early = Hypothesis("T ≤ p − τ", p - tau - T)
    proof = Certificate(Claim("early", "T + τ ≤ p", T + tau, (p,), (early,)), {early.name: 1})
    hidden = Certificate(
        Claim("hidden", "0 ≤ T(p − τ − T)", 0, (T * (p - tau - T),), (proof.claim.instance(),)),
        {"early": T},
    )
    assert [each.text for each in Bound.of(hidden, "0").conditions] == [early.name]
    alone = Certificate(Claim("alone", "T ≤ 2T", T, (2 * T,), (early,)), {early.name: 0}, ())
    with pytest.raises(NotProvedError, match="needs T ≤ p − τ: ask for it"):
        Bound.of(alone, "T")
    asked = Bound.of(alone, "T", needs=(p, tau))
    assert asked.at(T=2, p=4, tau=2) == 4
    with pytest.raises(ValueError, match="holds only where T ≤ p − τ"):
        asked.at(T=2, p=4, tau=3)
    assert not Bound.of(alone, "T", whatever=(p, tau)).conditions


def test_a_hypothesis_about_an_abbreviation_is_asked_for() -> None:
    """What is no quantity of a run is a parameter, whether a user knows it or not."""
    for symbol in (symbols.gain_excess, symbols.weight, symbols.excess, sp.Symbol("z", real=True)):
        small = Hypothesis("small", 1 - symbol)
        lhs, rhs = symbols.grad_T * symbol, symbols.grad_T
        proof = Certificate(Claim("small", "", lhs, (rhs,), (small,)), {small.name: rhs})
        proof.check()
        with pytest.raises(NotProvedError, match="needs small: ask for it"):
            Bound.of(proof, "A")
        assert [each.text for each in Bound.of(proof, "A", needs=(symbol,)).conditions] == ["small"]


def test_a_condition_times_a_quantity_of_a_run_is_asked_for() -> None:
    alpha, L, A = symbols.alpha, symbols.L, symbols.grad_T
    short = Hypothesis("αL ≤ 1, times A", (1 - alpha * L) * A)
    proof = Certificate(Claim("hidden", "αLA ≤ A", alpha * L * A, (A,), (short,)), {short.name: 1})
    proof.check()
    with pytest.raises(NotProvedError, match="ask for it"):
        Bound.of(proof, "αLA")
    (condition,) = Bound.of(proof, "αLA", needs=(alpha, L)).conditions
    assert sp.expand(condition.expr - (1 - alpha * L)) == 0
    either = Hypothesis("either sign", (1 - alpha * L) * (symbols.f_x - symbols.f_star))
    proof = Certificate(Claim("either", "", -A, (0,), (either,)), {}, ((A, 1),))
    with pytest.raises(NotProvedError, match="no sign"):
        Bound.of(proof, "A", needs=(alpha, L))


def test_what_every_step_assumes_of_its_state_is_no_condition_on_the_last() -> None:
    """h grows by 5 − n at most, n = 1, 2, …: that n ≥ 5 at every step cannot be said of the end."""
    n, held, held_next = symbols.n, symbols.mass, symbols.worst
    late = Hypothesis("n ≥ 5", n - 5)
    step = Hypothesis("h⁺ ≤ h + 5 − n", held + 5 - n - held_next)
    run = Induction(
        "run",
        "h ≤ 0",
        lambda h, k: (h, (0,)),
        start=(0, 1),
        now=(held, n),
        following=(held_next, n + 1),
        start_by=((), {}, ()),
        step_by=((step, late), {step.name: 1, late.name: 1, SO_FAR: 1}, ()),
    )
    run.check()
    later = run.claim.instance({n: symbols.T})
    at_end = Certificate(Claim("end", "h ≤ 0", held, (0,), (later,)), {later.name: 1})
    for proof, needs in ((run, (n,)), (at_end, (n, symbols.T))):
        proof.check()
        with pytest.raises(NotProvedError, match="needs n ≥ 5"):
            Bound.of(proof, "h", needs=needs)


@pytest.mark.parametrize(
    ("terms", "kind", "link", "match"),
    [
        ((-symbols.M,), "upper", lambda B: (symbols.alpha * B) ** 2, "not shown non-negative"),
        ((0,), "upper", lambda B: (symbols.alpha * symbols.M) ** 2, "does not rise"),
        ((symbols.M,), "lower", lambda B: (symbols.alpha * B) ** 2, "does not fall"),
        ((-(symbols.alpha**2) * symbols.M**2,), "upper", lambda B: -B, "does not rise"),
    ],
)
def test_links_that_lose_the_sense(terms: Any, kind: Any, link: Any, match: str) -> None:
    near = Hypothesis("elastic", (symbols.alpha * symbols.M) ** 2 - symbols.gap_T)
    claim = Claim("near", "", symbols.gap_T, ((symbols.alpha * symbols.M) ** 2,), (near,))
    proof = Certificate(claim, {near.name: 1})
    proof.check()
    with pytest.raises(NotProvedError, match=match):
        Bound.of(proof, "B", *terms, kind=kind, link=link)


def test_what_a_relation_defines_has_one_value() -> None:
    largest = theory.bounds()["W.largest"].proof
    free = (symbols.alpha, symbols.grad_weight)
    with pytest.raises(NotProvedError, match="needs"):
        Bound.of(largest, "α", values={symbols.root_weight: sp.Integer(1000)}, whatever=free)


def test_an_expression_in_place_of_a_parameter_keeps_its_sign() -> None:
    moved = theory.bounds()["N"].put(alpha=symbols.L - 5)
    with pytest.raises(ValueError, match="α = L - 5 has its sign"):
        moved.at(L=1, T=1000, Delta=1, sigma=1, B=2, p=4)
    assert theory.bounds()["N"].put(alpha=1 / (2 * symbols.L)).conditions == ()
