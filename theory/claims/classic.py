"""The classic forms of N and S for single steps, and that the sharp ones are never worse.

Classic is what the usual technique gives: the stochastic gradient is split in three,
E‖G̃‖² ≤ 3(σ² + ‖g − a‖² + ‖a‖²), and Young's inequality has a fixed parameter. p = 1.
"""

from dataclasses import replace
from typing import Any

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.convex import strongly_convex as strongly_convex_sharp
from theory.claims.nonconvex import AVERAGE, telescope
from theory.claims.nonconvex import nonconvex as sharp_nonconvex
from theory.claims.sgd import (
    CURVED,
    DISTANCE_AT_T,
    ONE,
    QUIET,
    STEP,
    STRICTLY_CURVED,
    XI,
    A,
    Z,
    smooth,
    unroll,
)
from theory.gram import Scalar, inner, norm2, vector
from theory.induction import SO_FAR, Induction, Proof
from theory.symbols import (
    B,
    Delta,
    L,
    T,
    alpha,
    c,
    decay,
    decay_half,
    dist_0,
    dist_next,
    dist_T,
    dist_T1,
    f_next,
    f_x,
    grad_sum,
    log_T,
    p,
    root_pT,
    root_T,
    sigma,
)

# One worker: its view and its gradient have no deviations.
E1, G1 = vector("e"), vector("g")
LIPSCHITZ1 = Hypothesis("∇f is L-Lipschitz", L**2 * norm2(E1) - norm2(A - G1))
ELASTIC1 = Hypothesis("elastic consistency", alpha**2 * B**2 - norm2(E1))
SIXTH_STEP = Condition("αL ≤ 1/6", 1 - 6 * alpha * L, alpha, 1 / alpha)
SHORTER = Condition("αc ≤ 1", 1 - alpha * c, alpha, 1 / alpha)
ROOT_OF_T = ((root_T, root_T**2 - T),)


def split() -> Certificate:
    """E‖G̃‖² ≤ 3(σ² + ‖g − a‖² + ‖a‖²): each of the three parts is weighed alike."""
    return Certificate(
        Claim(
            "classic.split",
            "E‖G̃‖² ≤ 3(σ² + ‖∇f(v) − ∇f(x)‖² + ‖∇f(x)‖²)",
            norm2(G1 + XI),
            (3 * sigma**2, 3 * norm2(G1 - A), 3 * norm2(A)),
            (QUIET,),
        ),
        {QUIET.name: sp.Integer(3)},
        ((2, XI), (ONE, G1 - 2 * A), (ONE, G1 - A), (ONE, A)),
    )


def nonconvex() -> tuple[Proof, ...]:
    """Classic N: αL ≤ 1/6; the split, and −⟨a, g⟩ ≤ ½‖a − g‖² − ½‖a‖².

    (1/T)Σ E‖∇f(x_t)‖² ≤ 4Δ/(αT) + 2L²α²B² + 6Lασ² + 6L³α³B²; at α = 1/√T, T ≥ 36L², this is
    4Δ/√T + 2L²B²/T + 6Lσ²/√T + 6L³B²/(T√T).
    """
    smoothness, thirds = smooth(G1 + XI), split().claim.instance()
    losses = (
        alpha**3 * L**2 * B**2 / 2,
        3 * L * alpha**2 * sigma**2 / 2,
        3 * L**3 * alpha**4 * B**2 / 2,
    )
    spread = alpha / 2 * (1 + 3 * alpha * L)
    step = Certificate(
        Claim(
            "N.step.classic",
            "p = 1: E f(x⁺) ≤ f(x) − (α/4)‖∇f(x)‖² + (α/2)L²α²B² + (3/2)Lα²σ² + (3/2)L³α⁴B²",
            alpha / 4 * norm2(A),
            (f_x - f_next, *losses),
            (smoothness, thirds, LIPSCHITZ1, ELASTIC1),
            (SIXTH_STEP,),
        ),
        {
            smoothness.name: ONE,
            thirds.name: L * alpha**2 / 2,
            LIPSCHITZ1.name: spread,
            ELASTIC1.name: spread * L**2,
        },
        ((alpha / 4 * (1 - 6 * alpha * L), A), (alpha / 2, G1)),
    )
    texts = (
        "p = 1: (α/4) Σ E‖∇f(x_t)‖² + E f(x_T) − f(x_0) ≤ T(½L²α³B² + (3/2)Lα²σ² + (3/2)L³α⁴B²)",
        "p = 1: (1/T) Σ E‖∇f(x_t)‖² ≤ 4Δ/(αT) + 2L²α²B² + 6Lασ² + 6L³α³B²",
    )
    total, rate = telescope(step.claim, texts, alpha / 4)
    tuned = rate.claim.instance({alpha: 1 / root_T})
    textbook = Certificate(
        Claim(
            "N.tuned.classic",
            "p = 1, α = 1/√T: (1/T) Σ E‖∇f(x_t)‖² ≤ 4Δ/√T + 2L²B²/T + 6Lσ²/√T + 6L³B²/(T√T)",
            grad_sum / T,
            (
                4 * Delta / root_T,
                2 * L**2 * B**2 / T,
                6 * L * sigma**2 / root_T,
                6 * L**3 * B**2 / (T * root_T),
            ),
            (tuned,),
            (Condition("√T ≥ 6L", root_T - 6 * L, root_T),),
            ROOT_OF_T,
        ),
        {tuned.name: ONE},
    )
    return (step, total, rate, textbook)


