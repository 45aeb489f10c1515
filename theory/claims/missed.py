"""What the views miss, without a bound of the second moment: the lemmas of `oblivious`.

A view misses held updates, v − x = h + α Σ (g_s + ξ_s) over the steps s that it misses, and perhaps
a residual h of error feedback from before them. The schedule is independent of the noise, so a
missing update's noise is orthogonal to all that came before it. Schedules may differ between
workers and between coordinates (inconsistent reads): the window lemma then holds coordinate by
coordinate.
"""

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.sgd import BELOW, NORM_A, ONE, QUIET, SMOOTH, SPREAD, XI, A, G
from theory.gram import Scalar, Vector, mean, norm2, per_worker
from theory.induction import SO_FAR, Induction, Proof
from theory.symbols import (
    Delta,
    L,
    T,
    alpha,
    backlog,
    backlog_next,
    decay,
    f_0,
    f_next,
    f_star,
    f_T,
    f_T1,
    f_x,
    gamma,
    gap_sum,
    gap_T,
    grad_sum,
    grad_T,
    harmonic,
    longest,
    memory,
    p,
    residual_sum,
    residual_T,
    residual_T1,
    residual_view,
    sigma,
    steps,
    tau,
    view_mean_T,
    view_spread_T,
    view_sum,
    visits,
    visits_next,
    window_sum,
    young,
)

ZERO = sp.S.Zero
CONTRACTS = Condition("γ < 1", 1 - gamma, gamma, 1 / gamma, strict=True)
FORGETS = (
    Condition("μ < 1", 1 - memory, memory, 1 / memory, strict=True),
    Condition("γ < μ", memory - gamma, gamma, 1 / gamma, strict=True),
)
SEVERAL = Condition("p ≥ 2", p - 2, p)
WHOLE = Hypothesis("τ is a whole number: τ² ≥ τ", tau * (tau - 1))

E = per_worker("e")  # v − x
H = per_worker("h")  # residuals of error feedback
OLD = per_worker("h'")  # those that a view misses

VIEWS_AT_T = {norm2(mean(G, p)): view_mean_T, norm2(SPREAD): view_spread_T}
VIEW_T = view_mean_T + view_spread_T
LIPSCHITZ = Hypothesis("∇f is L-Lipschitz", L**2 * gap_T - norm2(A - G))
GAP = Hypothesis("x − v is what a schedule blind to the noise holds back", norm2(E) - gap_T)
GAP_SUM = Hypothesis("Δ ≥ f(x_0) − f*", Delta - f_0 + f_star)


def descent() -> tuple[Proof, ...]:
    """Descent: what T steps gain pays for the views' gradients; what the views miss is owed.

    (1/T)[ΣE‖∇f(x)‖² + (1 − αL)ΣE‖∇f(v)‖²] ≤ 2Δ/(αT) + Lασ²/p + (L²/T)ΣE‖x − v‖²: the step of N,
    with mean_i ‖g_i‖² kept instead of dropped, telescoped. No condition on α.
    """
    noise_term, drift = L * alpha**2 * sigma**2 / (2 * p), alpha / 2 * L**2
    gain = alpha / 2 * (1 - alpha * L)
    step = Certificate(
        Claim(
            "W.step",
            "E f(x⁺) ≤ f(x) − (α/2)‖∇f(x)‖² − (α/2)(1 − αL)‖∇f(v)‖² + (α/2)L²‖x − v‖² + Lα²σ²/(2p)",
            f_next - f_x + alpha / 2 * norm2(A) + gain * norm2(G),
            (drift * gap_T, noise_term),
            (SMOOTH, LIPSCHITZ, QUIET),
        ),
        {SMOOTH.name: ONE, LIPSCHITZ.name: alpha / 2, QUIET.name: L * alpha**2 / (2 * p)},
        ((alpha**2 * L / 2, SPREAD),),
    )
    at_T = step.claim.instance({f_x: f_T, f_next: f_T1, NORM_A: grad_T, **VIEWS_AT_T})
    total = Induction(
        "W.sum",
        "Σ[(α/2)E‖∇f(x)‖² + (α/2)(1 − αL)E‖∇f(v)‖²] ≤ f(x_0) − f(x_T) + (α/2)L²ΣE_t + TLα²σ²/(2p)",
        lambda t, f, a, g, e: (
            alpha / 2 * a + gain * g + f - f_0,
            (drift * e, t * noise_term),
        ),
        start=(0, f_0, 0, 0, 0),
        now=(steps, f_T, grad_sum, view_sum, gap_sum),
        following=(steps + 1, f_T1, grad_sum + grad_T, view_sum + VIEW_T, gap_sum + gap_T),
        start_by=((), {}, ()),
        step_by=((at_T,), {at_T.name: ONE, SO_FAR: ONE}, ()),
    )
    summed = total.claim.instance({steps: T})
    rate = Certificate(
        Claim(
            "W.descent",
            "(1/T)[ΣE‖∇f(x)‖² + (1 − αL)ΣE‖∇f(v)‖²] ≤ 2Δ/(αT) + Lασ²/p + (L²/T)ΣE‖x − v‖²",
            (grad_sum + (1 - alpha * L) * view_sum) / T,
            (2 * Delta / (alpha * T), L * alpha * sigma**2 / p, L**2 * gap_sum / T),
            (summed, BELOW, GAP_SUM),
        ),
        {name: 2 / (alpha * T) for name in (summed.name, BELOW.name, GAP_SUM.name)},
    )
    return (step, total, rate)


