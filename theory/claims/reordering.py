"""Chains whose second relaxation holds messages with holes: B exceeds the sum of the stages'.

Messages m = u + h₁ − h₁⁺ as in `composition`. Where a message is let through while an older
one is held, h₁ no longer telescopes: up to 2B₁ more for every hole, and αM less, as u is not held.
"""

from dataclasses import replace

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.composition import BOUNDED, FIRST, ONE, ZERO, U, Y, in_order
from theory.claims.constants import NORM_H, elastic, triangle, window
from theory.gram import inner, norm2, vector
from theory.induction import SO_FAR, Induction, Proof
from theory.symbols import (
    B1,
    M,
    along,
    alpha,
    hole_cost,
    holes,
    let_by,
    let_next,
    n,
    root_2,
    root_mask,
    share,
    steps,
    tau,
)


def any_masks() -> tuple[Proof, ...]:
    """Any masks: parts of the last τ messages, coordinate by coordinate: B = τM + (τ + 1)B₁.

    From new to old: what is held is S = h₁ + Σ D_s m_s, m_s = u_s + h₁ − h₁⁺, D_s the mask of
    message s. The sum is followed without D'h₁ of its old end, D' the mask of the message that
    comes next: then a step adds Du and (D − D')h₁. At the end D' = 0, as older messages are not
    held, and it is S.
    """
    masked, start = vector("Du"), vector("newest h₁") - vector("its Dh₁")
    now, old, later = vector("Dh₁⁺"), vector("Dh₁"), vector("D'h₁")
    radius = alpha * (tau * M + (tau + 1) * B1)
    end = old - later
    shares, squares = triangle([(Y, radius), (masked, alpha * M), (end, alpha * B1)])
    update = Hypothesis("|Du| ≤ αM for masks D", (alpha * M) ** 2 - norm2(masked))
    residual = Hypothesis("|(D − D')h₁| ≤ αB₁ for masks D, D'", (alpha * B1) ** 2 - norm2(end))
    first = Hypothesis("|(1 − D)h₁| ≤ αB₁ for masks D", (alpha * B1) ** 2 - norm2(start))
    return (
        Induction(
            "chain.masks",
            "any parts of the last τ messages held: ‖h₁ + ΣDm − D'h₁‖² ≤ α²(τM + (τ + 1)B₁)²",
            lambda h, k: (norm2(h), ((alpha * (k * M + (k + 1) * B1)) ** 2,)),
            start=(start, ZERO),
            now=(Y, tau),
            # Y is S − Dh₁⁺; to S comes D(u + h₁ − h₁⁺).
            following=((Y + now) + (masked + old - now) - later, tau + 1),
            start_by=((first,), {first.name: ONE}, ()),
            step_by=(
                (update, residual),
                dict(zip((SO_FAR, update.name, residual.name), shares, strict=True)),
                squares,
            ),
            remark="D' = 0 at the end: messages older than the last τ are not held",
        ),
    )


def masks_sharp() -> tuple[Proof, ...]:
    """Any masks, sharper: B₁ + τ√(M² + 2B₁²), and τM/√2 + (τ + 1)B₁ where B₁ ≥ M/√2.

    Let y be the unit vector along S = h₁ + Σ D_s m_s, K = 1 − D and a = ‖Ky‖². Holding less of u
    makes room for more of h₁: |Dy|² = 1 − a⁺, but E = D⁻ − D, D⁻ the mask of the message before,
    has |Ey|² ≤ a + a⁺, and ≤ 1. Without the old end, ⟨h₁, Dy⟩, a step adds ⟨u, Dy⟩ + ⟨h₁, Ey⟩, so
    M√(1 − a⁺) + B₁|Ey| at most, whose tangent at the best a telescopes in a.
    """
    first, older, kept, before = vector("h₁"), vector("h₁⁻"), vector("Dy"), vector("D⁻y")
    changed = before - kept
    covers = Hypothesis("‖Dy‖² = 1 − ‖Ky‖²", 1 - let_next - norm2(kept))
    apart = Hypothesis("‖(D⁻ − D)y‖² ≤ ‖K⁻y‖² + ‖Ky‖²", let_by + let_next - norm2(changed))
    unit = Hypothesis("‖(D⁻ − D)y‖² ≤ 1", 1 - norm2(changed))
    whole = Hypothesis("‖Dy‖² ≤ 1", 1 - norm2(kept))

    def steps_and_end(
        name: str,
        text: str,
        per_step: sp.Expr,
        slope: sp.Expr,
        weights: tuple[sp.Expr, sp.Expr],
        splits: tuple[tuple[Hypothesis, sp.Expr], ...],
        conditions: tuple[Condition, ...],
        relation: tuple[sp.Symbol, sp.Expr],
    ) -> tuple[Proof, ...]:
        """Prove h·y ≤ α(τ·per_step − slope·a), then add the old end's h₁."""
        on_u, on_h = weights  # ⟨u, v⟩ ≤ (‖u‖²/on_u + on_u‖v‖²)/2, and so for h₁
        # S·y is along + ⟨h₁, D⁻y⟩; to S comes D(u + h₁⁻ − h₁), and its end is now Dh₁⁻.
        message = U + older - first
        added = inner(first, before) + inner(message, kept) - inner(older, kept)
        total = Induction(
            name + ".sum",
            text + " + ⟨h₁, Dy⟩",
            lambda s, k, a: (s, (alpha * k * per_step, -alpha * slope * a)),
            start=(ZERO, ZERO, ZERO),
            now=(along, tau, let_by),
            following=(along + added, tau + 1, let_next),
            start_by=((), {}, ()),
            step_by=(
                (BOUNDED, FIRST, covers, *(hypothesis for hypothesis, _ in splits)),
                {
                    SO_FAR: ONE,
                    BOUNDED.name: 1 / (2 * on_u),
                    FIRST.name: 1 / (2 * on_h),
                    covers.name: on_u / 2,
                    **{hypothesis.name: weight for hypothesis, weight in splits},
                },
                ((1 / (2 * on_u), U - kept * on_u), (1 / (2 * on_h), first - changed * on_h)),
            ),
            conditions=conditions,
            relations=(relation,),
        )
        so_far = total.claim.instance()
        end = Certificate(
            Claim(
                name,
                text,
                along + inner(first, kept),
                (alpha * B1, alpha * tau * per_step),
                (so_far, FIRST, whole),
                conditions,
                (relation,),
            ),
            {so_far.name: ONE, FIRST.name: 1 / (2 * alpha * B1), whole.name: alpha * B1 / 2},
            ((1 / (2 * alpha * B1), first - kept * (alpha * B1)), (alpha * slope * let_by, ONE)),
        )
        return (total, end)

    c, r = root_mask, root_2
    small = steps_and_end(
        "chain.masks.small",
        "any parts of the last τ messages held: |h| ≤ α(B₁ + τ√(M² + 2B₁²))",
        c,
        c / 4,
        (alpha * c, alpha * c / 2),
        ((apart, alpha * c / 4),),
        (),
        (c, c**2 - M**2 - 2 * B1**2),
    )
    large = steps_and_end(
        "chain.masks.large",
        "any parts of the last τ messages held: |h| ≤ α(B₁ + τ(B₁ + M/√2))",
        B1 + M / r,
        M / (2 * r),
        (alpha * M * r, alpha * B1),
        ((apart, alpha * M / (2 * r)), (unit, alpha * (B1 - M / r) / 2)),
        (Condition("B₁ ≥ M/√2", r * B1 - M, B1),),
        (r, r**2 - 2),
    )
    return (*small, *large)


