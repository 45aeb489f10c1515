"""Elastic constants of gradient tracking: workers mix views and estimates of the mean update.

c is what a worker's estimate y = u + c of the mean update adds to its own u; v⁺ = W(v + u + c).
All vectors but u stand for deviations from the workers' mean; norms are root mean squares over
workers, and so are the elastic constants.
"""

from dataclasses import replace

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.averaging import BOUNDED, SIZE2, SPREAD_U, U_I
from theory.claims.compressed_gossip import spread
from theory.claims.constants import CONTRACTS, elastic, triangle
from theory.claims.mixes import moved_by
from theory.gram import inner, mean, norm2, per_worker
from theory.induction import SO_FAR, Induction, Proof
from theory.symbols import (
    M,
    alpha,
    apart,
    decay,
    p,
    rho,
    steps,
)

ONE = sp.S.One


def any_graph() -> tuple[Proof, ...]:
    """Gradient tracking: B = M(1 + ‖I − W‖/(1 − ρ))ρ/(1 − ρ), ρ = ‖W − J‖, J the mean.

    The estimate of the mean update is u + c: c⁺ = Wc − (I − W)u, v⁺ = W(v + u + c). W need not be
    symmetric. An eigenvalue −ρ, and updates along it whose sign alternates, attain it.
    """
    c, kept, lost = (spread(per_worker(name)) for name in ("c", "Wc", "(I − W)u"))
    most = alpha * M * apart / (1 - rho)
    mixes = Hypothesis("‖Wc‖ ≤ ρ‖c‖", rho**2 * norm2(c) - norm2(kept))
    parts = Hypothesis("‖(I − W)u‖ ≤ ‖I − W‖‖u~‖", apart**2 * norm2(SPREAD_U) - norm2(lost))
    (w_kept, w_lost), squares = triangle([(kept, rho * most), (-lost, (1 - rho) * most)])
    correction = Induction(
        "tracking.correction",
        "‖c‖² ≤ α²(M‖I − W‖/(1 − ρ))²",
        lambda c: (norm2(c), (most**2,)),
        start=(c * 0,),
        now=(c,),
        following=(kept - lost,),
        start_by=((), {}, ((ONE, most),)),
        step_by=(
            (mixes, parts, BOUNDED),
            {
                SO_FAR: w_kept * rho**2,
                mixes.name: w_kept,
                parts.name: w_lost,
                BOUNDED.name: w_lost * apart**2,
            },
            (*squares, (w_lost * apart**2, mean(U_I, p))),
        ),
        conditions=(CONTRACTS,),
    )
    views = moved_by(
        "tracking",
        "‖v~‖² ≤ α²B², B = M(1 + ‖I − W‖/(1 − ρ))ρ/(1 − ρ)",
        [(c, most, correction.claim.instance())],
    )
    attained = Certificate(
        Claim(
            "tracking.attained",
            "eigenvalue −ρ, ±u in turns: ‖v⁺‖ = ρ(‖v‖ + M + ‖c‖) = ‖v‖ = 2ρM/(1 − ρ)²",
            rho * (2 * rho / (1 - rho) ** 2 + 1 + (1 + rho) / (1 - rho)),
            (rho / (1 - rho) * (1 + (1 + rho) / (1 - rho)),),
            (),
            (CONTRACTS,),
            equality=True,
        ),
        {},
    )
    return (correction, views, attained)