def strongly_convex() -> tuple[Proof, ...]:
    """Classic S: α ≤ c/(6L²); the split, and 2⟨z, g − a⟩ ≥ −c‖z‖² − ‖g − a‖²/c.

    E‖z⁺‖² ≤ (1 − αc/2)‖z‖² + 3α²σ² + L²α³B²/c + 3L²α⁴B². At α = 2 ln T/(cT)
    E‖z_T‖² ≤ ‖z_0‖²/T + 12σ² ln T/(c²T) + 8L²B² ln²T/(c⁴T²) + 48L²B² ln³T/(c⁴T³).
    """
    move = Hypothesis("update", norm2(Z - (G1 + XI) * alpha) - dist_next)
    monotone = Hypothesis("f is c-strongly convex at x, x*", inner(A, Z) - c * norm2(Z))
    lipschitz = Hypothesis("∇f is L-Lipschitz at x, x*", L**2 * norm2(Z) - norm2(A))
    thirds = split().claim.instance()
    losses = (
        3 * alpha**2 * sigma**2,
        L**2 * alpha**3 * B**2 / c,
        3 * L**2 * alpha**4 * B**2,
    )
    spread = alpha / c + 3 * alpha**2
    step = Certificate(
        Claim(
            "S.step.classic",
            "p = 1: E‖z⁺‖² ≤ (1 − αc + 3α²L²)‖z‖² + 3α²σ² + L²α³B²/c + 3L²α⁴B²",
            dist_next,
            ((1 - alpha * c + 3 * alpha**2 * L**2) * norm2(Z), *losses),
            (move, monotone, lipschitz, thirds, LIPSCHITZ1, ELASTIC1),
        ),
        {
            move.name: ONE,
            monotone.name: 2 * alpha,
            lipschitz.name: 3 * alpha**2,
            thirds.name: alpha**2,
            LIPSCHITZ1.name: spread,
            ELASTIC1.name: spread * L**2,
        },
        ((alpha / c, Z * c + G1 - A),),
    )
    at_T, rate = step.claim.instance(DISTANCE_AT_T), alpha * c / 2
    short = Hypothesis("α ≤ c/(6L²)", c - 6 * alpha * L**2)
    halved = Certificate(
        Claim(
            "S.half.classic",
            "p = 1, α ≤ c/(6L²): E‖z⁺‖² ≤ (1 − αc/2)‖z‖² + 3α²σ² + L²α³B²/c + 3L²α⁴B²",
            dist_T1,
            ((1 - rate) * dist_T, *losses),
            (at_T, short),
        ),
        {at_T.name: ONE, short.name: alpha / 2 * dist_T},
    )
    unrolled = unroll(
        "S.classic",
        "p = 1, α ≤ c/(6L²): E‖z_T‖² ≤ q‖z_0‖² + (1 − q)(6ασ²/c + 2L²α²B²(1 + 3αc)/c²)",
        halved.claim.instance(),
        tuple(loss / rate for loss in losses),
        (dist_0, dist_T, dist_T1),
        (Condition("αc ≤ 2", 2 - alpha * c, alpha, 1 / alpha),),
        rate,
        remark="q = (1 − αc/2)^T",
    )
    a = 2 * log_T / (c * T)
    floor = sp.Add(*losses) / rate
    at_log = unrolled.claim.instance({alpha: a})
    power = Hypothesis("(1 − y)^T ≤ e^(−yT) at y = ln T/T", 1 / T - decay)
    tuned = Certificate(
        Claim(
            "S.tuned.classic",
            "α = 2 ln T/(cT): E‖z_T‖² ≤ ‖z_0‖²/T + 12σ²ln T/(c²T) + 8L²B²ln²T(1 + 6 ln T/T)/(c⁴T²)",
            dist_T,
            (
                dist_0 / T,
                12 * sigma**2 * log_T / (c**2 * T),
                8 * L**2 * B**2 * log_T**2 / (c**4 * T**2),
                48 * L**2 * B**2 * log_T**3 / (c**4 * T**3),
            ),
            (at_log, power),
            (Condition("T ≥ ln T", T - log_T, T),),
            remark="p = 1; α ≤ c/(6L²) is assumed: T ≥ 12κ² ln T, κ = L/c",
        ),
        {at_log.name: ONE, power.name: dist_0},
        ((decay * floor.subs(alpha, a), ONE),),
    )
    return (step, halved, unrolled, tuned)


