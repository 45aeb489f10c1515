"""Random delays without a bound of the second moment: views that miss the last N updates.

N is drawn afresh for each view, independently of the updates. No largest delay is needed: E N and
E N² take the place of τ and τ².
"""

import sympy as sp

from theory.bound import Bound
from theory.certificate import Hypothesis
from theory.claims.missed import VIEW_T, E, harmonic_sum, windows
from theory.claims.oblivious import absorbed, rate_bound
from theory.claims.sgd import ONE
from theory.gram import norm2
from theory.induction import SO_FAR, Induction, Proof
from theory.symbols import (
    L,
    T,
    alpha,
    gap_N,
    gap_sum,
    gap_T,
    mean_N,
    p,
    prob_N,
    residual_view,
    sigma,
    square_N,
    steps,
    tau,
    view_sum,
    visits,
    visits_next,
    weight_N,
    weighted_residual,
    weighted_residual_sum,
    weighted_sum,
    window_sum,
    young,
)

ZERO = sp.S.Zero
FITS = Hypothesis("2α²L²E N² ≤ 1 − αL", 1 - alpha * L - 2 * alpha**2 * L**2 * square_N)
AVERAGED = ((square_N, square_N - young * mean_N),)
"""The head start y = E N²/E N; any y if N = 0."""


def random_windows() -> tuple[Proof, ...]:
    """Random delays: each view misses the last N updates, N drawn afresh, whatever they contain.

    The window lemma for each value n of N, averaged: E N and E N² for τ and τ². A gradient is in
    the view j steps later with weight E[y + N if N ≥ j]; these weights sum to y E N + E N².
    """
    window, harmonic_claim = windows()[0].claim.instance(), harmonic_sum().claim.instance()
    given = Hypothesis("x − v is the last N updates, N drawn afresh", norm2(E) - gap_N)
    total = young + tau

    def noise_term(m: sp.Expr, q: sp.Expr) -> sp.Expr:
        return alpha**2 * sigma**2 / (2 * p) * (m + (young * m + q) / (young + 1))

    view = Induction(
        "W.random.window",
        "‖x − v‖² ≤ Σ_n P_n(y + n)(R/y + α²G_held) + α²(σ²/2p)[E N + (yE N + E N²)/(y + 1)]",
        lambda e, r, s, m, q: (e, (r, alpha**2 * s, noise_term(m, q))),
        start=(0, 0, 0, 0, 0),
        now=(gap_T, weighted_residual, weighted_sum, mean_N, square_N),
        following=(
            gap_T + prob_N * gap_N,
            weighted_residual + prob_N * total * residual_view / young,
            weighted_sum + prob_N * total * window_sum,
            mean_N + prob_N * tau,
            square_N + prob_N * tau**2,
        ),
        start_by=((), {}, ()),
        step_by=(
            (given, window, harmonic_claim),
            {
                given.name: prob_N,
                window.name: prob_N,
                harmonic_claim.name: prob_N * alpha**2 * total * sigma**2 / p,
                SO_FAR: ONE,
            },
            (),
        ),
    )
    weight = Induction(
        "W.random.weight",
        "Σ_j E[y + N if N ≥ j] ≤ y E N + E N²",
        lambda w, m, q: (w, (young * m, q)),
        start=(0, 0, 0),
        now=(weight_N, mean_N, square_N),
        # Value n adds (y + n)P_n to the n weights of j = 1, …, n.
        following=(
            weight_N + tau * (total * prob_N),
            mean_N + tau * prob_N,
            square_N + tau**2 * prob_N,
        ),
        start_by=((), {}, ()),
        step_by=((), {SO_FAR: ONE}, ()),
    )
    seen, weighs = view.claim.instance(), weight.claim.instance()
    visit = Hypothesis(
        "a view j steps later weighs a gradient by E[y + N if N ≥ j]",
        visits - weighted_sum + weight_N * VIEW_T - visits_next,
    )
    summed = Induction(
        "W.random.views",
        "ΣE‖x − v‖² ≤ ΣΣ_n P_n(1 + n/y)R + α²(yE N + E N²)ΣE‖g‖² + noise as in W.random.window",
        lambda t, e, u, r, g: (
            e + alpha**2 * u,
            (
                r,
                alpha**2 * (young * mean_N + square_N) * g,
                t * noise_term(mean_N, square_N),
            ),
        ),
        start=(0, 0, 0, 0, 0),
        now=(steps, gap_sum, visits, weighted_residual_sum, view_sum),
        following=(
            steps + 1,
            gap_sum + gap_T,
            visits_next,
            weighted_residual_sum + weighted_residual,
            view_sum + VIEW_T,
        ),
        start_by=((), {}, ()),
        step_by=(
            (seen, weighs, visit),
            {
                seen.name: ONE,
                weighs.name: alpha**2 * VIEW_T,
                visit.name: alpha**2,
                SO_FAR: ONE,
            },
            (),
        ),
    )
    return (view, weight, summed)


def random_delays() -> tuple[Proof, ...]:
    """Random delays, drawn afresh for each view: n₂ = 2E N², n₁ = (3/2)E N/p, by y = E N²/E N."""
    views = random_windows()[-1].claim
    rate = absorbed(
        "W.random",
        "2α²L²E N² ≤ 1 − αL: avg ≤ 2Δ/(αT) + Lασ²/p + (3/2)L²α²(σ²/p)E N",
        (3 * mean_N / (2 * p),),
        {FITS: ONE},
        {views.instance({steps: T, weighted_residual_sum: ZERO}): ONE},
        (alpha**2 * visits, T * alpha**2 * sigma**2 * mean_N / (p * (young + 1))),
        relations=AVERAGED,
        remark="mean and mean square of the delay; no largest delay is needed",
    )
    return (rate,)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*random_windows(), *random_delays())


def bounds() -> tuple[Bound, ...]:
    """Return the rate under random delays."""
    return (rate_bound(random_delays()[0], square_N),)
