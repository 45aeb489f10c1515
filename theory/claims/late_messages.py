"""Compressed messages that arrive late, without error feedback: what views lack, and the rates.

Each worker compresses its update, C(y), and forgets what is left out; the message is applied up to
τ steps later. x counts every message that has been sent. A view lacks messages, not updates: noise
that a compressor has bent need not be unbiased, so it adds up like gradients do.
"""

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.compression import LEFT, smooth
from theory.claims.constants import NORM_H, U, elastic, window_of
from theory.claims.missed import GAP, VIEW_T, VIEWS_AT_T
from theory.claims.nonconvex import AT_T, AVERAGE
from theory.claims.nonconvex import GAP as START
from theory.claims.sgd import BELOW, ONE, QUIET, SPREAD, XI, A, E, G
from theory.claims.systems import SIZE2, shared_memory
from theory.gram import mean, norm2, per_worker, vector
from theory.induction import SO_FAR, Induction, Proof
from theory.symbols import (
    Delta,
    L,
    M,
    T,
    alpha,
    f_0,
    f_next,
    f_T,
    f_T1,
    f_x,
    gamma,
    gap_sum,
    gap_T,
    grad_sum,
    grad_T,
    n,
    p,
    root_gamma,
    sigma,
    steps,
    stretched,
    tau,
    view_sum,
    visits,
    visits_next,
    window_sum,
)

NORM_U = norm2(U)
SENT = per_worker("C(y)", after=XI)


def with_moment() -> tuple[Proof, ...]:
    """Views lack the last n = τ messages: B = τ(1 + √γ)M, as |C(y)| ≤ |y| + |C(y) − y|.

    C(y) = (1 + √γ)y and a constant gradient attain it. A message that is a part of the update's
    entries, such as top-k's, is no longer than the update: then B = τM, as in shared memory.
    """
    r, update, message = root_gamma, vector("y"), vector("message")
    contracts = Hypothesis("‖C(y) − y‖² ≤ γ‖y‖²", r**2 * norm2(update) - norm2(update - message))
    bounded = Hypothesis("|y| ≤ αM", SIZE2 - norm2(update))
    size = Certificate(
        Claim(
            "nofeedback.message",
            "a message is at most 1 + √γ times as long as its update: ‖C(y)‖² ≤ α²(1 + √γ)²M²",
            norm2(message),
            ((1 + r) ** 2 * SIZE2,),
            (contracts, bounded),
        ),
        {contracts.name: (1 + r) / r, bounded.name: (1 + r) ** 2},
        ((1 / r, update * (1 + r) - message),),
    )
    late = window_of(
        "nofeedback.late",
        "compress, then delay n = τ: ‖h‖² ≤ α²(n(1 + √γ)M)²",
        size.claim.instance({norm2(message): NORM_U}),
        (1 + r) ** 2 * SIZE2,
    )
    parts = shared_memory()[1].claim.instance()
    entries = Certificate(
        Claim(
            "nofeedback.late.entries",
            "compress to some of the entries, then delay n = τ: ‖h‖² ≤ α²(nM)²",
            NORM_H,
            (n**2 * SIZE2,),
            (parts,),
            remark="top-k, random-k and cyclic k: D is the mask of what was sent and is late",
        ),
        {parts.name: ONE},
    )
    return (size, late, entries)


