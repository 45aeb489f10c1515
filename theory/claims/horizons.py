"""From when on a relaxation costs next to nothing.

Exact SGD's bound is the one with B = 0. A relaxed bound is within 1 + ε of it from some number of
steps on, at the textbook step size and at exact SGD's best one: N, W and C. The horizons of S and P
are in `unrolled_horizons`.
"""

from typing import NamedTuple

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.convex import convex
from theory.claims.nonconvex import nonconvex
from theory.claims.resent import held
from theory.claims.sgd import ONE, STEP, STRICT_STEP
from theory.claims.step_sizes import NOISE_HELD
from theory.induction import Proof
from theory.symbols import (
    B,
    Delta,
    L,
    T,
    alpha,
    best,
    dist_0,
    drift_cost,
    epsilon,
    noise_cost,
    noise_held,
    noisy,
    p,
    root_pT,
    shrink,
    sigma,
    start_cost,
)

Conditions = tuple[Condition, ...]
Relations = tuple[tuple[sp.Symbol, sp.Expr], ...]

ROOT = ((root_pT, root_pT**2 - p * T),)
BOOK = p / root_pT
"""The textbook step size, √(p/T)."""


class System(NamedTuple):
    """A rate 2Δ/(αT) + Lασ²/p + Cα², and what its horizons ask of T, for a reader."""

    name: str
    rate: Claim
    drift: sp.Expr  # C
    for_T: Conditions
    for_alpha: Conditions
    meaning: Relations  # of symbols in C
    book: str
    best: str


SYSTEMS = (
    System(
        "N",
        nonconvex()[2].claim,
        L**2 * B**2,
        (Condition("√(pT) ≥ Lp", root_pT - L * p, root_pT),),
        (STEP,),
        (),
        "T ≥ L⁴B⁴p³/(ε²(2Δ + Lσ²)²)",
        "T ≥ ΔLB⁴p³/(2ε²σ⁶)",
    ),
    System(
        "W",
        held()[0].claim,
        L**2 * noisy**2 * noise_held,
        (),
        (),
        ((noise_held, noise_held - NOISE_HELD),),
        "T ≥ L⁴σ⁴n₁²p³/(ε²(2Δ + Lσ²)²)",
        "T ≥ ΔLn₁²p³/(2ε²σ²)",
    ),
)


def horizon(
    name: str,
    at: str,
    long: Hypothesis,
    rate: Hypothesis,
    *,
    limit: str,
    exact: tuple[sp.Expr, ...],
    drift: sp.Expr,
    factor: sp.Expr,
    conditions: Conditions,
    relations: Relations,
    meaning: Relations = (),
    clear: sp.Expr = ONE,
) -> tuple[Proof, ...]:
    """A rate is within 1 + ε of exact SGD's if, and only if, T is large: C ≤ εE where it is E + C.

    Args:
        name: of the claim; the converse is `name.least`.
        at: the step size, for a reader.
        long: what is asked of T: T − something.
        rate: that something is at most E + C.
        limit: E, for a reader.
        exact: E, term by term.
        drift: C.
        factor: (εE − C)/(T − something), positive.
        conditions: where the rate holds.
        relations: what defines the step size.
        meaning: what defines other symbols of C, for the rate.
        clear: a denominator of C, positive where the rate holds; the converse is free of it.
    """
    within = Certificate(
        Claim(
            name,
            f"{at}, {long.name}: {name[0]} ≤ (1 + ε){limit}",
            rate.source.lhs if rate.source else 0,
            tuple((1 + epsilon) * term for term in exact),
            (rate, long),
            conditions,
            (*relations, *meaning),
        ),
        {rate.name: ONE, long.name: factor},
    )
    spare = sp.cancel(clear * (epsilon * sp.Add(*exact) - drift))
    small = Hypothesis("relaxation ≤ ε · the rest of the bound", spare)
    converse = Certificate(
        Claim(
            f"{name}.least",
            f"{at}, {name[0]} within 1 + ε of exact SGD's bound: {long.name}",
            -T,
            (long.expr - T,),
            (small,),
            (),
            relations,
        ),
        {small.name: 1 / (factor * clear)},
    )
    return (within, converse)


def textbook(system: System) -> tuple[Proof, ...]:
    """At α = √(p/T): T ≥ C²p³/(ε²(2Δ + Lσ²)²) if and only if Cp/T ≤ ε(2Δ + Lσ²)/√(pT)."""
    cost, r, drift = 2 * Delta + L * noisy**2, root_pT, system.drift
    both = epsilon * cost * r + drift * p**2
    return horizon(
        f"{system.name}.horizon.textbook",
        "α = √(p/T)",
        Hypothesis(system.book, T - drift**2 * p**3 / (epsilon**2 * cost**2)),
        system.rate.instance({alpha: BOOK, sigma: noisy}),
        limit="(2Δ + Lσ²)/√(pT)",
        exact=(2 * Delta / r, L * noisy**2 / r),
        drift=drift * p / T,
        factor=p * epsilon**2 * cost**2 / (r**2 * both),
        conditions=system.for_T,
        relations=ROOT,
        meaning=system.meaning,
    )


