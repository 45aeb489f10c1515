"""Compression without error feedback at stale views: x⁺ = x − α mean_i C(∇f(v_i) + ξ_i).

A γ-contraction leaves a floor of γσ²/(1 − γ), and elastic views one of L²α²B²: together no more
than (σ√(γ/(1 − γ)) + LαB)², which some noise and some views attain. If the messages are late, B
counts messages, and those are compressed. With feedback there is no floor, but a price:
`feedback.price` weighs it, and `.all` what a delay adds besides, against the floor; neither weighs
a whole rate.
"""

from dataclasses import replace

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.compression import CONTRACTS, LEFT, smooth
from theory.claims.nonconvex import AVERAGE, telescope
from theory.claims.sgd import ELASTIC, LIPSCHITZ, ONE, QUIET, SPREAD, STEP, XI, A, G
from theory.gram import mean, norm2
from theory.induction import Proof
from theory.symbols import (
    B,
    L,
    alpha,
    beta,
    d,
    f_next,
    f_x,
    gamma,
    k,
    n,
    noise_size,
    p,
    sigma,
    split,
    view_grad,
)


def no_feedback() -> tuple[Proof, ...]:
    """Any γ-contraction at elastic views, f smooth and bounded below, αL ≤ 1, every ζ > 0.

    avg E‖∇f(x)‖² ≤ [2Δ/(αT) + (1 + ζ)(γ + (αL/p)/(1 + ζ − αL))σ²]/(1 − γ) + (1 + 1/ζ)L²α²B²:
    `nofeedback.any` with staleness, under its condition, γ(1 − αL + ζ) ≤ 1 − αL. What is left out,
    ‖r‖² ≤ γ(‖g‖² + σ²), weighs m = 1 + ζ, staleness ‖a − g‖² ≤ L²α²B² weighs (1 − γ)m/ζ; what the
    gradients leave is a multiple of ‖a − mg‖²: at worst, views see 1/m of the gradient.
    """
    a, m = alpha * L, 1 + split
    update = mean(G + XI - LEFT, p)
    contracts = Hypothesis("E‖C(y) − y‖² ≤ γ‖y‖²", gamma * norm2(G + XI) - norm2(LEFT))
    noise, stale = m * (gamma + a / (p * (m - a))), (1 - gamma) * m / split
    slope, half = alpha * (1 - gamma) / 2, alpha / 2
    spare = (1 - a) - gamma * (1 - a + split)
    fits = Condition("γ(1 − αL + ζ) ≤ 1 − αL", spare, gamma, 1 / gamma)
    step = Certificate(
        Claim(
            "nofeedback.stale.step",
            "(α/2)(1 − γ)‖∇f‖² ≤ f(x) − E f(x⁺) + (α/2)[(…)σ² + (1 − γ)(1 + 1/ζ)L²α²B²]",
            slope * norm2(A),
            (f_x - f_next, half * noise * sigma**2, half * stale * L**2 * alpha**2 * B**2),
            (smooth(update), contracts, LIPSCHITZ, ELASTIC, QUIET),
            (STEP, fits),
        ),
        {
            "f is L-smooth": ONE,
            contracts.name: half * m,
            LIPSCHITZ.name: half * stale,
            ELASTIC.name: half * stale * L**2,
            QUIET.name: half * noise,
        },
        (
            (
                half * (m - a),
                mean(LEFT, p) - (A - mean(G, p) * a) * (1 / (m - a)) + mean(XI, p) * (a / (m - a)),
            ),
            (half * m, LEFT - mean(LEFT, p)),
            (half * (stale - m * gamma), SPREAD),
            (half * spare / (split * (m - a)), A - mean(G, p) * m),
        ),
    )
    total, rate = telescope(
        step.claim,
        (
            "(α/2)(1 − γ) Σ_{t<T} E‖∇f‖² ≤ f(x_0) − E f(x_T) + T·(noise and staleness of a step)",
            "avg ≤ [2Δ/(αT) + (1 + ζ)(γ + (αL/p)/(1 + ζ − αL))σ²]/(1 − γ) + (1 + 1/ζ)L²α²B²",
        ),
        slope,
    )
    return (step, total, rate)


def floor() -> tuple[Proof, ...]:
    """The floor is attained: f = (L/2) Σ_{j>k} x_j², noise ±s on entries 1…k, |∂_j f(v)| = s.

    Views that stay a constant e_j nearer to x* in the other d − k entries see |∂_j f(v)| = s where
    |∂_j f(x)| = s + Le_j. Top-k (γ = 1 − k/d) sends noise only, and nothing ever moves.
    """
    share, variance, away = 1 - k / d, k * noise_size**2, (d - k) * view_grad**2
    zeta = L * view_grad / noise_size
    return (
        Certificate(
            Claim(
                "nofeedback.stale.attained",
                "γ = 1 − k/d, best ζ: ‖∇f(x)‖² = (1 + ζ)γσ²/(1 − γ) + (1 + 1/ζ)L²α²B²",
                (d - k) * (noise_size + L * view_grad) ** 2,
                (
                    (1 + zeta) * share * variance / (1 - share),
                    (1 + 1 / zeta) * L**2 * away,
                ),
                equality=True,
                remark="(σ√(γ/(1 − γ)) + LαB)², at ζ = LαB√(1 − γ)/(σ√γ), for all α, T and p",
            ),
            {},
        ),
    )


