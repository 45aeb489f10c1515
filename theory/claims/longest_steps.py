"""The longest steps without a bound of the second moment, and what feedback costs of them."""

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.feedback import ROOT_CONTRACTS
from theory.claims.missed import (
    harmonic_sum,
    windows,
)
from theory.claims.nonconvex import AVERAGE
from theory.claims.oblivious import absorbed, rate_bound
from theory.claims.sgd import ONE
from theory.induction import Proof
from theory.symbols import (
    L,
    T,
    alpha,
    gamma,
    grad_weight,
    longest,
    n,
    p,
    ratio,
    residual_sum,
    root_2,
    root_gamma,
    root_weight,
    sigma,
    steps,
    tau,
    used,
    visits,
    young,
)

HALF, ZERO = sp.Rational(1, 2), sp.S.Zero


def long_steps() -> tuple[Proof, ...]:
    """Long steps: the best y at α = r/(Lτ), the largest α for n₂, and what feedback costs of it.

    y = (1 − αL)/(α²L²τ) − τ uses up the gradients: α²L²τ² < 1 − αL. There a split of gradients from
    noise has τ(1 − αL)/(1 − αL − α²L²τ²) where the window lemma has less, and both at most 2τ where
    2α²L²τ² ≤ 1 − αL. n₂ allows αL ≤ 2/(1 + √(1 + 4n₂)). Feedback with β ≤ τ costs at most √2 of a
    delayed step under the plain conditions, and half of it under the widest ones.
    """
    step = ratio / (L * n)
    y = (n - ratio - n * ratio**2) / ratio**2
    share = (n - ratio) / (n - ratio - ratio**2 * (n - 1))
    split = (n - ratio) / (n - ratio - ratio**2 * n)
    below = Condition("r < 1", 1 - ratio, ratio, 1 / ratio, strict=True)
    where = (below, Condition("r² < 1 − r/n", n * (1 - ratio**2) - ratio, n, strict=True))
    settings = {alpha: step, young: y, tau: n}
    views = windows()[-1].claim.instance({**settings, steps: T, longest: n, residual_sum: ZERO})
    harmonic_claim = harmonic_sum().claim.instance({young: y, tau: n})
    budget = step**2 * (y + n)
    best = absorbed(
        "W.best",
        "α = r/(Ln), delay n: noise held L²α²(σ²/p)(n/2)(1 + (n − r)/(n − r − r²(n − 1)))",
        (n / (2 * p), n * share / (2 * p)),
        {},
        {views: ONE, harmonic_claim: T * budget * sigma**2 / p},
        (budget * visits,),
        where,
        step=step,
        remark="that is (τ/2)(1 + (1 − αL)/(1 − αL − α²L²τ(τ − 1)))",
    )
    rest = n - ratio - n * ratio**2
    order = Certificate(
        Claim(
            "W.best.order",
            "(1/2)(1 + (n − r)/(n − r − r²(n − 1))) ≤ (n − r)/(n − r − r²n)",
            (1 + share) / 2,
            (split,),
            (),
            where,
            remark="proves, and betters, τ(1 − αL)/(1 − αL − α²L²τ²), known by hand",
        ),
        {},
        (
            (n * ratio**2 / (2 * rest), ONE),
            ((n - ratio) * ratio**2 / (2 * rest * (rest + ratio**2)), ONE),
        ),
    )
    short = Hypothesis("2r² ≤ 1 − r/n", n - ratio - 2 * n * ratio**2)
    plain = Certificate(
        Claim(
            "W.split.order",
            "2r² ≤ 1 − r/n: (n − r)/(n − r − r²n) ≤ 2",
            split,
            (2,),
            (short,),
            where,
        ),
        {short.name: 1 / rest},
    )
    q = root_weight
    root = ((q, q**2 - 1 - 4 * grad_weight),)
    top = 2 / (1 + q)
    a = alpha * L
    fits = Hypothesis("α²L²n₂ ≤ 1 − αL", 1 - a - a**2 * grad_weight)
    largest = Certificate(
        Claim(
            "W.largest",
            "α²L²n₂ ≤ 1 − αL: α ≤ 2/(L(1 + √(1 + 4n₂)))",
            alpha,
            (2 / (L * (1 + q)),),
            (fits,),
            (),
            root,
        ),
        {fits.name: 2 / (L * (1 + q + 2 * a * grad_weight))},
    )
    attained = Certificate(
        Claim(
            "W.largest.attained",
            "αL = 2/(1 + √(1 + 4n₂)): α²L²n₂ = 1 − αL",
            top**2 * grad_weight,
            (1 - top,),
            (),
            (),
            root,
            equality=True,
        ),
        {},
    )
    allowed = Certificate(
        Claim(
            "W.allowed",
            "αL ≤ 2/(1 + √(1 + 4n₂)): α²L²n₂ ≤ 1 − αL",
            a**2 * grad_weight,
            (1 - a,),
            (),
            (Condition("αL(1 + √(1 + 4n₂)) ≤ 2", 2 - a * (1 + q), alpha, 1 / alpha),),
            root,
        ),
        {},
        (((1 - a * (1 + q) / 2) * (1 + a * (q - 1) / 2), ONE),),
    )
    beta = root_gamma / (1 - root_gamma)
    milder = Hypothesis("β ≤ τ", tau - beta)
    delayed = Hypothesis("2α²L²τ² ≤ 1 − αL", 1 - a - 2 * a**2 * tau**2)
    price = Certificate(
        Claim(
            "W.price",
            "β ≤ τ, 2α²L²τ² ≤ 1 − αL: α' = α/√2 has 2α'²L²(τ² + β²) ≤ 1 − α'L",
            2 * (a / root_2) ** 2 * (tau**2 + beta**2),
            (1 - a / root_2,),
            (delayed, milder),
            (ROOT_CONTRACTS,),
            ((root_2, root_2**2 - 2),),
        ),
        {delayed.name: ONE, milder.name: a**2 * (tau + beta)},
        ((a / (root_2 * (root_2 + 1)), ONE),),
    )
    widest = Hypothesis("α²L²τ² ≤ 1 − αL", 1 - a - a**2 * tau**2)
    wide = Certificate(
        Claim(
            "W.price.wide",
            "β ≤ τ, α²L²τ² ≤ 1 − αL: α' = α/2 has α'²L²(τ + β)² ≤ 1 − α'L",
            (a / 2) ** 2 * (tau + beta) ** 2,
            (1 - a / 2,),
            (widest, milder),
            (ROOT_CONTRACTS,),
        ),
        {widest.name: ONE, milder.name: a**2 * (3 * tau + beta) / 4},
        ((a / 2, ONE),),
    )
    return (best, order, plain, largest, attained, allowed, price, wide)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return long_steps()


CONTRACTION = Condition("γ < 1", 1 - gamma, gamma, 1 / gamma, strict=True)


def bounds() -> tuple[Bound, ...]:
    """Return the rate at the best y, and the largest steps that n₂ allows, in closed form."""
    best, _, _, largest, *_ = long_steps()
    beta = sp.sqrt(gamma) / (1 - sp.sqrt(gamma))
    weights: dict[str, sp.Expr] = {
        "W.largest": grad_weight,
        "W.largest.delay": 2 * tau**2,
        "W.largest.feedback": beta**2,
        "W.largest.both": 2 * (tau**2 + beta**2),
    }
    return (
        rate_bound(best, quantity=f"{AVERAGE} at α = r/(Ln)"),
        *(
            Bound.of(
                largest,
                "α",
                name=name,
                kind="tight",
                values={root_weight: sp.sqrt(1 + 4 * weight), grad_weight: weight},
                where=(CONTRACTION,) if gamma in used(weight) else (),
                whatever=(alpha,),
            )
            for name, weight in weights.items()
        ),
    )
