"""Every proof checks, every mutant of it is refused, and every claim holds on numpy examples."""

import dataclasses
import functools
import itertools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import sympy as sp

from theory import catalogue, symbols
from theory.certificate import (
    Certificate,
    Claim,
    Condition,
    Hypothesis,
    NotProvedError,
    Region,
    remainder,
)
from theory.gram import Vector, inner, mean, noise, norm2, per_worker, vector
from theory.induction import SO_FAR, Induction, Proof

PROOFS = catalogue.proofs()
CLAIMS = [proof.claim for proof in PROOFS]
CERTIFICATES = [certificate for proof in PROOFS for certificate in proof.certificates]
IDS = [claim.name for claim in CLAIMS]
Values = dict[str, float]

# --- Proofs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("proof", PROOFS, ids=IDS)
def test_proved(proof: Proof) -> None:
    assert proof.check() == proof.claim


def test_catalogue_rests_only_on_what_is_proved_before() -> None:
    assert [claim.name for claim, _ in catalogue.prove()] == IDS
    assert len(set(IDS)) == len(IDS)
    with pytest.raises(NotProvedError, match="before its proof"):
        list(catalogue.prove(PROOFS[1:]))


def test_assumptions_reach_through_the_sources() -> None:
    (claim,) = (claim for claim in CLAIMS if claim.name == "N.tuned")
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


# --- Mutants -----------------------------------------------------------------------------------
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
    assert len(kinds) == 18, kinds
    assert sum(kinds.values()) > 650, kinds


# --- The checker and the inner product ---------------------------------------------------------

x, y = sp.symbols("x y", positive=True)


@pytest.mark.parametrize(
    "expr",
    [
        sp.sqrt(x) - sp.sqrt(x + 1),
        sp.Float(0.5) * x,
        sp.exp(x),
        sp.sin(x) ** 2,
        sp.zoo,
        1 / (x - x),
    ],
)
def test_what_is_not_exact_is_refused(expr: sp.Expr) -> None:
    with pytest.raises(NotProvedError):
        Certificate(Claim("odd", "", -expr, (0,)), {}, ((expr, 1),)).check()


def test_true_but_not_shown_is_refused() -> None:
    assert not Region().is_nonnegative(x**2 - x * y + y**2)  # true, but "unknown" is a failure
    assert Region().is_nonnegative((x - y) ** 2)
    assert not Region().is_positive((x - y) ** 2)
    assert not Region().is_nonnegative(x / (x - y) ** 2)
    assert not Region().is_nonnegative(sp.Symbol("real", real=True))


@pytest.mark.parametrize(
    "condition",
    [
        Condition("quadratic", 1 - x**2, x),
        Condition("negative scale", 1 - x, x, -1 / x),
        Condition("no sign", 1 - sp.Symbol("s", real=True), sp.Symbol("s", real=True)),
        Condition("absent", 1 - x, y),
        Condition("slope may vanish", 1 - x * (y - 1), x),
    ],
    ids=lambda condition: condition.text,
)
def test_conditions_that_cannot_be_parametrised_are_refused(condition: Condition) -> None:
    with pytest.raises(NotProvedError):
        Region([condition])


def test_conditions_cannot_bound_one_parameter_twice() -> None:
    below = Condition("x ≤ y", y - x, x, 1 / x)
    with pytest.raises(NotProvedError):
        Region([below, Condition("x ≥ 2y", x - 2 * y, x)])
    with pytest.raises(NotProvedError):
        Region([below, Condition("y ≥ 2x", y - 2 * x, y)])


def test_relations_must_be_monic() -> None:
    with pytest.raises(NotProvedError, match="monic"):
        remainder(x, [(x, x * y - 1)])


def test_an_instance_inherits_conditions_and_signs() -> None:
    below = Condition("x ≤ 1", 1 - x, x, 1 / x)
    source = Claim("source", "", -1, (-x,), (), (below,))
    for value in (2 * y, 1 - y, -y):
        use = source.instance({x: value})
        with pytest.raises(NotProvedError):
            Certificate(Claim("use", "", 0, (use.expr,), (use,)), {"source": 1}).check()
    use = source.instance({x: 1 / (1 + y)})
    Certificate(Claim("use", "", 0, (use.expr,), (use,)), {"source": 1}).check()
    free = sp.Symbol("free", real=True)
    with pytest.raises(ValueError, match="renamed"):
        Claim("source", "", 0, (free**2,)).instance({free: x + y})


