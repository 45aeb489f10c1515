"""S and P, unrolled: simplified, at the textbook step and at their best ones.

Simplified means without what the floor lacks after T steps; the equations of the best steps are
those of `tuning.power`. With it, they are those of `tuning.fading`.
"""

from typing import NamedTuple

import sympy as sp

from theory.bound import SEVERAL_STEPS, Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims import tuning
from theory.claims.convex import strongly_convex
from theory.claims.nonconvex import GAP, polyak_lojasiewicz
from theory.claims.sgd import CURVED, ONE, STEP, STRICTLY_CURVED
from theory.claims.step_sizes import BEST_STEP
from theory.induction import Proof
from theory.symbols import (
    B,
    Delta,
    L,
    T,
    alpha,
    bend_cost,
    best,
    c,
    decay,
    decay_best,
    dist_0,
    dist_T,
    drift_cost,
    f_star,
    f_T,
    log_T,
    noise_cost,
    p,
    pole,
    sigma,
    start_cost,
)

LOG_STEP = log_T / (c * T)
"""The textbook step size, ln T/(cT)."""
AT_BEST = {alpha: best, decay: (1 - best * c) * decay_best}


class Rate(NamedTuple):
    """An unrolled rate Dr + (1 − r)F, and its simplification Dr + Sα + Cα²; r = (1 − αc)^T."""

    name: str
    quantity: str
    lhs: sp.Expr
    start: sp.Symbol  # D
    full: Claim
    noise: sp.Expr  # S
    drift: sp.Expr  # C
    curved: Condition
    texts: tuple[str, str, str]  # what is bounded, D, and S and C at step α

    @property
    def terms(self) -> tuple[sp.Expr, ...]:
        """The simplified rate."""
        return (decay * self.start, self.noise * alpha, self.drift * alpha**2)

    @property
    def balance(self) -> sp.Expr:
        """σ² less what it is if exact SGD's bound is least at α*."""
        return sigma**2 - self.start * c * T * decay_best * sigma**2 / self.noise


S = Rate(
    "S",
    "E‖x_T − x*‖²",
    dist_T,
    dist_0,
    strongly_convex()[4].claim,
    sigma**2 / (c * p),
    L * B**2 / c,
    STRICTLY_CURVED,
    ("E‖z_T‖²", "‖z_0‖²", "σ²/(cp)"),
)
P = Rate(
    "P",
    "E f(x_T) − f*",
    f_T - f_star,
    Delta,
    polyak_lojasiewicz()[1].claim,
    L * sigma**2 / (2 * c * p),
    L**2 * B**2 / (2 * c),
    CURVED,
    ("E f(x_T) − f*", "Δ", "Lσ²/(2cp)"),
)


def simplified() -> tuple[Proof, ...]:
    """S and P without what the floor lacks, which (1 − αc)^T times the floor is; K ≤ L in S."""
    unrolled, K = S.full.instance(), strongly_convex()[2].claim.lhs
    K_terms = alpha * sigma**2 / (c * p) + K * alpha**2 * B**2 / c
    of_S = Certificate(
        Claim(
            "S.simple",
            "E‖z_T‖² ≤ (1 − αc)^T ‖z_0‖² + ασ²/(cp) + Lα²B²/c",
            S.lhs,
            S.terms,
            (unrolled,),
            (STRICTLY_CURVED, STEP),
        ),
        {unrolled.name: ONE},
        ((decay * K_terms, ONE), (sp.factor(L - K) * alpha**2 / c, B)),
    )
    descended = P.full.instance()
    of_P = Certificate(
        Claim(
            "P.simple",
            "E f(x_T) − f* ≤ (1 − αc)^T Δ + Lασ²/(2cp) + L²α²B²/(2c)",
            P.lhs,
            P.terms,
            (descended, GAP),
            (CURVED, STEP),
        ),
        {descended.name: ONE, GAP.name: decay},
        ((decay * (P.terms[1] + P.terms[2]), ONE),),
    )
    return (of_S, of_P)


def at_log() -> tuple[Proof, ...]:
    """P at α = ln T/(cT), as S.tuned: (1 − αc)^T ≤ 1/T there."""
    at_step = simplified()[1].claim.instance({alpha: LOG_STEP})
    power = Hypothesis("(1 − y)^T ≤ e^(−yT) at y = ln T/T", 1 / T - decay)
    tuned = Certificate(
        Claim(
            "P.tuned",
            "α = ln T/(cT): E f(x_T) − f* ≤ Δ/T + Lσ² ln T/(2c²pT) + L²B² ln²T/(2c³T²)",
            P.lhs,
            (Delta / T, *(term.subs(alpha, LOG_STEP) for term in P.terms[1:])),
            (at_step, power),
            (CURVED, Condition("cT ≥ L ln T", c * T - L * log_T, T)),
        ),
        {at_step.name: ONE, power.name: Delta},
    )
    return (tuned,)


