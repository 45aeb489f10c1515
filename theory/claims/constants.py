"""Elastic constants: how far a view can drift from the global iterate.

The held mass h = x − v is what a relaxation keeps back; E‖h‖² ≤ α²B² is elastic consistency. Three
lemmas give B: *window* (n updates are held), *fates* (which ones are held is independent of their
content), *contraction* (|h⁺| ≤ ρ(|h| + αM)). |X| = (E‖X‖²)^½. `systems` and
`communication` apply them to systems, `composition` to chains of relaxations.

*Oblivious* is a schedule of delays, losses and crashes that is independent of the updates' content:
then |u| ≤ αM holds given the schedule, as it holds at every view. Where nothing is held, h = 0; the
lemmas are stated for at least one update, n > 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import sympy as sp

from theory.bound import Bound, Kind
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.gram import Scalar, Vector, norm2, vector
from theory.induction import SO_FAR, Induction, Proof
from theory.symbols import (
    M,
    alpha,
    decay,
    gamma,
    held,
    held_next,
    mass,
    n,
    prob,
    prob_sum,
    prob_var,
    rho,
    root_gamma,
    share,
    square_N,
    square_sum,
)

ONE = sp.S.One
CONTRACTS = Condition("ρ < 1", 1 - rho, rho, 1 / rho, strict=True)
ROOT_CONTRACTS = Condition("γ < 1", 1 - root_gamma, root_gamma, 1 / root_gamma, strict=True)
ROOT = ((root_gamma, root_gamma**2 - gamma),)

H = vector("h")
U = vector("u")
H_NEXT = vector("h⁺")
NORM_H, NORM_H_NEXT = norm2(H), norm2(H_NEXT)


Squares = tuple[tuple[sp.Expr, Vector], ...]


def triangle(parts: Sequence[tuple[Vector, sp.Expr]]) -> tuple[list[sp.Expr], Squares]:
    """Return what proves ‖Σ v_i‖² ≤ R², R = Σ r_i, from ‖v_i‖² ≤ r_i²: multipliers and squares.

    R² − ‖Σ v_i‖² = Σ_i (R/r_i)(r_i² − ‖v_i‖²) + Σ_{i<j} r_i r_j ‖v_i/r_i − v_j/r_j‖².
    """
    total = sp.Add(*(radius for _, radius in parts))
    squares = tuple(
        (r * s, v * (1 / r) - w * (1 / s))
        for i, (v, r) in enumerate(parts)
        for w, s in parts[i + 1 :]
    )
    return [sp.cancel(total / radius) for _, radius in parts], squares


def elastic(
    proof: Proof,
    *terms: Scalar,
    name: str = "",
    kind: Kind = "upper",
    values: Mapping[sp.Symbol, Scalar] | None = None,
    whatever: tuple[sp.Symbol, ...] = (),
) -> Bound:
    """Return the elastic constant B, the sum of `terms`, of a proof of ‖h‖² ≤ α²B²."""
    return Bound.of(
        proof,
        "B",
        *terms,
        name=name,
        kind=kind,
        values=values,
        whatever=whatever,
        link=lambda constant: (alpha * constant) ** 2,
    )


HELD = "given the schedule, |held part of an update| ≤ αMw"
"""What the lemmas assume of each update; the largest share w of it may be held."""


def window_of(
    name: str,
    text: str,
    bounded: Hypothesis,
    part2: sp.Expr,
    conditions: tuple[Condition, ...] = (),
    part: Vector = U,
) -> Induction:
    """Return ‖h‖² ≤ n²·part2 for a sum h of n parts, where `bounded` says ‖part‖² ≤ part2."""

    def state(h: Vector, k: sp.Expr) -> tuple[sp.Expr, tuple[sp.Expr, ...]]:
        return norm2(h), (k**2 * part2,)

    return Induction(
        name,
        text,
        state,
        start=(part, ONE),
        now=(H, n),
        following=(H + part, n + 1),
        start_by=((bounded,), {bounded.name: ONE}, ()),
        step_by=(
            (bounded,),
            {bounded.name: 1 + n, SO_FAR: 1 + 1 / n},
            ((1 / n, H - part * n),),
        ),
        conditions=conditions,
    )


def window() -> tuple[Proof, ...]:
    """Window: the sum of n (masked) updates, each |D_s u_s| ≤ αMw, has |h| ≤ nαMw: B ≤ nwM.

    Oblivious schedules, where N is random and may depend on what was held before: B² = w²M² E N²,
    as the window bounds h given the schedule, and the rest is an average over the schedules.
    Without any assumption on how vectors depend, ‖Σu‖² ≤ n Σ‖u‖². A constant gradient attains all.
    """
    part2 = (alpha * M * share) ** 2
    bounded = Hypothesis(HELD, part2 - norm2(U))
    held_n = window_of(
        "window", "n updates held, each of norm ≤ αMw: ‖h‖² ≤ α²(nwM)²", bounded, part2
    )
    given = held_n.claim.instance()
    average = Induction(
        "oblivious",
        "N updates held, N random, schedule oblivious: E‖h‖² ≤ α²w²M² E N²",
        lambda total, second: (total, (second * part2,)),
        start=(sp.S.Zero, sp.S.Zero),
        now=(mass, square_N),
        following=(mass + prob * NORM_H, square_N + prob * n**2),
        start_by=((), {}, ()),
        step_by=((given,), {given.name: prob, SO_FAR: ONE}, ()),
        remark="summed over the schedules with N = n > 0, each with its probability P",
    )
    sums = Induction(
        "sums",
        "‖u_1 + … + u_n‖² ≤ n (‖u_1‖² + … + ‖u_n‖²)",
        lambda h, k, squares: (norm2(h), (k * squares,)),
        start=(U, ONE, norm2(U)),
        now=(H, n, square_sum),
        following=(H + U, n + 1, square_sum + norm2(U)),
        start_by=((), {}, ()),
        step_by=((), {SO_FAR: 1 + 1 / n}, ((1 / n, H - U * n),)),
    )
    return (held_n, average, sums)


def fresh_fates() -> tuple[Proof, ...]:
    """Fresh fates: update s is held with probability P_s, drawn apart from all that came before.

    |h|² ≤ α²M²[(ΣP)² + ΣP(1 − P)] = α²M² E N², N the number held; P_s = P(τ > s) makes ΣP = Eτ.
    Later updates may depend on earlier fates: only |u| ≤ αM, given the fates, is asked of them. A
    constant gradient attains it.
    """
    size = alpha * M
    most = Condition("P ≤ 1", 1 - prob, prob, 1 / prob)
    square = Induction(
        "fates.square",
        "independent fates: E N² = (ΣP)² + ΣP(1 − P)",
        lambda second, s, v: (second, (s**2 + v,)),
        start=(prob, prob, prob * (1 - prob)),
        now=(square_N, prob_sum, prob_var),
        # E(N + χ)² with χ = 1 of probability P, whatever N is.
        following=(
            square_N + 2 * prob * prob_sum + prob,
            prob_sum + prob,
            prob_var + prob * (1 - prob),
        ),
        start_by=((), {}, ()),
        step_by=((), {SO_FAR: ONE}, ()),
        conditions=(most,),
    )
    held_any, number2 = window()[1].claim.instance({share: ONE}), square.claim.instance()
    second = Certificate(
        Claim(
            "fates",
            "E‖h‖² ≤ α²M²[(ΣP)² + ΣP(1 − P)]",
            mass,
            (size**2 * prob_sum**2, size**2 * prob_var),
            (held_any, number2),
            (most,),
        ),
        {held_any.name: ONE, number2.name: size**2},
    )
    content = Certificate(
        Claim(
            "fates.content",
            "u ≠ 0 with probability P, and held if so: ‖h‖² = (1/P) α²M² E N², E N² = P",
            prob * (size**2 / prob),
            (1 / prob * (size**2 * prob),),
            equality=True,
            remark="refutes: B² = M² E N² for fates that depend on content",
        ),
        {},
    )
    count = Induction(
        "fates.number",
        "ΣP ≤ n",
        lambda s, k: (s, (k,)),
        start=(prob, ONE),
        now=(prob_sum, n),
        following=(prob_sum + prob, n + 1),
        start_by=((), {}, ((1 - prob, ONE),)),
        step_by=((), {SO_FAR: ONE}, ((1 - prob, ONE),)),
        conditions=(most,),
    )
    below = count.claim.instance()
    order = Induction(
        "fates.order",
        "sharp² ≤ classic²: (ΣP)² + ΣP(1 − P) ≤ n², n = τ_max",
        lambda s, v, k: (s**2 + v, (k**2,)),
        start=(prob, prob * (1 - prob), ONE),
        now=(prob_sum, prob_var, n),
        following=(prob_sum + prob, prob_var + prob * (1 - prob), n + 1),
        start_by=((), {}, ((1 - prob, ONE),)),
        step_by=((below,), {below.name: 2 * prob, SO_FAR: ONE}, (((1 - prob) * (2 * n + 1), ONE),)),
        conditions=(most,),
    )
    return (square, second, content, count, order)


def contraction() -> tuple[Proof, ...]:
    """Contraction: |h⁺| ≤ ρ(|h| + αM), ρ < 1, h_0 = 0 give |h_t| ≤ αMρ(1 − ρ^t)/(1 − ρ).

    So B ≤ Mρ/(1 − ρ); C(y) = (1 − ρ)y with a constant gradient attains it.
    """
    step = Hypothesis("|h⁺| ≤ ρ(|h| + αM)", rho * (held + alpha * M) - held_next)

    def bound(q: sp.Expr) -> sp.Expr:
        return alpha * M * rho * (1 - q) / (1 - rho)

    unrolled = Induction(
        "contraction.sum",
        "|h_t| ≤ αM ρ(1 − ρ^t)/(1 − ρ)",
        lambda h, q: (h, (bound(q),)),
        start=(sp.S.Zero, ONE),
        now=(held, decay),
        following=(held_next, rho * decay),
        start_by=((), {}, ()),
        step_by=((step,), {step.name: ONE, SO_FAR: rho}, ()),
        conditions=(CONTRACTS,),
    )
    so_far = unrolled.claim.instance()
    limit = Certificate(
        Claim(
            "contraction",
            "|h_t| ≤ αM ρ/(1 − ρ): B = Mρ/(1 − ρ)",
            held,
            (alpha * M * rho / (1 - rho),),
            (so_far,),
            (CONTRACTS,),
        ),
        {so_far.name: ONE},
        ((alpha * M * rho * decay / (1 - rho), ONE),),
    )
    attained = Certificate(
        Claim(
            "contraction.attained",
            "h⁺ = ρ(h + αM) keeps |h_t| = αM ρ(1 − ρ^t)/(1 − ρ)",
            rho * (bound(decay) + alpha * M),
            (bound(rho * decay),),
            (),
            (CONTRACTS,),
            equality=True,
        ),
        {},
    )
    return (unrolled, limit, attained)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*window(), *fresh_fates(), *contraction())


def bounds() -> tuple[Bound, ...]:
    """Return the elastic constants that the lemmas give; a constant gradient attains each."""
    held, average, _ = window()
    limit = contraction()[1]
    fresh = elastic(fresh_fates()[1], M * sp.sqrt(prob_sum**2 + prob_var), kind="tight")
    return (
        elastic(held, M * n * share, kind="tight"),
        elastic(average, M * share * sp.sqrt(square_N), kind="tight"),
        replace(fresh, conditions=()),  # P is no parameter of it
        Bound.of(limit, "B", M * rho / (1 - rho), kind="tight", link=lambda B: alpha * B),
    )