def test_induction_must_keep_the_signs_of_its_state() -> None:
    bad = Induction(
        "bad",
        "",
        lambda k: (0, (k - k,)),
        (0,),
        (x,),
        (x - 1,),
        ((), {}, ()),
        ((), {SO_FAR: 0}, ()),
    )
    with pytest.raises(NotProvedError, match="sign"):
        bad.check()


@pytest.mark.parametrize("p", [1, 2, 3])
def test_inner_product_is_the_mean_over_noise_and_workers(p: int) -> None:
    rng = np.random.default_rng(p)
    a, (g, shift) = rng.normal(size=3), rng.normal(size=(2, p, 3))
    flips = np.array(list(itertools.product([-1, 1], repeat=p)))
    # b depends on the noise: b = a + the noise of worker 0.
    xi = flips[:, :, None] * shift  # [outcome, worker, 3]
    b = a + xi[:, 0, :]
    V = (shift**2).sum() / p
    n = noise("n", sp.Float(V))
    A, G, N, after = vector("a"), per_worker("g"), n, vector("b", after=n)
    arrays = {
        "a": np.broadcast_to(a, xi.shape),
        "b": np.broadcast_to(b[:, None], xi.shape),
        "g": np.broadcast_to(g, xi.shape),
        "n": xi,
    }
    average = {
        name: np.broadcast_to(v.mean(1, keepdims=True), v.shape) for name, v in arrays.items()
    }
    known = {
        f"⟨{s},{t}⟩": (average[s] * average[t]).sum(2).mean()
        for s, t in itertools.product("abgn", repeat=2)
    }
    known |= {"⟨g~,g~⟩": ((arrays["g"] - average["g"]) ** 2).sum(2).mean()}
    symbolic = {"a": A, "b": after, "g": G, "n": N}
    for s, t in itertools.combinations_with_replacement("abgn", 2):
        expected = (arrays[s] * arrays[t]).sum(2).mean()
        assert evaluate(inner(symbolic[s], symbolic[t]), known) == pytest.approx(expected)
        expected = (average[s] * average[t]).sum(2).mean()
        means = inner(mean(symbolic[s], p), mean(symbolic[t], p))
        assert evaluate(means, known) == pytest.approx(expected)


def test_names_are_not_confused() -> None:
    with pytest.raises(ValueError, match="two vectors"):
        inner(vector("b"), vector("b", after=noise("n", x)))
    with pytest.raises(ValueError, match="two noises"):
        inner(noise("n", x), noise("n", y))
    with pytest.raises(ValueError, match="name"):
        vector("g~")


# --- Numbers -----------------------------------------------------------------------------------
# Each example is computed from its definition, in numpy, without the theory's formulas.


@functools.cache
def compiled(expr: sp.Expr) -> tuple[list[str], Callable[..., float]]:
    arguments = sorted(expr.free_symbols, key=str)
    return [symbol.name for symbol in arguments], sp.lambdify(arguments, expr, "math")


def evaluate(expr: sp.Expr | int, values: Values) -> float:
    names, function = compiled(sp.sympify(expr))
    return float(function(*(values[name] for name in names)))


def gram(common: dict[str, np.ndarray], workers: dict[str, np.ndarray]) -> Values:
    """Return all Gram entries of common vectors [d] and per-worker vectors [p, d]."""
    values = {}
    means = common | {name: v.mean(0) for name, v in workers.items()}
    deviations = {name + "~": v - v.mean(0) for name, v in workers.items()}
    for (s, a), (t, b) in itertools.product(means.items(), repeat=2):
        values[f"⟨{s},{t}⟩"] = float(a @ b)
    for (s, a), (t, b) in itertools.product(deviations.items(), repeat=2):
        values[f"⟨{s},{t}⟩"] = float((a * b).sum(1).mean())
    return values


