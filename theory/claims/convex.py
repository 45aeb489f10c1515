"""Convergence of SGD at elastic views for convex f: S (strongly convex), C (convex).

One step is certified, then unrolled or telescoped; the assumptions are those of `sgd`.
"""

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.sgd import (
    CONVEX,
    DISTANCE_AT_T,
    ELASTIC,
    HALF_STEP,
    MOVE,
    ONE,
    QUIET,
    SECANT,
    SPREAD,
    STEP,
    STRICT_STEP,
    STRICTLY_CURVED,
    XI,
    E,
    G,
    W,
    Z,
    unroll,
)
from theory.gram import inner, mean, norm2
from theory.induction import SO_FAR, Induction, Proof
from theory.symbols import (
    B,
    L,
    T,
    alpha,
    c,
    decay,
    dist_0,
    dist_next,
    dist_T,
    dist_T1,
    f_star,
    f_v,
    log_T,
    p,
    sigma,
    steps,
    value_sum,
    value_T,
)

SHORT = Condition("αc ≤ 1", 1 - alpha * c, alpha, 1 / alpha)


def _distance_claim(
    name: str,
    text: str,
    factor: sp.Expr,
    constant: sp.Expr,
    hypotheses: tuple[Hypothesis, ...],
    conditions: tuple[Condition, ...],
) -> Claim:
    """Return E‖z⁺‖² ≤ factor·‖z‖² + α²σ²/p + constant·α³B²."""
    terms = (factor * norm2(Z), alpha**2 * sigma**2 / p, constant * alpha**3 * B**2)
    return Claim(name, text, dist_next, terms, (*hypotheses, ELASTIC, QUIET), conditions)


def _distance_multipliers(constant: sp.Expr) -> dict[str, sp.Expr]:
    """Return the multipliers that every `_distance_claim` has."""
    return {MOVE.name: ONE, ELASTIC.name: alpha * constant, QUIET.name: alpha**2 / p}


