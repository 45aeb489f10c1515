"""Elastic constants of gradient tracking: workers mix views and estimates of the mean update.

c is what a worker's estimate y = u + c of the mean update adds to its own u; v⁺ = W(v + u + c).
All vectors but u stand for deviations from the workers' mean; norms are root mean squares over
workers, and so are the elastic constants.
"""

from dataclasses import replace

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Hypothesis
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
    p,
    rho,
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
    """Symmetric W, no eigenvalue below −ρ/2: B = √2 M(1 + ρ)/(1 − ρ), one 1 − ρ instead of two.

    c = −(I − W)s with s⁺ = Ws + u: what all updates add up to, s, acts through I − W only, which is
    small where W forgets slowly. After u, let z = v + u and D = z + c; then v⁺ = WD. For r = (1 +
    ρ)/2 and an eigenvalue λ of W, r²(z² + s²) − λ²(D² + s²) is a form Q(λ) in (D, s), concave in λ,
    and a sum of squares at both ends, −ρ/2 and ρ. For all eigenvalues at once,

        Q = [(ρ − λ)²Q(−ρ/2) + (λ + ρ/2)²Q(ρ)]/(3ρ/2)² + (λ + ρ/2)(ρ − λ)S(D, s) ,

    where the form S is a sum of squares of D + s, D and s.
    """
    D, s, of_s, moved = (spread(per_worker(name)) for name in ("D", "s", "Ws", "WD"))
    z = D + s - of_s
    rate, low, part = (1 + rho) / 2, rho / 2, 4 / (9 * rho**2)
    spectrum = [
        Hypothesis(
            f"−ρ/2 ≤ W ≤ ρ on {name}, a deviation",
            inner(after + before * low, before * rho - after),
        )
        for name, before, after in (("D + s", D + s, moved + of_s), ("D", D, moved), ("s", s, of_s))
    ]
    weights = (
        rate**2 * (2 - rho / 2),
        rho**2 + rate**2 * rho / 2,
        rate**2 * (2 - rho / 2 - rho**2) + rho**2,
    )
    swapped = Hypothesis("W is symmetric: ⟨WD, s⟩ = ⟨D, Ws⟩", inner(moved, s) - inner(D, of_s))
    slow_D, slow_s = moved + D * low, of_s + s * low  # zero for λ = −ρ/2
    fast_D, fast_s = D * rho - moved, s * rho - of_s  # zero for λ = ρ
    loss, far = (1 - rho) / 4, 1 + low
    step = Certificate(
        Claim(
            "tracking.step",
            "‖WD‖² + ‖Ws‖² ≤ ((1 + ρ)/2)²(‖z‖² + ‖s‖²), D = z − (I − W)s",
            norm2(moved) + norm2(of_s),
            (rate**2 * norm2(z), rate**2 * norm2(s)),
            (*spectrum, swapped),
            (replace(CONTRACTS, text="ρ ≤ 1", strict=False),),
        ),
        {
            **{h.name: part * x for h, x in zip(spectrum, weights, strict=True)},
            swapped.name: rate**2,
        },
        (
            (part * loss * (1 + rho) ** 2, slow_D + slow_s),
            (part * loss * rho * (1 - rho), slow_D),
            (part * loss * (1 - rho) * ((1 + rho) ** 2 + rho), slow_s),
            (part * (rate**2 - rho**2), fast_D + fast_s * far),
            (part * low**2 / 3, fast_D * 3 + fast_s * (4 * far)),
            (part * (rate**2 - low**2 - 4 * low**2 * far**2 / 3), fast_s),
        ),
    )
    older = per_worker("u⁻")
    before = Hypothesis("|u⁻| ≤ αM, mean over workers, of the update before", SIZE2 - norm2(older))
    shrinks = step.claim.instance()
    limit = 2 * SIZE2 / (1 - rate) ** 2
    grow = 1 / (1 - rate)
    stepped = Induction(
        "tracking.both",
        "‖z‖² + ‖s‖² ≤ 8α²M²/(1 − ρ)²",
        lambda square: (square, (limit,)),
        start=(sp.S.Zero,),
        now=(norm2(z) + norm2(s),),
        following=(norm2(moved + SPREAD_U) + norm2(of_s + spread(older)),),
        start_by=((), {}, ((limit, ONE),)),
        step_by=(
            (shrinks, BOUNDED, before),
            {
                shrinks.name: 1 / rate,
                BOUNDED.name: grow,
                before.name: grow,
                SO_FAR: rate,
            },
            (
                (grow / rate, moved * (1 - rate) - SPREAD_U * rate),
                (grow / rate, of_s * (1 - rate) - spread(older) * rate),
                (grow, mean(U_I, p)),
                (grow, mean(older, p)),
            ),
        ),
        conditions=(CONTRACTS,),
    )
    so_far = stepped.claim.instance()
    views = Certificate(
        Claim(
            "tracking.symmetric",
            "−ρ/2 ≤ W: ‖v⁺‖² ≤ α²B², B = √2 M(1 + ρ)/(1 − ρ)",
            norm2(moved),
            (2 * SIZE2 * (1 + rho) ** 2 / (1 - rho) ** 2,),
            (so_far, shrinks),
            (CONTRACTS,),
        ),
        {so_far.name: rate**2, shrinks.name: ONE},
        ((ONE, of_s),),
    )
    return (step, stepped, views)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*any_graph(), *symmetric())


def bounds() -> tuple[Bound, ...]:
    """Return the elastic constants."""
    once = M * rho / (1 - rho)
    return (
        elastic(any_graph()[1], once, once * apart / (1 - rho), kind="tight"),
        elastic(symmetric()[2], sp.sqrt(2) * M * (1 + rho) / (1 - rho)),
    )
