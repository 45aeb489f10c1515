"""The step sizes at which the rates are least, and the rates there.

The shapes of `tuning`, with the rates' coefficients: N, W and C. S and P are in `unrolled`.
"""

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition
from theory.claims import tuning
from theory.claims.convex import convex
from theory.claims.nonconvex import AVERAGE, nonconvex
from theory.claims.resent import held
from theory.claims.sgd import ONE, STEP, STRICT_STEP
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
    grad_sum,
    noise_cost,
    noise_held,
    noisy,
    p,
    sigma,
    start_cost,
)

BEST_STEP = Condition("α*L ≤ 1", 1 - best * L, best, 1 / best)
NOISE_HELD = sp.Add(*(term / (L**2 * alpha**2 * sigma**2) for term in held()[0].claim.rhs[2:]))
"""n₁ of W, for whatever is held, then delayed."""


def best_steps() -> tuple[Proof, ...]:
    """The step sizes at which N, W and C are least; and N and W there.

    N: 2L²B²α³ + Lσ²α²/p = 2Δ/T, where it is 2Lσ²α/p + 3L²B²α². In closed form: without elasticity
    α = √(2Δp/(LTσ²)) and 2√(2ΔLσ²/(pT)); without noise α = (Δ/(L²B²T))^⅓ and 3(LBΔ/T)^⅔. W has
    n₁σ² for B².
    """
    cubic, _, _, edge = tuning.cubic()
    rate = nonconvex()[2]
    found: list[Proof] = []
    cost = {start_cost: 2 * Delta / T, noise_cost: L * sigma**2 / p}
    meaning = ((noise_held, noise_held - NOISE_HELD),)
    optimal: list[Certificate] = []
    for name, source, square, relations in (
        ("N", rate.claim, B**2, ()),
        ("W.held", held()[0].claim, sigma**2 * noise_held, meaning),
    ):
        drift, of = L**2 * square, "B²" if name == "N" else "n₁σ²"
        least_bound = cubic.claim.instance({**cost, drift_cost: drift})
        terms = (2 * Delta / (alpha * T), L * alpha * sigma**2 / p, drift * alpha**2)
        balance = Delta - T * (2 * drift * best**3 + L * sigma**2 * best**2 / p) / 2
        stationary = (Delta, balance)
        found.append(
            Certificate(
                Claim(
                    f"{name}.best",
                    f"2L²{of}α*³ + Lσ²α*²/p = 2Δ/T: {name} at α* ≤ {name} at α",
                    sp.Add(*terms).subs(alpha, best),
                    terms,
                    (least_bound,),
                    relations=(stationary,),
                ),
                {least_bound.name: ONE},
            )
        )
        at_best = source.instance({alpha: best})
        optimal.append(
            Certificate(
                Claim(
                    f"{name}.optimal",
                    f"2L²{of}α*³ + Lσ²α*²/p = 2Δ/T: avg E‖∇f(x_t)‖² ≤ 2Lσ²α*/p + 3L²{of}α*²",
                    grad_sum / T,
                    (2 * L * sigma**2 * best / p, 3 * drift * best**2),
                    (at_best,),
                    (BEST_STEP,) if source.conditions else (),
                    (stationary, *relations),
                ),
                {at_best.name: ONE},
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
    ((_, stationary),) = optimal[0].claim.relations
    without_B, without_noise = (optimal[0].claim.instance({zero: 0}) for zero in (B, sigma))
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
    return (*found, longest, *optimal, exact, noiseless, convex_best)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return best_steps()


def bounds() -> tuple[Bound, ...]:
    """Return N at its best step without elasticity and without noise."""
    *_, exact, noiseless, _ = best_steps()
    root = sp.sqrt(2 * Delta * p / (L * T)) / noisy
    return (
        Bound.of(exact, f"{AVERAGE} at its best step, B = 0", values={best: root, sigma: noisy}),
        Bound.of(
            noiseless,
            f"{AVERAGE} at its best step, σ = 0",
            values={best: sp.cbrt(Delta / (L**2 * B**2 * T))},
        ),
    )