def whole_messages() -> tuple[Proof, ...]:
    """Whole messages, with g runs let through: B = B₁ + τM + g·max(0, 2B₁ − M), g ≤ ⌊τ/2⌋.

    From new to old. A run of n > 0 held messages adds Σu + h₁ − h₁' to the sum, so a hole before it
    costs at most 2B₁, and saves at least one M. h₁ of alternating sign attains it: messages
    2, 4, …, τ steps old are held, and the sum B₁ + τM is exceeded if 2B₁ > M.
    """
    run, old, new = vector("run"), vector("h₁"), vector("h₁'")
    newest = vector("newest run")
    start = in_order()[0].claim.instance({norm2(Y): norm2(newest), tau: steps})
    held_run = window()[0].claim.instance({NORM_H: norm2(run), share: ONE})
    newer = Hypothesis("|h₁'| ≤ αB₁", (alpha * B1) ** 2 - norm2(new))
    worth = Hypothesis("X ≥ 2B₁ − M", hole_cost - 2 * B1 + M)
    radius = alpha * (B1 + tau * M + holes * hole_cost)
    parts = [(Y, radius), (run, alpha * n * M), (old, alpha * B1), (-new, alpha * B1)]
    shares, squares = triangle(parts)
    reached = sp.Add(*(r for _, r in parts))
    allowed = alpha * (B1 + (tau + 1 + n) * M + (holes + 1) * hole_cost)
    with_holes = Induction(
        "chain.holes",
        "whole messages held, g holes among the last τ: ‖h‖² ≤ α²(B₁ + τM + gX)², X ≥ 2B₁ − M",
        lambda h, k, g: (norm2(h), ((alpha * (B1 + k * M + g * hole_cost)) ** 2,)),
        start=(newest, steps, ZERO),
        now=(Y, tau, holes),
        following=(Y + run + old - new, tau + 1 + n, holes + 1),
        start_by=((start,), {start.name: ONE}, ()),
        step_by=(
            (held_run, FIRST, newer, worth),
            {
                **dict(zip((SO_FAR, held_run.name, FIRST.name, newer.name), shares, strict=True)),
                worth.name: alpha * (allowed + reached),
            },
            squares,
        ),
        remark="X = max(0, 2B₁ − M); attained for every even τ at g = τ/2",
    )
    attained = Certificate(
        Claim(
            "chain.holes.attained",
            "messages 2, 4, …, 2g steps old held, h₁ alternating: |h|/α = B₁ + 2gM + g(2B₁ − M)",
            B1 + holes * (M + B1 - (-B1)),
            (B1 + 2 * holes * M, holes * (2 * B1 - M)),
            equality=True,
            remark="refutes: the sum B₁ + τM (feedback, then every other message late), if 2B₁ > M",
        ),
        {},
    )
    return (with_holes, attained)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*any_masks(), *masks_sharp(), *whole_messages())


def bounds() -> tuple[Bound, ...]:
    """Return the elastic constants; `chain.masks.small` is the best for small B₁."""
    worth = {hole_cost: sp.Max(0, 2 * B1 - M)}
    _, small, _, large = masks_sharp()
    terms = (B1, tau * M, holes * hole_cost)
    whole = elastic(whole_messages()[0], *terms, kind="tight", values=worth)
    return (
        elastic(any_masks()[0], tau * M, (tau + 1) * B1),
        Bound.of(small, "B", B1, tau * root_mask, link=lambda constant: alpha * constant),
        Bound.of(large, "B", B1, tau * (B1 + M / root_2), link=lambda constant: alpha * constant),
        replace(whole, conditions=()),  # X is what it must be
    )