def symmetric() -> tuple[Proof, ...]:
    """Symmetric W, no eigenvalue below −ρ/2: B = M√ρ/(1 − ρ), one 1 − ρ instead of two.

    c = −(I − W)s with s⁺ = Ws + u: what all updates add up to, s, acts through I − W only, which is
    small where W forgets slowly. With D = v + u + c, v⁺ = WD; for an eigenvalue λ of W

        ρ²s² + ρv² + ρu²/(1 − ρ) − ρ(λs + u)² − λ²D²
            = (ρ − λ)[(λ + ρ/2)D² + (ρ/2)(D + 2s)²] + (ρ/(1 − ρ))(u − (1 − ρ)(D + s))² ,

    so ‖v‖² + ρ‖s‖² shrinks by ρ in a step, but for u. An eigenvalue ρ, and updates that turn once,
    t steps ago, give ‖v‖ = 2tρ^t M: no B is below (2/e)M/(1 − ρ) as ρ tends to 1.
    """
    D, s, of_s, moved = (spread(per_worker(name)) for name in ("D", "s", "Ws", "WD"))
    views, summed = D - SPREAD_U + s - of_s, of_s + SPREAD_U
    both, apart_from = D + s * 2, moved + of_s * 2
    above = Hypothesis("W ≤ ρ on D + 2s, a deviation", inner(both * rho - apart_from, both))
    between = Hypothesis(
        "−ρ/2 ≤ W ≤ ρ on D, a deviation", inner(D * rho - moved, moved + D * (rho / 2))
    )
    swapped = Hypothesis("W is symmetric: ⟨WD, s⟩ = ⟨D, Ws⟩", inner(moved, s) - inner(D, of_s))
    step = Certificate(
        Claim(
            "tracking.step",
            "‖WD‖² + ρ‖Ws + u‖² ≤ ρ(‖v‖² + ρ‖s‖²) + ρ‖u‖²/(1 − ρ), D = v + u − (I − W)s",
            norm2(moved) + rho * norm2(summed),
            (rho * norm2(views), rho**2 * norm2(s), rho / (1 - rho) * norm2(SPREAD_U)),
            (between, above, swapped),
            (CONTRACTS,),
        ),
        {between.name: ONE, above.name: rho / 2, swapped.name: rho},
        ((rho / (1 - rho), SPREAD_U - (D + s) * (1 - rho)),),
    )
    shrinks, limit = step.claim.instance(), rho * SIZE2 / (1 - rho) ** 2
    stepped = Induction(
        "tracking.symmetric",
        "−ρ/2 ≤ W: ‖v‖² + ρ‖s‖² ≤ α²B², B = M√ρ/(1 − ρ)",
        lambda s, v: (norm2(v) + rho * norm2(s), (limit,)),
        start=(s * 0, views * 0),
        now=(s, views),
        following=(summed, moved),
        start_by=((), {}, ((limit, ONE),)),
        step_by=(
            (shrinks, BOUNDED),
            {shrinks.name: ONE, BOUNDED.name: rho / (1 - rho), SO_FAR: rho},
            ((rho / (1 - rho), mean(U_I, p)),),
        ),
        conditions=(CONTRACTS,),
        remark="tracking.turned comes within a factor of 1.42 if ρ ≥ 0.2",
    )
    turned = Certificate(
        Claim(
            "tracking.turned",
            "eigenvalue ρ, −u for long, then u: ‖v‖ = 2tρ^t M, s = M(1 − 2ρ^t)/(1 − ρ) at step t",
            rho * (2 * steps * decay + 1 - (1 - 2 * decay)),
            (2 * (steps + 1) * rho * decay,),
            equality=True,
            remark="at the best t (2/e)M/(1 − ρ), as ρ tends to 1",
        ),
        {},
    )
    return (step, stepped, turned)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*any_graph(), *symmetric())


def bounds() -> tuple[Bound, ...]:
    """Return the elastic constants."""
    once = M * rho / (1 - rho)
    possible = (
        CONTRACTS,
        Condition("1 − ρ ≤ ‖I − W‖", apart - (1 - rho), apart),
        Condition("‖I − W‖ ≤ 1 + ρ", 1 + rho - apart, apart),
    )
    anything = elastic(any_graph()[1], once, once * apart / (1 - rho), kind="tight")
    return (
        replace(anything, conditions=possible),
        elastic(symmetric()[1], M * sp.sqrt(rho) / (1 - rho)),
    )