def compare_nonconvex() -> tuple[Proof, ...]:
    """The sharp N is at most half the classic one, at every step size and so at α = 1/√T.

    Its noise term is a sixth, its elastic term a half and less; it allows steps six times as long.
    """
    sharp, rate = _terms(sharp_nonconvex()[2].claim, (p, 1)), nonconvex()[2].claim
    order = Certificate(
        Claim(
            "N.order",
            "p = 1: 2·(sharp N) ≤ classic N at every α",
            2 * sp.Add(*sharp),
            rate.rhs,
            remark="equal without noise and B; else strict",
        ),
        {},
        ((4 * L * alpha, sigma), (6 * L**3 * alpha**3, B)),
    )
    at_root = order.claim.instance({alpha: 1 / root_T})
    sharp_textbook = _terms(sharp_nonconvex()[4].claim, (p, 1), (root_pT, root_T))
    textbook = Certificate(
        Claim(
            "N.tuned.order",
            "p = 1, α = 1/√T: 2·(sharp N) ≤ classic N",
            2 * sp.Add(*sharp_textbook),
            nonconvex()[3].claim.rhs,
            (at_root,),
            relations=ROOT_OF_T,
            remark="equal without noise and B; else strict",
        ),
        {at_root.name: ONE},
    )
    return (order, textbook)


