"""Convergence of SGD at elastic views where only some workers take part in a step.

The set I of a step must not look at its noise. It may look at the views (`partial`), or be drawn
whatever they are (`fresh`), which costs only time. The other assumptions are those of `sgd`.
"""

import re
from dataclasses import replace

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.nonconvex import AT_T, AVERAGE, DRIFT, GAP, NOISE, telescope
from theory.claims.sgd import (
    BELOW,
    ELASTIC,
    LIPSCHITZ,
    ONE,
    QUIET,
    SPREAD,
    STEP,
    XI,
    A,
    E,
    G,
    smooth,
)
from theory.gram import inner, mean, noise, norm2, per_worker
from theory.induction import SO_FAR, Induction, Proof
from theory.symbols import (
    B,
    Delta,
    L,
    T,
    active,
    active_grad_sum,
    active_mean,
    active_min,
    active_sum,
    alpha,
    f_0,
    f_next,
    f_T,
    f_T1,
    f_x,
    grad_sum,
    grad_T,
    p,
    sigma,
    steps,
    variance,
)

SHARE = Condition("η ≤ 1", 1 - active, active, 1 / active)


def partial() -> tuple[Proof, ...]:
    """N where only the workers of a set I, |I| = ηp, take part; I does not look at the noise.

    x⁺ = x − (α/p) Σ_I (g_i + ξ_i), η_min ≤ η ≤ 1, and η̄ the mean of η over the steps:
    (1/T)Σ E‖∇f(x_t)‖² ≤ 2Δ/(αη_min T) + L²α²B²/η_min + Lασ²η̄/(η_min p). In the proof a mean is one
    over I; elasticity, a mean over all workers, then says η‖e‖² ≤ α²B².
    """
    smoothness = smooth(mean(G + XI, active * p) * active)
    elastic = Hypothesis(ELASTIC.name, alpha**2 * B**2 - active * norm2(E))
    few = Condition("αηL ≤ 1", 1 - alpha * active * L, alpha, 1 / alpha)
    enough = Condition("η_min ≤ η", active - active_min, active_min, 1 / active_min)
    step = Certificate(
        Claim(
            "N.partial.step",
            "E f(x⁺) ≤ f(x) − (αη/2)‖∇f(x)‖² + (α/2)L²α²B² + Lα²ησ²/(2p)",
            alpha * active / 2 * norm2(A),
            (f_x - f_next, DRIFT, active * NOISE),
            (smoothness, LIPSCHITZ, elastic, QUIET),
            (few,),
            remark="attained by αηL = 1, f = (L/2)x², σ = 0, if the worst views take part",
        ),
        {
            smoothness.name: ONE,
            LIPSCHITZ.name: alpha * active / 2,
            elastic.name: alpha / 2 * L**2,
            QUIET.name: L * alpha**2 * active / (2 * p),
        },
        (
            (alpha * active / 2 * (1 - alpha * active * L), mean(G, p)),
            (alpha * active / 2, SPREAD),
        ),
    )
    at_T = step.claim.instance(AT_T)
    total = Induction(
        "N.partial.sum",
        "(α/2) Σ ηE‖∇f(x_t)‖² + E f(x_T) − f(x_0) ≤ T(α/2)L²α²B² + Lα²σ²Ση/(2p)",
        lambda t, f, s, share: (alpha / 2 * s + f - f_0, (t * DRIFT, share * NOISE)),
        start=(0, f_0, 0, 0),
        now=(steps, f_T, active_grad_sum, active_sum),
        following=(steps + 1, f_T1, active_grad_sum + active * grad_T, active_sum + active),
        start_by=((), {}, ()),
        step_by=((at_T,), {at_T.name: ONE, SO_FAR: ONE}, ()),
        conditions=(SHARE, STEP),
    )
    least = Induction(
        "N.partial.least",
        "η_min Σ E‖∇f(x_t)‖² ≤ Σ ηE‖∇f(x_t)‖²",
        lambda s, weighted: (active_min * s, (weighted,)),
        start=(0, 0),
        now=(grad_sum, active_grad_sum),
        following=(grad_sum + grad_T, active_grad_sum + active * grad_T),
        start_by=((), {}, ()),
        step_by=((), {SO_FAR: ONE}, (((active - active_min) * grad_T, ONE),)),
        conditions=(enough,),
    )
    most = Induction(
        "N.partial.most",
        "Ση ≤ T",
        lambda share, t: (share, (t,)),
        start=(0, 0),
        now=(active_sum, steps),
        following=(active_sum + active, steps + 1),
        start_by=((), {}, ()),
        step_by=((), {SO_FAR: ONE}, ((1 - active, ONE),)),
        conditions=(SHARE,),
    )
    summed, weights = total.claim.instance({steps: T}), least.claim.instance()
    rate = Certificate(
        Claim(
            "N.partial",
            "(1/T) Σ E‖∇f(x_t)‖² ≤ 2Δ/(αη_min T) + L²α²B²/η_min + Lασ²η̄/(η_min p), η̄ = Ση/T",
            grad_sum / T,
            (
                2 * Delta / (alpha * active_min * T),
                L**2 * alpha**2 * B**2 / active_min,
                L * alpha * sigma**2 * active_sum / (active_min * p * T),
            ),
            (summed, BELOW, GAP, weights),
            (SHARE, enough, STEP),
        ),
        {
            **{h.name: 2 / (alpha * active_min * T) for h in (summed, BELOW, GAP)},
            weights.name: 1 / (active_min * T),
        },
    )
    steady = rate.claim.instance({active_min: active, active_sum: active * T})
    fixed = Certificate(
        Claim(
            "N.partial.fixed",
            "|I| = ηp: (1/T) Σ E‖∇f(x_t)‖² ≤ 2Δ/(αηT) + L²α²B²/η + Lασ²/p",
            grad_sum / T,
            (
                2 * Delta / (alpha * active * T),
                L**2 * alpha**2 * B**2 / active,
                L * alpha * sigma**2 / p,
            ),
            (steady,),
            (SHARE, STEP),
        ),
        {steady.name: ONE},
    )
    share, floor = most.claim.instance({steps: T}), rate.claim.instance()
    at_half = Hypothesis("η_min ≥ 1/2", active_min - sp.S.Half)
    terms = (2 * Delta / (alpha * T), L**2 * alpha**2 * B**2, L * alpha * sigma**2 / p)
    half = Certificate(
        Claim(
            "N.partial.half",
            "|I| ≥ p/2: (1/T) Σ E‖∇f(x_t)‖² ≤ 4Δ/(αT) + 2L²α²B² + 2Lασ²/p",
            grad_sum / T,
            tuple(2 * term for term in terms),
            (floor, share, at_half),
            (SHARE, enough, STEP),
            remark="proves what was known by hand; N.partial and N.fresh say more",
        ),
        {
            floor.name: ONE,
            share.name: L * alpha * sigma**2 / (active_min * p * T),
            at_half.name: 2 * sp.Add(*terms) / active_min,
        },
    )
    return (step, total, least, most, rate, fixed, half)