def comparison() -> tuple[Proof, ...]:
    """What feedback costs at stale views, n = τ ≥ 1 steps late, against the floor without it.

    W.both asks for 2α²L²(n² + β²) ≤ 1 − αL, β = √γ/(1 − √γ). Then feedback's part of its bound is
    below γσ²/(1 − γ), whatever else αL is; and so is all that staleness and feedback add if γ is
    at least 0.2728 (top-k of at most 72%), or, with more workers, less: 0.146 with 4, 0.0525 with
    16. It is not at γ = 0.25 and p = 1. What exact SGD itself costs is on neither side. The floor
    is attained at any delay: nothing moves there.

    As 1/(αL) ≥ (1 + √(1 + 8(n² + β²)))/2 ≥ Y, where 2Y − 1 = 2rs/(s + r²) ≤ √s, s = 9 + 8β² and
    r = 13/3, near where that is sharp for p = 1, what is left grows with n ≥ 1.
    """
    a, below = alpha * L, beta**2 / (1 + 2 * beta)  # γ/(1 − γ)
    fits = Hypothesis("2α²L²(n² + β²) ≤ 1 − αL", 1 - a - 2 * a**2 * (n**2 + beta**2))
    memory, whole = 2 * a**2 * beta**2 / (1 + beta), Condition("n ≥ 1", n - 1, n)
    per = beta**2 * sigma**2 / ((1 + beta) * (1 + 2 * beta))
    price = Certificate(
        Claim(
            "feedback.price.late",
            "n ≥ 1, 2α²L²(n² + β²) ≤ 1 − αL: 2L²α²σ²γ/(1 − √γ) ≤ γσ²/(1 − γ)",
            memory * sigma**2,
            (below * sigma**2,),
            (fits,),
            (whole,),
            remark="feedback's price at any delay that W.both allows; β = √γ/(1 − √γ)",
        ),
        {fits.name: per * (1 + beta + a)},
        (
            (per, a * (1 - beta)),
            (per * a * (beta + a * beta**2 + 2 * a * beta**3 + 2 * a**2 * (1 + beta**2)), ONE),
            (per * 2 * (1 + beta + a) * (n**2 - 1), a),
        ),
    )
    s = 9 + 8 * beta**2
    Y = (1 + 78 * s / (9 * s + 169)) / 2
    spare = below * (Y + 2 + 2 * beta**2) - 2 * beta**2 / (1 + beta)
    many = Hypothesis(
        "3/(2p) ≤ (Y + 2 + 2β²)γ/(1 − γ) − 2γ/(1 − √γ), 2Y − 1 = 78s/(9s + 169), s = 9 + 8β²",
        spare - sp.Rational(3, 2) / p,
    )
    enough = Hypothesis("3/(2p) ≤ 4γ/(1 − γ)", 4 * below - sp.Rational(3, 2) / p)
    shorter = below * sigma**2 * a / (1 + (Y - 1) * a)
    every = Certificate(
        Claim(
            "feedback.price.all",
            "2α²L²(n² + β²) ≤ 1 − αL, p many: (3n/(2p) + 2γ/(1 − √γ))L²α²σ² ≤ γσ²/(1 − γ)",
            ((3 * n / (2 * p)) * a**2 + memory) * sigma**2,
            (below * sigma**2,),
            (fits, many, enough),
            (whole,),
            remark="for every p if γ ≥ 0.2728; only what W.both adds to exact SGD",
        ),
        {
            fits.name: below * sigma**2 + shorter,
            many.name: a**2 * sigma**2,
            enough.name: a**2 * sigma**2 * (n - 1),
        },
        (
            (shorter * 2 * (n**2 - 1), a),
            (shorter * (2 + 2 * beta**2 - Y**2 + Y), a),
            (2 * below * sigma**2, a * (n - 1)),
        ),
    )
    third, step = sp.Rational(1, 3), sp.Rational(3, 8)
    few = Certificate(
        Claim(
            "feedback.price.few",
            "γ = 1/4, n = p = 1, αL = 3/8: (3/2 + 2γ/(1 − √γ))L²α²σ² = γσ²/(1 − γ) + 7σ²/384",
            (sp.Rational(3, 2) + 1) * step**2 * sigma**2,
            (third * sigma**2, sp.Rational(7, 384) * sigma**2),
            equality=True,
            remark="refutes: feedback.price.all for every γ and p; 2α²L²(n² + β²) = 9/16 ≤ 5/8",
        ),
        {},
    )
    return (price, every, few)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*no_feedback(), *floor(), *comparison())


def bounds() -> tuple[Bound, ...]:
    """Return the rate without feedback, the floor that it may have, and what feedback costs."""
    (attained,), (price, every, _) = floor(), comparison()
    root = sp.sqrt(gamma)
    held = {beta: root / (1 - root)}
    lowest = (L * alpha * B + sigma * root / sp.sqrt(1 - gamma)) ** 2
    return (
        Bound.of(no_feedback()[-1], AVERAGE),
        Bound("nofeedback.stale.floor", AVERAGE, (lowest,), attained, "lower", (CONTRACTS,)),
        *(
            replace(
                Bound.of(proof, added, values=held, needs=needs, where=(CONTRACTS,)),
                terms=(gamma * sigma**2 / (1 - gamma),),
            )
            for proof, added, needs in (
                (price, "what feedback adds behind a delay, 2L²α²σ²γ/(1 − √γ)", (alpha, L, n)),
                (
                    every,
                    "what feedback and a delay add to exact SGD, L²α²σ²(3n/(2p) + 2γ/(1 − √γ))",
                    (alpha, L, n, p),
                ),
            )
        ),
    )
