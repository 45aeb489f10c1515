"""What the checker refuses, and what its inner product means."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import sympy as sp
from evaluation import evaluate

from theory import symbols
from theory.certificate import (
    Certificate,
    Claim,
    Condition,
    Hypothesis,
    NotProvedError,
    Region,
    remainder,
)
from theory.explain import assumptions
from theory.gram import inner, mean, noise, norm2, per_worker, vector
from theory.induction import SO_FAR, Induction

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
    # b and r depend on the noise: b = a + the noise of worker 0, r_i = g_i − the noise of worker i.
    xi = flips[:, :, None] * shift  # [outcome, worker, 3]
    b = a + xi[:, 0, :]
    V = (shift**2).sum() / p
    n = noise("n", sp.Float(V))
    symbolic = {
        "a": vector("a"),
        "b": vector("b", after=n),
        "g": per_worker("g"),
        "n": n,
        "r": per_worker("r", after=n),
    }
    arrays = {
        "a": np.broadcast_to(a, xi.shape),
        "b": np.broadcast_to(b[:, None], xi.shape),
        "g": np.broadcast_to(g, xi.shape),
        "n": xi,
        "r": g - xi,
    }
    average = {
        name: np.broadcast_to(v.mean(1, keepdims=True), v.shape) for name, v in arrays.items()
    }
    parts = average | {f"{name}~": v - average[name] for name, v in arrays.items()}
    parts |= {"n": xi}
    known = {
        f"⟨{s},{t}⟩": (parts[s] * parts[t]).sum(2).mean()
        for s, t in itertools.product(parts, repeat=2)
    }
    for s, t in itertools.combinations_with_replacement(symbolic, 2):
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


# --- False claims ------------------------------------------------------------------------------
# Each of these was true of some careless checker.

alpha, L, p, rho, held, steps = (
    symbols.alpha, symbols.L, symbols.p, symbols.rho, symbols.held, symbols.steps,
)  # fmt: skip
a, b, xi = vector("a"), vector("b"), noise("ξ", symbols.variance)
late = vector("b", after=xi)
SQUARE = Claim("square", "0 ≤ ‖a‖²", 0, (norm2(a),))
SHORT = Claim(
    "short", "αL ≤ 1 ⇒ α ≤ 1/L", alpha, (1 / L,),
    conditions=(Condition("αL ≤ 1", 1 - alpha * L, alpha, 1 / alpha),),
)  # fmt: skip

apart = per_worker("g") - mean(per_worker("g"), p)
SMALL = Hypothesis("‖g_i − mean g‖² ≤ M²", symbols.M**2 - norm2(apart))
OPPOSED = Hypothesis("⟨ξ, b⟩ ≤ 0", -inner(xi, late))


def zero(*squares: Any, lhs: Any = 1, **changes: Any) -> Certificate:
    """Claim lhs ≤ 0."""
    return Certificate(Claim("false", "", lhs, (0,), **changes), {}, squares)


def from_(source: Hypothesis, claim: Claim) -> Certificate:
    claim = dataclasses.replace(claim, hypotheses=(source,))
    return Certificate(claim, {source.name: 1})


def run(state: Any, start: Any, now: Any, following: Any, *squares: Any, **more: Any) -> Induction:
    return Induction(
        "false", "", state, start, now, following, ((), {}, ()), ((), {SO_FAR: 1}, squares), **more
    )


def kept(bound: sp.Expr, **more: Any) -> Induction:
    """|h⁺| ≤ α/n proves |h| ≤ α/n of the next n only if the bound is that of n before."""
    n, held_next = symbols.n, symbols.held_next
    shrinks = Hypothesis("|h⁺| ≤ α/n", alpha / n - held_next)
    by = ((), {}, ((bound, 1),)), ((shrinks,), {shrinks.name: 1, SO_FAR: 0}, ())
    return Induction(
        "false", "", lambda h, _: (h, (bound,)), (0, 1), (held, n), (held_next, n + 1), *by, **more
    )


FALSE = {
    "an imaginary square": lambda: zero((1, sp.I)),
    "the root of what may be negative": lambda: zero((1, sp.sqrt(L - alpha)), lhs=alpha - L),
    "such a root in a vector": lambda: zero(
        (1, a * sp.sqrt(L - alpha)), lhs=(alpha - L) * norm2(a)
    ),
    "half a worker": lambda: zero((1, xi - mean(xi, sp.S.Half)), lhs=symbols.variance),
    "two numbers of workers": lambda: zero((1, mean(xi, 4) * 2 - mean(xi, 1))),
    "two numbers of workers, apart": lambda: zero(
        (1, late + mean(xi, 4)), lhs=-norm2(late + mean(xi, 1)) + symbols.variance * 3 / 4
    ),
    "two variances, apart": lambda: zero(
        (1, late + noise("ξ", sp.S.Zero)), lhs=-norm2(late) - 2 * inner(late, xi)
    ),
    "a vector that is independent of noise, and is not": lambda: from_(
        Hypothesis("‖b‖² + ‖ξ‖² ≤ L", L - norm2(b - xi)),
        Claim("false", "", norm2(late) + symbols.variance, (L,)),
    ),
    "negative variance": lambda: zero((1, noise("x", -L)), lhs=L),
    "a square renamed to a product": lambda: from_(
        SQUARE.instance({norm2(a): inner(a, b)}), Claim("false", "", 0, (inner(a, b),))
    ),
    "a value for a product": lambda: from_(
        SHORT.instance({alpha * L: sp.S.Half}),
        Claim("false", "", alpha, (1 / L,)),
    ),
    "a relation without a symbol": lambda: zero(relations=((rho, sp.S.One),)),
    "a relation without a root": lambda: zero((1, rho), relations=((rho, rho**2 + 1),)),
    "a relation without a real root": lambda: zero(
        (1, symbols.f_star), relations=((symbols.f_star, symbols.f_star**2 + 1),)
    ),
    "a relation without a root of one sign": lambda: zero(
        (L, alpha - rho),
        lhs=L,
        relations=((alpha, sp.expand((alpha - rho) ** 2 + 1)),),
    ),
    "a symbol that is not real": lambda: zero((1, sp.Symbol("x")), lhs=-(sp.Symbol("x") ** 2)),
    "a relation that hides a condition": lambda: zero(
        (held, 1), lhs=alpha - L, relations=((held, held - L + alpha),)
    ),
    "relations in a circle": lambda: zero(
        (1, 1), lhs=rho - L, relations=((L, L - rho - 1), (rho, rho - L - 1))
    ),
    "two symbols renamed to one": lambda: from_(
        Claim("s", "", symbols.f_x, (symbols.f_next - 1,)).instance({symbols.f_x: symbols.f_next}),
        Claim("false", "", 1, (0,)),
    ),
    "two squares renamed to one": lambda: from_(
        Claim("s", "", 4 * norm2(b), (norm2(a),)).instance({norm2(a): norm2(b)}),
        Claim("false", "", norm2(b), (0,)),
    ),
    "a symbol of what is assumed renamed to another": lambda: from_(
        Claim(
            "s", "", symbols.f_x, (symbols.f_0,), (Hypothesis("f(v)", symbols.f_x - symbols.f_v),)
        ).instance({symbols.f_x: symbols.f_v}),
        Claim("false", "", symbols.f_v, (symbols.f_0,)),
    ),
    "a sum of deviations that is common to all workers": lambda: Induction(
        "false",
        "",
        lambda e, t: (norm2(e), (t * symbols.M**2,)),
        (a * 0, 0),
        (a, steps),
        (a + apart, steps + 1),
        ((), {}, ()),
        ((SMALL,), {SMALL.name: 1, SO_FAR: 1}, ()),
    ),
    "a state that meets its noise again": lambda: Induction(
        "false",
        "",
        lambda e: (inner(e, late), (0,)),
        (a * 0,),
        (a,),
        (a + xi,),
        ((), {}, ()),
        ((OPPOSED,), {OPPOSED.name: 1, SO_FAR: 1}, ()),
    ),
    "two relations for one symbol": lambda: zero(relations=((rho, rho**2 - 2), (rho, rho**2 - 3))),
    "a condition that nothing meets": lambda: zero(
        (-1 - alpha, 1), lhs=1 + alpha, conditions=(Condition("α ≤ −1", -1 - alpha, alpha),)
    ),
    "a bound that keeps the state it had": lambda: kept(alpha / symbols.n),
    "a bound that keeps it by a relation": lambda: kept(
        alpha / symbols.share, relations=((symbols.share, symbols.share - symbols.n),)
    ),
    "a condition on what an expression moves": lambda: run(
        lambda f: (f, (0,)),
        (0,),
        (symbols.n - rho,),
        (symbols.k - rho,),
        conditions=(Condition("n ≤ ρ", rho - symbols.n, symbols.n, 1 / rho),),
    ),
    "a run that stands still": lambda: run(lambda t: (t, (0,)), (0,), (steps,), (steps,)),
    "a state that nothing moves": lambda: run(
        lambda h, t: (h, (t * alpha,)), (0, 0), (held, steps), (held, steps + 1), (alpha, 1)
    ),
    "a next state out of the blue": lambda: run(
        lambda h, t: (h, (t * alpha,)),
        (0, 0),
        (held, steps),
        (symbols.held_next, steps + 1),
        (alpha + held - symbols.held_next, 1),
    ),
    "a condition on the state": lambda: run(
        lambda t: (t, (1,)),
        (1,),
        (rho,),
        (rho + 1,),
        (rho - 2, 1),
        conditions=(Condition("ρ ≥ 5", rho - 5, rho),),
    ),
}


@pytest.mark.parametrize("claim", FALSE)
def test_false_claims_are_refused(claim: str) -> None:
    with pytest.raises((NotProvedError, ValueError)):
        FALSE[claim]().check()


def test_an_instance_says_what_it_assumes() -> None:
    source = Claim("s", "", 2 * rho, (2,), (Hypothesis("ρ ≤ 1", 1 - rho),))
    use = Claim("use", "", L, (0,), (source.instance({rho: 1 + L}),))
    assert assumptions(use) == ("ρ ≤ 1 (at ρ = L + 1)",)


def test_an_instance_says_what_it_assumes_of_vectors() -> None:
    near = Hypothesis("‖a‖² ≤ B²", symbols.B**2 - norm2(a))
    source = Claim("s", "", norm2(a), (symbols.B**2,), (near,))
    use = Claim("use", "", norm2(a), (0,), (source.instance({symbols.B: 0}),))
    assert assumptions(use) == ("‖a‖² ≤ B² (at B = 0)",)
