"""From when on a relaxation costs next to nothing in S and P.

At the textbook step ln T/(cT), and at exact SGD's best step, which solves an equation. In both
cases a condition on T says when the bound is within 1 + ε of exact SGD's, no T in closed form; but
where it holds once, it holds for every larger T, so the least T can be found by halving.
"""

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.convex import strongly_convex
from theory.claims.sgd import ONE
from theory.claims.step_sizes import BEST_STEP
from theory.claims.unrolled import (
    AT_BEST,
    LOG_STEP,
    P,
    S,
    at_log,
    exact_step,
    simplified,
    starting,
)
from theory.induction import Proof
from theory.symbols import (
    B,
    L,
    T,
    best,
    best_later,
    c,
    decay,
    drift_cost,
    epsilon,
    later,
    least,
    log_later,
    log_least,
    log_start,
    log_start_later,
    log_T,
    noise_cost,
    p,
    sigma,
    start_cost,
)

LATER = Condition("T ≤ T′", later - T, later)


def horizons() -> tuple[Proof, ...]:
    """S and P at both steps: within 1 + ε of exact SGD's bound where the drift is ε of it at most.

    With a = LB²p: a ln²T ≤ cεT(c²p‖z_0‖² + σ² ln T) at α = ln T/(cT), with 2c²pΔ/L for c²p‖z_0‖²
    in P; and aα*² ≤ εσ²(α* + (1 − α*c)/(cT)) at exact SGD's best step α*.
    """
    found: list[Proof] = []
    at_step = (strongly_convex()[5].claim, at_log()[0].claim)
    longer_than = Condition("cT ≥ L ln T", c * T - L * log_T, T)
    texts = (("c²p‖z_0‖²", "‖z_0‖²/T + σ² ln T/(c²pT)"), ("2c²pΔ/L", "Δ/T + Lσ² ln T/(2c²pT)"))
    for rate, book, (share, limit) in zip((S, P), at_step, texts, strict=True):
        unit = rate.noise / sigma**2  # of S, per unit of σ²
        exact = (rate.start / T, rate.noise * LOG_STEP)
        long = Hypothesis(
            f"LB²p ln²T ≤ cεT({share} + σ² ln T)",
            c * epsilon * T * (c * rate.start / unit + sigma**2 * log_T) - L * B**2 * p * log_T**2,
        )
        at_book = book.instance()
        found.append(
            Certificate(
                Claim(
                    f"{rate.name}.horizon.textbook",
                    f"α = ln T/(cT), {long.name}: {rate.name} ≤ (1 + ε)({limit})",
                    rate.lhs,
                    tuple((1 + epsilon) * term for term in exact),
                    (at_book, long),
                    (rate.curved, longer_than),
                ),
                {at_book.name: ONE, long.name: unit / (c**2 * T**2)},
            )
        )
    for rate, simple in zip((S, P), simplified(), strict=True):
        small = Hypothesis(
            "LB²pα*² ≤ εσ²(α* + (1 − α*c)/(cT))",
            epsilon * sigma**2 * (best + (1 - best * c) / (c * T)) - L * B**2 * p * best**2,
        )
        at_best = simple.claim.instance(AT_BEST)
        exact = (rate.noise * best, rate.noise * (1 - best * c) / (c * T))
        found.append(
            Certificate(
                Claim(
                    f"{rate.name}.horizon.tuned",
                    f"(1 − α*c)^(T−1) = 1/(κT), {small.name}: {rate.name} ≤ (1 + ε)·exact SGD's",
                    rate.lhs,
                    tuple((1 + epsilon) * term for term in exact),
                    (at_best, small),
                    (rate.curved, BEST_STEP),
                    ((sigma, rate.balance),),
                    remark=f"exact SGD's is that of {rate.name}.optimal.exact",
                ),
                {at_best.name: ONE, small.name: rate.noise / sigma**2},
            )
        )
    return tuple(found)


def logarithmic() -> tuple[Proof, ...]:
    """The textbook condition C ln²T ≤ T(D + S ln T) lasts, from T ≥ e² on; D = 0: T ≥ (C/S) ln T.

    With u = ln(T′/T), T′/T ≥ (1 + u/2)² ≥ (ln T′/ln T)². And T ≥ 2Y(ln(2Y) − 1) is enough for
    T ≥ Y ln T, as ln lies below its tangent at 2Y.
    """
    D, floor, drift = start_cost, noise_cost, drift_cost
    u = log_later - log_T
    grows = Hypothesis(
        "ln √(T′/T) ≤ √(T′/T) − 1: (1 + ln(T′/T)/2)² ≤ T′/T", later - T * (1 + u / 2) ** 2
    )
    so_far = Hypothesis("C ln²T ≤ T(D + S ln T)", T * (D + floor * log_T) - drift * log_T**2)
    spare = T * ((1 + u / 2) ** 2 - (log_later / log_T) ** 2)
    spare_of_S = T * ((1 + u / 2) ** 2 - log_later / log_T)
    lasts = Certificate(
        Claim(
            "horizon.log.lasts",
            "T ≥ e², C ln²T ≤ T(D + S ln T): the same at every T′ ≥ T",
            drift * log_later**2,
            (later * D, later * floor * log_later),
            (grows, so_far),
            (
                Condition("ln T ≥ 2", log_T - 2, log_T),
                Condition("ln T ≤ ln T′", log_later - log_T, log_later),
            ),
        ),
        {grows.name: D + floor * log_later, so_far.name: (log_later / log_T) ** 2},
        ((spare * D, ONE), (spare_of_S * floor * log_later, ONE)),
    )
    tangent = Hypothesis("ln T ≤ ln(2Y) + T/(2Y) − 1", log_least + T / (2 * least) - 1 - log_T)
    enough = Hypothesis("T ≥ 2Y(ln(2Y) − 1)", T - 2 * least * (log_least - 1))
    solved = Certificate(
        Claim(
            "horizon.log",
            "T ≥ 2Y(ln(2Y) − 1): T ≥ Y ln T",
            least * log_T,
            (T,),
            (tangent, enough),
        ),
        {tangent.name: least, enough.name: sp.S.Half},
    )
    return (lasts, solved)


