"""The step size that minimises a bound: its equation, that it has one root, and how good it is.

Three shapes cover every rate: D/α + Sα + Cα² (N and the delayed forms), D/α + Sα + Cα²/(1 − αL)
(C), and D(1 − αc)^T + Sα + Cα² (S and P, unrolled). For each shape, with α* the root:

* *best*: the bound at α minus the bound at α* is a square with a non-negative weight;
* *root*: the equation's two sides cross once, so α* is its only positive root;
* *edge*: left of α* the bound falls, so if α* is too long the longest admissible step is best.

A root exists: the side that grows with α starts at 0, and D > 0.
"""

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.sgd import ONE
from theory.gram import Scalar
from theory.induction import SO_FAR, Induction, Proof
from theory.symbols import (
    L,
    T,
    alpha,
    best,
    c,
    decay,
    decay_best,
    drift_cost,
    noise_cost,
    start_cost,
    steps,
)

D, S, C = start_cost, noise_cost, drift_cost
SHORTER = Condition("α ≤ α*", best - alpha, alpha, 1 / alpha)
SHORT = Condition("αc ≤ 1", 1 - alpha * c, alpha, 1 / alpha)
SHORT_BEST = Condition("α*c ≤ 1", 1 - best * c, best, 1 / best)


def posynomial(step: Scalar) -> sp.Expr:
    """Return D/α + Sα + Cα²."""
    return D / step + S * step + C * step**2


def weighted(step: Scalar) -> sp.Expr:
    """Return D/α + Sα + Cα²/(1 − αL)."""
    return D / step + S * step + C * step**2 / (1 - step * L)


def cubic() -> tuple[Proof, ...]:
    """D/α + Sα + Cα² is least where Sα² + 2Cα³ = D, and is 2Sα + 3Cα² there.

    The excess is (α − α*)²(D/(αα*²) + C). If α* is too long, the longest step that is allowed is
    best: there Sβ² + 2Cβ³ ≤ D still.
    """
    excess = D / (alpha * best**2) + C
    stationary = ((D, D - S * best**2 - 2 * C * best**3),)
    minimum = Certificate(
        Claim(
            "cubic.best",
            "Sα*² + 2Cα*³ = D: D/α* + Sα* + Cα*² ≤ D/α + Sα + Cα²",
            posynomial(best),
            (D / alpha, S * alpha, C * alpha**2),
            relations=stationary,
            remark="attained by α = α* alone, if D > 0",
        ),
        {},
        ((excess, alpha - best),),
    )
    growing = S * alpha**2 + 2 * C * alpha**3
    root = Certificate(
        Claim(
            "cubic.root",
            "Sα*² + 2Cα*³ = D: (α − α*)²D/α* ≤ (α − α*)(Sα² + 2Cα³ − D), so one positive root",
            (alpha - best) ** 2 * D / best,
            ((alpha - best) * growing, -(alpha - best) * D),
            relations=stationary,
        ),
        {},
        ((S * alpha + 2 * C * alpha * (alpha + best), alpha - best),),
    )
    value = Certificate(
        Claim(
            "cubic.value",
            "Sα*² + 2Cα*³ = D: D/α* + Sα* + Cα*² = 2Sα* + 3Cα*²",
            posynomial(best),
            (2 * S * best, 3 * C * best**2),
            relations=stationary,
            equality=True,
        ),
        {},
    )
    falling = Hypothesis("Sα*² + 2Cα*³ ≤ D", D - S * best**2 - 2 * C * best**3)
    edge = Certificate(
        Claim(
            "cubic.edge",
            "Sα*² + 2Cα*³ ≤ D, α ≤ α*: D/α* + Sα* + Cα*² ≤ D/α + Sα + Cα²",
            posynomial(best),
            (D / alpha, S * alpha, C * alpha**2),
            (falling,),
            (SHORTER,),
        ),
        {falling.name: (best - alpha) / best**2},
        ((excess, alpha - best),),
    )
    return (minimum, root, value, edge)