def without_moment() -> tuple[Proof, ...]:
    """What late messages hold back, without M: ΣE‖x − v‖² ≤ α²n₂(ΣE‖∇f(v)‖² + σ²T).

    n₂ = (1 + √γ)²τ²: a message has ‖C(y)‖² ≤ (1 + √γ)²(‖g‖² + σ²), τ of them at most τ times the
    sum of their squares, and each is missing from at most τ views.
    """
    r = root_gamma
    contracts = Hypothesis("E‖C(y) − y‖² ≤ γ‖y‖²", r**2 * norm2(G + XI) - norm2(G + XI - SENT))
    wide = (1 + r) ** 2
    size = Certificate(
        Claim(
            "nofeedback.message.noisy",
            "y = ∇f(v) + ξ: ‖mean C(y)‖² ≤ (1 + √γ)²(‖∇f(v)‖² + σ²)",
            norm2(mean(SENT, p)),
            (wide * norm2(G), wide * sigma**2),
            (contracts, QUIET),
        ),
        {contracts.name: (1 + r) / r, QUIET.name: wide},
        ((1 / r, (G + XI) * (1 + r) - SENT), (ONE, SENT - mean(SENT, p))),
    )
    seen = size.claim.instance()
    message, weight = mean(SENT, p) * alpha, norm2(G) + sigma**2
    window = Induction(
        "nofeedback.window",
        "n messages missing: ‖x − v‖² ≤ α²(1 + √γ)²n Σ(‖∇f(v)‖² + σ²)",
        lambda e, k, s: (norm2(e), (alpha**2 * wide * k * s,)),
        start=(message, ONE, weight),
        now=(E, n, window_sum),
        following=(E + message, n + 1, window_sum + weight),
        start_by=((seen,), {seen.name: alpha**2}, ()),
        step_by=(
            (seen,),
            {seen.name: alpha**2 * (1 + n), SO_FAR: 1 + 1 / n},
            ((1 / n, E - message * n),),
        ),
    )
    missed = window.claim.instance()
    visit = Hypothesis(
        "a message is missing from at most n views",
        visits - window_sum + n * (VIEW_T + sigma**2) - visits_next,
    )
    per = alpha**2 * wide * n
    total = Induction(
        "nofeedback.views",
        "delay n = τ: ΣE‖x − v‖² ≤ α²(1 + √γ)²n²(ΣE‖∇f(v)‖² + σ²T)",
        lambda t, e, u, g: (e + per * u, (per * n * g, per * n * t * sigma**2)),
        start=(0, 0, 0, 0),
        now=(steps, gap_sum, visits, view_sum),
        following=(steps + 1, gap_sum + gap_T, visits_next, view_sum + VIEW_T),
        start_by=((), {}, ()),
        step_by=(
            (GAP, missed, visit),
            {GAP.name: ONE, missed.name: ONE, visit.name: per, SO_FAR: ONE},
            (),
        ),
    )
    return (size, window, total)


