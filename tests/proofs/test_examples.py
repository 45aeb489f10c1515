"""Every claim holds on examples that numpy computes without the theory's formulas."""

import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from evaluation import evaluate

from theory import catalogue
from theory.induction import Proof

PROOFS = catalogue.proofs()
IDS = [proof.claim.name for proof in PROOFS]
MODULES = sorted(path.stem for path in Path(__file__).parent.glob("examples_*.py"))
EXAMPLES = {key: value for name in MODULES for key, value in import_module(name).EXAMPLES.items()}


@pytest.mark.parametrize("proof", PROOFS, ids=IDS)
def test_claims_hold_on_examples(proof: Proof) -> None:
    (example,) = (EXAMPLES[e] for e in EXAMPLES if re.fullmatch(e, proof.claim.name))
    rng, used = np.random.default_rng(0), 0
    for _ in range(100):
        values = example(rng)
        if any(evaluate(condition.expr, values) < 0 for condition in proof.claim.conditions):
            continue
        if proof.claim.name == "N.horizon" and values["T"] < values["L"] ** 2 * values["p"]:
            continue
        used += 1
        for certificate in proof.certificates:
            claim = certificate.claim
            tolerance = 1e-9 * (1 + sum(abs(evaluate(t, values)) for t in claim.rhs))
            for hypothesis in claim.hypotheses:
                assert evaluate(hypothesis.expr, values) >= -tolerance, hypothesis.name
            left = evaluate(claim.expr, values)
            assert left >= -tolerance
            assert not claim.equality or left <= tolerance
    assert used >= 10


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_sharp_bounds_are_attained(rate: float) -> None:
    """Curvature L attains K; C(y) = (1 − ρ)y and a constant gradient attain Mρ/(1 − ρ)."""
    L, c, e = 2.0, 0.3, 1.0
    alpha = rate / L
    z = np.linspace(-10, 10, 200001)
    excess = (z - alpha * L * (z - e)) ** 2 - (1 - alpha * c) * z**2
    K = c + (L - c) ** 2 / (2 * L - c - alpha * L**2)
    assert excess.max() == pytest.approx(alpha * K, rel=1e-6)
    h = 0.0
    for _ in range(1000):
        h = rate * (h + alpha)
    assert h == pytest.approx(alpha * rate / (1 - rate))
