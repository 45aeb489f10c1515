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
from theory.gram import Scalar, Vector, entry, noise, norm2, vector
from theory.induction import SO_FAR, Induction, Proof
from theory.symbols import (
    M,
    alpha,
    decay,
    fate_var,
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
NORM_H, NORM_H_NEXT = entry(H, H), entry(H_NEXT, H_NEXT)


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
) -> Bound:
    """Return the elastic constant B, the sum of `terms`, of a proof of ‖h‖² ≤ α²B²."""
    return Bound.of(
        proof,
        "B",
        *terms,
        name=name,
        kind=kind,
        values=values,
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
    """Fresh fates: update s is held with probability P_s, independently of content and of others.

    |h|² ≤ α²M²[(ΣP)² + ΣP(1 − P)] = α²M² E N², N the number held; P_s = P(τ > s) makes ΣP = Eτ.
    A constant gradient attains it.
    """
    size = alpha * M
    bounded = Hypothesis("|u| ≤ αM", size**2 - norm2(U))
    mean_held = vector("E[h|content]")
    # The update's held part is Pu plus a mean-zero part of variance P(1 − P)‖u‖².
    fate = noise("χu − Pu", prob * (1 - prob) * norm2(U))
    expected = Induction(
        "fates.mean",
        "|E[h | content]| ≤ αM ΣP",
        lambda h, s: (norm2(h), (s**2 * size**2,)),
        start=(U * prob, prob),
        now=(mean_held, prob_sum),
        following=(mean_held + U * prob, prob_sum + prob),
        start_by=((bounded,), {bounded.name: prob**2}, ()),
        step_by=(
            (bounded,),
            {bounded.name: prob * (prob_sum + prob), SO_FAR: 1 + prob / prob_sum},
            ((prob / prob_sum, mean_held - U * prob_sum),),
        ),
    )
    # h = E[h | content] + rest; the rest is orthogonal to whatever the fates do not touch.
    rest = noise("h − E[h|content]", fate_var)
    whole = mean_held + rest
    so_far = expected.claim.instance()
    second = Induction(
        "fates",
        "‖h‖² ≤ α²M²[(ΣP)² + ΣP(1 − P)]",
        lambda h, s, v: (norm2(h), (s**2 * size**2, v * size**2)),
        start=(U * prob + fate, prob, prob * (1 - prob)),
        now=(whole, prob_sum, prob_var),
        following=(
            whole + U * prob + fate,
            prob_sum + prob,
            prob_var + prob * (1 - prob),
        ),
        start_by=((bounded,), {bounded.name: prob}, ()),
        step_by=(
            (bounded, so_far),
            {
                bounded.name: prob + prob * prob_sum,
                so_far.name: prob / prob_sum,
                SO_FAR: ONE,
            },
            ((prob / prob_sum, mean_held - U * prob_sum),),
        ),
        conditions=(Condition("P ≤ 1", 1 - prob, prob, 1 / prob),),
    )
    before, after = prob_sum**2 + prob_var, (prob_sum + prob) ** 2 + prob_var + prob * (1 - prob)
    attained = Certificate(
        Claim(
            "fates.attained",
            "constant gradient: E(N + χ)² = E N² + 2P E N + P, so ‖h‖² = α²M² E N²",
            after,
            (before, 2 * prob * prob_sum, prob),
            equality=True,
        ),
        {},
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
    most = Condition("P ≤ 1", 1 - prob, prob, 1 / prob)
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
    return (expected, second, attained, content, count, order)


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
