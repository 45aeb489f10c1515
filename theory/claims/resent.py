"""Links that drop messages and send them again, without a bound of the second moment.

What such a link holds is not drawn afresh for each view: it grows until a message arrives, and the
gradients know. But as for a compressor with feedback, it shrinks in every step, on average.
"""

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Hypothesis
from theory.claims.missed import (
    FORGETS,
    VIEW_T,
    VIEWS_AT_T,
    feedback_residuals,
    harmonic_sum,
    residual_weight,
    windows,
)
from theory.claims.oblivious import absorbed, rate_bound
from theory.claims.sgd import ONE, QUIET, SPREAD, XI, G
from theory.gram import Scalar, mean, norm2, vector
from theory.induction import SO_FAR, Induction, Proof
from theory.symbols import (
    L,
    T,
    alpha,
    gamma,
    held_grads,
    held_noise,
    held_sum,
    link_sum,
    link_T,
    link_T1,
    longest,
    mean_N,
    memory,
    p,
    repeats,
    residual_sum,
    residual_T,
    residual_T1,
    residual_view,
    sigma,
    steps,
    tau,
    view_sum,
    visits,
    young,
)

HELD = Hypothesis(
    "ΣE‖h‖² ≤ α²(n₂′ΣE‖g‖² + n₁′σ²T) for what is held before",
    alpha**2 * (held_grads * view_sum + held_noise * sigma**2 * T) - held_sum,
)


def behind_link(n2: Scalar, n1: Scalar, m: Scalar, y: Scalar) -> tuple[sp.Expr, sp.Expr]:
    """Return (n₂, n₁) behind a link that holds a mean of m steps, if (n2, n1) is held before it."""
    price = 1 + sp.sympify(m) / y
    return price * (n2 + m * (1 + m + y)), price * (n1 + m / p)


def residual_total() -> Induction:
    """Residuals: Σ‖h‖² behind steps 1, …, t; W.residual, telescoped."""
    step = feedback_residuals()[0].claim.instance(VIEWS_AT_T)
    return Induction(
        "W.residual.sum",
        "γ < μ < 1: Σ‖h‖² ≤ α²ΣE‖g‖² γμ/((μ − γ)(1 − μ)) + α²Tσ²γ/(1 − μ)",
        lambda t, s, h, g: (
            s + memory * h / (1 - memory),
            (
                alpha**2 * residual_weight(memory) * g,
                t * alpha**2 * sigma**2 * gamma / (1 - memory),
            ),
        ),
        start=(0, 0, 0, 0),
        now=(steps, held_sum, residual_T, view_sum),
        following=(steps + 1, held_sum + residual_T1, residual_T1, view_sum + VIEW_T),
        start_by=((), {}, ()),
        step_by=((step,), {step.name: 1 / (1 - memory), SO_FAR: ONE}, ()),
        conditions=FORGETS,
    )