def windows(own: bool = False) -> tuple[Proof, ...]:
    """Window: what a view misses, in one view and summed over all of them.

    For every y > 0: ‖h + α Σ_{j≤n}(u_j + ξ_j)‖² ≤ (y + n)[‖h‖²/y + α²Σ‖u_j‖² + α²Σ_j V_j/(y + j)].
    Adding update n + 1, ‖e + αu‖²/(y + n + 1) ≤ ‖e‖²/(y + n) + α²‖u‖², and its noise is orthogonal
    to everything before: later noise weighs less than in a split of gradients from noise.
    Summed, each gradient counts τ_max times: U holds the visits left to it. If own updates are
    applied at once, the u of worker i is Σ_{j≠i} g_j/p: ‖u‖² ≤ (1 − 1/p)²‖g‖², noise (p − 1)σ²/p².
    """
    part = mean(G, p) - G * (1 / p) if own else mean(G, p)
    noises = mean(XI, p) - XI * (1 / p) if own else mean(XI, p)
    size, quiet = ((p - 1) ** 2 / p**2, (p - 1) / p**2) if own else (ONE, 1 / p)
    spread = 1 - 2 / p if own else ONE
    prefix, conditions = ("W.own.", (SEVERAL,)) if own else ("W.", ())
    w, v = ("((p − 1)/p)²", "(p − 1)σ²/p²") if own else ("", "σ²/p")
    first = Hypothesis(
        "residuals, if any, are older than what is missed with them", residual_view - norm2(H)
    )

    def view(e: Vector, k: Scalar, s: Scalar, r: Scalar) -> tuple[Scalar, tuple[Scalar, ...]]:
        weight = young + k
        return norm2(e), (
            weight * residual_view / young,
            alpha**2 * weight * size * s,
            alpha**2 * weight * quiet * sigma**2 * r,
        )

    following = young + tau + 1
    window = Induction(
        prefix + "window",
        f"‖x − v‖² ≤ (y + τ)[‖h‖²/y + α²{w}Σ‖g‖² + α²({v}) Σ_(j≤τ) 1/(y + j)]",
        view,
        start=(H, ZERO, ZERO, ZERO),
        now=(E, tau, window_sum, harmonic),
        following=(
            E + (part + noises) * alpha,
            tau + 1,
            window_sum + norm2(G),
            harmonic + 1 / following,
        ),
        start_by=((first,), {first.name: ONE}, ()),
        step_by=(
            (QUIET,),
            {QUIET.name: alpha**2 * quiet, SO_FAR: following / (young + tau)},
            (
                (1 / (young + tau), E - part * (alpha * (young + tau))),
                (alpha**2 * following * spread, SPREAD),
            ),
        ),
        conditions=conditions,
    )
    seen = window.claim.instance()
    visit = Hypothesis(
        "a gradient is missing from at most τ_max views",
        visits - window_sum + longest * VIEW_T - visits_next,
    )
    grads, noise_term = alpha**2 * (young + tau) * size, alpha**2 * (young + tau) * harmonic
    total = Induction(
        prefix + "views",
        f"ΣE‖x − v‖² ≤ (y + τ)[ΣR/y + α²{w}τ_max ΣE‖g‖² + α²T({v}) Σ_(j≤τ) 1/(y + j)]",
        lambda t, e, u, r, g: (
            e + grads * u,
            ((young + tau) * r / young, grads * longest * g, t * noise_term * quiet * sigma**2),
        ),
        start=(0, 0, 0, 0, 0),
        now=(steps, gap_sum, visits, residual_sum, view_sum),
        following=(
            steps + 1,
            gap_sum + gap_T,
            visits_next,
            residual_sum + residual_view,
            view_sum + VIEW_T,
        ),
        start_by=((), {}, ()),
        step_by=(
            (GAP, seen, visit),
            {GAP.name: ONE, seen.name: ONE, visit.name: grads, SO_FAR: ONE},
            (),
        ),
        conditions=conditions,
    )
    return (window, total)


