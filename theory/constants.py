"""Elastic constants: how far a view can drift from the global iterate.

The held mass h = x − v is what a relaxation keeps back; E‖h‖² ≤ α²B² is elastic consistency. Three
lemmas give B: *window* (the last τ updates are held), *fresh fates* (each update is held or not,
independently of its content), *contraction* (|h⁺| ≤ ρ(|h| + αM)). |X| = (E‖X‖²)^½.
"""

import sympy as sp

from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.gram import Vector, entry, noise, norm2, vector
from theory.induction import SO_FAR, Induction, Proof
from theory.symbols import (
    M,
    alpha,
    decay,
    fate_var,
    gamma,
    held,
    held_next,
    n,
    prob,
    prob_sum,
    prob_var,
    rho,
    root_gamma,
    share,
)

ONE = sp.S.One
CONTRACTS = Condition("ρ < 1", 1 - rho, rho, 1 / rho, strict=True)
ROOT_CONTRACTS = Condition("γ < 1", 1 - root_gamma, root_gamma, 1 / root_gamma, strict=True)
ROOT = ((root_gamma, root_gamma**2 - gamma),)

H = vector("h")
U = vector("u")
H_NEXT = vector("h⁺")
NORM_H, NORM_H_NEXT = entry(H, H), entry(H_NEXT, H_NEXT)


def window() -> tuple[Proof, ...]:
    """Window: the sum of τ (masked) updates, each |D_s u_s| ≤ αMw, has |h| ≤ ταMw: B ≤ τwM."""
    size = alpha * M * share
    bounded = Hypothesis("|held part of an update| ≤ αMw", size**2 - norm2(U))

    def state(h: Vector, k: sp.Expr) -> tuple[sp.Expr, tuple[sp.Expr, ...]]:
        return norm2(h), (k**2 * size**2,)

    return (
        Induction(
            "window",
            "τ updates held, each of norm ≤ αMw: ‖h‖² ≤ α²(τwM)²",
            state,
            start=(U, ONE),
            now=(H, n),
            following=(H + U, n + 1),
            start_by=((bounded,), {bounded.name: ONE}, ()),
            step_by=(
                (bounded,),
                {bounded.name: 1 + n, SO_FAR: 1 + 1 / n},
                ((1 / n, H - U * n),),
            ),
        ),
    )


def fresh_fates() -> tuple[Proof, ...]:
    """Fresh fates: update s is held with probability P_s, independently of content and of others.

    |h|² ≤ α²M²[(ΣP)² + ΣP(1 − P)] = α²M² E N², N the number held; P_s = P(τ > s) makes ΣP = Eτ.
    A constant gradient attains it.
    """
    size = alpha * M
    bounded = Hypothesis("|u| ≤ αM", size**2 - norm2(U))
    mean_held = vector("E[h|content]")
    # The update's held part is Pu plus a mean-zero part of variance P(1 − P)‖u‖².
    fate = noise("χu − Pu", prob * (1 - prob) * norm2(U))
    expected = Induction(
        "fates.mean",
        "|E[h | content]| ≤ αM ΣP",
        lambda h, s: (norm2(h), (s**2 * size**2,)),
        start=(U * prob, prob),
        now=(mean_held, prob_sum),
        following=(mean_held + U * prob, prob_sum + prob),
        start_by=((bounded,), {bounded.name: prob**2}, ()),
        step_by=(
            (bounded,),
            {bounded.name: prob * (prob_sum + prob), SO_FAR: 1 + prob / prob_sum},
            ((prob / prob_sum, mean_held - U * prob_sum),),
        ),
    )
    # h = E[h | content] + rest; the rest is orthogonal to whatever the fates do not touch.
    rest = noise("h − E[h|content]", fate_var)
    whole = mean_held + rest
    so_far = expected.claim.instance()
    second = Induction(
        "fates",
        "‖h‖² ≤ α²M²[(ΣP)² + ΣP(1 − P)]",
        lambda h, s, v: (norm2(h), (s**2 * size**2, v * size**2)),
        start=(U * prob + fate, prob, prob * (1 - prob)),
        now=(whole, prob_sum, prob_var),
        following=(
            whole + U * prob + fate,
            prob_sum + prob,
            prob_var + prob * (1 - prob),
        ),
        start_by=((bounded,), {bounded.name: prob}, ()),
        step_by=(
            (bounded, so_far),
            {
                bounded.name: prob + prob * prob_sum,
                so_far.name: prob / prob_sum,
                SO_FAR: ONE,
            },
            ((prob / prob_sum, mean_held - U * prob_sum),),
        ),
        conditions=(Condition("P ≤ 1", 1 - prob, prob, 1 / prob),),
    )
    before, after = prob_sum**2 + prob_var, (prob_sum + prob) ** 2 + prob_var + prob * (1 - prob)
    number = Certificate(
        Claim(
            "fates.attained",
            "constant gradient: E(N + χ)² = E N² + 2P E N + P, so ‖h‖² = α²M² E N²",
            after,
            (before, 2 * prob * prob_sum, prob),
            equality=True,
        ),
        {},
    )
    return (expected, second, number)


