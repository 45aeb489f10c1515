"""Every proof checks, and rests only on what is proved before it."""

import subprocess
import sys

import pytest

from theory import catalogue, symbols
from theory.certificate import NotProvedError
from theory.induction import Proof

PROOFS = catalogue.proofs()
CERTIFICATES = [certificate for proof in PROOFS for certificate in proof.certificates]
IDS = [proof.claim.name for proof in PROOFS]


@pytest.mark.parametrize("proof", PROOFS, ids=IDS)
def test_proved(proof: Proof) -> None:
    assert proof.check() == proof.claim


def test_catalogue_rests_only_on_what_is_proved_before() -> None:
    assert [claim.name for claim, _ in catalogue.prove()] == IDS
    assert len(set(IDS)) == len(IDS)
    with pytest.raises(NotProvedError, match="before its proof"):
        list(catalogue.prove(PROOFS[1:]))


def test_assumptions_reach_through_the_sources() -> None:
    (claim,) = (claim for claim in (proof.claim for proof in PROOFS) if claim.name == "N.tuned")
    assert set(claim.assumptions) == {
        "f is L-smooth",
        "∇f is L-Lipschitz",
        "elastic consistency",
        "variance ≤ σ²",
        "f ≥ f*",
        "Δ ≥ f(x_0) − f*",
    }


def test_every_symbol_has_a_meaning() -> None:
    used = set().union(*(c.claim.expr.free_symbols for c in CERTIFICATES))
    entries = {symbol for symbol in used if symbol.name.startswith("⟨")}
    assert used - entries <= set(symbols.MEANINGS)


def test_command_and_imports() -> None:
    listing = subprocess.run(
        [sys.executable, "-W", "error", "-m", "theory"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [line.split()[0] for line in listing] == IDS
    assert all(" proved " in line for line in listing)
    code = (
        "import sys, time; start = time.perf_counter(); import theory;"
        "assert time.perf_counter() - start < 1; theory.proofs();"
        "assert not {'jax', 'elastic_jax', 'numpy'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