def harmonic_sum() -> Induction:
    """Harmonic sum: Σ_{j≤τ} 1/(y + j) ≤ (τ/2)(1/(y + 1) + 1/(y + τ)), as 1/(y + j) is convex."""
    over = (young + 1) * (young + tau) * (young + tau + 1)
    return Induction(
        "W.harmonic",
        "Σ_(j≤τ) 1/(y + j) ≤ (τ/2)(1/(y + 1) + 1/(y + τ))",
        lambda k, s: (s, (k / (2 * (young + 1)), k / (2 * (young + k)))),
        start=(ZERO, ZERO),
        now=(tau, harmonic),
        following=(tau + 1, harmonic + 1 / (young + tau + 1)),
        start_by=((), {}, ()),
        step_by=((WHOLE,), {WHOLE.name: 1 / (2 * over), SO_FAR: ONE}, ()),
    )


def residual_weight(kept: Scalar, part: Scalar = gamma) -> sp.Expr:
    """Return what n₂ gets from residuals of which bounds keep a share; β² at `kept` = √γ."""
    return sp.sympify(part) * kept / ((kept - part) * (1 - kept))


def feedback_residuals() -> tuple[Proof, ...]:
    """Residuals of error feedback, without M, and summed over the views that miss them.

    y = h + α(g + ξ) and E‖C(y) − y‖² ≤ γ‖y‖²; noise adds up in squares. For every μ > γ,
    ‖h⁺‖² ≤ μ‖h‖² + γμα²‖g‖²/(μ − γ) + γα²σ²: summed, for μ < 1, divided by 1 − μ. The gradients
    weigh least at μ = √γ, β² = γ/(1 − √γ)²; smaller μ have less noise, γ/(1 − γ) in the limit,
    which C(y) = (1 − √γ)y attains where the gradient vanishes.
    """
    compressor = Hypothesis(
        "E‖C(y) − y‖² ≤ γ‖y‖²", gamma * norm2(H + (G + XI) * alpha) - residual_T1
    )
    now = Hypothesis("H_T is at least mean ‖h‖²", residual_T - norm2(H))
    weight, noise_term = residual_weight(memory), gamma * alpha**2 * sigma**2
    step = Certificate(
        Claim(
            "W.residual",
            "γ < μ: ‖h⁺‖² ≤ μ‖h‖² + γμα²‖g‖²/(μ − γ) + γα²σ²",
            residual_T1,
            (memory * residual_T, (1 - memory) * weight * alpha**2 * norm2(G), noise_term),
            (compressor, now, QUIET),
            FORGETS[1:],
        ),
        {compressor.name: ONE, now.name: memory, QUIET.name: gamma * alpha**2},
        ((memory - gamma, H - G * (alpha * gamma / (memory - gamma))),),
    )
    at_T = step.claim.instance(VIEWS_AT_T)
    mixed = Hypothesis("R_T is that of a mean of residuals", norm2(mean(OLD, p)) - residual_view)
    once = Hypothesis(
        "a residual is missing from at most one view",
        backlog + residual_T - norm2(OLD) - backlog_next,
    )
    total = Induction(
        "W.residuals",
        "γ < μ < 1: ΣR ≤ α²ΣE‖g‖² γμ/((μ − γ)(1 − μ)) + α²Tσ²γ/(1 − μ)",
        lambda t, v, k, h, g: (
            v + k + h / (1 - memory),
            (alpha**2 * weight * g, t * noise_term / (1 - memory)),
        ),
        start=(0, 0, 0, 0, 0),
        now=(steps, residual_sum, backlog, residual_T, view_sum),
        following=(
            steps + 1,
            residual_sum + residual_view,
            backlog_next,
            residual_T1,
            view_sum + VIEW_T,
        ),
        start_by=((), {}, ()),
        step_by=(
            (at_T, mixed, once),
            {at_T.name: 1 / (1 - memory), mixed.name: ONE, once.name: ONE, SO_FAR: ONE},
            ((ONE, OLD - mean(OLD, p)),),
        ),
        conditions=FORGETS,
    )

    def bound(q: sp.Expr) -> sp.Expr:
        return noise_term * (1 - q) / (1 - gamma)

    attained = Certificate(
        Claim(
            "W.residual.attained",
            "g = 0, C(y) = (1 − √γ)y: ‖h⁺‖² = γ(‖h‖² + α²σ²) keeps α²σ²γ(1 − γ^t)/(1 − γ)",
            gamma * (bound(decay) + alpha**2 * sigma**2),
            (bound(gamma * decay),),
            (),
            (CONTRACTS,),
            equality=True,
        ),
        {},
    )
    return (step, total, attained)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (
        *descent(),
        *windows(),
        *windows(own=True),
        harmonic_sum(),
        *feedback_residuals(),
    )


def bounds() -> tuple[Bound, ...]:
    """Return none: what the views miss is a step towards the rates."""
    return ()
