"""Convergence of SGD at elastic views for smooth f: N (non-convex), P (Polyak–Łojasiewicz).

One step is certified, then telescoped or unrolled; the assumptions are those of `theory.sgd`.
"""

from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.gram import mean, norm2
from theory.induction import SO_FAR, Induction, Proof
from theory.sgd import (
    BELOW,
    CURVED,
    ELASTIC,
    LIPSCHITZ,
    NORM_A,
    ONE,
    QUIET,
    SMOOTH,
    SPREAD,
    STEP,
    A,
    G,
    unroll,
)
from theory.symbols import (
    B,
    Delta,
    L,
    T,
    alpha,
    c,
    f_0,
    f_next,
    f_star,
    f_T,
    f_T1,
    f_x,
    grad_sum,
    grad_T,
    p,
    root_pT,
    sigma,
    steps,
)


def nonconvex() -> tuple[Proof, ...]:
    """N: f smooth, bounded below, αL ≤ 1.

    (1/T)Σ E‖∇f(x_t)‖² ≤ 2Δ/(αT) + L²α²B² + Lασ²/p; at α = √(p/T), T ≥ L²p, this is
    2Δ/√(pT) + L²B²p/T + Lσ²/√(pT).
    """
    drift, noise_term = alpha**3 * L**2 * B**2 / 2, L * alpha**2 * sigma**2 / (2 * p)
    step = Certificate(
        Claim(
            "N.step",
            "E f(x⁺) ≤ f(x) − (α/2)‖∇f(x)‖² + (α/2)L²α²B² + Lα²σ²/(2p)",
            f_next - f_x + alpha / 2 * norm2(A),
            (drift, noise_term),
            (SMOOTH, LIPSCHITZ, ELASTIC, QUIET),
            (STEP,),
        ),
        {
            SMOOTH.name: ONE,
            LIPSCHITZ.name: alpha / 2,
            ELASTIC.name: alpha / 2 * L**2,
            QUIET.name: L * alpha**2 / (2 * p),
        },
        ((alpha / 2 * (1 - alpha * L), mean(G, p)), (alpha / 2, SPREAD)),
    )
    at_T = step.claim.instance({f_x: f_T, f_next: f_T1, NORM_A: grad_T})
    total = Induction(
        "N.sum",
        "(α/2) Σ_{t<T} E‖∇f(x_t)‖² + E f(x_T) − f(x_0) ≤ T((α/2)L²α²B² + Lα²σ²/(2p))",
        lambda t, f, s: (alpha / 2 * s + f - f_0, (t * drift, t * noise_term)),
        start=(0, f_0, 0),
        now=(steps, f_T, grad_sum),
        following=(steps + 1, f_T1, grad_sum + grad_T),
        start_by=((), {}, ()),
        step_by=((at_T,), {at_T.name: ONE, SO_FAR: ONE}, ()),
        conditions=(STEP,),
    )
    gap = Hypothesis("Δ ≥ f(x_0) − f*", Delta - f_0 + f_star)
    summed = total.claim.instance({steps: T})
    rate = Certificate(
        Claim(
            "N",
            "(1/T) Σ E‖∇f(x_t)‖² ≤ 2Δ/(αT) + L²α²B² + Lασ²/p",
            grad_sum / T,
            (2 * Delta / (alpha * T), L**2 * alpha**2 * B**2, L * alpha * sigma**2 / p),
            (summed, BELOW, gap),
            (STEP,),
        ),
        {name: 2 / (alpha * T) for name in (summed.name, BELOW.name, gap.name)},
    )
    root = ((root_pT, root_pT**2 - p * T),)
    long = Hypothesis("T ≥ L²p", T - L**2 * p)
    horizon = Certificate(
        Claim("N.horizon", "T ≥ L²p ⇒ √(pT) ≥ Lp", L * p, (root_pT,), (long,), relations=root),
        {long.name: p / (root_pT + L * p)},
    )
    tuned = rate.claim.instance({alpha: p / root_pT})
    textbook = Certificate(
        Claim(
            "N.tuned",
            "α = √(p/T): (1/T) Σ E‖∇f(x_t)‖² ≤ 2Δ/√(pT) + L²B²p/T + Lσ²/√(pT)",
            grad_sum / T,
            (2 * Delta / root_pT, L**2 * B**2 * p / T, L * sigma**2 / root_pT),
            (tuned,),
            (Condition("√(pT) ≥ Lp", root_pT - L * p, root_pT),),
            root,
        ),
        {tuned.name: ONE},
    )
    return (step, total, rate, horizon, textbook)


def polyak_lojasiewicz() -> tuple[Proof, ...]:
    """P: f L-smooth with ‖∇f‖² ≥ 2c(f − f*), αL ≤ 1.

    E f(x⁺) − f* ≤ (1 − αc)(f(x) − f*) + (α/2)L²α²B² + Lα²σ²/(2p).
    """
    descent = nonconvex()[0].claim.instance()
    dominated = Hypothesis("‖∇f(x)‖² ≥ 2c(f(x) − f*)", norm2(A) - 2 * c * (f_x - f_star))
    step = Certificate(
        Claim(
            "P.step",
            "E f(x⁺) − f* ≤ (1 − αc)(f(x) − f*) + (α/2)L²α²B² + Lα²σ²/(2p)",
            f_next - f_star,
            (
                (1 - alpha * c) * (f_x - f_star),
                alpha**3 * L**2 * B**2 / 2,
                L * alpha**2 * sigma**2 / (2 * p),
            ),
            (descent, dominated),
            (STEP,),
        ),
        {descent.name: ONE, dominated.name: alpha / 2},
    )
    unrolled = unroll(
        "P",
        "E f(x_T) − f* ≤ (1 − αc)^T (f(x_0) − f*) + (1 − (1 − αc)^T)(L²α²B² + Lασ²/p)/(2c)",
        step.claim.instance({f_x: f_T, f_next: f_T1}),
        (L**2 * alpha**2 * B**2 / (2 * c), L * alpha * sigma**2 / (2 * c * p)),
        (f_0 - f_star, f_T - f_star, f_T1 - f_star),
        (CURVED, STEP),
    )
    return (step, unrolled)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*nonconvex(), *polyak_lojasiewicz())
