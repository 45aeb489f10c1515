"""Elastic constants of systems that save communication: feedback, schedulers, compression."""

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.constants import (
    H_NEXT,
    NORM_H,
    NORM_H_NEXT,
    ROOT,
    ROOT_CONTRACTS,
    H,
    U,
    contraction,
    elastic,
    window_of,
)
from theory.claims.sgd import QUIET, XI
from theory.gram import Vector, noise, norm2, vector
from theory.induction import SO_FAR, Induction, Proof
from theory.symbols import (
    L,
    M,
    alpha,
    b,
    code_var,
    gamma,
    missing,
    n,
    noise_sum,
    omega,
    p,
    rho,
    root_gamma,
    sigma,
    worst,
)

ONE, ZERO = sp.S.One, sp.S.Zero
SIZE2 = (alpha * M) ** 2
NORM_U = norm2(U)


def contracted(
    name: str,
    text: str,
    h: Vector,
    u: Vector,
    shrinks: Hypothesis,
    bounded: Hypothesis,
    r: sp.Expr,
    conditions: tuple[Condition, ...],
    relations: tuple[tuple[sp.Symbol, sp.Expr], ...] = (),
) -> Induction:
    """Return ‖h‖² ≤ (αMr/(1 − r))² from h_0 = 0, ‖h⁺‖² ≤ r²‖h + u‖² and ‖u‖² ≤ α²M²."""
    limit2 = (alpha * M * r / (1 - r)) ** 2
    return Induction(
        name,
        text,
        lambda held2: (held2, (limit2,)),
        start=(ZERO,),
        now=(norm2(h),),
        following=(NORM_H_NEXT,),
        start_by=((), {}, ((limit2, ONE),)),
        step_by=(
            (shrinks, bounded),
            {shrinks.name: ONE, bounded.name: r**2 / (1 - r), SO_FAR: r},
            ((r * (1 - r), h - u * (r / (1 - r))),),
        ),
        conditions=conditions,
        relations=relations,
    )


def error_feedback() -> tuple[Proof, ...]:
    """Error feedback with a γ-contraction: B = M√γ/(1 − √γ), and how it compares.

    The fixed Young parameter 1 − γ gives M√(γ(2 − γ)/(1 − γ)³) instead. That classic constant is
    never smaller, and for γ > 0 equal only where r² + r = 1, r = √γ: γ = (3 − √5)/2.
    """
    r = root_gamma
    size = alpha * M
    compressor = Hypothesis("E‖C(y) − y‖² ≤ γ‖y‖²", gamma * norm2(H + U) - norm2(H_NEXT))
    bounded = Hypothesis("|u| ≤ αM", size**2 - norm2(U))
    residual = contracted(
        "feedback",
        "‖h‖² ≤ α²B², B = M√γ/(1 − √γ)",
        H,
        U,
        compressor,
        bounded,
        r,
        (ROOT_CONTRACTS,),
        ROOT,
    )
    sharp, classic = gamma / (1 - r) ** 2, gamma * (2 - gamma) / (1 - gamma) ** 3
    young = 1 - gamma
    classic_residual = Induction(
        "feedback.classic",
        "‖h‖² ≤ α²B², B² = M²γ(2 − γ)/(1 − γ)³",
        lambda square: (square, (size**2 * classic,)),
        start=(sp.S.Zero,),
        now=(NORM_H,),
        following=(NORM_H_NEXT,),
        start_by=((), {}, ((size**2 * classic, ONE),)),
        step_by=(
            (compressor, bounded),
            {
                compressor.name: ONE,
                bounded.name: gamma * (1 + 1 / young),
                SO_FAR: gamma * (1 + young),
            },
            ((gamma * young, H - U * (1 / young)),),
        ),
        conditions=(Condition("γ < 1", 1 - gamma, gamma, 1 / gamma, strict=True),),
    )
    order = Certificate(
        Claim(
            "feedback.order",
            "sharp² ≤ classic²: γ/(1 − √γ)² ≤ γ(2 − γ)/(1 − γ)³",
            sharp.subs(gamma, r**2),
            (classic.subs(gamma, r**2),),
            (),
            (ROOT_CONTRACTS,),
        ),
        {},
        ((r**2 / (1 - r**2) ** 3, r**2 + r - 1),),
    )
    equal = Certificate(
        Claim(
            "feedback.equal",
            "γ = (3 − √5)/2: sharp = classic",
            sharp.subs(gamma, r**2),
            (classic.subs(gamma, r**2),),
            (),
            (ROOT_CONTRACTS,),
            ((r, r**2 + r - 1),),
            equality=True,
        ),
        {},
    )
    sparse = Certificate(
        Claim(
            "feedback.sparse",
            "√γ/(1 − √γ) ≤ 2/(1 − γ): B ≤ 2(d/k)M at γ = 1 − k/d",
            r / (1 - r),
            (2 / (1 - r**2),),
            (),
            (ROOT_CONTRACTS,),
            remark="the classic constant grows like (d/k)^(3/2)",
        ),
        {},
        (((2 + r) / (1 + r), ONE),),
    )
    return (residual, classic_residual, order, equal, sparse)


