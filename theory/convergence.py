"""Convergence of SGD at elastic views: one step certified, then telescoped or unrolled.

p workers; worker i reads a view v_i = x − e_i of the global iterate x, and

    x⁺ = x − α mean_i (g_i + ξ_i) ,    g_i = ∇f(v_i) ,

with unbiased noise ξ_i of variance at most σ², independent across workers and of the views. The
views are elastic: E‖e‖² ≤ α²B², mean over workers (Nadiradze et al., "Elastic Consistency", AAAI
2021, arXiv 2001.05918). Single steps are p = 1. The schedule of delays, losses and crashes is
assumed independent of the noise. x* minimises f; z = x − x*, w = v − x*, a = ∇f(x).
"""

import sympy as sp

from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.gram import entry, inner, mean, noise, norm2, per_worker, vector
from theory.induction import SO_FAR, Induction, Proof
from theory.symbols import (
    B,
    Delta,
    L,
    T,
    alpha,
    c,
    decay,
    dist_0,
    dist_next,
    dist_T,
    dist_T1,
    f_0,
    f_next,
    f_star,
    f_T,
    f_T1,
    f_v,
    f_x,
    grad_sum,
    grad_T,
    log_T,
    p,
    root_pT,
    sigma,
    steps,
    value_sum,
    value_T,
    variance,
)

ONE = sp.S.One

STEP = Condition("αL ≤ 1", 1 - alpha * L, alpha, 1 / alpha)
STRICT_STEP = Condition("αL < 1", 1 - alpha * L, alpha, 1 / alpha, strict=True)
HALF_STEP = Condition("αL ≤ 1/2", 1 - 2 * alpha * L, alpha, 1 / alpha)
CURVED = Condition("c ≤ L", L - c, L)
STRICTLY_CURVED = Condition("c < L", L - c, L, strict=True)

# The vectors. Deviations of the workers are written apart, by `per_worker`.
A = vector("a")  # ∇f(x)
Z = vector("z")  # x − x*
E = per_worker("e")  # x − v
G = per_worker("g")  # ∇f(v)
XI = noise("ξ", variance)
W = Z - E
SPREAD = G - mean(G, p)  # g_i − mean g
UPDATE = mean(G + XI, p) * alpha

QUIET = Hypothesis("variance ≤ σ²", sigma**2 - variance)
ELASTIC = Hypothesis("elastic consistency", alpha**2 * B**2 - norm2(E))
BELOW = Hypothesis("f ≥ f*", f_T - f_star)


# What the steps assume, besides elasticity and noise.
SMOOTH = Hypothesis("f is L-smooth", f_x - inner(A, UPDATE) + L / 2 * norm2(UPDATE) - f_next)
LIPSCHITZ = Hypothesis("∇f is L-Lipschitz", L**2 * norm2(E) - norm2(A - G))
MOVE = Hypothesis("update", norm2(Z - UPDATE) - dist_next)  # or any step that ends nearer to x*
CONVEX = Hypothesis(
    "f is convex and L-smooth at v, x*", f_star - f_v + inner(G, W) - norm2(G) / (2 * L)
)
SECANT = Hypothesis("f is c-convex and L-smooth at v, x*", inner(G - W * c, W * L - G))

NORM_A, NORM_Z = entry(A, A), entry(Z, Z)
DISTANCE_AT_T = {NORM_Z: dist_T, dist_next: dist_T1}


def nonconvex() -> tuple[Proof, ...]:
    """N: f smooth, bounded below, αL ≤ 1.

    (1/T)Σ E‖∇f(x_t)‖² ≤ 2Δ/(αT) + L²α²B² + Lασ²/p; at α = √(p/T), T ≥ L²p, this is
    2Δ/√(pT) + L²B²p/T + Lσ²/√(pT).
    """
    drift, noise_term = alpha**3 * L**2 * B**2 / 2, L * alpha**2 * sigma**2 / (2 * p)
    step = Certificate(
        Claim(
            "N.step",
            "E f(x⁺) ≤ f(x) − (α/2)‖∇f(x)‖² + (α/2)L²α²B² + Lα²σ²/(2p)",
            f_next - f_x + alpha / 2 * norm2(A),
            (drift, noise_term),
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
    at_T = step.claim.instance({f_x: f_T, f_next: f_T1, NORM_A: grad_T})
    total = Induction(
        "N.sum",
        "(α/2) Σ_{t<T} E‖∇f(x_t)‖² + E f(x_T) − f(x_0) ≤ T((α/2)L²α²B² + Lα²σ²/(2p))",
        lambda t, f, s: (alpha / 2 * s + f - f_0, (t * drift, t * noise_term)),
        start=(0, f_0, 0),
        now=(steps, f_T, grad_sum),
        following=(steps + 1, f_T1, grad_sum + grad_T),
        start_by=((), {}, ()),
        step_by=((at_T,), {at_T.name: ONE, SO_FAR: ONE}, ()),
        conditions=(STEP,),
    )
    gap = Hypothesis("Δ ≥ f(x_0) − f*", Delta - f_0 + f_star)
    summed = total.claim.instance({steps: T})
    rate = Certificate(
        Claim(
            "N",
            "(1/T) Σ E‖∇f(x_t)‖² ≤ 2Δ/(αT) + L²α²B² + Lασ²/p",
            grad_sum / T,
            (2 * Delta / (alpha * T), L**2 * alpha**2 * B**2, L * alpha * sigma**2 / p),
            (summed, BELOW, gap),
            (STEP,),
        ),
        {name: 2 / (alpha * T) for name in (summed.name, BELOW.name, gap.name)},
    )
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


def _unrolled(
    name: str,
    text: str,
    step: Hypothesis,
    floor: tuple[sp.Expr, ...],
    states: tuple[sp.Expr, sp.Expr, sp.Expr],
    conditions: tuple[Condition, ...],
) -> Induction:
    """Unroll u⁺ ≤ (1 − αc)u + αc·floor to u_T ≤ q u_0 + (1 − q)floor, q = (1 − αc)^T."""
    first, now, following = states
    return Induction(
        name,
        text,
        lambda u, q: (u, (q * first, *((1 - q) * term for term in floor))),
        start=(first, ONE),
        now=(now, decay),
        following=(following, (1 - alpha * c) * decay),
        start_by=((), {}, ()),
        step_by=((step,), {step.name: ONE, SO_FAR: 1 - alpha * c}, ()),
        conditions=conditions,
    )


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
            (Condition("αc ≤ 1", 1 - alpha * c, alpha, 1 / alpha),),
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
    unrolled = _unrolled(
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
    return (step, equal, order, attained, unrolled, tuned, weak)


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
            (
                (1 - alpha * c) * (f_x - f_star),
                alpha**3 * L**2 * B**2 / 2,
                L * alpha**2 * sigma**2 / (2 * p),
            ),
            (descent, dominated),
            (STEP,),
        ),
        {descent.name: ONE, dominated.name: alpha / 2},
    )
    unrolled = _unrolled(
        "P",
        "E f(x_T) − f* ≤ (1 − αc)^T (f(x_0) − f*) + (1 − (1 − αc)^T)(L²α²B² + Lασ²/p)/(2c)",
        step.claim.instance({f_x: f_T, f_next: f_T1}),
        (L**2 * alpha**2 * B**2 / (2 * c), L * alpha * sigma**2 / (2 * c * p)),
        (f_0 - f_star, f_T - f_star, f_T1 - f_star),
        (CURVED, STEP),
    )
    return (step, unrolled)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*nonconvex(), *strongly_convex(), *convex(), *polyak_lojasiewicz())