def best_steps() -> tuple[Proof, ...]:
    """Where the simplified S and P are least, and what they are there without elasticity.

    S: c²T(1 − αc)^(T−1)‖z_0‖² = σ²/p + 2LB²α; P: 2c²T(1 − αc)^(T−1)Δ = Lσ²/p + 2L²B²α. Without B
    these give (1 − αc)^(T−1) = 1/(κT), κ = c²p‖z_0‖²/σ² or 2c²pΔ/(Lσ²).
    """
    minimum = tuning.power()[1]
    least: list[Proof] = []
    exact: list[Proof] = []
    equations = (
        "c²T(1 − α*c)^(T−1)‖z_0‖² = σ²/p + 2LB²α*",
        "2c²T(1 − α*c)^(T−1)Δ = Lσ²/p + 2L²B²α*",
    )
    for rate, simple, equation in zip((S, P), simplified(), equations, strict=True):
        costs = {start_cost: rate.start, noise_cost: rate.noise, drift_cost: rate.drift}
        at_best = minimum.claim.instance(costs)
        elastic = 2 * rate.drift * best * sigma**2 / rate.noise
        needed = rate.start * (sigma**2 + elastic) / (sigma**2 - rate.balance)
        least.append(
            Certificate(
                Claim(
                    f"{rate.name}.best",
                    f"{equation}: {rate.name}.simple is least at α*",
                    sp.sympify(minimum.claim.lhs).subs(list(costs.items())),
                    rate.terms,
                    (at_best,),
                    (tuning.SHORT, tuning.SHORT_BEST),
                    ((rate.start, rate.start - needed),),
                ),
                {at_best.name: ONE},
            )
        )
        without_B = simple.claim.instance({**AT_BEST, B: 0})
        quantity, _, noise = rate.texts
        exact.append(
            Certificate(
                Claim(
                    f"{rate.name}.optimal.exact",
                    f"B = 0, (1 − α*c)^(T−1) = 1/(κT): {quantity} ≤ ({noise})(α* + (1 − α*c)/(cT))",
                    rate.lhs,
                    (rate.noise * best, rate.noise * (1 - best * c) / (c * T)),
                    (without_B,),
                    (rate.curved, BEST_STEP),
                    ((sigma, rate.balance),),
                    remark=f"κ = {'c²p‖z_0‖²/σ²' if rate is S else '2c²pΔ/(Lσ²)'}",
                ),
                {without_B.name: ONE},
            )
        )
    return (*least, *exact)


def shape() -> tuple[Proof, ...]:
    """The floor of S has the shape of `tuning.floor`, as that of P has with C′ = 0."""
    K = strongly_convex()[2].claim.lhs
    costs = {
        noise_cost: 0,
        drift_cost: B**2,
        bend_cost: B**2 * (L - c) ** 2 / (c * (2 * L - c)),
        pole: L**2 / (2 * L - c),
    }
    same = Certificate(
        Claim(
            "S.shape",
            "Kα²B²/c = B²α² + C′α²/(1 − hα), h = L²/(2L − c), C′ = B²(L − c)²/(c(2L − c))",
            K * alpha**2 * B**2 / c,
            (tuning.floor(alpha).subs(list(costs.items())),),
            (),
            (STRICTLY_CURVED, STEP),
            equality=True,
            remark="so `fading` says where S is least",
        ),
        {},
    )
    return (same,)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*simplified(), *at_log(), *best_steps(), *shape())


def exact_step(rate: Rate) -> sp.Expr:
    """Return exact SGD's best step in closed form: (1 − (κT)^(−1/(T−1)))/c.

    Written as (1 − e^(−2y))/c = 2/(c(1 + 1/tanh(y))), it loses no digits where T is large.
    """
    kappa = rate.start * c * sigma**2 / (rate.noise * sigma**2)
    half = sp.log(kappa * T) / (2 * (T - 1))
    return 2 / (c * (1 + 1 / sp.tanh(half)))


def starting(rate: Rate) -> tuple[Condition, ...]:
    """Return where exact SGD's best step is positive: κT > 1, that is, the start is costly."""
    worth = rate.start * c * T / rate.noise * sigma**2 - sigma**2
    return (SEVERAL_STEPS, Condition("κT > 1", worth, T, strict=True))


def bounds() -> tuple[Bound, ...]:
    """Return S and P simplified, P at the textbook step, and both at their best one, B = 0."""
    power = {decay: (1 - alpha * c) ** T}
    exact = best_steps()[2:]
    return (
        *(
            Bound.of(proof, rate.quantity, values=power)
            for rate, proof in zip((S, P), simplified(), strict=True)
        ),
        Bound.of(at_log()[0], f"{P.quantity} at α = ln T/(cT)", whatever=(decay,)),
        *(
            Bound.of(
                proof,
                f"{rate.quantity} at its best step, B = 0",
                values={best: exact_step(rate)},
                where=starting(rate),
            )
            for rate, proof in zip((S, P), exact, strict=True)
        ),
    )
