"""Error feedback without a bound of the second moment, alone and before a delay."""

from typing import Any

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.missed import (
    CONTRACTS,
    FORGETS,
    feedback_residuals,
    harmonic_sum,
    residual_weight,
    windows,
)
from theory.claims.oblivious import absorbed, rate_bound
from theory.claims.sgd import ONE
from theory.gram import Scalar
from theory.induction import Proof
from theory.symbols import (
    L,
    T,
    alpha,
    backlog,
    gamma,
    harmonic,
    longest,
    memory,
    n,
    p,
    residual_T,
    root_gamma,
    sigma,
    steps,
    tau,
    view_sum,
    visits,
    young,
)

ZERO = sp.S.Zero
ROOT_CONTRACTS = Condition("γ < 1", 1 - root_gamma, root_gamma, 1 / root_gamma, strict=True)
ROOT = ((root_gamma, root_gamma**2 - gamma),)


def with_feedback() -> tuple[Proof, ...]:
    """Error feedback, alone and followed by a delay in order: the two add, without a cross term.

    Alone n₂ = γμ/((μ − γ)(1 − μ)), n₁ = γ/(1 − μ) for every γ < μ < 1: d/k rather than (d/k)².
    Then delayed by τ, for every y > 0, n₂ = (y + τ)τ + (1 + τ/y)n₂(μ) and
    n₁ = (τ/2p)(1 + (y + τ)/(y + 1)) + (1 + τ/y)γ/(1 − μ). μ = √γ and y = β = √γ/(1 − √γ) allow the
    longest steps, n₂ = (τ + β)²; μ = γ + αL and y = 1/(2αL) have less noise at shorter ones.
    """
    r, a, m = root_gamma, alpha * L, alpha * L * tau
    beta = r / (1 - r)
    views, harmonic_claim = windows()[-1].claim, harmonic_sum().claim
    residuals = feedback_residuals()[1].claim
    radical = ((ROOT_CONTRACTS,), ROOT)

    def alone(
        name: str, text: str, mu: Scalar, part: sp.Expr, short: Hypothesis | None, *where: Any
    ) -> Certificate:
        weight = alpha**2 * L**2 * residual_weight(mu, part)
        left = backlog + residual_T / (1 - mu)
        spare = () if short else ((1 - a - weight) * view_sum / L**2,)
        return absorbed(
            name,
            text,
            (gamma / (1 - mu),),
            {short: ONE} if short else {},
            {
                views.instance({steps: T, tau: ZERO, longest: ZERO, harmonic: ZERO}): ONE,
                residuals.instance({steps: T, memory: mu, gamma: part}): ONE,
            },
            (alpha**2 * young * visits, left, *spare),
            *where,
            remark="d/k, not (d/k)², at γ = 1 − k/d",
        )

    plain = Hypothesis("α²L²β² ≤ 1 − αL", 1 - a - a**2 * gamma / (1 - r) ** 2)
    longest_steps = alone(
        "W.feedback",
        "αL + α²L²β² ≤ 1: avg ≤ 2Δ/(αT) + Lασ²/p + L²α²σ²γ/(1 − √γ)",
        r,
        r**2,
        plain,
        *radical,
    )
    less_noise = alone(
        "W.feedback.textbook",
        "α ≤ (1 − γ)/(2L): avg ≤ 2Δ/(αT) + Lασ²/p + L²α²σ²γ/(1 − γ − αL)",
        gamma + a,
        gamma,
        None,
        (CONTRACTS, Condition("2αL ≤ 1 − γ", 1 - gamma - 2 * a, alpha, 1 / alpha)),
    )

    def both(
        name: str,
        text: str,
        y: Scalar,
        k: sp.Symbol,
        mu: Scalar,
        part: sp.Expr,
        noise: tuple[Scalar, ...],
        short: dict[Hypothesis, Scalar],
        rest: tuple[Scalar, ...],
        *where: Any,
        remark: str = "",
    ) -> Certificate:
        price, total = 1 + k / y, y + k
        settings = {young: y, tau: k}
        return absorbed(
            name,
            text,
            (*noise, price * gamma / (1 - mu)),
            short,
            {
                views.instance({steps: T, longest: k, **settings}): ONE,
                harmonic_claim.instance(settings): T * alpha**2 * total * sigma**2 / p,
                residuals.instance({steps: T, memory: mu, gamma: part}): price,
            },
            (alpha**2 * total * visits, price * (backlog + residual_T / (1 - mu)), *rest),
            *where,
            remark=remark,
        )

    def fits(text: str, weight: Scalar) -> dict[Hypothesis, Scalar]:
        return {Hypothesis(text, 1 - a - a**2 * weight): ONE}

    any_split = both(
        "W.both.split",
        "every y, μ: n₁ = (τ/2p)(1 + (y + τ)/(y + 1)) + (1 + τ/y)γ/(1 − μ)",
        young,
        tau,
        memory,
        gamma,
        (tau / (2 * p), tau * (young + tau) / (2 * p * (young + 1))),
        fits(
            "α²L²((y + τ)τ + (1 + τ/y)γμ/((μ − γ)(1 − μ))) ≤ 1 − αL",
            (young + tau) * tau + (1 + tau / young) * residual_weight(memory),
        ),
        (),
        FORGETS,
    )
    beta2 = gamma / (1 - r) ** 2
    sum_ = both(
        "W.both",
        "2α²L²(n² + β²) ≤ 1 − αL: avg ≤ 2Δ/(αT) + Lασ²/p + 2L²α²σ²((3/4)n/p + γ/(1 − √γ))",
        n,
        n,
        r,
        r**2,
        (3 * n / (2 * p),),
        fits("2α²L²(n² + β²) ≤ 1 − αL", 2 * (n**2 + beta2)),
        (T * alpha**2 * sigma**2 * n / (p * (n + 1)),),
        *radical,
        remark="proves, and betters, what was known by hand: staleness and feedback add",
    )
    wide = both(
        "W.both.wide",
        "α²L²(τ + β)² ≤ 1 − αL: n₁ = (τ/2p)(1 + (β + τ)/(β + 1)) + (1 + τ/β)γ/(1 − √γ)",
        beta,
        tau,
        r,
        r**2,
        (tau / (2 * p), tau * (beta + tau) / (2 * p * (beta + 1))),
        fits("α²L²(τ + β)² ≤ 1 − αL", (tau + beta) ** 2),
        (),
        *radical,
        remark="the longest steps: only the sum of both memories counts",
    )
    quarter = Hypothesis("4αLτ ≤ 1", 1 - 4 * m)
    feeds = a**2 * residual_weight(gamma + a)
    textbook = both(
        "W.both.textbook",
        "α ≤ min(1/τ, 1 − γ)/(4L): noise L²α²σ²[(1 + αLτ)τ/p + (1 + 2αLτ)γ/(1 − γ − αL)]",
        1 / (2 * a),
        tau,
        gamma + a,
        gamma,
        (tau * (1 + m) / p,),
        {quarter: sp.Rational(3, 16) + m / 4 + feeds / 2},
        (
            T * alpha**2 * sigma**2 * tau * a * (1 + 2 * m) / (p * (1 + 2 * a)),
            (sp.Rational(13, 16) - a - 3 * feeds / 2) * view_sum / L**2,
        ),
        (CONTRACTS, Condition("4αL ≤ 1 − γ", 1 - gamma - 4 * a, alpha, 1 / alpha)),
    )
    sparse = Certificate(
        Claim(
            "W.sparse",
            "γ/(1 − √γ) ≤ 2γ/(1 − γ): 2(d − k)/k at γ = 1 − k/d",
            r**2 / (1 - r),
            (2 * r**2 / (1 - r**2),),
            (),
            (ROOT_CONTRACTS,),
        ),
        {},
        ((r**2 / (1 + r), ONE),),
    )
    return (longest_steps, less_noise, any_split, sum_, wide, textbook, sparse)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return with_feedback()


def bounds() -> tuple[Bound, ...]:
    """Return the rates with feedback, alone and before a delay."""
    *rates, _ = with_feedback()
    return tuple(rate_bound(proof) for proof in rates)
