"""From when on a relaxation costs next to nothing.

Exact SGD's bound is the one with B = 0. A relaxed bound is within 1 + ε of it from some number of
steps on, at the textbook step size and at exact SGD's best one.
"""

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.convex import strongly_convex
from theory.claims.nonconvex import nonconvex
from theory.claims.sgd import ONE, STRICTLY_CURVED
from theory.induction import Proof
from theory.symbols import (
    B,
    Delta,
    L,
    T,
    alpha,
    best,
    c,
    dist_0,
    dist_T,
    drift_cost,
    epsilon,
    least,
    log_least,
    log_T,
    noise_cost,
    noise_held,
    noisy,
    p,
    root_pT,
    shrink,
    sigma,
    start_cost,
)

ROOT = ((root_pT, root_pT**2 - p * T),)
ELASTIC_DRIFT = L**2 * B**2
DELAYED_DRIFT = 2 * L**2 * noisy**2 * noise_held
"""The coefficient of α² in N, and where noise is held but no second moment is bounded (W)."""


def textbook(name: str, drift: sp.Expr, horizon: str, rate: Claim | None) -> tuple[Proof, ...]:
    """At α = √(p/T): T ≥ C²p³/(ε²(2Δ + Lσ²)²) if and only if Cp/T ≤ ε(2Δ + Lσ²)/√(pT).

    Args:
        name: of the claim; the converse is `name.least`.
        drift: C, the coefficient of α² in the bound.
        horizon: the condition on T, for a reader.
        rate: what is at most (2Δ + Lσ²)/√(pT) + Cp/T; that itself if None.
    """
    cost, r = 2 * Delta + L * noisy**2, root_pT
    exact = cost / r
    needed = drift**2 * p**3 / (epsilon**2 * cost**2)
    long = Hypothesis(horizon, T - needed)
    both = epsilon * cost * r + drift * p**2
    lhs, hypotheses, weights = exact + drift * p / T, (), {}
    conditions: tuple[Condition, ...] = ()
    if rate is not None:
        at_noise = rate.instance({sigma: noisy})
        lhs, hypotheses, weights = rate.lhs, (at_noise,), {at_noise.name: ONE}
        conditions = rate.conditions
    within = Certificate(
        Claim(
            name,
            f"α = √(p/T), {horizon}: {name[0]} ≤ (1 + ε)(2Δ + Lσ²)/√(pT)",
            lhs,
            ((1 + epsilon) * 2 * Delta / r, (1 + epsilon) * L * noisy**2 / r),
            (*hypotheses, long),
            conditions,
            ROOT,
        ),
        {**weights, long.name: p * epsilon**2 * cost**2 / (r**2 * both)},
    )
    small = Hypothesis("relaxation ≤ ε · the rest of the bound", epsilon * exact - drift * p / T)
    converse = Certificate(
        Claim(
            f"{name}.least",
            f"α = √(p/T), {name[0]} within 1 + ε of exact SGD's bound: {horizon}",
            -T,
            (-needed,),
            (small,),
            (),
            ROOT,
        ),
        {small.name: r**2 * both / (p * epsilon**2 * cost**2)},
    )
    return (within, converse)


def tuned(name: str, drift: sp.Expr, horizon: str, rate: Claim | None) -> tuple[Proof, ...]:
    """At exact SGD's best step, α² = 2Δp/(LTσ²): T ≥ ΔC²p³/(2ε²L³σ⁶), if and only if.

    Exact SGD's bound is 2Lασ²/p there, and the relaxed one Cα² more.

    Args:
        name: of the claim; the converse is `name.least`.
        drift: C, the coefficient of α² in the bound.
        horizon: the condition on T, for a reader.
        rate: what is at most 2Δ/(αT) + Lασ²/p + Cα²; that itself if None.
    """
    exact = 2 * L * alpha * noisy**2 / p
    needed = sp.cancel(Delta * drift**2 * p**3 / (2 * epsilon**2 * L**3 * noisy**6))
    long = Hypothesis(horizon, T - needed)
    # T − needed is a difference of squares; this is the quotient by ε·exact − Cα².
    quotient = p * T * (2 * epsilon * L * noisy**2 + alpha * drift * p)
    quotient /= alpha * 4 * epsilon**2 * L**2 * noisy**4
    best_for_exact = ((Delta, Delta - L * T * noisy**2 * alpha**2 / (2 * p)),)
    lhs = 2 * Delta / (alpha * T) + L * alpha * noisy**2 / p + drift * alpha**2
    hypotheses, weights, conditions = (), {}, ()
    if rate is not None:
        at_noise = rate.instance({sigma: noisy})
        lhs, hypotheses, weights = rate.lhs, (at_noise,), {at_noise.name: ONE}
        conditions = rate.conditions
    within = Certificate(
        Claim(
            name,
            f"α = √(2Δp/(LTσ²)), {horizon}: {name[0]} ≤ (1 + ε)·2Lασ²/p",
            lhs,
            ((1 + epsilon) * exact,),
            (*hypotheses, long),
            conditions,
            best_for_exact,
        ),
        {**weights, long.name: 1 / quotient},
    )
    small = Hypothesis("relaxation ≤ ε · the rest of the bound", epsilon * exact - drift * alpha**2)
    converse = Certificate(
        Claim(
            f"{name}.least",
            f"α = √(2Δp/(LTσ²)), {name[0]} within 1 + ε of exact SGD's bound: {horizon}",
            -T,
            (-needed,),
            (small,),
            (),
            best_for_exact,
        ),
        {small.name: quotient},
    )
    return (within, converse)


