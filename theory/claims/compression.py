"""Compression without error feedback: x⁺ = x − α mean_i C(∇f(x) + ξ_i), and what feedback costs.

A biased compressor may stop far from a stationary point: a γ-contraction leaves a floor of
γσ²/(1 − γ), which some noise attains; `topk` shows what keeps top-k from it. With feedback
there is no floor, at the price of a term that is never larger if αL ≤ 1/2.
"""

from dataclasses import replace

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.constants import ROOT_CONTRACTS
from theory.claims.nonconvex import AVERAGE, telescope
from theory.claims.sgd import HALF_STEP, ONE, QUIET, STRICT_STEP, XI, A, smooth
from theory.gram import mean, norm2, per_worker
from theory.induction import Proof
from theory.symbols import (
    Delta,
    L,
    T,
    alpha,
    d,
    excess,
    f_next,
    f_x,
    gamma,
    grad_sum,
    k,
    noise_size,
    p,
    root_gamma,
    root_p,
    sigma,
)

CONTRACTS = Condition("γ < 1", 1 - gamma, gamma, 1 / gamma, strict=True)

# What a worker's compressor leaves out: it depends on the noise.
LEFT = per_worker("r", after=XI)


def no_feedback() -> tuple[Proof, ...]:
    """Any γ-contraction, f smooth and bounded below, αL < 1, u ≥ 0, γ(1 − αL + u) < 1 − αL.

    (1/T) Σ E‖∇f(x_t)‖² ≤ [2Δ/(αT) + (1 + u)(γ + (αL/p)/(1 + u − αL))σ²]/(1 − γ). What is left out,
    r, has ‖r‖² ≤ γ(‖a‖² + σ²), and 2⟨a, r⟩ ≤ ‖a‖² + ‖r‖²; weighing the former 1 + u times leaves
    a square in r that pays for what r and the noise do together. u = 0 is best for short steps:
    the floor γσ²/(1 − γ) stays as α → 0. In between, u = αL(1 + 1/√(γp)) − 1.
    """
    update = mean(A + XI - LEFT, p)
    contracts = Hypothesis("E‖C(y) − y‖² ≤ γ‖y‖²", gamma * norm2(A + XI) - norm2(LEFT))
    m, weight = alpha * L, 1 + excess
    noise = weight * (gamma + m / (p * (weight - m)))
    spare = (1 - m) * (1 - gamma) - gamma * excess
    slope = alpha * (1 - gamma) / 2
    fits = Condition("γ(1 − αL + u) ≤ 1 − αL", spare, gamma, 1 / gamma)
    step = Certificate(
        Claim(
            "nofeedback.any.step",
            "(α/2)(1 − γ)‖∇f‖² ≤ f(x) − E f(x⁺) + (α/2)(1 + u)(γ + (αL/p)/(1 + u − αL))σ²",
            slope * norm2(A),
            (f_x - f_next, alpha / 2 * noise * sigma**2),
            (smooth(update), contracts, QUIET),
            (STRICT_STEP, fits),
        ),
        {
            "f is L-smooth": ONE,
            contracts.name: alpha / 2 * weight,
            QUIET.name: alpha / 2 * noise,
        },
        (
            (
                alpha / 2 * (weight - m),
                mean(LEFT, p) - A * ((1 - m) / (weight - m)) + mean(XI, p) * (m / (weight - m)),
            ),
            (alpha / 2 * weight, LEFT - mean(LEFT, p)),
            (alpha / 2 * excess * spare / (weight - m), A),
        ),
    )
    total, rate = telescope(
        step.claim,
        (
            "(α/2)(1 − γ) Σ_{t<T} E‖∇f‖² ≤ f(x_0) − E f(x_T) + T·(noise of a step)",
            "(1/T) Σ E‖∇f‖² ≤ [2Δ/(αT) + (1 + u)(γ + (αL/p)/(1 + u − αL))σ²]/(1 − γ)",
        ),
        slope,
        conditions=(STRICT_STEP, replace(fits, text="γ(1 − αL + u) < 1 − αL", strict=True)),
    )
    plain = rate.claim.instance({excess: sp.S.Zero})
    short = Certificate(
        Claim(
            "nofeedback",
            "(1/T) Σ E‖∇f(x_t)‖² ≤ [2Δ/(αT) + γσ² + (αLσ²/p)/(1 − αL)]/(1 − γ)",
            grad_sum / T,
            (
                2 * Delta / (alpha * T * (1 - gamma)),
                gamma * sigma**2 / (1 - gamma),
                m * sigma**2 / (p * (1 - m) * (1 - gamma)),
            ),
            (plain,),
            (STRICT_STEP, CONTRACTS),
            remark="proves, and betters, 2αLσ²/p for αL ≤ 1/2, known by hand",
        ),
        {plain.name: ONE},
    )
    r, w = root_gamma, root_p
    chosen = m * (1 + 1 / (r * w)) - 1
    best = Certificate(
        Claim(
            "nofeedback.best",
            "u = αL(1 + 1/√(γp)) − 1: (1 + u)(γ + (αL/p)/(1 + u − αL)) = αL(√γ + 1/√p)²",
            noise.subs({excess: chosen, gamma: r**2, p: w**2}),
            (m * (r + 1 / w) ** 2,),
            equality=True,
            remark="u ≥ 0 from αL = √(γp)/(1 + √(γp)) on; with γ = 0 this is exact SGD's αLσ²/p",
        ),
        {},
    )
    return (step, total, rate, short, best)