def one_step(rng: np.random.Generator, flat: bool = False, bumpy: bool = False) -> Values:
    """A step of p workers on a quadratic (c = L if flat), or on a non-convex f."""
    d, p = 4, int(rng.integers(1, 4))
    L = rng.uniform(0.5, 2)
    c = L if flat else L * rng.uniform(0.01, 0.9)
    curvature = np.array([c, L, *rng.uniform(c, L, size=d - 2)])
    alpha = rng.uniform(0.05, 1) / L
    star = 0 * curvature if bumpy else rng.normal(size=d)
    z, e = rng.normal(size=d), rng.normal(size=(p, d)) * rng.choice([0.1, 1, 3])
    if not bumpy and p == 1:  # the worst case of the sharp bound: curvature L, z along e
        e[:, [0, *range(2, d)]] = z[[0, *range(2, d)]] = 0
        z = (1 - alpha * L) * L * e[0] / (2 * L - c - alpha * L**2)

    def f(u: np.ndarray) -> np.ndarray:
        return (L * (1 - np.cos(u)) if bumpy else curvature / 2 * (u - star) ** 2).sum(-1)

    def gradient(u: np.ndarray) -> np.ndarray:
        return L * np.sin(u) if bumpy else curvature * (u - star)

    x = star + z
    v = x - e
    shift = rng.normal(size=(p, d))
    flips = np.array(list(itertools.product([-1, 1], repeat=p)))
    following = x - alpha * (gradient(v) + flips[:, :, None] * shift).mean(1)
    V = (shift**2).sum(1).mean()
    slack = rng.choice([1, 1.5], size=2)
    values = gram({"z": z, "a": gradient(x)}, {"e": e, "g": gradient(v)})
    return values | {
        "α": alpha, "L": L, "c": c, "p": p, "V": V, "σ": np.sqrt(V * slack[0]), "f*": 0.0,
        "B": np.sqrt((e**2).sum(1).mean() * slack[1]) / alpha,
        "f(x)": f(x), "f(v)": f(v).mean(), "f(x⁺)": f(following).mean(),
        "‖z⁺‖²": ((following - star) ** 2).sum(1).mean(),
    }  # fmt: skip


def a_run(rng: np.random.Generator, step: str = "") -> Values:
    """A run of T steps and one more on a diagonal quadratic, in exact second moments.

    Views err by a random factor of each coordinate, e = κz, so E z_j² obeys a scalar recursion.
    """
    d, p, T = 3, int(rng.integers(1, 5)), int(rng.integers(2, 30))
    L = rng.uniform(0.5, 2)
    c = L * rng.uniform(0.05, 0.9)
    alpha = {
        "root": np.sqrt(p / T),
        "log": np.log(T) / (c * T),
        "": rng.uniform(0.05, 1) / L,
    }[step]
    curvature = np.array([c, L, rng.uniform(c, L)])
    sigma, square = rng.uniform(0, 1), rng.uniform(0, 2, size=d)
    first, sums, rows = square, Counter[str](), []
    for _ in range(T + 1):
        kappa = rng.uniform(-1, 1, size=(p, d)) * rng.choice([0.1, 1])
        row = {
            "A": (curvature**2 * square).sum(),
            "f": (curvature / 2 * square).sum(),
            "f(v)": (curvature / 2 * (1 - kappa) ** 2 * square).sum(1).mean(),
            "Z": square.sum(),
            "e": (kappa**2 * square).sum(1).mean(),
        }
        rows.append(row)
        factor = 1 - alpha * curvature * (1 - kappa.mean(0))
        square = factor**2 * square + alpha**2 * sigma**2 / (p * d)
    for row in rows[:T]:
        sums.update(row)
    now = rows[T]
    start_f = (curvature / 2 * first).sum()
    return {
        "α": alpha, "L": L, "c": c, "p": p, "T": T, "t": T, "σ": sigma, "f*": 0.0, "f_0": start_f,
        "B": np.sqrt(max(row["e"] for row in rows)) / alpha, "Δ": start_f, "Z_0": first.sum(),
        "f_T": now["f"], "f_T+1": (curvature / 2 * square).sum(), "A_T": now["A"],
        "ΣA": sums["A"], "Σf(v)": sums["f(v)"], "f(v_T)": now["f(v)"], "Z_T": now["Z"],
        "Z_T+1": square.sum(), "q": (1 - alpha * c) ** T, "√(pT)": np.sqrt(p * T),
        "ln(T)": np.log(T),
    }  # fmt: skip


