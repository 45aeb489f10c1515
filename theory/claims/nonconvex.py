"""Convergence of SGD at elastic views for smooth f: N (non-convex), P (Polyak–Łojasiewicz).

One step is certified, then telescoped or unrolled; the assumptions are those of `sgd`.
"""

from collections.abc import Sequence

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.sgd import (
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
from theory.gram import Scalar, mean, norm2
from theory.induction import SO_FAR, Induction, Proof
from theory.symbols import (
    B,
    Delta,
    L,
    T,
    alpha,
    c,
    decay,
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

AT_T = {f_x: f_T, f_next: f_T1, NORM_A: grad_T}
GAP = Hypothesis("Δ ≥ f(x_0) − f*", Delta - f_0 + f_star)
DRIFT, NOISE = alpha**3 * L**2 * B**2 / 2, L * alpha**2 * sigma**2 / (2 * p)
"""What a step at elastic views may lose, and what noise may."""
AVERAGE = "(1/T) Σ E‖∇f(x_t)‖²"


def telescope(
    step: Claim,
    texts: tuple[str, str],
    scale: sp.Expr,
    progress: Sequence[tuple[sp.Expr, sp.Symbol, sp.Symbol]] = (),
    conditions: tuple[Condition, ...] | None = None,
) -> tuple[Induction, Certificate]:
    """Sum Σ factor·term ≤ f(x) − E f(x⁺) + losses over T steps, and divide by scale·T.

    Args:
        step: the claim of a step, "name.step"; on its right f(x) − E f(x⁺), then the losses.
        texts: the statements of the sum, "name.sum", and of the rate, "name".
        scale: positive.
        progress: (factor, term at step T, sum of its values so far) of each term on the step's
            left; if there are none, that is scale·E‖∇f(x)‖².
        conditions: the rate's; the step's if None.

    Returns:
        Σ factor·(sum of the term) ≤ f(x_0) − E f(x_T) + T Σ losses, and
        (1/T) Σ (factor/scale)·(sum of the term) ≤ Δ/(scale·T) + Σ losses/scale.
    """
    name, losses = step.name.replace(".step", ""), tuple(sp.sympify(x) for x in step.rhs[1:])
    factors, terms, sums = zip(*progress or [(scale, grad_T, grad_sum)], strict=True)
    at_T = step.instance(AT_T)

    def state(t: Scalar, f: Scalar, *sums: Scalar) -> tuple[Scalar, tuple[Scalar, ...]]:
        moved = sp.Add(*(factor * total for factor, total in zip(factors, sums, strict=True)))
        return moved, (f_0 - f, *(t * loss for loss in losses))

    total = Induction(
        f"{name}.sum",
        texts[0],
        state,
        start=(0, f_0, *(0 for _ in sums)),
        now=(steps, f_T, *sums),
        following=(steps + 1, f_T1, *(so_far + x for so_far, x in zip(sums, terms, strict=True))),
        start_by=((), {}, ()),
        step_by=((at_T,), {at_T.name: ONE, SO_FAR: ONE}, ()),
        conditions=step.conditions,
    )
    parts = (total.claim.instance({steps: T}), BELOW, GAP)
    rate = Certificate(
        Claim(
            name,
            texts[1],
            sp.Add(*(f / scale * x for f, x in zip(factors, sums, strict=True))) / T,
            (Delta / (scale * T), *(loss / scale for loss in losses)),
            parts,
            step.conditions if conditions is None else conditions,
        ),
        {hypothesis.name: 1 / (scale * T) for hypothesis in parts},
    )
    return total, rate


def nonconvex() -> tuple[Proof, ...]:
    """N: f smooth, bounded below, αL ≤ 1.

    (1/T)Σ E‖∇f(x_t)‖² ≤ 2Δ/(αT) + L²α²B² + Lασ²/p; at α = √(p/T), T ≥ L²p, this is
    2Δ/√(pT) + L²B²p/T + Lσ²/√(pT). Smoothness at x, and 2⟨a, g⟩ = ‖a‖² + ‖g‖² − ‖a − g‖².
    """
    step = Certificate(
        Claim(
            "N.step",
            "E f(x⁺) ≤ f(x) − (α/2)‖∇f(x)‖² + (α/2)L²α²B² + Lα²σ²/(2p)",
            alpha / 2 * norm2(A),
            (f_x - f_next, DRIFT, NOISE),
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
    texts = (
        "(α/2) Σ_{t<T} E‖∇f(x_t)‖² + E f(x_T) − f(x_0) ≤ T((α/2)L²α²B² + Lα²σ²/(2p))",
        "(1/T) Σ E‖∇f(x_t)‖² ≤ 2Δ/(αT) + L²α²B² + Lασ²/p",
    )
    total, rate = telescope(step.claim, texts, alpha / 2)
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
            ((1 - alpha * c) * (f_x - f_star), DRIFT, NOISE),
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
        (f_0, f_T, f_T1),
        (CURVED, STEP),
        above=f_star,
    )
    return (step, unrolled)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*nonconvex(), *polyak_lojasiewicz())


def bounds() -> tuple[Bound, ...]:
    """Return the rates N, N at the textbook step size, and P."""
    _, _, rate, _, textbook = nonconvex()
    known = {f_0: f_star + Delta, decay: (1 - alpha * c) ** T}
    return (
        Bound.of(rate, AVERAGE),
        Bound.of(textbook, f"{AVERAGE} at α = √(p/T)"),
        Bound.of(polyak_lojasiewicz()[1], "E f(x_T) − f*", values=known),
    )