def rational() -> tuple[Proof, ...]:
    """D/α + Sα + Cα²/(1 − αL), αL < 1, is least where Sα² + Cα³(2 − αL)/(1 − αL)² = D.

    The excess is (α − α*)²(D/(αα*²) + C/((1 − αL)(1 − α*L)²)).
    """
    shorter = Condition("αL < 1", 1 - alpha * L, alpha, 1 / alpha, strict=True)
    inside = Condition("α*L < 1", 1 - best * L, best, 1 / best, strict=True)
    terms = (D / alpha, S * alpha, C * alpha**2 / (1 - alpha * L))

    def growing(step: sp.Symbol) -> sp.Expr:
        return S * step**2 + C * step**3 * (2 - step * L) / (1 - step * L) ** 2

    excess = D / (alpha * best**2) + C / ((1 - alpha * L) * (1 - best * L) ** 2)
    stationary = ((D, D - growing(best)),)
    minimum = Certificate(
        Claim(
            "rational.best",
            "α* stationary: D/α* + Sα* + Cα*²/(1 − α*L) ≤ D/α + Sα + Cα²/(1 − αL)",
            weighted(best),
            terms,
            (),
            (shorter, inside),
            stationary,
            remark="attained by α = α* alone, if D > 0; Sα² + Cα³(2 − αL)/(1 − αL)² = D at α = α*",
        ),
        {},
        ((excess, alpha - best),),
    )
    slope = sp.factor((growing(alpha) / alpha - growing(best) / best) / (alpha - best))
    root = Certificate(
        Claim(
            "rational.root",
            "(α − α*)²D/α* ≤ (α − α*)(Sα² + Cα³(2 − αL)/(1 − αL)² − D), so one root in (0, 1/L)",
            (alpha - best) ** 2 * D / best,
            ((alpha - best) * growing(alpha), -(alpha - best) * D),
            (),
            (shorter, inside),
            stationary,
        ),
        {},
        ((alpha * slope, alpha - best),),
    )
    falling = Hypothesis("Sα*² + Cα*³(2 − α*L)/(1 − α*L)² ≤ D", D - growing(best))
    edge = Certificate(
        Claim(
            "rational.edge",
            "where the bound still falls at α*, it is no less at any α ≤ α*",
            weighted(best),
            terms,
            (falling,),
            (inside, SHORTER),
        ),
        {falling.name: (best - alpha) / best**2},
        ((excess, alpha - best),),
    )
    return (minimum, root, edge)


def power() -> tuple[Proof, ...]:
    """D(1 − αc)^T + Sα + Cα², αc ≤ 1, is least where DcT(1 − αc)^(T−1) = S + 2Cα.

    (1 − αc)^T lies above its tangent at α*, by induction over T; the excess is at least C(α − α*)².
    Beyond α* the equation's left side has fallen, while its right side grows.
    """
    x, y = 1 - alpha * c, 1 - best * c
    shorter, inside = SHORT, SHORT_BEST
    tangent = Induction(
        "power.tangent",
        "(1 − α*c)^T + cT(α* − α)(1 − α*c)^(T−1) ≤ (1 − αc)^T",
        lambda q, r, t: (y * r + t * (x - y) * r, (q,)),
        start=(x, ONE, ONE),
        now=(decay, decay_best, steps),
        following=(x * decay, y * decay_best, steps + 1),
        start_by=((), {}, ()),
        step_by=((), {SO_FAR: x}, ((steps * decay_best, x - y),)),
        conditions=(shorter, inside),
    )
    above = tangent.claim.instance({steps: T})
    terms = (D * decay, S * alpha, C * alpha**2)
    at_best = D * y * decay_best + S * best + C * best**2
    slope = D * c * T * decay_best - S - 2 * C * best
    stationary = ((S, -slope),)
    minimum = Certificate(
        Claim(
            "power.best",
            "DcT(1 − α*c)^(T−1) = S + 2Cα*: D(1 − αc)^T + Sα + Cα² is least at α*",
            at_best,
            terms,
            (above,),
            (shorter, inside),
            stationary,
        ),
        {above.name: D},
        ((C, alpha - best),),
    )
    falling = Hypothesis("S + 2Cα* ≤ DcT(1 − α*c)^(T−1)", slope)
    edge = Certificate(
        Claim(
            "power.edge",
            "S + 2Cα* ≤ DcT(1 − α*c)^(T−1), α ≤ α*: D(1 − αc)^T + Sα + Cα² is no less at α",
            at_best,
            terms,
            (above, falling),
            (inside, SHORTER),
        ),
        {above.name: D, falling.name: best - alpha},
        ((C, alpha - best),),
    )
    longer = (shorter, Condition("α* ≤ α", alpha - best, best, 1 / best))
    falls = Induction(
        "power.falls",
        "α* ≤ α: (1 − αc)^T ≤ (1 − α*c)^T",
        lambda q, r: (q, (r,)),
        start=(ONE, ONE),
        now=(decay, decay_best),
        following=(x * decay, y * decay_best),
        start_by=((), {}, ()),
        step_by=((), {SO_FAR: y}, (((y - x) * decay, ONE),)),
        conditions=longer,
    )
    fallen = falls.claim.instance()
    root = Certificate(
        Claim(
            "power.root",
            "α* ≤ α: DcT(1 − αc)^(T−1) + 2C(α − α*) ≤ S + 2Cα, so one positive root if C > 0",
            D * c * T * decay + 2 * C * (alpha - best),
            (S, 2 * C * alpha),
            (fallen,),
            longer,
            stationary,
        ),
        {fallen.name: D * c * T},
    )
    return (tangent, minimum, edge, falls, root)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*cubic(), *rational(), *power())


def bounds() -> tuple[Bound, ...]:
    """Return none: the rates at their best steps are in `step_sizes`."""
    return ()
