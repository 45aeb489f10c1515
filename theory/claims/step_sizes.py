"""The step sizes at which the rates are least, and the rates there.

The shapes of `tuning`, with the rates' coefficients: N and its delayed form, C, S, P.
"""

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims import tuning
from theory.claims.convex import convex, strongly_convex
from theory.claims.nonconvex import AVERAGE, nonconvex, polyak_lojasiewicz
from theory.claims.sgd import CURVED, ONE, STEP, STRICT_STEP, STRICTLY_CURVED
from theory.induction import Proof
from theory.symbols import (
    B,
    Delta,
    L,
    T,
    alpha,
    best,
    c,
    decay,
    decay_best,
    dist_0,
    dist_T,
    drift_cost,
    f_0,
    f_star,
    f_T,
    grad_sum,
    noise_cost,
    noise_held,
    noisy,
    p,
    sigma,
    start_cost,
)

BEST_STEP = Condition("α*L ≤ 1", 1 - best * L, best, 1 / best)
DELAYED = 2 * L**2 * sigma**2 * noise_held
"""The coefficient of α² where noise is held but no second moment is bounded."""


def best_steps() -> tuple[Proof, ...]:
    """The step sizes at which N, its delayed form and C are least; and N there.

    N: 2L²B²α³ + Lσ²α²/p = 2Δ/T, where it is 2Lσ²α/p + 3L²B²α². In closed form: without elasticity
    α = √(2Δp/(LTσ²)) and 2√(2ΔLσ²/(pT)); without noise α = (Δ/(L²B²T))^⅓ and 3(LBΔ/T)^⅔.
    """
    cubic, _, _, edge = tuning.cubic()
    rate = nonconvex()[2]
    found: list[Proof] = []
    cost = {start_cost: 2 * Delta / T, noise_cost: L * sigma**2 / p}
    for name, text, drift in (
        ("N.best", "2L²B²α*³ + Lσ²α*²/p = 2Δ/T: N at α* ≤ N at α", L**2 * B**2),
        ("N.delayed.best", "4L²σ²n₁α*³ + Lσ²α*²/p = 2Δ/T: N with B² = 2σ²n₁, likewise", DELAYED),
    ):
        least_bound = cubic.claim.instance({**cost, drift_cost: drift})
        terms = (2 * Delta / (alpha * T), L * alpha * sigma**2 / p, drift * alpha**2)
        stationary = Delta - T * (2 * drift * best**3 + L * sigma**2 * best**2 / p) / 2
        found.append(
            Certificate(
                Claim(
                    name,
                    text,
                    sp.Add(*terms).subs(alpha, best),
                    terms,
                    (least_bound,),
                    relations=((Delta, stationary),),
                ),
                {least_bound.name: ONE},
            )
        )
    at_edge = edge.claim.instance({**cost, drift_cost: L**2 * B**2, best: 1 / L})
    terms = rate.claim.rhs
    longest = Certificate(
        Claim(
            "N.edge",
            "2B²/L + σ²/(Lp) ≤ 2Δ/T: N at 1/L ≤ N at every αL ≤ 1",
            sp.Add(*terms).subs(alpha, 1 / L),
            terms,
            (at_edge,),
            (STEP,),
        ),
        {at_edge.name: ONE},
    )
    at_best = rate.claim.instance({alpha: best})
    stationary = Delta - T * (2 * L**2 * B**2 * best**3 + L * sigma**2 * best**2 / p) / 2
    optimal = Certificate(
        Claim(
            "N.optimal",
            "2L²B²α*³ + Lσ²α*²/p = 2Δ/T: (1/T) Σ E‖∇f(x_t)‖² ≤ 2Lσ²α*/p + 3L²B²α*²",
            grad_sum / T,
            (2 * L * sigma**2 * best / p, 3 * L**2 * B**2 * best**2),
            (at_best,),
            (BEST_STEP,),
            ((Delta, stationary),),
        ),
        {at_best.name: ONE},
    )
    without_B, without_noise = optimal.claim.instance({B: 0}), optimal.claim.instance({sigma: 0})
    exact = Certificate(
        Claim(
            "N.optimal.exact",
            "B = 0, α* = √(2Δp/(LTσ²)): (1/T) Σ E‖∇f(x_t)‖² ≤ 2Lσ²α*/p = 2√(2ΔLσ²/(pT))",
            grad_sum / T,
            (2 * L * sigma**2 * best / p,),
            (without_B,),
            (BEST_STEP,),
            ((Delta, stationary.subs(B, 0)),),
        ),
        {without_B.name: ONE},
    )
    noiseless = Certificate(
        Claim(
            "N.optimal.noiseless",
            "σ = 0, α* = (Δ/(L²B²T))^⅓: (1/T) Σ ‖∇f(x_t)‖² ≤ 3L²B²α*² = 3(LBΔ/T)^⅔",
            grad_sum / T,
            (3 * L**2 * B**2 * best**2,),
            (without_noise,),
            (BEST_STEP,),
            ((Delta, stationary.subs(sigma, 0)),),
        ),
        {without_noise.name: ONE},
    )
    values = {
        start_cost: dist_0 / (2 * T),
        noise_cost: sigma**2 / (2 * p),
        drift_cost: L * B**2 / 2,
    }
    rational, terms = tuning.rational()[0].claim.instance(values), convex()[2].claim.rhs
    balance = sigma**2 / p + L * B**2 * best * (2 - best * L) / (1 - best * L) ** 2
    convex_best = Certificate(
        Claim(
            "C.best",
            "σ²α*²/p + LB²α*³(2 − α*L)/(1 − α*L)² = ‖z_0‖²/T: C at α* ≤ C at α",
            sp.Add(*terms).subs(alpha, best),
            terms,
            (rational,),
            (STRICT_STEP, Condition("α*L < 1", 1 - best * L, best, 1 / best, strict=True)),
            ((dist_0, dist_0 - T * best**2 * balance),),
        ),
        {rational.name: ONE},
    )
    return (*found, longest, optimal, exact, noiseless, convex_best)