def norm_bounded() -> tuple[Proof, ...]:
    """A scheduler that goes on once at most the fraction b of the mass is missing: Mb/(1 − b)."""
    lemma = contraction()[1].claim.instance({rho: b})
    held = lemma.source.lhs if lemma.source else ZERO
    return (
        Certificate(
            Claim(
                "scheduler.norm",
                "|h⁺| ≤ b(|h| + αM): |h| ≤ αMb/(1 − b)",
                held,
                (alpha * M * b / (1 - b),),
                (lemma,),
                (Condition("b < 1", 1 - b, b, 1 / b, strict=True),),
            ),
            {lemma.name: ONE},
        ),
    )


def variance_bounded() -> tuple[Proof, ...]:
    """A scheduler that replaces m missing gradients by the worker's own one, and corrects it next.

    h_i⁺ = (α/p)Σ_{j missing}(G̃_j − G̃_i), whoever is missing whatever is computed. Its noise has
    variance (α/p)²(m + m²)σ²; the gradients differ by at most L|v_j − v_i| ≤ 2LαB. So for every
    worker E‖h_i‖² ≤ α²B², B² = (σ/p)² m(m + 1)/(1 − (2αLm/p)²).
    """
    apart, own, other = vector("g_j − g_i"), vector("h_i"), vector("h_j")
    smooth = Hypothesis("∇f is L-Lipschitz", L**2 * norm2(own - other) - norm2(apart))
    own_most = Hypothesis("E‖h_i‖² ≤ the largest", worst - norm2(own))
    other_most = Hypothesis("E‖h_j‖² ≤ the largest", worst - norm2(other))
    differ = Certificate(
        Claim(
            "scheduler.apart",
            "‖g_j − g_i‖² ≤ 4L² max_i E‖h_i‖²",
            norm2(apart),
            (4 * L**2 * worst,),
            (smooth, own_most, other_most),
        ),
        {smooth.name: ONE, own_most.name: 2 * L**2, other_most.name: 2 * L**2},
        ((L**2, own + other),),
    )
    summed = window_of(
        "scheduler.sum",
        "n = m missing: ‖Σ(g_j − g_i)‖² ≤ 4n²L² max_i E‖h_i‖²",
        differ.claim.instance({norm2(apart): NORM_U}),
        4 * L**2 * worst,
    )
    pull = summed.claim.instance({n: missing})
    m = missing
    theirs = noise("Σξ_j", noise_sum)
    following = (H + theirs - XI * m) * (alpha / p)
    quiet = Hypothesis("Σ variance ≤ mσ²", m * sigma**2 - noise_sum)
    kappa2 = (2 * alpha * L * m / p) ** 2
    limit2 = alpha**2 * sigma**2 * m * (m + 1) / p**2 / (1 - kappa2)
    bound = Induction(
        "scheduler.variance",
        "max_i E‖h_i‖² ≤ α²B², B² = (σ/p)² m(m + 1)/(1 − (2αLm/p)²)",
        lambda most: (most, (limit2,)),
        start=(ZERO,),
        now=(worst,),
        following=(norm2(following),),
        start_by=((), {}, ((limit2, ONE),)),
        step_by=(
            (pull, quiet, QUIET),
            {
                pull.name: (alpha / p) ** 2,
                quiet.name: (alpha / p) ** 2,
                QUIET.name: (alpha * m / p) ** 2,
                SO_FAR: kappa2,
            },
            (),
        ),
        conditions=(Condition("2αLm < p", p - 2 * alpha * L * m, p, strict=True),),
    )
    chosen = Certificate(
        Claim(
            "scheduler.content",
            "p = 3, m = 1, ξ = ±σ, the farthest missing: E‖h_i‖²/α² = (3/4)(2σ/3)² = (3/2)·2σ²/9",
            sp.Rational(3, 4) * (2 * sigma / 3) ** 2,
            (sp.Rational(3, 2) * (2 * sigma**2 / 9),),
            equality=True,
            remark="refutes: B² = (σ/p)² m(m + 1) where who is missing depends on content",
        ),
        {},
    )
    return (differ, summed, bound, chosen)


