"""Elastic constants of DiLoCo: workers train alone, an outer optimizer with momentum moves them.

A worker's view is θ + d_i: the anchor θ, and the worker's updates since the last meeting. A meeting
hands on q = mean d of H steps: m⁺ = μm + q, θ⁺ = θ + η(q + μm⁺) (or ημ⁺), and no update is lost:
x = θ + G mean d + c m, with the gain G = η/(1 − μ) and c = Gμ² (Nesterov) or Gμ. So held is

    h_i = G mean d − d_i + c m ,

where d has at most n = H − 1 + τ updates, as results that arrive τ steps late only lengthen rounds.
c m is at most αM C_m long, C_m = cH/(1 − μ). x moves with the step size αG: rates in B take αG for
α and B/G for B.

**Fragments** that meet at other times: d and c m are sums of parts of updates, entry by entry. Of
the last n updates, an entry is in d with the weights −1 (deviation) and G − 1 (mean), or in c m
with at most c; of the H before them it is in c m with at most c, of the H before those cμ, and so
on. So all holds with 1 + max(|G − 1|, c) in place of G: d then stands for the parts in the last n
updates, its mean divided by max(|G − 1|, c). One fragment with G < 1 may take 2 − G for G, its
mirror image.
"""

from dataclasses import replace

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.averaging import BOUNDED, SEVERAL, SIZE2, SPREAD_U, U_I
from theory.claims.constants import NORM_H, elastic, triangle, window, window_of
from theory.gram import mean, norm2, per_worker, vector
from theory.induction import SO_FAR, Induction, Proof
from theory.symbols import (
    H_local,
    M,
    alpha,
    coast,
    damping,
    gain_excess,
    gain_outer,
    momentum,
    n,
    p,
    share,
    tau,
)

ONE = sp.S.One
G, C = gain_outer, coast * H_local / damping
DAMPED = Condition("μ_m ≥ 0", 1 - damping, damping, 1 / damping)
FADES = Condition("μ_m < 1", 1 - momentum, momentum, strict=True)
MODEST = Condition("G < 2", 2 - G, G, 1 / G, strict=True)
SMALL = Condition("G < 2", 1 - gain_excess, gain_excess, 1 / gain_excess, strict=True)
ROUND = Condition("H ≥ 1", H_local - 1, H_local)

D_I = per_worker("d")
D_MEAN = mean(D_I, p)
SPREAD_D = D_I - D_MEAN
MOMENTUM = vector("m")
CARRIED = MOMENTUM * coast
FAR2 = (alpha * M * C) ** 2


def momentum_sum() -> tuple[Proof, ...]:
    """What the momentum carries is bounded: |m⁺| ≤ μ|m| + HαM keeps |m| ≤ αHM/(1 − μ).

    q = mean d, a window of H means of updates; m is a mean of them, times 1/(1 − μ), for any μ ≥ 0.
    Updates that never change attain it in the limit.
    """
    average = Certificate(
        Claim(
            "outer.mean",
            "‖mean u‖² ≤ α²M²",
            norm2(mean(U_I, p)),
            (SIZE2,),
            (BOUNDED,),
        ),
        {BOUNDED.name: ONE},
        ((ONE, SPREAD_U),),
    )
    achieved = window_of(
        "outer.round", "a round's mean of n steps: ‖q‖² ≤ α²(nM)²", average.claim.instance(), SIZE2
    )
    q, limit = vector("q"), alpha * M * H_local / damping
    of_round = achieved.claim.instance({NORM_H: norm2(q), n: H_local})
    carried = Induction(
        "outer.momentum",
        "‖m‖² ≤ α²(HM/(1 − μ_m))²",
        lambda m: (norm2(m), (limit**2,)),
        start=(MOMENTUM * 0,),
        now=(MOMENTUM,),
        following=(MOMENTUM * (1 - damping) + q,),
        start_by=((), {}, ((ONE, limit),)),
        step_by=(
            (of_round,),
            {SO_FAR: 1 - damping, of_round.name: 1 / damping},
            ((damping * (1 - damping), MOMENTUM - q * (1 / damping)),),
        ),
        conditions=(DAMPED,),
        remark="attained in the limit by updates that never change",
    )
    return (average, achieved, carried)


