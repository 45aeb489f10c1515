"""Compressed gossip (CHOCO): its elastic constant, and the consensus steps for which it holds.

W is doubly stochastic and symmetric, so x = mean v moves by mean u; v, z and x̂ stand for deviations
from the workers' mean. All norms are root mean squares over workers and draws, and so is B.
"""

from dataclasses import replace

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.averaging import BOUNDED, SIZE2, SPREAD_U, U_I
from theory.claims.constants import CONTRACTS, ROOT, elastic
from theory.gram import Vector, inner, mean, norm2, per_worker
from theory.induction import SO_FAR, Induction, Proof
from theory.symbols import (
    M,
    fast,
    fast_rate,
    gamma,
    p,
    rho,
    root_gamma,
    slow,
    weight,
)

ONE = sp.S.One
ORDER = Condition("a_min < a_max", rho**2 - fast_rate, fast_rate, 1 / fast_rate, strict=True)
FAITHFUL = Condition(
    "γ ≤ (1 − a_min)(1 − a_max)/((1 + a_min)(1 + a_max))",
    fast_rate - weight,
    weight,
    1 / weight,
)
CHOCO = (CONTRACTS, ORDER, FAITHFUL)
GAP = (1 + rho) * (1 + slow) / (2 * slow)
"""1/(1 − ρ), which keeps its digits where a_min is small."""


def spread(v: Vector) -> Vector:
    """Return a vector less its mean over the workers."""
    return v - mean(v, p)


def choco() -> tuple[Proof, ...]:
    """CHOCO: B = M√(ρ² + γ)/(1 − ρ), ρ² = (1 − a_min)/(1 + a_min), s the consensus step.

    After a local step the view is z = v + u, and y = z − x̂ what its worker has not said. A message
    leaves e of it unsaid: x̂⁺ = z − e, v⁺ = z − Ax̂⁺ and v⁺ − x̂⁺ = e − Ax̂⁺, A = s(I − W). For a
    number A = a,

        ‖v⁺‖² + r‖e − Ax̂⁺‖² = r‖z‖² + ‖e‖²,  r = (1 − a)/(1 + a) :

    so ‖z‖² + (γ/ρ²)‖y‖² shrinks by ρ² before the next u, as ‖e‖² ≤ γ‖y‖² and r_W ≤ r ≤ ρ². For all
    eigenvalues of A at once, ⟨Ax̂ − a_min x̂, a_max x̂ − Ax̂⟩ ≥ 0 takes the place of this identity.
    """
    y, e = per_worker("y"), per_worker("e")
    z, both = spread(per_worker("z")), spread(per_worker("f"))
    public = z - spread(e)
    pulled = both - public  # f is x̂ + Ax̂
    views, unsaid = z - pulled, e - pulled
    gap = rho**2 - fast_rate
    spectrum = Hypothesis(
        "W is symmetric, a_min ≤ A ≤ a_max on deviations",
        inner(public * 2 - both * (1 + fast_rate), both * (1 + rho**2) - public * 2),
    )
    middle = both * (2 + rho**2 + fast_rate) - public * 4
    step = Certificate(
        Claim(
            "choco.step",
            "‖v⁺‖² + (γ/ρ²)‖e − Ax̂⁺‖² ≤ ρ²‖z‖² + ‖e‖², ρ² = (1 − a_min)/(1 + a_min)",
            norm2(views) + weight * norm2(unsaid),
            (rho**2 * norm2(z), norm2(e)),
            (spectrum,),
            (Condition("a_min ≥ 0", 1 - rho, rho, 1 / rho), ORDER, FAITHFUL),
        ),
        {spectrum.name: 1 / gap},
        (
            (1 / (4 * gap), (z + spread(e) - pulled) * gap + middle),
            (fast_rate - weight, spread(unsaid)),
            (1 - weight, mean(e, p)),
        ),
    )
    shrinks = step.claim.instance()
    says = Hypothesis("E‖C(y) − y‖² ≤ γ‖y‖²", weight * rho**2 * norm2(y) - norm2(e))
    limit = SIZE2 * (1 + weight) / (1 - rho) ** 2
    grow = 1 / (1 - rho)
    stepped = Induction(
        "choco.both",
        "‖z‖² + (γ/ρ²)‖y‖² ≤ α²M²(1 + γ/ρ²)/(1 − ρ)²",
        lambda z, y: (norm2(z) + weight * norm2(y), (limit,)),
        start=(spread(U_I), U_I),
        now=(z, y),
        following=(views + spread(U_I), unsaid + U_I),
        start_by=(
            (BOUNDED,),
            {BOUNDED.name: 1 + weight},
            ((limit * (1 - (1 - rho) ** 2), ONE), (ONE, mean(U_I, p))),
        ),
        step_by=(
            (shrinks, says, BOUNDED),
            {
                shrinks.name: 1 / rho,
                says.name: 1 / rho,
                BOUNDED.name: (1 + weight) * grow,
                SO_FAR: rho,
            },
            (
                (grow / rho, views * (1 - rho) - SPREAD_U * rho),
                (weight * grow / rho, unsaid * (1 - rho) - U_I * rho),
                (grow, mean(U_I, p)),
            ),
        ),
        conditions=CHOCO,
    )
    so_far = stepped.claim.instance()
    mixed = Certificate(
        Claim(
            "choco",
            "‖v⁺‖² ≤ α²B², B = M√(ρ² + γ)(1 + ρ)(1 + a_min)/(2a_min), ρ² = (1 − a_min)/(1 + a_min)",
            norm2(views),
            (SIZE2 * rho**2 * (1 + weight) * GAP**2,),
            (so_far, shrinks, says),
            CHOCO,
            ((slow, slow - (1 - rho**2) / (1 + rho**2)),),
            remark="B = M√(ρ² + γ)/(1 − ρ), without a difference of near numbers",
        ),
        {so_far.name: rho**2, shrinks.name: ONE, says.name: ONE},
        ((weight, unsaid),),
    )
    root = root_gamma
    stable = Certificate(
        Claim(
            "choco.stable",
            "√γ ≤ (1 − a_max)/(1 + a_max) is enough: γ ≤ ρ²(1 − a_max)/(1 + a_max)",
            gamma,
            (rho**2 * fast_rate,),
            (),
            (
                replace(ORDER, text="a_min ≤ a_max", strict=False),
                Condition("√γ ≤ (1 − a_max)/(1 + a_max)", fast_rate - root, root, 1 / root),
            ),
            ROOT,
            remark="the worst compressor explodes at consensus steps twice as long",
        ),
        {},
        ((fast_rate * gap, ONE), (fast_rate**2 - root**2, ONE)),
    )
    return (step, stepped, mixed, stable)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return choco()


def bounds() -> tuple[Bound, ...]:
    """Return the elastic constant."""
    squared = (1 - slow) / (1 + slow)
    rates = {rho: sp.sqrt(squared), fast_rate: (1 - fast) / (1 + fast), weight: gamma / squared}
    size = M * sp.sqrt(rho**2 + rho**2 * weight) * GAP
    bound = elastic(choco()[2], size, values=rates)
    where = (
        Condition("a_min < 1", 1 - slow, slow, strict=True),
        # B is continuous in a_min, and any smaller one may be taken.
        Condition("a_min ≤ a_max", fast - slow, fast),
        Condition(FAITHFUL.text, (1 - slow) * (1 - fast) - gamma * (1 + slow) * (1 + fast), gamma),
    )
    return (replace(bound, conditions=where),)