def links() -> tuple[Proof, ...]:
    """Drop and resend: k⁺ = k + αu if a message is dropped, else what stands before the link, h⁺.

    With probability q = m/(1 + m), whatever the messages say: E N = m and Var N = m(1 + m) for the
    number N of steps held. So ‖k⁺‖² ≤ q‖k + αu‖² + (1 − q)‖h⁺‖²; w = (1 + m)(1 + m/y) times it
    telescopes, for every y > 0: n₂ = (1 + m/y)(n₂′ + m(1 + m + y)), n₁ = (1 + m/y)(n₁′ + m/p).
    y² = n₂′ + m(1 + m) is best: n₂ = (E N + √(Var N + n₂′))².
    """
    m, y = mean_N, young
    k, q = vector("Λ"), m / (1 + m)
    drop = Hypothesis(
        "a step's message is dropped with probability m/(1 + m), whatever it says",
        q * norm2(k + mean(G + XI, p) * alpha) + (1 - q) * residual_T1 - link_T1,
    )
    now = Hypothesis("Λ_T is at least ‖k‖²", link_T - norm2(k))
    price, scale = 1 + m / y, (1 + m) * (1 + m / y)
    weight, quiet = price * m * (1 + m + y) * alpha**2, price * m * alpha**2 / p
    step = Certificate(
        Claim(
            "W.link.step",
            "w‖k⁺‖² ≤ (w − 1)‖k‖² + (1 + m/y)[‖h⁺‖² + α²m(1 + m + y)‖g‖² + α²mσ²/p]",
            scale * link_T1,
            ((scale - 1) * link_T, price * residual_T1, weight * norm2(G), quiet * sigma**2),
            (drop, now, QUIET),
        ),
        {drop.name: scale, now.name: scale - 1, QUIET.name: quiet},
        ((m / y, k - mean(G, p) * (alpha * (y + m))), (weight, SPREAD)),
    )
    at_T = step.claim.instance(VIEWS_AT_T)
    total = Induction(
        "W.link",
        "Σ‖k‖² ≤ (1 + m/y)[Σ‖h‖² + α²m(1 + m + y)ΣE‖g‖² + α²Tmσ²/p]",
        lambda t, s, e, h, g: (
            s + (scale - 1) * e,
            (price * h, weight * g, t * quiet * sigma**2),
        ),
        start=(0, 0, 0, 0, 0),
        now=(steps, link_sum, link_T, held_sum, view_sum),
        following=(
            steps + 1,
            link_sum + link_T1,
            link_T1,
            held_sum + residual_T1,
            view_sum + VIEW_T,
        ),
        start_by=((), {}, ()),
        step_by=((at_T,), {at_T.name: ONE, SO_FAR: ONE}, ()),
    )
    summed = total.claim.instance({steps: T})
    n2, n1 = behind_link(held_grads, held_noise, m, y)
    behind = Certificate(
        Claim(
            "W.link.held",
            "n₂ = (1 + m/y)(n₂′ + m(1 + m + y)), n₁ = (1 + m/y)(n₁′ + m/p)",
            link_sum,
            (alpha**2 * n2 * view_sum, alpha**2 * n1 * sigma**2 * T),
            (summed, HELD),
        ),
        {summed.name: ONE, HELD.name: price},
        (((scale - 1) * link_T, ONE),),
    )
    return (step, total, behind)


def held() -> tuple[Proof, ...]:
    """Whatever is held, then a delay: n₂ = (y + τ)τ + (1 + τ/y)n₂′, (τ + √n₂′)² at y = √n₂′.

    A delay that hands on one message a step moves the residual that a view misses on by one, so
    each is missing from one view. If messages come in bursts, in order still, it is missing from up
    to κ ≤ τ + 1 views, and n₂′, n₁′ count κ times: if every κ-th residual is large and waits for
    κ steps, so does the sum of what the views miss.
    """
    y, price = young, 1 + tau / young

    def delayed(name: str, text: str, often: sp.Expr, limit: str, seldom: str) -> Certificate:
        fits = Hypothesis(
            limit,
            1 - alpha * L - alpha**2 * L**2 * ((y + tau) * tau + price * often * held_grads),
        )
        missed = Hypothesis(seldom, often * held_sum - residual_sum)
        return absorbed(
            name,
            text,
            (tau / (2 * p), tau * (y + tau) / (2 * p * (y + 1)), price * often * held_noise),
            {fits: ONE},
            {
                windows()[-1].claim.instance({steps: T, longest: tau}): ONE,
                harmonic_sum().claim.instance(): T * alpha**2 * (y + tau) * sigma**2 / p,
                missed: price,
                HELD: price * often,
            },
            (alpha**2 * (y + tau) * visits,),
        )

    rate = delayed(
        "W.held",
        "τ behind what is held: n₁ = (τ/2p)(1 + (y + τ)/(y + 1)) + (1 + τ/y)n₁′",
        ONE,
        "α²L²((y + τ)τ + (1 + τ/y)n₂′) ≤ 1 − αL",
        "what is held is missing from at most one view",
    )
    in_bursts = delayed(
        "W.held.bursts",
        "bursts, delay ≤ τ, behind what is held: n₁ = (τ/2p)(1 + (y + τ)/(y + 1)) + (1 + τ/y)κn₁′",
        repeats,
        "α²L²((y + τ)τ + (1 + τ/y)κn₂′) ≤ 1 − αL",
        "what is held is missing from at most κ views",
    )
    attained = Certificate(
        Claim(
            "W.held.bursts.attained",
            "‖h‖² = R in every κ-th step, else 0, each missing from κ views: ΣR = κΣH",
            T * residual_view,
            (repeats * (T / repeats * residual_view),),
            equality=True,
            remark="refutes: W.held, where a residual is missing from several views",
        ),
        {},
    )
    return (rate, in_bursts, attained)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (residual_total(), *links(), *held())


def bounds() -> tuple[Bound, ...]:
    """Return the rates for whatever is held, then delayed, one by one or in bursts."""
    return tuple(rate_bound(rate, held_grads) for rate in held()[:2])