def strongly_convex() -> tuple[Proof, ...]:
    """S: f c-strongly convex and L-smooth, αL ≤ 1; K = c + (L − c)²/Q, Q = 2L − c − αL².

    E‖z⁺‖² ≤ (1 − αc)‖z‖² + α²σ²/p + Kα³B², where K ≤ L; curvature L attains it. At α = ln T/(cT)
    E‖z_T‖² ≤ ‖z_0‖²/T + σ² ln T/(c²pT) + LB² ln²T/(c³T²).
    """
    Q, Q1 = 2 * L - c - alpha * L**2, 2 * L - alpha * L**2 - alpha * c**2
    K = c + (L - c) ** 2 / Q
    lam, mu = 2 * L * (1 - alpha * c) / (L - c) ** 2, Q1 / (L - c) ** 2
    nu = c * (3 * L - c - alpha * L**2 - alpha * L * c) / Q1
    eta = c * (1 - alpha * c) * Q / Q1
    where = (STRICTLY_CURVED, STEP)
    step = Certificate(
        _distance_claim(
            "S.step",
            "E‖z⁺‖² ≤ (1 − αc)‖z‖² + α²σ²/p + Kα³B²,  K = c + (L − c)²/(2L − c − αL²)",
            1 - alpha * c,
            K,
            (MOVE, SECANT),
            where,
        ),
        {**_distance_multipliers(K), SECANT.name: alpha * lam},
        (
            (alpha * mu, G - W * nu + E * (1 / mu)),
            (alpha * eta, W + E * ((L - c) / Q)),
            (alpha**2, SPREAD),
        ),
    )
    ball = norm2(Z - mean(W, p) * (alpha * c) - mean(XI, p) * alpha) - dist_next
    round_move = Hypothesis("update, ∇f(v) = c(v − x*)", ball)
    # With L = c, f is a ball: g = cw, and the secant inequality is an equality.
    equal = Certificate(
        _distance_claim(
            "S.ball",
            "L = c: E‖z⁺‖² ≤ (1 − αc)‖z‖² + α²σ²/p + cα³B²",
            1 - alpha * c,
            c,
            (round_move,),
            (SHORT,),
        ),
        {round_move.name: ONE, ELASTIC.name: alpha * c, QUIET.name: alpha**2 / p},
        ((alpha * c * (1 - alpha * c), mean(W, p)), (alpha * c, E - mean(E, p))),
    )
    order = Certificate(
        Claim("S.constant", "K ≤ L", K, (L,), (), where),
        {},
        ((L * (L - c) * (1 - alpha * L) / Q, ONE),),
    )
    # One worker, f = (L/2)x², z = (1 − αL)Le/Q.
    extreme = (1 - alpha * L) * L / Q  # z for e = 1
    attained = Certificate(
        Claim(
            "S.attained",
            "f = (L/2)x², z = (1 − αL)Le/Q: ‖z⁺‖² = (1 − αc)‖z‖² + Kα‖e‖²",
            (extreme - alpha * L * (extreme - 1)) ** 2,
            ((1 - alpha * c) * extreme**2, K * alpha),
            (),
            where,
            equality=True,
        ),
        {},
    )
    unrolled = unroll(
        "S",
        "E‖z_T‖² ≤ (1 − αc)^T ‖z_0‖² + (1 − (1 − αc)^T)(ασ²/(cp) + Kα²B²/c)",
        step.claim.instance(DISTANCE_AT_T),
        (alpha * sigma**2 / (c * p), K * alpha**2 * B**2 / c),
        (dist_0, dist_T, dist_T1),
        where,
    )
    a = log_T / (c * T)
    K_a = K.subs(alpha, a)
    at_log = unrolled.claim.instance({alpha: a})
    power = Hypothesis("(1 − y)^T ≤ e^(−yT) at y = ln T/T", 1 / T - decay)
    floor = a * sigma**2 / (c * p) + K_a * a**2 * B**2 / c
    tuned = Certificate(
        Claim(
            "S.tuned",
            "α = ln T/(cT): E‖z_T‖² ≤ ‖z_0‖²/T + σ² ln T/(c²pT) + LB² ln²T/(c³T²)",
            dist_T,
            (
                dist_0 / T,
                sigma**2 * log_T / (c**2 * p * T),
                L * B**2 * log_T**2 / (c**3 * T**2),
            ),
            (at_log, power),
            (STRICTLY_CURVED, Condition("cT ≥ L ln T", c * T - L * log_T, T)),
        ),
        {at_log.name: ONE, power.name: dist_0},
        ((decay * floor, ONE), ((L - K_a) * a**2 * B**2 / c, ONE)),
    )
    equal_run = unroll(
        "S.ball.run",
        "L = c: E‖z_T‖² ≤ (1 − αc)^T ‖z_0‖² + (1 − (1 − αc)^T)(ασ²/(cp) + α²B²)",
        equal.claim.instance(DISTANCE_AT_T),
        (alpha * sigma**2 / (c * p), alpha**2 * B**2),
        (dist_0, dist_T, dist_T1),
        (SHORT,),
    )
    equal_at_log = equal_run.claim.instance({alpha: a})
    equal_tuned = Certificate(
        Claim(
            "S.ball.tuned",
            "L = c, α = ln T/(cT): E‖z_T‖² ≤ ‖z_0‖²/T + σ² ln T/(c²pT) + B² ln²T/(c²T²)",
            dist_T,
            (dist_0 / T, sigma**2 * log_T / (c**2 * p * T), B**2 * log_T**2 / (c**2 * T**2)),
            (equal_at_log, power),
            (Condition("T ≥ ln T", T - log_T, T),),
        ),
        {equal_at_log.name: ONE, power.name: dist_0},
        ((decay * (a * sigma**2 / (c * p) + a**2 * B**2), ONE),),
    )
    strong = Hypothesis(
        "f is c-strongly convex at v, x*", f_star - f_v + inner(G, W) - c / 2 * norm2(W)
    )
    self_bound = Hypothesis("f is L-smooth and ≥ f*", f_v - f_star - norm2(G) / (2 * L))
    weak = Certificate(
        _distance_claim(
            "S.weak",
            "E‖z⁺‖² ≤ (1 − αc/2)‖z‖² + α²σ²/p + (2L + c)α³B²",
            1 - alpha * c / 2,
            2 * L + c,
            (MOVE, strong, self_bound),
            (HALF_STEP,),
        ),
        {
            **_distance_multipliers(2 * L + c),
            strong.name: 2 * alpha,
            self_bound.name: 2 * alpha,
        },
        (
            (alpha / (2 * L) * (1 - 2 * alpha * L), G),
            (alpha / (2 * L), G + E * (2 * L)),
            (alpha * c / 2, Z - 2 * E),
            (alpha**2, SPREAD),
        ),
    )
    weak_run = unroll(
        "S.weak.run",
        "E‖z_T‖² ≤ q‖z_0‖² + (1 − q)(2ασ²/(cp) + 2(2L + c)α²B²/c),  q = (1 − αc/2)^T",
        weak.claim.instance(DISTANCE_AT_T),
        (2 * alpha * sigma**2 / (c * p), 2 * (2 * L + c) * alpha**2 * B**2 / c),
        (dist_0, dist_T, dist_T1),
        (HALF_STEP, Condition("αc ≤ 2", 2 - alpha * c, c, 1 / c)),
        alpha * c / 2,
    )
    steps_of = (step, equal, order, attained, unrolled, tuned, weak)
    return (*steps_of, equal_run, equal_tuned, weak_run)