def together() -> tuple[Proof, ...]:
    """Mean over workers: B = M((G − 1)n + C_m) for G ≥ 2, and less below.

    ‖d‖² ≤ (nαM)² bounds the deviations d_i − mean d, of weight 1, and mean d, of weight G − 1, as
    one; only the latter can point along m. For G < 2 deviations pay: B² = M²(n² + C_m²/(G(2 − G))),
    unless even mean d alone costs more: B = M((G − 1)n + C_m) where (G − 1)C_m ≥ G(2 − G)n.
    """
    alone = Induction(
        "outer.alone",
        "n steps alone: ‖d‖² ≤ α²(nM)², mean over workers",
        lambda d, k: (norm2(d), (k**2 * SIZE2,)),
        start=(U_I, ONE),
        now=(D_I, n),
        following=(D_I + U_I, n + 1),
        start_by=((BOUNDED,), {BOUNDED.name: ONE}, ()),
        step_by=(
            (BOUNDED,),
            {BOUNDED.name: 1 + n, SO_FAR: 1 + 1 / n},
            ((1 / n, D_I - U_I * n),),
        ),
    )
    far = momentum_sum()[2]
    steps, ahead = alone.claim.instance(), far.claim.instance()
    loss = G * (2 - G)
    small = Certificate(
        Claim(
            "diloco.small",
            "‖h‖² ≤ α²B², B² = M²(n² + C_m²/(G(2 − G)))",
            norm2(D_MEAN * (G - 1) - SPREAD_D + CARRIED),
            (n**2 * SIZE2, FAR2 / loss),
            (steps, ahead),
            (MODEST, DAMPED),
            remark="C_m = c_m H/(1 − μ_m); attained if |G − 1|C_m ≤ G(2 − G)n",
        ),
        {steps.name: ONE, ahead.name: coast**2 / loss},
        ((loss, D_MEAN - CARRIED * ((G - 1) / loss)),),
    )

    def along(name: str, where: str, *conditions: Condition) -> Certificate:
        """Return B = M(gn + C_m), g = G − 1, where g(gn + C_m) ≥ n."""
        g, share_m = gain_excess, damping / H_local
        reach = g * n + C
        return Certificate(
            Claim(
                name,
                f"{where}: ‖h‖² ≤ α²B², B = M((G − 1)n + C_m)",
                norm2(D_MEAN * g - SPREAD_D + CARRIED),
                (alpha**2 * M**2 * reach**2,),
                (steps, ahead),
                (DAMPED, *conditions),
                remark="attained by updates that never change, alike on all workers",
            ),
            # The triangle inequality, but where C_m = 0 the second condition leaves no n.
            {steps.name: g * reach / n, ahead.name: coast * share_m * reach},
            ((g * C / n, D_MEAN - MOMENTUM * (share_m * n)), (g * reach / n - 1, SPREAD_D)),
        )

    g = gain_excess
    return (
        alone,
        small,
        along(
            "diloco.small.long",
            "(G − 1)C_m ≥ G(2 − G)n",
            SMALL,
            Condition("(G − 1)C_m ≥ G(2 − G)n", g * C - (1 - g**2) * n, n, 1 / n),
        ),
        along("diloco", "G ≥ 2", Condition("G ≥ 2", g - 1, g)),
        Certificate(
            Claim(
                "diloco.attained",
                "mean d = An, A = (G − 1)C_m/(G(2 − G)n), and deviations √(1 − A²)n attain it",
                n**2 - ((G - 1) * C / loss) ** 2 + ((G - 1) * ((G - 1) * C / loss) + C) ** 2,
                (n**2, C**2 / loss),
                (),
                (MODEST,),
                equality=True,
            ),
            {},
        ),
    )


