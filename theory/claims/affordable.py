"""What relaxation is affordable: how large an elastic constant costs at most a fraction ε.

At any step size, elasticity acts as noise of variance αLB²p at most. So this tells how much delay
or compression the noise hides.
"""

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.convex import convex, strongly_convex
from theory.claims.nonconvex import nonconvex, polyak_lojasiewicz
from theory.claims.sgd import ONE, STEP, STRICT_STEP, STRICTLY_CURVED, Z
from theory.gram import norm2
from theory.induction import Proof
from theory.symbols import (
    B,
    Delta,
    L,
    M,
    T,
    alpha,
    c,
    dist_0,
    dist_next,
    epsilon,
    f_next,
    f_star,
    f_x,
    gamma,
    grad_sum,
    p,
    root_gamma,
    sigma,
    tau,
)


def rates() -> tuple[Proof, ...]:
    """αLB²p ≤ εσ²: elasticity costs no more than a fraction ε of the noise, in N, P and S.

    C asks for αL(B²p + εσ²) ≤ εσ².
    """
    small = Hypothesis("αLB²p ≤ εσ²", epsilon * sigma**2 - alpha * L * B**2 * p)
    noise_term = (1 + epsilon) * alpha**2 * sigma**2 / p
    rate, P_step = nonconvex()[2].claim.instance(), polyak_lojasiewicz()[0].claim.instance()
    S_step, C_rate = strongly_convex()[0].claim, convex()[2].claim.instance()
    K = strongly_convex()[2].claim.lhs
    N_within = Certificate(
        Claim(
            "N.affordable",
            "αLB²p ≤ εσ²: (1/T) Σ E‖∇f(x_t)‖² ≤ 2Δ/(αT) + (1 + ε)Lασ²/p",
            grad_sum / T,
            (2 * Delta / (alpha * T), L * noise_term / alpha),
            (rate, small),
            (STEP,),
        ),
        {rate.name: ONE, small.name: L * alpha / p},
    )
    P_within = Certificate(
        Claim(
            "P.affordable",
            "αLB²p ≤ εσ²: E f(x⁺) − f* ≤ (1 − αc)(f(x) − f*) + (1 + ε)Lα²σ²/(2p)",
            f_next - f_star,
            ((1 - alpha * c) * (f_x - f_star), L * noise_term / 2),
            (P_step, small),
            (STEP,),
        ),
        {P_step.name: ONE, small.name: L * alpha**2 / (2 * p)},
    )
    at_S = S_step.instance()
    S_within = Certificate(
        Claim(
            "S.affordable",
            "αLB²p ≤ εσ²: E‖z⁺‖² ≤ (1 − αc)‖z‖² + (1 + ε)α²σ²/p",
            dist_next,
            ((1 - alpha * c) * norm2(Z), noise_term),
            (at_S, small),
            (STRICTLY_CURVED, STEP),
        ),
        {at_S.name: ONE, small.name: alpha**2 / p},
        ((sp.factor(L - K) * alpha**3, B),),
    )
    smaller = Hypothesis(
        "αL(B²p + εσ²) ≤ εσ²",
        epsilon * sigma**2 - alpha * L * (B**2 * p + epsilon * sigma**2),
    )
    C_within = Certificate(
        Claim(
            "C.affordable",
            "αL(B²p + εσ²) ≤ εσ²: (1/T) Σ E[f(v_t) − f*] ≤ ‖z_0‖²/(2αT) + (1 + ε)ασ²/(2p)",
            convex()[2].claim.lhs,
            (dist_0 / (2 * alpha * T), noise_term / (2 * alpha)),
            (C_rate, smaller),
            (STRICT_STEP,),
        ),
        {C_rate.name: ONE, smaller.name: alpha / (2 * p * (1 - alpha * L))},
    )
    return (N_within, P_within, S_within, C_within)


def relaxations() -> tuple[Proof, ...]:
    """The largest B and delay τ, and the smallest k/d, that cost a fraction ε of the noise.

    B² ≤ εσ²/(αLp); a delay has B = τM; top-k with feedback has B = M√γ/(1 − √γ), γ = 1 − k/d, and
    so k/d ≥ 1 − (B/(M + B))².
    """
    small = Hypothesis(
        "L²α²B² ≤ ε · Lασ²/p", epsilon * L * alpha * sigma**2 / p - L**2 * alpha**2 * B**2
    )
    constant = Certificate(
        Claim(
            "affordable.B",
            "elasticity costs at most ε of the noise: B² ≤ εσ²/(αLp)",
            B**2,
            (epsilon * sigma**2 / (alpha * L * p),),
            (small,),
        ),
        {small.name: 1 / (L**2 * alpha**2)},
    )
    held = constant.claim.instance({B: tau * M})
    delay = Certificate(
        Claim(
            "affordable.delay",
            "B = τM costs at most ε of the noise: τ² ≤ εσ²/(αLpM²)",
            tau**2,
            (epsilon * sigma**2 / (alpha * L * p * M**2),),
            (held,),
        ),
        {held.name: 1 / M**2},
    )
    r, part = root_gamma, B / (M + B)
    square = ((r, r**2 - gamma),)
    feedback = Hypothesis("M√γ ≤ B(1 − √γ)", B * (1 - r) - M * r)
    fraction = Certificate(
        Claim(
            "affordable.topk",
            "γ = 1 − k/d: M√γ/(1 − √γ) ≤ B, so k/d = 1 − γ ≥ 1 − (B/(M + B))²",
            gamma - 1,
            (-(1 - part**2),),
            (feedback,),
            (),
            square,
        ),
        {feedback.name: (part + r) / (M + B)},
    )
    enough = Hypothesis("k/d = 1 − γ ≥ 1 − (B/(M + B))²", part**2 - gamma)
    allowed = Certificate(
        Claim(
            "affordable.topk.enough",
            "γ = 1 − k/d < 1, k/d ≥ 1 − (B/(M + B))²: M√γ/(1 − √γ) ≤ B",
            M * r / (1 - r),
            (B,),
            (enough,),
            (Condition("γ < 1", 1 - r, r, 1 / r, strict=True),),
            square,
        ),
        {enough.name: (M + B) / ((1 - r) * (part + r))},
    )
    return (constant, delay, fraction, allowed)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*rates(), *relaxations())


def bounds() -> tuple[Bound, ...]:
    """Return the largest B and delay, and the smallest k/d, that cost a fraction ε of the noise."""
    constant, delay, fraction, _ = relaxations()
    largest = sigma * sp.sqrt(epsilon / (alpha * L * p))
    return (
        Bound.of(constant, "affordable B", largest, whatever=(B,), link=lambda bound: bound**2),
        Bound.of(delay, "affordable τ", largest / M, whatever=(tau,), link=lambda bound: bound**2),
        Bound.of(
            fraction,
            "affordable k/d",
            1 - (B / (M + B)) ** 2,
            kind="lower",
            whatever=(gamma,),
            link=lambda share: -share,
        ),
    )