def tuned(system: System) -> tuple[Proof, ...]:
    """At exact SGD's best step, α² = 2Δp/(LTσ²): T ≥ ΔC²p³/(2ε²L³σ⁶), if and only if.

    Exact SGD's bound is 2Lασ²/p there, and the relaxed one Cα² more.
    """
    drift = system.drift
    needed = sp.cancel(Delta * drift**2 * p**3 / (2 * epsilon**2 * L**3 * noisy**6))
    # T − needed is a difference of squares.
    other = 2 * epsilon * L * noisy**2 + alpha * drift * p
    return horizon(
        f"{system.name}.horizon.tuned",
        "α = √(2Δp/(LTσ²))",
        Hypothesis(system.best, T - needed),
        system.rate.instance({sigma: noisy}),
        limit="·2Lασ²/p",
        exact=(2 * L * alpha * noisy**2 / p,),
        drift=drift * alpha**2,
        factor=alpha * 4 * epsilon**2 * L**2 * noisy**4 / (p * T * other),
        conditions=system.for_alpha,
        relations=((Delta, Delta - L * T * noisy**2 * alpha**2 / (2 * p)),),
        meaning=system.meaning,
    )


def convex_horizons() -> tuple[Proof, ...]:
    """C, whose relaxation costs Lα²B²/(2(1 − αL)): if and only if, at both steps.

    At α = √(p/T), T ≥ pL²(1 + B²p/(ε(‖z_0‖² + σ²)))²; at exact SGD's best, α = ‖z_0‖√p/(σ√T),
    T ≥ (‖z_0‖²pL²/σ²)(1 + B²p/(2εσ²))².
    """
    rate, r, cost = convex()[2].claim, root_pT, dist_0 + noisy**2
    root = L * p * (1 + B**2 * p / (epsilon * cost))  # of T: √(pT) is at least this
    ratio = alpha * L * (1 + B**2 * p / (2 * epsilon * noisy**2))  # at most 1
    step = L * alpha**2 * B**2 / (2 * (1 - alpha * L))
    needed = dist_0 * p * L**2 / noisy**2 * (1 + B**2 * p / (2 * epsilon * noisy**2)) ** 2
    return (
        *horizon(
            "C.horizon.textbook",
            "α = √(p/T)",
            Hypothesis("T ≥ pL²(1 + B²p/(ε(‖z_0‖² + σ²)))²", T - root**2 / p),
            rate.instance({alpha: BOOK, sigma: noisy}),
            limit="(‖z_0‖² + σ²)/(2√(pT))",
            exact=(dist_0 / (2 * r), noisy**2 / (2 * r)),
            drift=step.subs(alpha, BOOK),
            factor=epsilon * cost * p / (2 * r * (r - L * p) * (r + root)),
            conditions=(Condition("√(pT) > Lp", r - L * p, r, strict=True),),
            relations=ROOT,
            clear=r - L * p,
        ),
        *horizon(
            "C.horizon.tuned",
            "α = ‖z_0‖√p/(σ√T)",
            Hypothesis("T ≥ (‖z_0‖²pL²/σ²)(1 + B²p/(2εσ²))²", T - needed),
            rate.instance({sigma: noisy}),
            limit="ασ²/p",
            exact=(alpha * noisy**2 / p,),
            drift=step,
            factor=alpha * epsilon * noisy**2 / (p * (1 - alpha * L) * T * (1 + ratio)),
            conditions=(STRICT_STEP,),
            clear=1 - alpha * L,
            relations=((dist_0, dist_0 - T * noisy**2 * alpha**2 / p),),
        ),
    )


def horizons() -> tuple[Proof, ...]:
    """The horizons of N, W and C, at the textbook step and at exact SGD's best one.

    N relies on a second moment (B = …M); W on none: whatever is held, then delayed (`W.held`).
    """
    smooth = [proof for system in SYSTEMS for proof in (*textbook(system), *tuned(system))]
    return (*smooth, *convex_horizons())


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


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*horizons(), *retuned())


def bounds() -> tuple[Bound, ...]:
    """Return the horizons, as lower bounds of the number of steps."""
    listed = []
    for converse in horizons()[1::2]:
        (needed,) = converse.claim.rhs
        name = converse.claim.name.removesuffix(".least")
        listed.append(
            Bound.of(
                converse,
                "T",
                -needed,
                name=name,
                kind="lower",
                whatever=(alpha, T),
                link=lambda least: -least,
            )
        )
    return tuple(listed)