def held_window(rng: np.random.Generator) -> Values:
    alpha, M, w, k = rng.uniform(0.1, 1), rng.uniform(0.5, 2), rng.uniform(0.1, 1), 6
    updates = rng.normal(size=(k + 1, 3)) + rng.choice([0, 5])
    updates *= alpha * M * w / np.linalg.norm(updates, axis=1, keepdims=True)
    if rng.random() < 0.5:
        updates *= rng.random(size=updates.shape) < 0.5  # masks
    common = {"h": updates[:k].sum(0), "u": updates[k]}
    return gram(common, {}) | {"α": alpha, "M": M, "w": w, "k": k}


def held_by_chance(rng: np.random.Generator) -> Values:
    alpha, M, k = rng.uniform(0.1, 1), rng.uniform(0.5, 2), 5
    updates = rng.normal(size=(k + 1, 3)) + rng.choice([0, 5])
    updates *= alpha * M / np.linalg.norm(updates, axis=1, keepdims=True)
    P = rng.uniform(0, 1, size=k + 1)
    fates = np.array(list(itertools.product([0, 1], repeat=k)))
    chance = np.prod(np.where(fates, P[:k], 1 - P[:k]), axis=1)
    held = fates @ updates[:k]
    expected = chance @ held
    rest = chance @ ((held - expected) ** 2).sum(1)
    number = fates.sum(1)
    values = gram({"E[h|content]": expected, "u": updates[k]}, {}) | {
        "α": alpha, "M": M, "P": P[k], "ΣP": P[:k].sum(), "ΣP(1−P)": (P * (1 - P))[:k].sum(),
        "‖rest‖²": rest,
    }  # fmt: skip
    # Directly: ‖h‖² ≤ α²M² E N².
    assert chance @ (held**2).sum(1) <= (alpha * M) ** 2 * (chance @ number**2) * (1 + 1e-9)
    return values


def held_by_contraction(rng: np.random.Generator) -> Values:
    alpha, M, rho, T = rng.uniform(0.1, 1), rng.uniform(0.5, 2), rng.uniform(0.1, 0.95), 12
    held, slack = [0.0], rng.choice([0.5, 1])
    for _ in range(T + 1):
        held.append(rho * (held[-1] + alpha * M) * rng.uniform(slack, 1))
    known = {"α": alpha, "M": M, "ρ": rho, "q": rho**T, "|h|": held[T], "|h⁺|": held[T + 1]}
    return known


def held_by_top_k(rng: np.random.Generator) -> Values:
    """Top-k with error feedback; γ = 1 − k/d, which equal magnitudes attain."""
    d, k, T, alpha = 6, int(rng.integers(1, 6)), int(rng.integers(1, 60)), rng.uniform(0.1, 1)
    updates = np.ones((T, d)) if rng.random() < 0.5 else rng.normal(size=(T, d))
    h = following = np.zeros(d)
    for update in updates:
        h = following
        following = h + update
        following = np.where(np.argsort(np.argsort(-abs(following))) < k, 0.0, following)
    M = np.linalg.norm(updates, axis=1).max() / alpha
    gamma = 1 - k / d
    common = {"h": h, "u": updates[-1], "h⁺": following}
    return gram(common, {}) | {"α": alpha, "M": M, "γ": gamma, "√γ": np.sqrt(gamma)}


EXAMPLES: list[tuple[str, Callable[[np.random.Generator], Values]]] = [
    (r"N\.step", lambda rng: one_step(rng, bumpy=rng.random() < 0.7)),
    (r"N\.horizon|N\.tuned", lambda rng: a_run(rng, "root")),
    (r"N\.sum|N|S|C\.sum|C|P", a_run),
    (r"S\.ball", lambda rng: one_step(rng, flat=True)),
    (r"S\.(step|constant|weak|attained)|C\.step|P\.step", one_step),
    (r"S\.tuned", lambda rng: a_run(rng, "log")),
    (r"window", held_window),
    (r"fates.*", held_by_chance),
    (r"contraction.*", held_by_contraction),
    (r"feedback(\.classic)?", held_by_top_k),
    (r"feedback\.order", lambda rng: {"√γ": rng.uniform(0, 0.999)}),
    (r"feedback\.equal", lambda rng: {"√γ": (np.sqrt(5) - 1) / 2}),
]


@pytest.mark.parametrize("proof", PROOFS, ids=IDS)
def test_claims_hold_on_examples(proof: Proof) -> None:
    ((_, example),) = (e for e in EXAMPLES if re.fullmatch(e[0], proof.claim.name))
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