def fresh() -> tuple[Proof, ...]:
    """N where worker i takes part with probability η, whatever views and noise (χ_i = 1, or 0).

    The workers' fates may depend on each other. Then only the start costs more, 1/η times as much:
    (1/T)Σ E‖∇f(x_t)‖² ≤ 2Δ/(αηT) + L²α²B² + Lασ²/p. In the proof E‖mean χg‖² ≤ η‖g‖².
    """
    taken, heard = per_worker("χg"), noise("χξ", active * variance)
    smoothness = smooth(mean(taken + heard, p))
    first = Hypothesis("E⟨∇f(x), χg⟩ = η⟨∇f(x), g⟩", inner(A, taken) - active * inner(A, G))
    second = Hypothesis("E‖χg‖² = η‖g‖²", active * norm2(G) - norm2(taken))
    step = Certificate(
        Claim(
            "N.fresh.step",
            "E f(x⁺) ≤ f(x) − η[(α/2)‖∇f(x)‖² − (α/2)L²α²B² − Lα²σ²/(2p)],  P(i ∈ I) = η",
            alpha * active / 2 * norm2(A),
            (f_x - f_next, active * DRIFT, active * NOISE),
            (smoothness, first, second, LIPSCHITZ, ELASTIC, QUIET),
            (STEP,),
        ),
        {
            smoothness.name: ONE,
            first.name: alpha,
            second.name: L * alpha**2 / 2,
            LIPSCHITZ.name: alpha * active / 2,
            ELASTIC.name: alpha * active / 2 * L**2,
            QUIET.name: L * alpha**2 * active / (2 * p),
        },
        (
            (alpha * active / 2 * (1 - alpha * L), G),
            (L * alpha**2 / 2, taken - mean(taken, p)),
        ),
    )
    texts = (
        "η(α/2) Σ_{t<T} E‖∇f(x_t)‖² + E f(x_T) − f(x_0) ≤ ηT((α/2)L²α²B² + Lα²σ²/(2p))",
        "P(i ∈ I) = η: (1/T) Σ E‖∇f(x_t)‖² ≤ 2Δ/(αηT) + L²α²B² + Lασ²/p",
    )
    total, rate = telescope(step.claim, texts, alpha * active / 2)
    # Two workers, noise ±σ; who draws the larger noise takes part. There Lx = −σ/2.
    x, up, down = -sigma / (2 * L), sp.Rational(3, 4), sp.Rational(1, 4)
    biased = Certificate(
        Claim(
            "N.partial.biased",
            "p = 2, I = {larger of ξ_i = ±σ}, f = (L/2)x²: E x⁺ = x at Lx = −σ/2, ‖∇f(x)‖² = σ²/4",
            up * (x - alpha / 2 * (L * x + sigma)) + down * (x - alpha / 2 * (L * x - sigma)),
            (x,),
            equality=True,
            remark="refutes: N.partial where I looks at the noise; ‖∇f‖² stays at σ²/4 for every α",
        ),
        {},
    )
    return (step, total, rate, biased)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*partial(), *fresh())


def bounds() -> tuple[Bound, ...]:
    """Return the rates for any shares of the workers, a fixed one, half or more, and fresh ones."""
    *_, rate, fixed, half = partial()
    average = {active: active_mean, active_sum: active_mean * T}
    return (
        _asked(Bound.of(rate, AVERAGE, values=average), active_mean),
        Bound.of(fixed, AVERAGE),
        _asked(Bound.of(half, AVERAGE, values={active: active_min}), active_min),
        Bound.of(fresh()[2], AVERAGE, where=(SHARE,)),
    )


def _asked(bound: Bound, share: sp.Symbol) -> Bound:
    """Ask of this share what holds of every step's; that it is at least itself is no news."""
    asked = [condition for condition in bound.conditions if condition.expr != 0]
    asked = [replace(each, text=re.sub(r"η(?!_)", share.name, each.text)) for each in asked]
    return replace(bound, conditions=tuple(asked))