def each_worker() -> tuple[Proof, ...]:
    """For each worker: B = M(wn + C_m), w = 1 + G(p − 2)/p, if G ≤ p.

    G mean u − u_i = (G/p − 1)u_i + (G/p) Σ u_j is longest where one worker opposes all others.
    """
    mine, others, alone = vector("u_i"), vector("Σu_j"), vector("h_d")
    own = Hypothesis("|u_i| ≤ αM", SIZE2 - norm2(mine))
    rest = window()[0].claim.instance({NORM_H: norm2(others), n: p - 1, share: ONE}, "p − 1 others")
    conditions = (SEVERAL, Condition("G ≤ p", p - G, G, 1 / G))
    weight = ((share, share - 1 - G * (p - 2) / p),)
    kept, spread = 1 - G / p, G / p
    (w_own, w_rest), squares = triangle(
        [(mine * -kept, kept * alpha * M), (others * spread, spread * (p - 1) * alpha * M)]
    )
    part = others * spread - mine * kept
    one = Certificate(
        Claim(
            "diloco.each.part",
            "‖G mean u − u_i‖² ≤ α²M²w², w = 1 + G(p − 2)/p, for each worker",
            norm2(part),
            (SIZE2 * share**2,),
            (own, rest),
            conditions,
            weight,
        ),
        {own.name: w_own * kept**2, rest.name: w_rest * spread**2},
        squares,
    )
    longest = one.claim.instance()
    drift = Induction(
        "diloco.each.steps",
        "n steps alone: ‖G mean d − d_i‖² ≤ α²(nMw)²",
        lambda h, k: (norm2(h), (k**2 * SIZE2 * share**2,)),
        start=(part, ONE),
        now=(alone, n),
        following=(alone + part, n + 1),
        start_by=((longest,), {longest.name: ONE}, ()),
        step_by=(
            (longest,),
            {longest.name: 1 + n, SO_FAR: 1 + 1 / n},
            ((1 / n, alone - part * n),),
        ),
        conditions=conditions,
        relations=weight,
    )
    steps, far = drift.claim.instance(), momentum_sum()[2].claim.instance()
    (w_d, w_k), squares = triangle([(alone, alpha * M * n * share), (CARRIED, alpha * M * C)])
    both = Certificate(
        Claim(
            "diloco.each",
            "‖h_i‖² ≤ α²B², B = M(wn + C_m), w = 1 + G(p − 2)/p, for each worker",
            norm2(alone + CARRIED),
            (SIZE2 * (share * n + C) ** 2,),
            (steps, far),
            (*conditions, DAMPED),
            weight,
            remark="attained where one worker turns against the others after all have agreed",
        ),
        {steps.name: w_d, far.name: w_k * coast**2},
        squares,
    )
    return (one, drift, both)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*momentum_sum(), *together(), *each_worker())


def bounds() -> tuple[Bound, ...]:
    """Return the elastic constants, mean over workers but for `diloco.each`."""
    known = {
        n: H_local - 1 + tau,
        damping: 1 - momentum,
        gain_excess: G - 1,
        share: 1 + G * (p - 2) / p,
    }
    _, small, long, large, _ = together()
    *_, apiece = each_worker()
    straight = (M * gain_excess * n, M * C)
    square = M * sp.sqrt(n**2 + C**2 / (G * (2 - G)))
    found = (
        elastic(small, square, kind="tight", values=known),
        elastic(long, *straight, kind="tight", values=known),
        elastic(large, *straight, kind="tight", values=known),
        elastic(apiece, M * share * n, M * C, kind="tight", values=known),
    )
    # μ ≥ 0 is its sign. Where n = 0 all that is held is c m.
    return tuple(
        replace(
            each, conditions=(*(c for c in each.conditions if c.expr != momentum), ROUND, FADES)
        )
        for each in found
    )
