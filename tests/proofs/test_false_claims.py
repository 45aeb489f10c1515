"""False claims, each of which was true of some careless checker."""

import dataclasses
from typing import Any

import pytest
import sympy as sp

from theory import symbols
from theory.certificate import Certificate, Claim, Condition, Hypothesis, NotProvedError
from theory.gram import Vector, inner, mean, noise, norm2, per_worker, vector
from theory.induction import SO_FAR, Induction

alpha, L, p, rho, held, steps = (
    symbols.alpha, symbols.L, symbols.p, symbols.rho, symbols.held, symbols.steps,
)  # fmt: skip
a, b, xi = vector("a"), vector("b"), noise("ξ", symbols.variance)
late, shock = vector("b", after=xi), mean(xi, p)
SQUARE = Claim("square", "0 ≤ ‖a‖²", 0, (norm2(a),))
SHORT = Claim(
    "short", "αL ≤ 1 ⇒ α ≤ 1/L", alpha, (1 / L,),
    conditions=(Condition("αL ≤ 1", 1 - alpha * L, alpha, 1 / alpha),),
)  # fmt: skip

apart = per_worker("g") - mean(per_worker("g"), p)
SMALL = Hypothesis("‖g_i − mean g‖² ≤ M²", symbols.M**2 - norm2(apart))
LONG = Hypothesis("‖b‖² ≥ 1", norm2(b) - 1)
OPPOSED = Hypothesis("⟨mean ξ, b⟩ ≤ 0", -inner(shock, late))


def zero(*squares: Any, lhs: Any = 1, **changes: Any) -> Certificate:
    """Claim lhs ≤ 0."""
    return Certificate(Claim("false", "", lhs, (0,), **changes), {}, squares)


def from_(source: Hypothesis, claim: Claim) -> Certificate:
    claim = dataclasses.replace(claim, hypotheses=(source,))
    return Certificate(claim, {source.name: 1})


def run(state: Any, start: Any, now: Any, following: Any, *squares: Any, **more: Any) -> Induction:
    given = more.pop("given", ())
    weights = {SO_FAR: more.pop("so_far", 1), **{hypothesis.name: 1 for hypothesis in given}}
    by = more.pop("start_squares", ())
    return Induction(
        "false", "", state, start, now, following, ((), {}, by), (given, weights, squares), **more
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
        (a + shock,),
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
    "a square below zero": lambda: zero((1, a), relations=((norm2(a), norm2(a) + 1),)),
    "a condition that asks for a square below zero": lambda: zero(
        (-symbols.M - norm2(a), 1),
        (1, a),
        lhs=symbols.M,
        conditions=(Condition("M + ‖a‖² ≤ 0", -symbols.M - norm2(a), symbols.M),),
    ),
    "a condition that nothing meets, though its sign is unknown": lambda: zero(
        (-1 - alpha - (L - p) ** 2, 1),
        ((L - p) ** 2, 1),
        lhs=1 + alpha,
        conditions=(Condition("α ≤ −1 − (L − p)²", -1 - alpha - (L - p) ** 2, alpha),),
    ),
    "a condition against a relation": lambda: zero(
        (1 - rho**2, 1),
        (L - 4, 1),
        lhs=3,
        conditions=(
            Condition("ρ < 1", 1 - rho, rho, 1 / rho, strict=True),
            Condition("L ≥ 4", L - 4, L),
        ),
        relations=((rho, rho**2 - L),),
    ),
    "a condition that is circular with a relation": lambda: zero(
        (alpha - 2 * rho, 1),
        lhs=alpha,
        conditions=(Condition("α ≥ 2ρ", alpha - 2 * rho, alpha),),
        relations=((rho, rho - alpha),),
    ),
    "a vector written with one of its parts twice": lambda: zero(
        (1, Vector((*(a * sp.I).terms, *(a * 0).terms))), lhs=norm2(a)
    ),
    "a vector after one that depends on noise": lambda: zero(
        (1, vector("c", after=late) - xi), lhs=-norm2(vector("c", after=late)) - symbols.variance
    ),
    "a state twice": lambda: run(
        lambda s, t: (s - t, (-1,)), (0, 1), (steps, steps), (steps + 1, steps + 2), so_far=0
    ),
    "a state that is the zero vector": lambda: run(
        lambda v, t: (t, (norm2(v), 5)),
        (a * 0, 0),
        (a * 0, steps),
        (b, steps + 1),
        given=(LONG,),
        start_squares=((5, 1),),
    ),
    "a state that is noise": lambda: run(
        lambda v, t: (t * norm2(shock), (norm2(v), 5 * norm2(shock))),
        (shock, 0),
        (shock, steps),
        (shock * 2, steps + 1),
        (2 * norm2(shock), 1),
        start_squares=((6 * norm2(shock), 1),),
    ),
    "a state that is the square of no vector": lambda: run(
        lambda s, t: (s + t, (0,)), (0, 0), (norm2(a), steps), (norm2(a) - 1, steps + 1)
    ),
    "a state of deviations with a sum": lambda: run(
        lambda e: (norm2(e - b), (norm2(b),)), (apart * 0,), (apart,), (apart + b,), (1, b)
    ),
    "noise of a step in the claim": lambda: run(
        lambda e: (norm2(e - shock), (norm2(shock),)),
        (a * 0,),
        (a,),
        (a + shock,),
        (norm2(shock), 1),
    ),
    "another variance for noise that is met": lambda: from_(
        Claim("s", "", -2 * inner(late, xi), (norm2(late), symbols.variance)).instance(
            {symbols.variance: 0}
        ),
        Claim("false", "", -2 * inner(late, xi), (norm2(late),)),
    ),
    "another number of workers for noise that is met": lambda: from_(
        Claim("s", "", -2 * inner(late, shock), (norm2(late), norm2(shock))).instance({p: 9 * p}),
        Claim("false", "", -2 * inner(late, shock), (norm2(late), norm2(shock) / 9)),
    ),
    "two hypotheses of one name": lambda: Induction(
        "false",
        "",
        lambda h: (L, (h,)),
        (alpha,),
        (held,),
        (symbols.held_next,),
        ((Hypothesis("h", alpha - L),), {"h": 1}, ()),
        ((Hypothesis("h", symbols.held_next - L),), {"h": 1, SO_FAR: 0}, ()),
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
