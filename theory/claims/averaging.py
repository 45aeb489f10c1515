"""Elastic constants of workers that average now and then, or with neighbours: local SGD, gossip.

Where f is convex, gradient steps do not drive workers apart, and only their noise does: then B
grows with √ of the number of steps, and with σ instead of M.
"""

from dataclasses import replace

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.communication import contracted
from theory.claims.constants import (
    CONTRACTS,
    H_NEXT,
    NORM_H,
    NORM_H_NEXT,
    U,
    elastic,
    triangle,
    window,
    window_of,
)
from theory.claims.sgd import QUIET, XI, G
from theory.gram import Vector, inner, mean, norm2, per_worker, vector
from theory.induction import SO_FAR, Induction, Proof
from theory.symbols import (
    H_local,
    L,
    M,
    alpha,
    held,
    held_next,
    mixing,
    n,
    p,
    passed,
    rho,
    share,
    sigma,
    steps,
)

ONE, ZERO = sp.S.One, sp.S.Zero
SIZE2 = (alpha * M) ** 2
NORM_U = norm2(U)
SEVERAL = Condition("p > 1", p - 1, p, strict=True)
SHORT = Condition("αL ≤ 2", 2 - alpha * L, alpha, 1 / alpha)
LOCAL = Condition("H > 1", H_local - 1, H_local, strict=True)

U_I = per_worker("u")
SPREAD_U = U_I - mean(U_I, p)
V_I = per_worker("v")
SPREAD_V = V_I - mean(V_I, p)  # v~: how far each view is from the views' mean, which is x
STEPPED = SPREAD_V - (G - mean(G, p) + XI - mean(XI, p)) * alpha  # after a local step
WORKERS = Condition("p ≥ 1", p - 1, p)
BOUNDED = Hypothesis("|u| ≤ αM, mean over workers", SIZE2 - norm2(U_I))


def spreading() -> Certificate:
    """Convex f, αL ≤ 2: a local step spreads the views by no more than its noise.

    Co-coercivity, summed over pairs of workers, gives L⟨v~, g~⟩ ≥ ‖g~‖², v~ = v_i − mean v; so
    ‖v~ − αg~‖ ≤ ‖v~‖, and of the noise ξ_i − mean ξ remains.
    """
    gradients = G - mean(G, p)
    monotone = Hypothesis(
        "f is convex and L-smooth between views", L * inner(SPREAD_V, gradients) - norm2(gradients)
    )
    return Certificate(
        Claim(
            "spread.step",
            "‖v~ − α(g~ + ξ~)‖² ≤ ‖v~‖² + α²σ²(p − 1)/p",
            norm2(STEPPED),
            (norm2(SPREAD_V), alpha**2 * sigma**2 * (p - 1) / p),
            (monotone, QUIET),
            (SHORT, WORKERS),
        ),
        {monotone.name: 2 * alpha / L, QUIET.name: alpha**2 * (p - 1) / p},
        ((alpha * (2 / L - alpha), gradients),),
    )


def local_sgd() -> tuple[Proof, ...]:
    """Local SGD, H steps between two averagings: B = (H − 1)M, mean over workers.

    A view drifts from the mean of the views by at most H − 1 steps' u_i − mean u, which is shorter
    than u. For one worker by itself |u_i − mean u| ≤ 2αM(p − 1)/p. Convex f: every step adds at
    most α²σ²(p − 1)/p to the drift's square. Opposite gradients attain the first, one worker
    against all others the second, pure noise the third.
    """
    part = Certificate(
        Claim("local.part", "‖u − mean u‖² ≤ α²M²", norm2(SPREAD_U), (SIZE2,), (BOUNDED,)),
        {BOUNDED.name: ONE},
        ((ONE, mean(U_I, p)),),
    )
    drift = window_of(
        "local.steps",
        "n local steps: ‖h‖² ≤ α²(nM)², mean over workers",
        part.claim.instance({norm2(SPREAD_U): NORM_U}),
        SIZE2,
    )
    views = _after("local", "‖h‖² ≤ α²((H − 1)M)², mean over workers", drift, SIZE2)
    mine, others = vector("u_i"), vector("Σu_j")
    own = Hypothesis("|u_i| ≤ αM", SIZE2 - norm2(mine))
    rest = window()[0].claim.instance({NORM_H: norm2(others), n: p - 1, share: ONE}, "p − 1 others")
    fraction = (p - 1) / p
    (w_own, w_rest), squares = triangle(
        [(mine * fraction, fraction * alpha * M), (others * (-1 / p), (p - 1) * alpha * M / p)]
    )
    each2, part_i = SIZE2 * (2 * fraction) ** 2, mine * fraction - others * (1 / p)
    each_part = Certificate(
        Claim(
            "local.each.part",
            "‖u_i − mean u‖² ≤ α²(2M(p − 1)/p)², for each worker",
            norm2(part_i),
            (each2,),
            (own, rest),
            (SEVERAL,),
        ),
        {own.name: w_own * fraction**2, rest.name: w_rest / p**2},
        squares,
    )
    each_drift = window_of(
        "local.each.steps",
        "n local steps: ‖h_i‖² ≤ α²(2nM(p − 1)/p)², for each worker",
        each_part.claim.instance(),
        each2,
        (SEVERAL,),
        part_i,
    )
    each = _after(
        "local.each",
        "‖h_i‖² ≤ α²(2(H − 1)M(p − 1)/p)², for each worker",
        each_drift,
        each2,
        SEVERAL,
    )
    spread = spreading()
    growth = alpha**2 * sigma**2 * (p - 1) / p
    one = spread.claim.instance()
    noise_drift = Induction(
        "local.convex.steps",
        "convex f, t local steps: ‖v~‖² ≤ tα²σ²(p − 1)/p",
        lambda v, t: (norm2(v), (t * growth,)),
        start=(Vector(()), ZERO),
        now=(SPREAD_V, steps),
        following=(STEPPED, steps + 1),
        start_by=((), {}, ()),
        step_by=((one,), {one.name: ONE, SO_FAR: ONE}, ()),
        conditions=(SHORT, WORKERS),
    )
    last = noise_drift.claim.instance({steps: H_local - 1})
    convex = Certificate(
        Claim(
            "local.convex",
            "convex f: ‖v~‖² ≤ α²σ²(H − 1)(p − 1)/p",
            norm2(SPREAD_V),
            ((H_local - 1) * growth,),
            (last,),
            (SHORT, WORKERS, Condition("H ≥ 1", H_local - 1, H_local)),
        ),
        {last.name: ONE},
    )
    return (part, drift, views, each_part, each_drift, each, spread, noise_drift, convex)


