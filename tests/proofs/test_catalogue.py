"""Every proof checks, and rests only on what is proved before it."""

import subprocess
import sys
from pathlib import Path

import pytest

import theory
from theory import __main__, catalogue, symbols
from theory.certificate import NotProvedError
from theory.explain import assumptions, explain

PROOFS = catalogue.proofs()
CERTIFICATES = [certificate for proof in PROOFS for certificate in proof.certificates]
CLAIMS = [proof.claim for proof in PROOFS]
IDS = [claim.name for claim in CLAIMS]


def test_all_is_proved_and_rests_only_on_what_is_proved_before() -> None:
    proved = [claim for claim, _ in catalogue.prove()]
    assert proved == [proof.claim for proof in PROOFS]
    assert len(set(IDS)) == len(IDS)
    with pytest.raises(NotProvedError, match="before its proof"):
        list(catalogue.prove(PROOFS[1:]))


def test_assumptions_reach_through_the_sources() -> None:
    (claim,) = (claim for claim in CLAIMS if claim.name == "N.tuned")
    assert set(assumptions(claim)) == {
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


def test_every_module_of_claims_is_listed() -> None:
    files = {path.stem for path in (Path(catalogue.__file__).parent / "claims").glob("*.py")}
    named = {module.__name__.split(".")[-1] for module in catalogue.MODULES}
    assert named == files - {"__init__", "sgd"}  # sgd is what the others share


@pytest.mark.slow  # proves everything once more, in a process of its own
def test_listing_and_imports() -> None:
    listing = subprocess.run(
        [sys.executable, "-W", "error", "-m", "theory"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [line.split("  ")[0].strip() for line in listing] == IDS
    assert all(" proved " in line for line in listing)
    (line,) = (line for line in listing if line.startswith("feedback "))
    assert "B = M√γ/(1 − √γ)" in line
    assert "B² = M²γ(2 − γ)/(1 − γ)³" in line  # the classic form beside the sharp one
    code = (
        "import sys, time; start = time.perf_counter(); import theory;"
        "assert time.perf_counter() - start < 1; theory.proofs();"
        "assert not {'jax', 'elastic_jax', 'numpy'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow  # starts a process
def test_a_reader_may_leave_early() -> None:
    command, pipe = [sys.executable, "-m", "theory"], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as listing:
        assert listing.stdout and listing.stderr
        assert listing.stdout.readline().startswith("N.step")
        listing.stdout.close()
        assert listing.stderr.read() == ""
    assert listing.returncode == 141


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["theory", *arguments])
    # The proofs are checked above.
    monkeypatch.setattr(__main__, "prove", lambda: ((claim, 0.0) for claim in CLAIMS))
    __main__.main()


def test_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command(monkeypatch, "--markdown")
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[0][2:] for row in rows[2:]] == IDS
    assert {row.replace("\\|", "").count("|") for row in rows} == {6}
    command(monkeypatch, "--latex")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(catalogue.bounds()) + 2
    assert lines[0] == r"\begin{align*}"


def test_explanations(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command(monkeypatch, "--explain", "N")
    text = capsys.readouterr().out
    assert "N.step" in text and "N.sum" in text and "[f is L-smooth]   assumed" in text
    command(monkeypatch, "--explain", "random_delays.classic")
    assert "τ_max" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command(monkeypatch, "--explain", "N.setp")
    near = capsys.readouterr().err.split("near it: ")[1].split(", ")
    assert near[0] == "N.step" and len(set(near)) == len(near) == 3
    with pytest.raises(SystemExit):
        command(monkeypatch, "--explain", "qqqq")
    assert "python -m theory lists all" in capsys.readouterr().err


def test_the_beginning_of_a_name_is_answered_with_those_that_start_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyError, match=r"'W'; these start so: W\.missing, .*W\.horizon"):
        catalogue.bounds()["W"]
    with pytest.raises(SystemExit):
        command(monkeypatch, "--explain", "W")
    told = capsys.readouterr().err
    assert "these start so: W.missing" in told and "W.step" in told and "N.tuned" not in told


def test_explanations_say_what_their_symbols_mean() -> None:
    for proof in PROOFS[::10]:
        text = __main__.explanation(proof.claim.name)
        legend = text.partition("\n\nsymbols\n")[2]
        named = [line.split(": ")[0].strip() for line in legend.splitlines()]
        assert len(set(named)) == len(named)
        for symbol, meaning in symbols.MEANINGS.items():
            assert (f"  {symbol}: {meaning}" in legend) == (str(symbol) in named)
    lines = __main__.explanation("N").splitlines()
    assert "  α: step size" in lines and not any(line.startswith("  ε:") for line in lines)


def test_public_names_can_be_listed() -> None:
    assert dir(theory) == sorted(theory.__all__)
    assert all(hasattr(theory, name) for name in dir(theory))
    assert repr(theory.delay(8)) == "<Part delay 8>"


@pytest.mark.slow
def test_every_proof_can_be_explained() -> None:
    for proof in PROOFS:
        text = explain(proof)
        assert proof.claim.text in text
        for certificate in proof.certificates:
            for name in certificate.multipliers:
                assert f"[{name}]" in text