def unbiased() -> tuple[Proof, ...]:
    """Unbiased compression without feedback: nothing is held, B = 0, but σ² grows to σ² + ωM².

    The compressor's own noise is drawn afresh: it is orthogonal to g and ξ.
    """
    gradient, code = vector("g"), noise("C(G̃) − G̃", code_var)
    sent = gradient + XI
    fresh = Hypothesis("E‖C(y) − y‖² ≤ ω‖y‖²", omega * norm2(sent) - code_var)
    bounded = Hypothesis("E‖G̃‖² ≤ M²", M**2 - norm2(sent))
    variance_claim = Certificate(
        Claim(
            "unbiased.noise",
            "E‖C(G̃) − ∇f(v)‖² ≤ σ² + ωM²",
            norm2(XI + code),
            (sigma**2, omega * M**2),
            (fresh, bounded, QUIET),
        ),
        {fresh.name: ONE, bounded.name: omega, QUIET.name: ONE},
    )
    moment = Certificate(
        Claim(
            "unbiased.moment",
            "E‖C(G̃)‖² ≤ (1 + ω)M²",
            norm2(sent + code),
            ((1 + omega) * M**2,),
            (fresh, bounded),
        ),
        {fresh.name: ONE, bounded.name: 1 + omega},
    )
    return (variance_claim, moment)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (
        *error_feedback(),
        *norm_bounded(),
        *variance_bounded(),
        *unbiased(),
    )


def bounds() -> tuple[Bound, ...]:
    """Return the elastic constant of every system, and the classic one where it differs."""
    residual, classic, *_ = error_feedback()
    r = root_gamma
    young = M * sp.sqrt(gamma * (2 - gamma) / (1 - gamma) ** 3)
    kappa = 2 * alpha * L * missing / p
    scheduled = sigma * sp.sqrt(missing * (missing + 1)) / p / sp.sqrt(1 - kappa**2)
    return (
        elastic(residual, M * r / (1 - r), kind="tight"),
        elastic(classic, young),
        Bound.of(
            norm_bounded()[0],
            "B",
            M * b / (1 - b),
            kind="tight",
            link=lambda constant: alpha * constant,
        ),
        elastic(variance_bounded()[2], scheduled),
        Bound.of(unbiased()[0], "E‖C(G̃) − ∇f(v)‖²", kind="tight"),
    )