def best_steps_unrolled() -> tuple[Proof, ...]:
    """S and P, unrolled, without what the floor lacks after T steps; and where they are least.

    S: c²T(1 − αc)^(T−1)‖z_0‖² = σ²/p + 2LB²α; P: 2c²T(1 − αc)^(T−1)Δ = Lσ²/p + 2L²B²α.
    """
    minimum = tuning.power()[1]
    unrolled = strongly_convex()[4].claim.instance()
    K = strongly_convex()[2].claim.lhs
    S_terms = (decay * dist_0, alpha * sigma**2 / (c * p), L * alpha**2 * B**2 / c)
    K_terms = alpha * sigma**2 / (c * p) + K * alpha**2 * B**2 / c
    S_simple = Certificate(
        Claim(
            "S.simple",
            "E‖z_T‖² ≤ (1 − αc)^T ‖z_0‖² + ασ²/(cp) + Lα²B²/c",
            dist_T,
            S_terms,
            (unrolled,),
            (STRICTLY_CURVED, STEP),
        ),
        {unrolled.name: ONE},
        ((decay * K_terms, ONE), (sp.factor(L - K) * alpha**2 / c, B)),
    )
    descended = polyak_lojasiewicz()[1].claim.instance()
    gap = Hypothesis("Δ ≥ f(x_0) − f*", Delta - f_0 + f_star)
    P_terms = (
        decay * Delta,
        L * alpha * sigma**2 / (2 * c * p),
        L**2 * alpha**2 * B**2 / (2 * c),
    )
    P_simple = Certificate(
        Claim(
            "P.simple",
            "E f(x_T) − f* ≤ (1 − αc)^T Δ + Lασ²/(2cp) + L²α²B²/(2c)",
            f_T - f_star,
            P_terms,
            (descended, gap),
            (CURVED, STEP),
        ),
        {descended.name: ONE, gap.name: decay},
        ((decay * (P_terms[1] + P_terms[2]), ONE),),
    )
    shorter = (tuning.SHORT, tuning.SHORT_BEST)
    found: list[Proof] = [S_simple, P_simple]
    for name, text, terms, start in (
        ("S.best", "c²T(1 − α*c)^(T−1)‖z_0‖² = σ²/p + 2LB²α*: S.simple", S_terms, dist_0),
        ("P.best", "2c²T(1 − α*c)^(T−1)Δ = Lσ²/p + 2L²B²α*: P.simple", P_terms, Delta),
    ):
        costs = {
            start_cost: start,
            noise_cost: terms[1] / alpha,
            drift_cost: terms[2] / alpha**2,
        }
        at_best = minimum.claim.instance(costs)
        slope = start * c * T * decay_best - 2 * costs[drift_cost] * best
        stationary = sigma**2 - sp.expand(slope * sigma**2 / costs[noise_cost])
        found.append(
            Certificate(
                Claim(
                    name,
                    f"{text} is least at α*",
                    sp.sympify(minimum.claim.lhs).subs(list(costs.items())),
                    terms,
                    (at_best,),
                    shorter,
                    ((sigma, stationary),),
                ),
                {at_best.name: ONE},
            )
        )
    return tuple(found)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (
        *best_steps(),
        *best_steps_unrolled(),
    )


def bounds() -> tuple[Bound, ...]:
    """Return N at its best step without elasticity and without noise; S and P, simplified."""
    *_, exact, noiseless, _ = best_steps()
    S_simple, P_simple, *_ = best_steps_unrolled()
    power = {decay: (1 - alpha * c) ** T}
    root = sp.sqrt(2 * Delta * p / (L * T)) / noisy
    return (
        Bound.of(exact, f"{AVERAGE} at its best step, B = 0", values={best: root, sigma: noisy}),
        Bound.of(
            noiseless,
            f"{AVERAGE} at its best step, σ = 0",
            values={best: sp.cbrt(Delta / (L**2 * B**2 * T))},
        ),
        Bound.of(S_simple, "E‖x_T − x*‖²", values=power),
        Bound.of(P_simple, "E f(x_T) − f*", values=power),
    )