def _after(
    name: str, text: str, drift: Induction, part2: sp.Expr, *where: Condition
) -> Certificate:
    """Return the drift after H − 1 local steps."""
    last = drift.claim.instance({n: H_local - 1})
    return Certificate(
        Claim(name, text, NORM_H, ((H_local - 1) ** 2 * part2,), (last,), (*where, LOCAL)),
        {last.name: ONE},
    )


def gossip() -> tuple[Proof, ...]:
    """Gossip after the local step, v ← Wv, ρ = ‖W − J‖, J the mean: B = Mρ/(1 − ρ).

    v~⁺ = (W − J)(v~ + u~). Convex f: ‖v~⁺‖² ≤ ρ²(‖v~‖² + α²σ²(p − 1)/p), so
    B = σ√((p − 1)/p)·ρ/√(1 − ρ²). Gradients along the slowest mode attain the first, and pure
    noise in a network where every mode shrinks by ρ the second.
    """
    mixed = Hypothesis("‖v~⁺‖ ≤ ρ‖v~ + u~‖", rho**2 * norm2(SPREAD_V + SPREAD_U) - norm2(H_NEXT))
    shorter = local_sgd()[0].claim.instance()
    bound = contracted(
        "gossip",
        "‖v~‖² ≤ α²B², B = Mρ/(1 − ρ)",
        SPREAD_V,
        SPREAD_U,
        mixed,
        shorter,
        rho,
        (CONTRACTS,),
    )
    one = spreading().claim.instance()
    shrinks = Hypothesis("‖v~⁺‖ ≤ ρ‖v~ − αG̃~‖", rho**2 * norm2(STEPPED) - norm2(H_NEXT))
    limit2 = alpha**2 * sigma**2 * (p - 1) / p * rho**2 / (1 - rho**2)
    convex = Induction(
        "gossip.convex",
        "convex f: ‖v~‖² ≤ α²B², B² = σ²((p − 1)/p)ρ²/(1 − ρ²)",
        lambda square: (square, (limit2,)),
        start=(ZERO,),
        now=(norm2(SPREAD_V),),
        following=(NORM_H_NEXT,),
        start_by=((), {}, ((limit2, ONE),)),
        step_by=((shrinks, one), {shrinks.name: ONE, one.name: rho**2, SO_FAR: rho**2}, ()),
        conditions=(SHORT, WORKERS, CONTRACTS),
    )
    return (bound, convex)


def gossip_in_rounds() -> Induction:
    """Gossip over graphs that vary: v~ sums up what all rounds since have left of each update.

    v~ = Σ_k (W_t − J)⋯(W_{t−k} − J)u~_{t−k}, the product of norm at most s_k: B = M Σ_k s_k. The
    terms are taken one after the other.
    """
    longer = Hypothesis("|h⁺| ≤ |h| + αM s_W", held + alpha * M * passed - held_next)
    return Induction(
        "gossip.rounds",
        "|v~| ≤ αKM, K the sum of what all rounds leave",
        lambda h, K: (h, (alpha * M * K,)),
        start=(ZERO, ZERO),
        now=(held, mixing),
        following=(held_next, mixing + passed),
        start_by=((), {}, ()),
        step_by=((longer,), {longer.name: ONE, SO_FAR: ONE}, ()),
    )


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*local_sgd(), *gossip(), gossip_in_rounds())


def bounds() -> tuple[Bound, ...]:
    """Return the elastic constants, mean over workers unless each worker's is named."""
    fraction = (p - 1) / p
    noise_only = sigma * sp.sqrt(fraction)
    _, _, views, _, _, each, _, _, convex = local_sgd()
    mixed, convex_mixed = gossip()
    # Where p = 1 or H = 1 there is nothing to average.
    convex_views = elastic(convex, noise_only * sp.sqrt(H_local - 1), kind="tight")
    convex_gossip = elastic(convex_mixed, noise_only * rho / sp.sqrt(1 - rho**2), kind="tight")
    return (
        elastic(views, (H_local - 1) * M, kind="tight"),
        elastic(each, 2 * (H_local - 1) * M * fraction, kind="tight"),
        replace(convex_views, conditions=(SHORT, SEVERAL, LOCAL)),
        elastic(mixed, M * rho / (1 - rho), kind="tight"),
        replace(convex_gossip, conditions=(SHORT, SEVERAL, CONTRACTS)),
        Bound.of(gossip_in_rounds(), "B", M * mixing, link=lambda B: alpha * B),
    )
