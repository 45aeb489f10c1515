"""Random delays without a bound of the second moment: views that miss the last N updates.

N is drawn afresh for each view, independently of the updates. No largest delay is needed: E N and
E N² take the place of τ and τ².
"""

import sympy as sp

from theory.bound import Bound
from theory.certificate import Condition, Hypothesis
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
    n,
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
    weighted_sum,
    window_sum,
    young,
)

ZERO = sp.S.Zero
FITS = Hypothesis("2α²L²E N² ≤ 1 − αL", 1 - alpha * L - 2 * alpha**2 * L**2 * square_N)


def random_windows() -> tuple[Proof, ...]:
    """Random delays: each view misses the last N updates, N drawn afresh, whatever they contain.

    The window lemma with y = n for each value n of N, averaged: n₂ = 2E N², n₁ = (3/2)E N/p. A
    gradient is in the view j steps later with weight E[N if N ≥ j]; these weights sum to E N².
    """
    settings = {young: n, tau: n}
    window = windows()[0].claim.instance({**settings, residual_view: ZERO})
    harmonic_claim = harmonic_sum().claim.instance(settings)
    given = Hypothesis("x − v is the last N updates, N drawn afresh", norm2(E) - gap_N)
    noise_term = sp.Rational(3, 2) * alpha**2 * sigma**2 / p
    view = Induction(
        "W.random.window",
        "‖x − v‖² ≤ 2α²Σ_n P_n n G_held + (3/2)α²(σ²/p)E N",
        lambda e, s, m: (e, (2 * alpha**2 * s, noise_term * m)),
        start=(0, 0, 0),
        now=(gap_T, weighted_sum, mean_N),
        following=(
            gap_T + prob_N * gap_N,
            weighted_sum + prob_N * n * window_sum,
            mean_N + prob_N * n,
        ),
        start_by=((), {}, ()),
        step_by=(
            (given, window, harmonic_claim),
            {
                given.name: prob_N,
                window.name: prob_N,
                harmonic_claim.name: 2 * prob_N * alpha**2 * n * sigma**2 / p,
                SO_FAR: ONE,
            },
            ((prob_N * alpha**2 * sigma**2 * n / (p * (n + 1)), ONE),),
        ),
    )
    weight = Induction(
        "W.random.weight",
        "Σ_j E[N if N ≥ j] ≤ E N²",
        lambda w, square: (w, (square,)),
        start=(0, 0),
        now=(weight_N, square_N),
        # Value n adds nP_n to the n weights of j = 1, …, n.
        following=(weight_N + n * (n * prob_N), square_N + n**2 * prob_N),
        start_by=((), {}, ()),
        step_by=((), {SO_FAR: ONE}, ()),
    )
    seen, weighs = view.claim.instance(), weight.claim.instance()
    visit = Hypothesis(
        "a view j steps later weighs a gradient by E[N if N ≥ j]",
        visits - weighted_sum + weight_N * VIEW_T - visits_next,
    )
    total = Induction(
        "W.random.views",
        "ΣE‖x − v‖² ≤ 2α²E N² ΣE‖g‖² + (3/2)α²T(σ²/p)E N",
        lambda t, e, u, g: (
            e + 2 * alpha**2 * u,
            (2 * alpha**2 * square_N * g, t * noise_term * mean_N),
        ),
        start=(0, 0, 0, 0),
        now=(steps, gap_sum, visits, view_sum),
        following=(steps + 1, gap_sum + gap_T, visits_next, view_sum + VIEW_T),
        start_by=((), {}, ()),
        step_by=(
            (seen, weighs, visit),
            {
                seen.name: ONE,
                weighs.name: 2 * alpha**2 * VIEW_T,
                visit.name: 2 * alpha**2,
                SO_FAR: ONE,
            },
            (),
        ),
    )
    return (view, weight, total)


def random_delays() -> tuple[Proof, ...]:
    """Random delays, drawn afresh for each view: n₂ = 2E N², n₁ = (3/2)E N/p."""
    views = random_windows()[-1].claim
    rate = absorbed(
        "W.random",
        "2α²L²E N² ≤ 1 − αL: avg ≤ 2Δ/(αT) + Lασ²/p + (3/2)L²α²(σ²/p)E N",
        (3 * mean_N / (2 * p),),
        {FITS: ONE},
        {views.instance({steps: T}): ONE},
        (2 * alpha**2 * visits,),
        remark="mean and mean square of the delay; no largest delay is needed",
    )
    return (rate,)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*random_windows(), *random_delays())


def bounds() -> tuple[Bound, ...]:
    """Return the rate under random delays."""
    return (rate_bound(random_delays()[0], Condition(FITS.name, FITS.expr, alpha)),)