def rates() -> tuple[Proof, ...]:
    """Any γ-contraction, messages at most n = τ steps late, no M; φ = αLτ(1 + √γ) ≤ 1/2.

    Where γ + φ + φ² ≤ 1 and τ ≥ 1, the mean of E‖∇f(x)‖² is at most (1 + φ)/(1 − φ) times
    [2Δ/(αT) + (1 + φ)(γ + αL/p)σ²]/(1 − γ) + φ(1 + φ)σ². The step of `nofeedback.stale` at ζ = φ,
    whose spare ‖∇f(x) − (1 + φ)∇f(v)‖² is turned into ‖∇f(v)‖², which pays for the views: a share
    2φ/(1 + φ) of ‖∇f(x)‖² is lost.
    """
    a, m, theta = alpha * L, 1 + stretched, stretched
    update = mean(G + XI - LEFT, p)
    contracts = Hypothesis("E‖C(y) − y‖² ≤ γ‖y‖²", gamma * norm2(G + XI) - norm2(LEFT))
    near = Hypothesis("∇f is L-Lipschitz", L**2 * gap_T - norm2(A - G))
    half, noise, stale = alpha / 2, m * (gamma + a / p), (1 - gamma) * m / theta
    slope, gain = half * (1 - gamma) * (1 - theta) / m, half * (1 - gamma) * m * theta
    spare = 1 - theta - theta**2 - gamma
    where = (
        Condition("φ ≤ 1/2", 1 - 2 * theta, theta, 1 / theta),
        Condition("γ + φ + φ² ≤ 1", spare, gamma, 1 / gamma),
        Condition("αL ≤ φ", theta - a, alpha, 1 / alpha),
    )
    apart = A - mean(G, p) * m
    step = Certificate(
        Claim(
            "nofeedback.delay.step",
            "(1−γ)[(1 − φ)/(1 + φ)‖∇f(x)‖² + φ(1 + φ)‖∇f(v)‖²] ≤ 2(f − E f⁺)/α + noise, staleness",
            slope * norm2(A) + gain * norm2(G),
            (f_x - f_next, half * noise * sigma**2, half * stale * L**2 * gap_T),
            (smooth(update), contracts, near, QUIET),
            where,
        ),
        {
            "f is L-smooth": ONE,
            contracts.name: half * m,
            near.name: half * stale,
            QUIET.name: half * noise,
        },
        (
            (
                half * (m - a),
                mean(LEFT, p) - (A - mean(G, p) * a) * (1 / (m - a)) + mean(XI, p) * (a / (m - a)),
            ),
            (half * m, LEFT - mean(LEFT, p)),
            (half * (stale - m * gamma) - gain, SPREAD),
            (half * (1 - gamma) * theta / m, A * 2 - mean(G, p) * m),
            (half * m * a * (theta - a) / (m - a), mean(XI, p)),
            (half * (theta - a) / (m - a), apart),
            (half * spare / (theta * m), apart),
            (half * (1 - gamma) * (1 - 2 * theta) / m, apart),
        ),
    )
    at_T = step.claim.instance({**AT_T, **VIEWS_AT_T})
    total = Induction(
        "nofeedback.delay.sum",
        "(1 − γ)[(1 − φ)/(1 + φ)ΣA + φ(1 + φ)ΣG] ≤ 2(f(x_0) − E f(x_T))/α + noise, staleness",
        lambda t, f, s, g, e: (
            slope * s + gain * g,
            (f_0 - f, t * half * noise * sigma**2, half * stale * L**2 * e),
        ),
        start=(0, f_0, 0, 0, 0),
        now=(steps, f_T, grad_sum, view_sum, gap_sum),
        following=(steps + 1, f_T1, grad_sum + grad_T, view_sum + VIEW_T, gap_sum + gap_T),
        start_by=((), {}, ()),
        step_by=((at_T,), {at_T.name: ONE, SO_FAR: ONE}, ()),
        conditions=where,
    )
    summed = total.claim.instance({steps: T})
    views = without_moment()[-1].claim.instance({steps: T})
    factor, wide = m / (1 - theta), 1 + root_gamma
    per = alpha**2 * wide**2 * n
    rate = Certificate(
        Claim(
            "nofeedback.delay",
            "avg ≤ (1 + φ)/(1 − φ)·{[2Δ/(αT) + (1 + φ)(γ + αL/p)σ²]/(1 − γ) + φ(1 + φ)σ²}",
            grad_sum / T,
            (
                factor * 2 * Delta / (alpha * T * (1 - gamma)),
                factor * noise * sigma**2 / (1 - gamma),
                factor * theta * m * sigma**2,
            ),
            (summed, BELOW, START, views),
            where,
            ((theta, theta - a * n * wide),),
            remark="without a bound M; τ, not √τ: noise that a compressor bends may add up",
        ),
        {
            **{h.name: 1 / (slope * T) for h in (summed, BELOW, START)},
            views.name: half * stale * L**2 / (slope * T),
        },
        ((half * stale * L**2 * per * visits / (slope * T), ONE),),
    )
    return (step, total, rate)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*with_moment(), *without_moment(), *rates())


def bounds() -> tuple[Bound, ...]:
    """Return the elastic constants, and the rate without M."""
    _, late, entries = with_moment()
    steps_late = {n: tau}
    theta = alpha * L * tau * (1 + sp.sqrt(gamma))
    return (
        elastic(late, n * (1 + root_gamma) * M, kind="tight", values=steps_late),
        elastic(entries, n * M, kind="tight", values=steps_late),
        Bound.of(rates()[-1], AVERAGE, values={**steps_late, stretched: theta}),
    )