def contraction() -> tuple[Proof, ...]:
    """Contraction: |h⁺| ≤ ρ(|h| + αM), ρ < 1, h_0 = 0 give |h_t| ≤ αMρ(1 − ρ^t)/(1 − ρ).

    So B ≤ Mρ/(1 − ρ); C(y) = (1 − ρ)y with a constant gradient attains it.
    """
    step = Hypothesis("|h⁺| ≤ ρ(|h| + αM)", rho * (held + alpha * M) - held_next)

    def bound(q: sp.Expr) -> sp.Expr:
        return alpha * M * rho * (1 - q) / (1 - rho)

    unrolled = Induction(
        "contraction.sum",
        "|h_t| ≤ αM ρ(1 − ρ^t)/(1 − ρ)",
        lambda h, q: (h, (bound(q),)),
        start=(sp.S.Zero, ONE),
        now=(held, decay),
        following=(held_next, rho * decay),
        start_by=((), {}, ()),
        step_by=((step,), {step.name: ONE, SO_FAR: rho}, ()),
        conditions=(CONTRACTS,),
    )
    so_far = unrolled.claim.instance()
    limit = Certificate(
        Claim(
            "contraction",
            "|h_t| ≤ αM ρ/(1 − ρ): B = Mρ/(1 − ρ)",
            held,
            (alpha * M * rho / (1 - rho),),
            (so_far,),
            (CONTRACTS,),
        ),
        {so_far.name: ONE},
        ((alpha * M * rho * decay / (1 - rho), ONE),),
    )
    attained = Certificate(
        Claim(
            "contraction.attained",
            "h⁺ = ρ(h + αM) keeps |h_t| = αM ρ(1 − ρ^t)/(1 − ρ)",
            rho * (bound(decay) + alpha * M),
            (bound(rho * decay),),
            (),
            (CONTRACTS,),
            equality=True,
        ),
        {},
    )
    return (unrolled, limit, attained)


def error_feedback() -> tuple[Proof, ...]:
    """Error feedback with a γ-contraction: B = M√γ/(1 − √γ), and how it compares.

    The fixed Young parameter 1 − γ gives M√(γ(2 − γ)/(1 − γ)³) instead. That classic constant is
    never smaller, and for γ > 0 equal only where r² + r = 1, r = √γ: γ = (3 − √5)/2.
    """
    r = root_gamma
    size = alpha * M
    compressor = Hypothesis("E‖C(y) − y‖² ≤ γ‖y‖²", gamma * norm2(H + U) - norm2(H_NEXT))
    bounded = Hypothesis("|u| ≤ αM", size**2 - norm2(U))
    limit = size * r / (1 - r)
    residual = Induction(
        "feedback",
        "‖h‖² ≤ α²B², B = M√γ/(1 − √γ)",
        lambda square: (square, (limit**2,)),
        start=(sp.S.Zero,),
        now=(NORM_H,),
        following=(NORM_H_NEXT,),
        start_by=((), {}, ((limit**2, ONE),)),
        step_by=(
            (compressor, bounded),
            {compressor.name: ONE, bounded.name: gamma / (1 - r), SO_FAR: r},
            ((r * (1 - r), H - U * (r / (1 - r))),),
        ),
        conditions=(ROOT_CONTRACTS,),
        relations=ROOT,
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
    return (residual, classic_residual, order, equal)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*window(), *fresh_fates(), *contraction(), *error_feedback())