def convex() -> tuple[Proof, ...]:
    """C: f convex and L-smooth, αL < 1.

    avg_t mean_i E[f(v_t^i) − f*] ≤ ‖z_0‖²/(2αT) + ασ²/(2p) + Lα²B²/(2(1 − αL)).
    """
    K = L / (1 - alpha * L)
    noise_term, drift = alpha**2 * sigma**2 / p, K * alpha**3 * B**2
    step = Certificate(
        Claim(
            "C.step",
            "2α E[f(v) − f*] ≤ ‖z‖² − E‖z⁺‖² + α²σ²/p + Lα³B²/(1 − αL)",
            2 * alpha * (f_v - f_star) + dist_next - norm2(Z),
            (noise_term, drift),
            (MOVE, CONVEX, ELASTIC, QUIET),
            (STRICT_STEP,),
        ),
        {**_distance_multipliers(K), CONVEX.name: 2 * alpha},
        ((alpha / K, G + E * K), (alpha**2, SPREAD)),
    )
    at_T = step.claim.instance({**DISTANCE_AT_T, f_v: value_T})
    total = Induction(
        "C.sum",
        "2α Σ_{t<T} E[f(v_t) − f*] + E‖z_T‖² ≤ ‖z_0‖² + T(α²σ²/p + Lα³B²/(1 − αL))",
        lambda t, z, s: (
            2 * alpha * (s - t * f_star) + z,
            (dist_0, t * noise_term, t * drift),
        ),
        start=(0, dist_0, 0),
        now=(steps, dist_T, value_sum),
        following=(steps + 1, dist_T1, value_sum + value_T),
        start_by=((), {}, ()),
        step_by=((at_T,), {at_T.name: ONE, SO_FAR: ONE}, ()),
        conditions=(STRICT_STEP,),
    )
    summed = total.claim.instance({steps: T})
    rate = Certificate(
        Claim(
            "C",
            "(1/T) Σ E[f(v_t) − f*] ≤ ‖z_0‖²/(2αT) + ασ²/(2p) + Lα²B²/(2(1 − αL))",
            value_sum / T - f_star,
            (dist_0 / (2 * alpha * T), noise_term / (2 * alpha), drift / (2 * alpha)),
            (summed,),
            (STRICT_STEP,),
        ),
        {summed.name: 1 / (2 * alpha * T)},
        ((dist_T / (2 * alpha * T), ONE),),
    )
    return (step, total, rate)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*strongly_convex(), *convex())


def bounds() -> tuple[Bound, ...]:
    """Return the rates S, S at the textbook step size, S where L = c, and C."""
    _, _, _, _, unrolled, tuned, _, equal, equal_tuned, weak = strongly_convex()
    distance, power = "E‖x_T − x*‖²", {decay: (1 - alpha * c) ** T}
    return (
        Bound.of(unrolled, distance, values=power),
        Bound.of(tuned, f"{distance} at α = ln T/(cT)", whatever=(decay,)),
        Bound.of(equal, f"{distance} where L = c", values=power),
        Bound.of(equal_tuned, f"{distance} where L = c, at α = ln T/(cT)", whatever=(decay,)),
        Bound.of(weak, distance, name="S.weak", values={decay: (1 - alpha * c / 2) ** T}),
        Bound.of(convex()[2], "(1/T) Σ E[f(v_t) − f*]"),
    )