def compare_strongly_convex() -> tuple[Proof, ...]:
    """The sharp S is at most the classic one, at every step size and each at its own textbook step.

    At the textbook steps its noise term is a twelfth, its elastic term less than 1/(8κ), κ = L/c.
    With q = (1 − αc)^T and r = (1 − αc/2)^T: q ≤ r, and 1 − q ≤ 2(1 − r) as 1 − q is concave in α.
    """
    # The start decays faster by q ≤ r, the floor builds up at most twice as fast.
    slower = Induction(
        "S.decay",
        "(1 − αc)^T ≤ (1 − αc/2)^T",
        lambda q, r: (q, (r,)),
        start=(ONE, ONE),
        now=(decay, decay_half),
        following=((1 - alpha * c) * decay, (1 - alpha * c / 2) * decay_half),
        start_by=((), {}, ()),
        step_by=((), {SO_FAR: 1 - alpha * c / 2}, ((alpha * c / 2 * decay, ONE),)),
        conditions=(SHORTER,),
    )
    before = slower.claim.instance()
    build_up = Induction(
        "S.floor",
        "1 − (1 − αc)^T ≤ 2(1 − (1 − αc/2)^T)",
        lambda q, r: (1 - q, (2 * (1 - r),)),
        start=(ONE, ONE),
        now=(decay, decay_half),
        following=((1 - alpha * c) * decay, (1 - alpha * c / 2) * decay_half),
        start_by=((), {}, ()),
        step_by=((before,), {SO_FAR: ONE, before.name: alpha * c}, ()),
        conditions=(SHORTER,),
    )
    classic, classic_tuned = strongly_convex()[2:]
    faster, floors = slower.claim.instance(), build_up.claim.instance()
    claims = {proof.claim.name: proof.claim for proof in strongly_convex_sharp()}

    def compare(
        name: str, kappa: str, sharp: Claim, smoothness: sp.Expr, *where: Condition
    ) -> Certificate:
        start, *sharp_floor = _terms(sharp, (p, 1))
        terms = _terms(classic.claim, (decay, decay_half), (L, smoothness))
        floor = sp.Add(*(term / (1 - decay) for term in sharp_floor))
        classic_floor = sp.Add(*(term / (1 - decay_half) for term in terms[1:]))
        excess = sp.Add(*_parts(classic_floor - 2 * floor))
        return Certificate(
            Claim(
                name,
                f"p = 1: sharp S ≤ classic S at every α and T, {kappa}",
                sp.Add(start, *sharp_floor),
                terms,
                (faster, floors),
                where,
                remark="strict if σ > 0 or B > 0; the floor is less than half the classic one",
            ),
            {faster.name: dist_0 + excess, floors.name: floor + excess},
        )

    order = compare("S.order", "κ > 1", claims["S"], L, STRICTLY_CURVED, STEP)
    round_order = compare("S.order.ball", "κ = 1", claims["S.ball.run"], c, SHORTER)
    start, *sharp_floor = _terms(claims["S.tuned"], (p, 1))
    sharp_textbook = start + 8 * sp.Add(*sharp_floor)
    rest = _parts(sp.Add(*classic_tuned.claim.rhs) - sharp_textbook)
    textbook = Certificate(
        Claim(
            "S.tuned.order",
            "p = 1, textbook steps: ‖z_0‖²/T + 8·(the rest of sharp S) ≤ classic S, for every κ",
            sharp_textbook,
            classic_tuned.claim.rhs,
            (),
            (CURVED,),
            remark="noise: 12 times less; elasticity: 8κ(1 + 6 ln T/T) times less, κ = L/c",
        ),
        {},
        tuple((term, ONE) for term in rest),
    )
    return (slower, build_up, order, round_order, textbook)


def _parts(expr: sp.Expr) -> tuple[Any, ...]:
    """Return the factored parts of an expression that belong to each power of σ and of B."""
    collected = sp.collect(sp.expand(expr), (sigma, B), evaluate=False)
    return tuple(sp.factor(key * value) for key, value in collected.items())


def _terms(claim: Claim, *values: tuple[sp.Symbol, Scalar]) -> tuple[Any, ...]:
    """Return the terms of a bound, with values put in."""
    return tuple(sp.Add(term).subs(list(values)) for term in claim.rhs)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (
        split(),
        *nonconvex(),
        *strongly_convex(),
        *compare_nonconvex(),
        *compare_strongly_convex(),
    )


def bounds() -> tuple[Bound, ...]:
    """Return the classic rates, in general and at their textbook step sizes."""
    _, _, rate, textbook = nonconvex()
    *_, unrolled, tuned = strongly_convex()
    distance = "E‖x_T − x*‖²"
    at_log = Bound.of(
        tuned, f"{distance} at p = 1, α = 2 ln T/(cT)", whatever=(decay,)
    )  # its first condition is T ≥ ln T
    return (
        Bound.of(rate, f"{AVERAGE} at p = 1"),
        Bound.of(textbook, f"{AVERAGE} at p = 1, α = 1/√T"),
        Bound.of(unrolled, f"{distance} at p = 1", values={decay: (1 - alpha * c / 2) ** T}),
        replace(at_log, conditions=at_log.conditions[1:]),
    )
