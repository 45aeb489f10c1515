"""Convergence without a bound of the second moment: W, for schedules that do not look at noise.

What the views miss (`missed`) is paid for by −(α/2)(1 − αL)‖∇f(v)‖² of each step:

    ΣE‖x − v‖² ≤ α²(n₂ ΣE‖∇f(v)‖² + n₁σ²T)  and  α²L²n₂ ≤ 1 − αL   give
    (1/T) Σ E‖∇f(x_t)‖² ≤ 2Δ/(αT) + Lασ²/p + L²α²n₁σ² .

Each system has its gradient weight n₂, which limits the step, and its noise weight n₁. A schedule
that looks at the noise breaks this.
"""

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.missed import (
    SEVERAL,
    descent,
    harmonic_sum,
    windows,
)
from theory.claims.nonconvex import AVERAGE
from theory.claims.sgd import ONE
from theory.gram import Scalar
from theory.induction import Proof
from theory.symbols import (
    Delta,
    L,
    T,
    alpha,
    grad_sum,
    longest,
    n,
    p,
    residual_sum,
    sigma,
    steps,
    tau,
    total_prob,
    view_sum,
    visits,
    young,
)

HALF, ZERO = sp.Rational(1, 2), sp.S.Zero
MEMORY = Hypothesis("2αLτ ≤ 1", 1 - 2 * alpha * L * tau)
IN_FLIGHT = Hypothesis("2α²L²nτ_max ≤ 1 − αL", 1 - alpha * L - 2 * alpha**2 * L**2 * n * longest)
HALF_STEP = Hypothesis("2αL ≤ 1", 1 - 2 * alpha * L)


def absorbed(
    name: str,
    text: str,
    noise: tuple[Scalar, ...],
    short: dict[Hypothesis, Scalar],
    used: dict[Hypothesis, Scalar],
    rest: tuple[Scalar, ...],
    conditions: tuple[Condition, ...] = (),
    relations: tuple[tuple[sp.Symbol, sp.Expr], ...] = (),
    step: Scalar = alpha,
    remark: str = "",
) -> Certificate:
    """Return (1/T)ΣE‖∇f(x)‖² ≤ 2Δ/(αT) + Lασ²/p + L²α²σ²·noise: the views' gradients absorbed.

    Args:
        name: the claim's name.
        text: its statement.
        noise: n₁, term by term.
        short: hypotheses that sum to 1 − αL − α²L²n₂ with these multipliers.
        used: hypotheses that sum to ΣE‖x − v‖² ≤ α²(n₂ΣG + n₁σ²T) with these multipliers.
        rest: what of the left side of that sum, not negative, is dropped.
        conditions: as in `Claim`.
        relations: as in `Claim`.
        step: the step size α.
        remark: as in `Claim`.
    """
    descended = descent()[-1].claim.instance({alpha: step})
    hypotheses = {
        descended: ONE,
        **{key: value * L**2 / T for key, value in used.items()},
        **{key: value * view_sum / T for key, value in short.items()},
    }
    claim = Claim(
        name,
        text,
        grad_sum / T,
        (
            2 * Delta / (step * T),
            L * step * sigma**2 / p,
            *(L**2 * step**2 * sigma**2 * term for term in noise),
        ),
        tuple(hypotheses),
        conditions,
        relations,
        remark=remark,
    )
    squares = tuple((L**2 / T * sp.sympify(value), ONE) for value in rest)
    return Certificate(claim, {key.name: value for key, value in hypotheses.items()}, squares)