def floor() -> tuple[Proof, ...]:
    """The floor γσ²/(1 − γ) is attained: f = (L/2) Σ_{j>k} x_j², noise ±s on entries 1…k.

    With |∂_j f| = s on the d − k other entries, top-k (γ = 1 − k/d) sends noise only, whatever
    α, T and p are: it never moves an entry on which f depends, and ‖∇f‖² stays γσ²/(1 − γ).
    """
    share, variance, gradient = 1 - k / d, k * noise_size**2, (d - k) * noise_size**2
    extreme = Certificate(
        Claim(
            "nofeedback.extreme",
            "noise ±s on k entries, |∂_j f| = s on the others: ‖top_k(y) − y‖² = (1 − k/d)‖y‖²",
            gradient,
            (share * (gradient + variance),),
            equality=True,
        ),
        {},
    )
    attained = Certificate(
        Claim(
            "nofeedback.attained",
            "noise ±s on k entries, |∂_j f| = s on the others: ‖∇f‖² = γσ²/(1 − γ), γ = 1 − k/d",
            gradient,
            (share * variance / (1 - share),),
            equality=True,
            remark="attains the floor of nofeedback at every α, T and p: top-k sends noise only",
        ),
        {},
    )
    return (extreme, attained)


def feedback_price() -> tuple[Proof, ...]:
    """What feedback's memory adds to the bound is below the floor without it, for αL ≤ 1/2."""
    r = root_gamma
    price, without = 2 * L**2 * alpha**2 * r**2 * sigma**2 / (1 - r), r**2 * sigma**2 / (1 - r**2)
    order = Certificate(
        Claim(
            "feedback.price",
            "2L²α²σ²γ/(1 − √γ) ≤ γσ²/(1 − γ)",
            price,
            (without,),
            (),
            (HALF_STEP, ROOT_CONTRACTS),
        ),
        {},
        ((r**2 * sigma**2 * (1 - 2 * L**2 * alpha**2 * (1 + r)) / (1 - r**2), ONE),),
    )
    return (order,)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*no_feedback(), *floor(), *feedback_price())


def bounds() -> tuple[Bound, ...]:
    """Return the rate without feedback, the floor that it may have, and the price of feedback."""
    _, _, rate, short, _ = no_feedback()
    attained = floor()[1]
    (price,) = feedback_price()
    lowest = gamma * sigma**2 / (1 - gamma)
    return (
        Bound.of(rate, AVERAGE),
        Bound.of(short, AVERAGE),
        Bound("nofeedback.floor", AVERAGE, (lowest,), attained, "lower", (CONTRACTS,)),
        Bound.of(price, "what feedback adds, 2L²α²σ²γ/(1 − √γ)"),
    )