def equation() -> tuple[Proof, ...]:
    """The condition at exact SGD's best step, Cα*² ≤ S(α* + (1 − α*c)/(cT)), lasts, from κT ≥ e².

    (1 − α*c)^(T−1) = 1/(κT) is m = −ln(1 − α*c) = ln(κT)/(T − 1), which falls with T. With
    G = e^m − 1 the condition is (C/c)TG² ≤ S(1 + TG)(1 + G); and TG grows no faster than ln(κT), as
    G/m falls with m. In closed form, T − 1 ≥ (C/(cS)) ln(κT) is enough.
    """
    floor, drift, m, n = noise_cost, drift_cost, log_start, log_start_later
    u, q = n - m, n / m
    tangent = Hypothesis("ln(T′/T) ≤ T′/T − 1", later / T - 1 - u)
    shorter = Certificate(
        Claim(
            "horizon.root.falls",
            "κT ≥ e, T ≤ T′: ln(κT′)/(T′ − 1) ≤ ln(κT)/(T − 1), so α* falls with T",
            n / (later - 1),
            (m / (T - 1),),
            (tangent,),
            (
                Condition("ln(κT) ≥ 1", m - 1, m),
                Condition("T > 1", T - 1, T, strict=True),
                LATER,
            ),
        ),
        {tangent.name: 1 / (later - 1)},
        (((later - T) * (m / (T - 1) - 1 / T) / (later - 1), ONE),),
    )
    grows = Hypothesis(
        "ln √(T′/T) ≤ √(T′/T) − 1: (1 + ln(T′/T)/2)² ≤ T′/T", later - T * (1 + u / 2) ** 2
    )
    G, H = (step * c / (1 - step * c) for step in (best, best_later))
    chord = Hypothesis(
        "(e^m − 1)/m grows with m = −ln(1 − α*c) = ln(κT)/(T − 1)",
        G * (T - 1) / m - H * (later - 1) / n,
    )

    def slack(step: sp.Symbol, steps: sp.Symbol) -> sp.Expr:
        return floor * (step + (1 - step * c) / (c * steps)) - drift * step**2

    so_far = Hypothesis("Cα*² ≤ S(α* + (1 − α*c)/(cT))", slack(best, T))
    # With g = TG the condition is S(1 + g)(T + g) ≥ (C/c)g². Later, g is h ≤ qg.
    g, h = T * G, later * H
    unit = floor * (1 - best_later * c) ** 2 / (c * later**2 * g**2)
    of_d = later * (h + q * g) / q**2 + g * h * (1 + later) / q
    of_grows = h**2 / q**2 + g * h**2 / q
    square = (1 + u / 2) ** 2
    over = of_d * q * g * (later - T) / (T * (later - 1))
    lasts = Certificate(
        Claim(
            "horizon.root.lasts",
            "κT ≥ e², Cα*² ≤ S(α* + (1 − α*c)/(cT)): the same at every T′ ≥ T",
            drift * best_later**2,
            (floor * best_later, floor * (1 - best_later * c) / (c * later)),
            (grows, chord, so_far),
            (
                Condition("ln(κT) ≥ 2", m - 2, m),
                Condition("ln(κT) ≤ ln(κT′)", u, n),
                Condition("T > 1", T - 1, T, strict=True),
                LATER,
                Condition("α*c < 1", 1 - best * c, best, 1 / best, strict=True),
                Condition("α*′c < 1", 1 - best_later * c, best_later, 1 / best_later, strict=True),
            ),
        ),
        {
            grows.name: unit * of_grows,
            chord.name: unit * of_d * n * later / (later - 1),
            so_far.name: (best_later / best) ** 2,
        },
        (
            (unit * over, ONE),
            (unit * h**2 * T * (square / q**2 - 1), ONE),
            (unit * g * h**2 * ((1 + T * square) / q - 1 - T), ONE),
        ),
    )
    short = Hypothesis("1 − y ≤ e^(−y): α*c ≤ ln(κT)/(T − 1)", m - (T - 1) * c * best)
    long = Hypothesis("T − 1 ≥ (C/(cS)) ln(κT)", c * floor * (T - 1) - drift * m)
    enough = Certificate(
        Claim(
            "horizon.root",
            "T − 1 ≥ (C/(cS)) ln(κT): Cα*² ≤ Sα*",
            drift * best**2,
            (floor * best,),
            (short, long),
            (Condition("T > 1", T - 1, T, strict=True),),
        ),
        {short.name: drift * best / (c * (T - 1)), long.name: best / (c * (T - 1))},
    )
    return (shorter, lasts, enough)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*horizons(), *logarithmic(), *equation())


def bounds() -> tuple[Bound, ...]:
    """Return S and P at both steps, where they are within 1 + ε of exact SGD's bound."""
    proved = horizons()
    return (
        *(
            Bound.of(proof, f"{rate.quantity} at α = ln T/(cT)", needs=(B,), whatever=(decay,))
            for rate, proof in zip((S, P), proved, strict=False)
        ),
        *(
            Bound.of(
                proof,
                f"{rate.quantity} at exact SGD's best step",
                values={best: exact_step(rate)},
                needs=(B,),
                where=starting(rate),
            )
            for rate, proof in zip((S, P), proved[2:], strict=True)
        ),
    )
