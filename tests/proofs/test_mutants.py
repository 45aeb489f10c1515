"""Every mutant of every proof is refused."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sympy as sp

from theory import catalogue
from theory.certificate import (
    Certificate,
    Condition,
    Hypothesis,
    NotProvedError,
)
from theory.gram import Vector, norm2
from theory.induction import Induction, Proof

PROOFS = catalogue.proofs()
IDS = [proof.claim.name for proof in PROOFS]

# A mutant is a changed certificate or induction. The ones called "hidden" keep the identity true
# by paying with a negative multiplier, so only the sign prover can refuse them.

Mutant = tuple[str, Certificate | Induction]
BETTER = sp.Rational(99, 100)
STRONGER = sp.Symbol("ε", positive=True)


def with_claim(certificate: Certificate, **changes: Any) -> Certificate:
    return dataclasses.replace(certificate, claim=dataclasses.replace(certificate.claim, **changes))


def replaced(items: tuple[Any, ...], index: int, *values: Any) -> tuple[Any, ...]:
    return (*items[:index], *values, *items[index + 1 :])


def loosened(expr: sp.Expr) -> sp.Expr:
    """Return q with its positive terms 1% larger: q ≥ 0 then allows more."""
    terms = sp.Add.make_args(sp.expand(expr))
    return sp.Add(
        *(t if t.could_extract_minus_sign() else t * sp.Rational(101, 100) for t in terms)
    )


def condition_mutants(conditions: tuple[Condition, ...]) -> Iterator[tuple[str, Any]]:
    for i, condition in enumerate(conditions):
        loose = dataclasses.replace(condition, expr=loosened(condition.expr))
        yield "condition loosened", replaced(conditions, i, loose)
        yield "condition dropped", replaced(conditions, i)
        if condition.strict:
            equal = dataclasses.replace(condition, strict=False)
            yield "condition not strict", replaced(conditions, i, equal)


def claim_mutants(certificate: Certificate) -> Iterator[Mutant]:
    claim, multipliers = certificate.claim, dict(certificate.multipliers)
    yield "claim stronger", with_claim(certificate, lhs=claim.lhs + STRONGER)
    for i, term in enumerate(claim.rhs):
        if term == 0:
            continue
        better = with_claim(certificate, rhs=replaced(claim.rhs, i, BETTER * term))
        yield "constant 1% better", better
        if not claim.equality:
            # "The term is non-negative" is no news; taking 1% of it off must be.
            sure = Hypothesis("term ≥ 0", term)
            hidden = with_claim(better, hypotheses=(*claim.hypotheses, sure))
            debts = {**multipliers, sure.name: BETTER - 1}
            yield "constant 1% better, hidden", dataclasses.replace(hidden, multipliers=debts)


def argument_mutants(certificate: Certificate) -> Iterator[Mutant]:
    claim, multipliers = certificate.claim, dict(certificate.multipliers)
    for i, hypothesis in enumerate(claim.hypotheses):
        name = hypothesis.name
        dropped = with_claim(certificate, hypotheses=replaced(claim.hypotheses, i))
        others = {key: value for key, value in multipliers.items() if key != name}
        yield "hypothesis dropped", dropped
        yield "hypothesis and multiplier dropped", dataclasses.replace(dropped, multipliers=others)
        false = dataclasses.replace(hypothesis, expr=-hypothesis.expr, source=None)
        flipped = with_claim(certificate, hypotheses=replaced(claim.hypotheses, i, false))
        yield "hypothesis flipped", flipped
        negative = {**multipliers, name: -multipliers[name]}
        yield "hypothesis flipped, hidden", dataclasses.replace(flipped, multipliers=negative)
        yield "multiplier flipped", dataclasses.replace(certificate, multipliers=negative)
        larger = {**multipliers, name: multipliers[name] / BETTER}
        yield "multiplier 1% larger", dataclasses.replace(certificate, multipliers=larger)
        if hypothesis.source is not None:
            easier = dataclasses.replace(hypothesis, expr=hypothesis.expr + STRONGER)
            forged = with_claim(certificate, hypotheses=replaced(claim.hypotheses, i, easier))
            yield "source forged", with_claim(forged, lhs=claim.lhs - multipliers[name] * STRONGER)
    for i, (weight, w) in enumerate(certificate.squares):
        fewer = replaced(certificate.squares, i)
        yield "square dropped", dataclasses.replace(certificate, squares=fewer)
        flipped = replaced(certificate.squares, i, (-weight, w))
        wrong = dataclasses.replace(certificate, squares=flipped)
        yield "square flipped", wrong
        square = norm2(w) if isinstance(w, Vector) else sp.sympify(w) ** 2
        hidden = with_claim(wrong, lhs=claim.lhs + 2 * weight * square)
        yield "square flipped, hidden", hidden


def better_state(induction: Induction, index: int) -> Callable[..., Any]:
    def state(*now: Any) -> Any:
        lhs, rhs = induction.state(*now)
        return lhs, replaced(rhs, index, BETTER * rhs[index])

    return state


def with_setting(proof: Proof, **changes: Any) -> Proof:
    if isinstance(proof, Induction):
        return dataclasses.replace(proof, **changes)
    return with_claim(proof, **changes)


def mutants(proof: Proof) -> Iterator[Mutant]:
    for kind, conditions in condition_mutants(proof.claim.conditions):
        yield kind, with_setting(proof, conditions=conditions)
    for i in range(len(proof.claim.relations)):
        relations = replaced(proof.claim.relations, i)
        yield "relation dropped", with_setting(proof, relations=relations)
    for certificate in proof.certificates:
        yield from claim_mutants(certificate)
        yield from argument_mutants(certificate)
    if isinstance(proof, Induction):
        for index in range(len(proof.claim.rhs)):
            state = better_state(proof, index)
            yield "every step's constant 1% better", dataclasses.replace(proof, state=state)


def refusal(mutant: Certificate | Induction) -> str:
    """Return why a mutant is refused; empty if it survives."""
    try:
        mutant.check()
    except NotProvedError as error:
        return str(error)
    return ""


@pytest.mark.slow  # 5,000 of them
@pytest.mark.parametrize("proof", PROOFS, ids=IDS)
def test_mutants_are_refused(proof: Proof, record_property: Callable[[str, Any], None]) -> None:
    count, survivors = Counter[str](), []
    for kind, mutant in mutants(proof):
        count[kind] += 1
        why = refusal(mutant)
        if not why or ("hidden" in kind and "not shown non-negative" not in why):
            survivors.append((kind, why, mutant))
    record_property("mutants", dict(count))
    assert sum(count.values()) > 0
    assert not survivors, survivors


def test_mutants_of_every_kind() -> None:
    kinds = Counter(kind for proof in PROOFS for kind, _ in mutants(proof))
    print(f"{sum(kinds.values())} mutants of {len(PROOFS)} claims:", dict(kinds))
    assert len(kinds) == 18, kinds
    assert sum(kinds.values()) > 4000, kinds