def horizons() -> tuple[Proof, ...]:
    """The horizons of N and of its delayed form W, at the textbook and at exact SGD's best step."""
    general, book = nonconvex()[2].claim, nonconvex()[4].claim
    n = "T ≥ L⁴B⁴p³/(ε²(2Δ + Lσ²)²)"
    w = "T ≥ 4L⁴σ⁴n₁²p³/(ε²(2Δ + Lσ²)²)"
    return (
        *textbook("N.horizon.textbook", ELASTIC_DRIFT, n, book),
        *tuned("N.horizon.tuned", ELASTIC_DRIFT, "T ≥ ΔLB⁴p³/(2ε²σ⁶)", general),
        *textbook("W.horizon.textbook", DELAYED_DRIFT, w, None),
        *tuned("W.horizon.tuned", DELAYED_DRIFT, "T ≥ 2ΔLn₁²p³/(ε²σ²)", None),
    )


def retuned() -> tuple[Proof, ...]:
    """The horizon if each method takes its own best step: the relaxed one x times exact SGD's α₀.

    With D = Sα₀², the relaxed bound is least at xα₀ where 2Cx³α₀ = S(1 − x²), and is 1 + ε times
    2Sα₀ there, 1 + ε = (3 + x²)/(4x). This affords 1/x times more than Cα₀ ≤ 2εS, α₀'s own share.
    """
    D, S, C = start_cost, noise_cost, drift_cost
    step = shrink * best
    small = Hypothesis("2Cx³α₀ ≤ S(1 − x²)", S * (1 - shrink**2) - 2 * C * shrink**3 * best)
    within = Certificate(
        Claim(
            "horizon.retuned",
            "D = Sα₀², α = xα₀, 2Cx³α₀ ≤ S(1 − x²): D/α + Sα + Cα² ≤ (3 + x²)/(4x) · 2Sα₀",
            D / step + S * step + C * step**2,
            ((3 + shrink**2) / (2 * shrink) * S * best,),
            (small,),
            relations=((D, D - S * best**2),),
        ),
        {small.name: best / (2 * shrink)},
    )
    below = Condition("x ≤ 1", 1 - shrink, shrink, 1 / shrink)
    more = Certificate(
        Claim(
            "horizon.more",
            "1 + ε = (3 + x²)/(4x), x ≤ 1: 2ε/x ≤ (1 − x²)/(2x³), so 1/x times more C at least",
            2 * ((3 + shrink**2) / (4 * shrink) - 1) / shrink,
            ((1 - shrink**2) / (2 * shrink**3),),
            (),
            (below,),
        ),
        {},
        (((1 - shrink) ** 3 / (2 * shrink**3), ONE),),
    )
    return (within, more)


def logarithmic() -> tuple[Proof, ...]:
    """S at α = ln T/(cT): T ≥ Y ln T, Y = LB²p/(cεσ²); and T ≥ 2Y(ln(2Y) − 1) is enough for that.

    The second for every Y, so for the longest step's Y = L/c too: ln lies below its tangent at 2Y.
    """
    book = strongly_convex()[5].claim.instance({sigma: noisy})
    long = Hypothesis("T ≥ (LB²p/(cεσ²)) ln T", T - L * B**2 * p * log_T / (c * epsilon * noisy**2))
    within = Certificate(
        Claim(
            "S.horizon",
            "α = ln T/(cT), T ≥ (LB²p/(cεσ²)) ln T: E‖z_T‖² ≤ ‖z_0‖²/T + (1 + ε)σ² ln T/(c²pT)",
            dist_T,
            (dist_0 / T, (1 + epsilon) * noisy**2 * log_T / (c**2 * p * T)),
            (book, long),
            (STRICTLY_CURVED, Condition("cT ≥ L ln T", c * T - L * log_T, T)),
        ),
        {book.name: ONE, long.name: epsilon * noisy**2 * log_T / (c**2 * p * T**2)},
    )
    tangent = Hypothesis("ln T ≤ ln(2Y) + T/(2Y) − 1", log_least + T / (2 * least) - 1 - log_T)
    enough = Hypothesis("T ≥ 2Y(ln(2Y) − 1)", T - 2 * least * (log_least - 1))
    solved = Certificate(
        Claim(
            "horizon.log",
            "T ≥ 2Y(ln(2Y) − 1): T ≥ Y ln T",
            least * log_T,
            (T,),
            (tangent, enough),
        ),
        {tangent.name: least, enough.name: sp.S.Half},
    )
    return (within, solved)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (
        *horizons(),
        *retuned(),
        *logarithmic(),
    )


def bounds() -> tuple[Bound, ...]:
    """Return the horizons of N and W, as lower bounds of the number of steps, and of S."""
    listed = []
    for converse in horizons()[1::2]:
        (needed,) = converse.claim.rhs
        name = converse.claim.name.removesuffix(".least")
        listed.append(
            Bound.of(converse, "T", -needed, name=name, kind="lower", link=lambda least: -least)
        )
    return (*listed, Bound.of(logarithmic()[0], "E‖x_T − x*‖² at α = ln T/(cT)", needs=(B,)))