def missing() -> tuple[Proof, ...]:
    """Missing updates: no view misses more than τ of them, none is missing from more than τ_max.

    n₂ = (y + τ)τ_max, n₁ = (τ/2p)(1 + (y + τ)/(y + 1)) for every y > 0. With delays ≤ τ, τ_max = τ;
    y = 1/(2αL) is the textbook's step. With n gradients in flight, y = n and any delays.
    """
    views, own_views = windows()[-1].claim, windows(own=True)[-1].claim
    harmonic_claim = harmonic_sum().claim
    total = young + tau
    settings = {steps: T, residual_sum: ZERO}

    def budget(y: Scalar, k: Scalar, step: Scalar = alpha, size: Scalar = ONE) -> Scalar:
        return step**2 * (y + k) * size

    fits = Hypothesis(
        "α²L²(y + τ)τ_max ≤ 1 − αL", 1 - alpha * L - alpha**2 * L**2 * total * longest
    )
    any_y = absorbed(
        "W.missing",
        "α²L²(y + τ)τ_max ≤ 1 − αL: avg ≤ 2Δ/(αT) + Lασ²/p + L²α²(σ²/p)(τ/2)(1 + (y + τ)/(y + 1))",
        (tau / (2 * p), tau * total / (2 * p * (young + 1))),
        {fits: ONE},
        {
            views.instance(settings): ONE,
            harmonic_claim.instance(): T * budget(young, tau) * sigma**2 / p,
        },
        (budget(young, tau) * visits,),
        remark="for every y > 0: a split of gradients from noise has (τ/2)(2 + 2τ/y) instead",
    )
    y = 1 / (2 * alpha * L)
    a, m = alpha * L, alpha * L * tau
    delay = absorbed(
        "W.delay",
        "α ≤ 1/(2L max(1, τ)): avg ≤ 2Δ/(αT) + Lασ²/p + (1 + αLτ)L²α²τσ²/p",
        (tau * (1 + m) / p,),
        {HALF_STEP: HALF, MEMORY: (1 + m) / 2},
        {
            views.instance({**settings, longest: tau, young: y}): ONE,
            harmonic_claim.instance({young: y}): T * budget(y, tau) * sigma**2 / p,
        },
        (
            budget(y, tau) * visits,
            alpha**2 * sigma**2 * T * tau * a * (1 + 2 * m) / (p + 2 * p * a),
        ),
        remark="√τ, not τ; 1 + αLτ ≤ 3/2",
    )
    part = (p - 1) / p
    y, a, m = y / part, a * part, m * part
    others = Hypothesis("2αLτ(p − 1)/p ≤ 1", 1 - 2 * m)
    own = absorbed(
        "W.own",
        "θ = (p − 1)/p, α ≤ 1/(2L max(1, θτ)): noise held (1 + αLθτ)L²α²τσ²θ/p",
        (tau * (1 + m) * part / p,),
        {HALF_STEP: HALF, others: (1 + m) / 2},
        {
            own_views.instance({**settings, longest: tau, young: y}): ONE,
            harmonic_claim.instance({young: y}): T * budget(y, tau) * sigma**2 * part / p,
        },
        (
            budget(y, tau, size=part**2) * visits,
            alpha**2 * sigma**2 * T * tau * a * (1 + 2 * m) / (1 + 2 * a) * part / p,
        ),
        (SEVERAL,),
        remark="own updates at once: views miss only the others' updates",
    )
    flight = absorbed(
        "W.flight",
        "n in flight, any delays, 2α²L²nτ_max ≤ 1 − αL: avg ≤ 2Δ/(αT) + Lασ²/p + (3/2)L²α²nσ²/p",
        (3 * n / (2 * p),),
        {IN_FLIGHT: ONE},
        {
            views.instance({**settings, tau: n, young: n}): ONE,
            harmonic_claim.instance({tau: n, young: n}): T * budget(n, n) * sigma**2 / p,
        },
        (budget(n, n) * visits, T * alpha**2 * sigma**2 * n / (p * (n + 1))),
    )
    return (any_y, delay, own, flight)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return missing()


def rate_bound(proof: Proof, *needs: sp.Symbol, quantity: str = AVERAGE) -> Bound:
    """Return the bound that a rate states; its conditions may need more parameters than its terms.

    A delay of at most τ is one of at most ⌊τ⌋, and the rates grow with τ: it need not be whole.
    That probabilities sum to 1 is not for users to say.
    """
    return Bound.of(proof, quantity, needs=needs, whatever=(tau, total_prob))


def bounds() -> tuple[Bound, ...]:
    """Return the rates for any delays and y, under delay, with own updates at once, in flight."""
    any_y, delay, own, flight = missing()
    return (
        rate_bound(any_y, longest),
        rate_bound(delay),
        rate_bound(own),
        rate_bound(flight, longest),
    )
