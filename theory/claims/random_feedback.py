"""Error feedback before random delays, without a bound of the second moment.

A view misses the last N updates and the residual of N steps ago; N is drawn afresh for each view,
whatever the updates contain. (Behind a link that drops and resends, it is not: see `resent`.)
"""

from dataclasses import replace

import sympy as sp

from theory.bound import Bound
from theory.certificate import Condition, Hypothesis
from theory.claims.feedback import ROOT, ROOT_CONTRACTS
from theory.claims.missed import (
    FORGETS,
    OLD,
    VIEW_T,
    VIEWS_AT_T,
    feedback_residuals,
    residual_weight,
)
from theory.claims.nonconvex import AVERAGE
from theory.claims.oblivious import absorbed, rate_bound
from theory.claims.random_delays import AVERAGED, random_windows
from theory.claims.sgd import ONE
from theory.gram import Scalar, mean, norm2
from theory.induction import SO_FAR, Induction, Proof
from theory.symbols import (
    L,
    T,
    alpha,
    backlog,
    backlog_next,
    gamma,
    mean_N,
    memory,
    p,
    prob_N,
    residual_T,
    residual_T1,
    residual_view,
    root_gamma,
    sigma,
    square_N,
    steps,
    tau,
    total_prob,
    view_sum,
    visits,
    weight_residual,
    weighted_old,
    weighted_residual,
    weighted_residual_sum,
    young,
)

BETA = root_gamma / (1 - root_gamma)
PRICE = 1 + mean_N / young
DELAYED = Condition("E N² > 0", square_N, square_N, strict=True)


def random_residuals() -> tuple[Proof, ...]:
    """Residuals of feedback, summed over views that miss the one of N steps ago.

    The view n steps later weighs a residual by P_n(1 + n/y); these weights sum to 1 + E N/y.
    """
    seen = prob_N * (1 + tau / young)
    mixed = Hypothesis("R_T is that of a mean of residuals", norm2(mean(OLD, p)) - residual_view)
    each = Induction(
        "W.both.random.mean",
        "Σ_n P_n(1 + n/y)‖mean_i h_i‖² ≤ Σ_n P_n(1 + n/y) mean_i ‖h_i‖²",
        lambda r, h: (r, (h,)),
        start=(0, 0),
        now=(weighted_residual, weighted_old),
        following=(weighted_residual + seen * residual_view, weighted_old + seen * norm2(OLD)),
        start_by=((), {}, ()),
        step_by=((mixed,), {mixed.name: seen, SO_FAR: ONE}, ((seen, OLD - mean(OLD, p)),)),
    )
    weight = Induction(
        "W.both.random.weight",
        "Σ_n P_n(1 + n/y) ≤ ΣP + E N/y",
        lambda w, s, m: (w, (s, m / young)),
        start=(0, 0, 0),
        now=(weight_residual, total_prob, mean_N),
        following=(weight_residual + seen, total_prob + prob_N, mean_N + prob_N * tau),
        start_by=((), {}, ()),
        step_by=((), {SO_FAR: ONE}, ()),
    )
    once = Hypothesis(
        "the view n steps later weighs a residual by P_n(1 + n/y)",
        backlog + weight_residual * residual_T - weighted_old - backlog_next,
    )
    chances = Hypothesis("probabilities sum to 1", 1 - total_prob)
    step, of_mean, weighs = (
        feedback_residuals()[0].claim.instance(VIEWS_AT_T),
        each.claim.instance(),
        weight.claim.instance(),
    )
    price = PRICE / (1 - memory)
    total = Induction(
        "W.both.random.residuals",
        "γ < μ < 1: ΣΣ_n P_n(1 + n/y)R ≤ (1 + E N/y) times the bound of W.residuals",
        lambda t, v, k, h, g: (
            v + k + price * h,
            (
                PRICE * alpha**2 * residual_weight(memory) * g,
                t * price * gamma * alpha**2 * sigma**2,
            ),
        ),
        start=(0, 0, 0, 0, 0),
        now=(steps, weighted_residual_sum, backlog, residual_T, view_sum),
        following=(
            steps + 1,
            weighted_residual_sum + weighted_residual,
            backlog_next,
            residual_T1,
            view_sum + VIEW_T,
        ),
        start_by=((), {}, ()),
        step_by=(
            (step, of_mean, weighs, once, chances),
            {
                step.name: price,
                of_mean.name: ONE,
                weighs.name: residual_T,
                once.name: ONE,
                chances.name: residual_T,
                SO_FAR: ONE,
            },
            (),
        ),
        conditions=FORGETS,
    )
    return (each, weight, total)


