"""The step size that minimises a bound: its equation, that it has one root, and how good it is.

Four shapes cover every rate: D/α + Sα + Cα² (N, W), D/α + Sα + Cα²/(1 − αL) (C), and for the
unrolled S and P D(1 − αc)^T + Sα + Cα², or Dr + (1 − r)F with r = (1 − αc)^T and a floor F that
fades in. For each shape but the last (see `fading`), with α* the root:

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
    bend_cost,
    best,
    c,
    decay,
    decay_best,
    drift_cost,
    gain,
    noise_cost,
    pole,
    start_cost,
    steps,
)

D, S, C = start_cost, noise_cost, drift_cost
SHORTER = Condition("α ≤ α*", best - alpha, alpha, 1 / alpha)
LONGER = Condition("α* ≤ α", alpha - best, best, 1 / best)
SHORT = Condition("αc ≤ 1", 1 - alpha * c, alpha, 1 / alpha)
STRICTLY_SHORT = Condition("αc < 1", 1 - alpha * c, alpha, 1 / alpha, strict=True)
SHORT_BEST = Condition("α*c < 1", 1 - best * c, best, 1 / best, strict=True)


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
    """D(1 − αc)^T + Sα + Cα², αc < 1, is least where DcT(1 − αc)^(T−1) = S + 2Cα.

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
    stationary = ((D, D - (S + 2 * C * best) / (c * T * decay_best)),)
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
    longer = (STRICTLY_SHORT, LONGER)
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


def floor(step: Scalar) -> sp.Expr:
    """Return F(α) = Sα + Cα² + C′α²/(1 − hα)."""
    return S * step + C * step**2 + bend_cost * step**2 / (1 - pole * step)


def fading() -> tuple[Proof, ...]:
    """Dr + (1 − r)F(α), r = (1 − αc)^T: it falls while cTr*(D − F*) ≥ F′*(1 − (1 − α*c)^T).

    Here r* = (1 − α*c)^(T−1). Where the bound still falls at α*, it is no less at any α ≤ α* with
    F(α) ≤ D; where it rises, at no α ≥ α*. So each α* rules out one side of it, and halving an
    interval finds the least value. F lies above its tangent, and so does r.
    """
    y, r = 1 - best * c, decay_best
    above = power()[0].claim.instance({steps: T})
    fallen = power()[3].claim.instance({decay_best: y * r})
    lost = 1 - y * r
    decayed = Hypothesis("(1 − α*c)^T ≤ 1", lost)
    slope = sp.diff(floor(best), best)
    rest = (1 - pole * alpha) * (1 - pole * best)
    # F − F* − F′*(α − α*), of (α − α*)²; and F − F*, of α − α*; in two parts for speed.
    convex = (C, bend_cost / (rest * (1 - pole * best)))
    grown = (S + C * (alpha + best), bend_cost * (alpha * (1 - pole * best) + best) / rest)
    ends = floor(alpha) - floor(best) + gain  # D − F*
    falls = c * T * r * ends - slope * lost
    falling = Hypothesis("cTr*(D − F*) ≥ F′*(1 − (1 − α*c)^T)", falls)
    rising = Hypothesis("cTr*(D − F*) ≤ F′*(1 − (1 − α*c)^T)", -falls)
    shorter = (SHORT_BEST, SHORTER, _inside(best))
    longer = (STRICTLY_SHORT, LONGER, _inside(alpha))

    def claim(
        name: str,
        text: str,
        hypotheses: tuple[Hypothesis, ...],
        conditions: tuple[Condition, ...],
        more: sp.Expr,  # D − F(α)
    ) -> Claim:
        start = floor(alpha) + more
        parts = (S * alpha, C * alpha**2, bend_cost * alpha**2 / (1 - pole * alpha))
        return Claim(
            name,
            text,
            start * y * r + floor(best) * lost,
            (start * decay, *((1 - decay) * part for part in parts)),
            hypotheses,
            conditions,
        )

    weights = tuple(c * T * r * part for part in grown)
    squares = tuple((weight, alpha - best) for weight in weights)
    bent = sum(convex) * (alpha - best) ** 2
    edge = Certificate(
        claim(
            "fading.edge",
            "falling at α* ≥ α, F(α) ≤ D: Dr + (1 − r)F is no less at α",
            (above, falling, decayed),
            shorter,
            gain,
        ),
        {above.name: gain, falling.name: best - alpha, decayed.name: bent},
        squares,
    )
    past = Certificate(
        claim(
            "fading.past",
            "rising at α* ≤ α, F(α) ≤ D: Dr + (1 − r)F is no less at α",
            (above, rising, decayed),
            longer,
            gain,
        ),
        {above.name: gain, rising.name: alpha - best, decayed.name: bent},
        squares,
    )
    far = Certificate(
        claim(
            "fading.far",
            "α* ≤ α, D ≤ F(α): Dr + (1 − r)F is no less at α",
            (fallen, decayed),
            longer,
            -gain,
        ),
        {fallen.name: gain, decayed.name: (alpha - best) * sum(grown)},
    )
    return (edge, past, far)


def _inside(step: sp.Symbol) -> Condition:
    return Condition(f"h{step} < 1", 1 - pole * step, pole, 1 / pole, strict=True)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*cubic(), *rational(), *power(), *fading())


def bounds() -> tuple[Bound, ...]:
    """Return none: the rates at their best steps are in `step_sizes`."""
    return ()