def random_feedback() -> tuple[Proof, ...]:
    """Error feedback, then random delays, for every y > 0 and γ < μ < 1, here μ = √γ.

    n₂ = yE N + E N² + (1 + E N/y)γμ/((μ − γ)(1 − μ)) and
    n₁ = [E N + (yE N + E N²)/(y + 1)]/(2p) + (1 + E N/y)γ/(1 − μ).
    y = β = √γ/(1 − √γ) allows the longest steps, n₂ = E(N + β)²; y = E N²/E N has less noise if
    delays outlast residuals: 1 + E N/y ≤ 2, so n₂ ≤ 2(E N² + β²).
    """
    r, a = root_gamma, alpha * L
    views, residuals = random_windows()[-1].claim, random_residuals()[-1].claim
    unseen = alpha**2 * visits

    def left(price: sp.Expr) -> sp.Expr:
        return backlog + price * residual_T / (1 - r)

    def fits(text: str, weight: sp.Expr) -> dict[Hypothesis, Scalar]:
        return {Hypothesis(text, 1 - a - a**2 * weight): ONE}

    def used(y: sp.Expr) -> dict[Hypothesis, Scalar]:
        settings = {steps: T, young: y}
        feeds = residuals.instance({**settings, memory: r, gamma: r**2})
        return {views.instance(settings): ONE, feeds: ONE}

    less_noise = absorbed(
        "W.both.random",
        "y = E N²/E N, α²L²n₂ ≤ 1 − αL: noise L²α²σ²[(3/2)E N/p + (1 + E N/y)γ/(1 − √γ)]",
        (3 * mean_N / (2 * p), PRICE * gamma / (1 - r)),
        fits("α²L²(2E N² + (1 + (E N)²/E N²)β²) ≤ 1 − αL", 2 * square_N + PRICE * BETA**2),
        used(young),
        (unseen, left(PRICE), T * alpha**2 * sigma**2 * mean_N / (p * (young + 1))),
        (ROOT_CONTRACTS,),
        (*ROOT, *AVERAGED),
        remark="n₂ = 2E N² + (1 + E N/y)β² ≤ 2(E N² + β²): no cross term, no largest delay",
    )
    wide = absorbed(
        "W.both.random.wide",
        "α²L²E(N + β)² ≤ 1 − αL: n₁ = [(1 + √γ)E N + (1 − √γ)E N²]/(2p) + √γ(β + E N)",
        ((1 + r) * mean_N / (2 * p), (1 - r) * square_N / (2 * p), r * BETA, r * mean_N),
        fits(
            "α²L²(E N² + 2βE N + β²) ≤ 1 − αL",
            square_N + 2 * BETA * mean_N + BETA**2,
        ),
        used(BETA),
        (unseen, left(1 + mean_N / BETA)),
        (ROOT_CONTRACTS,),
        remark="the longest steps: only the sum of both memories counts",
    )
    return (less_noise, wide)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*random_residuals(), *random_feedback())


def bounds() -> tuple[Bound, ...]:
    """Return the rates with feedback before a random delay."""
    less_noise, wide = random_feedback()
    quiet = Bound.of(
        less_noise, AVERAGE, values={young: square_N / mean_N}, whatever=(tau, total_prob)
    )
    return (replace(quiet, conditions=(*quiet.conditions, DELAYED)), rate_bound(wide))
