"""Elastic constants of workers that mix, or train alone and average, behind what holds messages.

W is doubly stochastic, so x = mean v moves by mean u. A tilde marks deviations from the workers'
mean; all norms are root mean squares over workers, and so are the elastic constants.
"""

from collections.abc import Sequence
from dataclasses import replace

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.averaging import BOUNDED, SIZE2, SPREAD_U, SPREAD_V, U_I
from theory.claims.compressed_gossip import spread
from theory.claims.constants import CONTRACTS, NORM_H, NORM_H_NEXT, elastic, triangle, window
from theory.claims.outer import ROUND
from theory.gram import Vector, mean, norm2, per_worker
from theory.induction import SO_FAR, Induction, Proof
from theory.symbols import (
    B1,
    H_local,
    M,
    alpha,
    message,
    mixing,
    n,
    p,
    rho,
    share,
    steps,
    tau,
)

ONE = sp.S.One
TWO = Condition("H ≥ 2 (at H = 1, B = B₁)", H_local - 2, H_local)


def moved_by(
    name: str, text: str, parts: Sequence[tuple[Vector, sp.Expr, Hypothesis]]
) -> Induction:
    """Return ‖v~‖² ≤ R², R = ρ(αM + Σr)/(1 − ρ), from ‖v~⁺‖ ≤ ρ‖v~ + u~ + Σw~‖.

    The parts are (w, r, a hypothesis that r² − ‖w‖² ≥ 0).
    """
    limit = rho * (alpha * M + sp.Add(*(r for _, r, _ in parts))) / (1 - rho)
    pushes = [(U_I, alpha * M, BOUNDED), *parts]
    (kept, *shares), squares = triangle(
        [(SPREAD_V, limit), *((spread(w), r) for w, r, _ in pushes)]
    )
    moved = sum((spread(w) for w, _, _ in pushes), SPREAD_V)
    mixes = Hypothesis("‖v~⁺‖ ≤ ρ‖v~ + message~‖", rho**2 * norm2(moved) - NORM_H_NEXT)
    weights = [rho**2 * each for each in shares]
    means = [(x, mean(w, p)) for x, (w, _, _) in zip(weights, pushes, strict=True)]
    given = {h.name: x for x, (_, _, h) in zip(weights, pushes, strict=True)}
    return Induction(
        name,
        text,
        lambda square: (square, (limit**2,)),
        start=(sp.S.Zero,),
        now=(norm2(SPREAD_V),),
        following=(NORM_H_NEXT,),
        start_by=((), {}, ((ONE, limit),)),
        step_by=(
            (mixes, *(h for _, _, h in pushes)),
            {mixes.name: ONE, SO_FAR: rho**2 * kept, **given},
            (
                *((rho**2 * x, v) for x, v in squares),
                *((x, v) for x, v in means if norm2(v) != 0),
            ),
        ),
        conditions=(CONTRACTS,),
    )


def behind() -> tuple[Proof, ...]:
    """A mix behind a hold of constant B₁ (mean over workers): its messages are m = u + h₁ − h₁⁺.

    A mix that keeps |v~| ≤ αKM of updates |u| ≤ αM keeps |v~| ≤ αK(M + 2B₁) of these: gossip with
    K = ρ/(1 − ρ), CHOCO, gradient tracking. Held is h₁ − (v~ + h₁~), that is mean h₁ − v~: of
    orthogonal parts, so B² = B₁² + K²(M + 2B₁)²; every step's mean is K = 0. Behind a delay of τ
    steps single updates arrive: B² = (τM)² + (KM)². Averaging at every H-th step, H > 1: v~ + h₁~
    telescopes to the h₁~ of the last meeting and H − 1 updates: B = (H − 1)M + 2B₁, attained by a
    residual that turns.
    """
    h, h_next = per_worker("h₁"), per_worker("h₁⁺")
    first = Hypothesis("|h₁| ≤ αB₁, mean over workers", (alpha * B1) ** 2 - norm2(h))
    second = Hypothesis("|h₁⁺| ≤ αB₁, mean over workers", (alpha * B1) ** 2 - norm2(h_next))
    longest = Hypothesis("messages are m = u + h₁ − h₁⁺", norm2(U_I + h - h_next) - message)
    shares, squares = triangle([(U_I, alpha * M), (h, alpha * B1), (-h_next, alpha * B1)])
    messages = Certificate(
        Claim(
            "chain.mix.message",
            "messages m = u + h₁ − h₁⁺: ‖m‖² ≤ α²(M + 2B₁)²",
            message,
            ((alpha * (M + 2 * B1)) ** 2,),
            (longest, BOUNDED, first, second),
        ),
        dict(zip((BOUNDED.name, first.name, second.name), shares, strict=True))
        | {longest.name: ONE},
        squares,
    )
    of_messages = Hypothesis(
        "the mix keeps |v~| ≤ αKM if |u| ≤ αM, M any", mixing**2 * message - norm2(SPREAD_V)
    )
    of_updates = Hypothesis(of_messages.name, (alpha * mixing * M) ** 2 - norm2(SPREAD_V))
    bounded, reach = messages.claim.instance(), mixing * (M + 2 * B1)
    held = Certificate(
        Claim(
            "chain.mix",
            "then a mix: ‖mean h₁ − v~‖² ≤ α²B², B² = B₁² + K²(M + 2B₁)²",
            norm2(mean(h, p) - SPREAD_V),
            ((alpha * B1) ** 2, (alpha * reach) ** 2),
            (first, of_messages, bounded),
            remark="gossip has K = ρ/(1 − ρ)",
        ),
        {first.name: ONE, of_messages.name: ONE, bounded.name: mixing**2},
        ((ONE, spread(h)),),
    )
    held_back = window()[0].claim.instance({NORM_H: norm2(mean(h, p)), share: ONE})
    delayed = Certificate(
        Claim(
            "chain.mix.delay",
            "delay n = τ, then a mix: ‖mean h₁ − v~‖² ≤ α²B², B² = (nM)² + (KM)²",
            norm2(mean(h, p) - SPREAD_V),
            ((alpha * n * M) ** 2, (alpha * mixing * M) ** 2),
            (held_back, of_updates),
            remark="attained by gossip: updates along its slowest mode, then alike ones",
        ),
        {held_back.name: ONE, of_updates.name: ONE},
    )
    z = spread(per_worker("z"))

    def radius(k: sp.Expr) -> sp.Expr:
        return alpha * (B1 + k * M)

    (w_z, w_u), squares = triangle([(z, radius(steps)), (SPREAD_U, alpha * M)])
    telescoped = Induction(
        "chain.local.sum",
        "t steps after a meeting: ‖v~ + h₁~‖² ≤ α²(B₁ + tM)²",
        lambda z, k: (norm2(z), (radius(k) ** 2,)),
        start=(spread(h), sp.S.Zero),
        now=(z, steps),
        # v~⁺ + h₁~⁺ = v~ + (u + h₁ − h₁⁺)~ + h₁~⁺
        following=(z + SPREAD_U, steps + 1),
        start_by=((first,), {first.name: ONE}, ((ONE, mean(h, p)),)),
        step_by=(
            (BOUNDED,),
            {SO_FAR: w_z, BOUNDED.name: w_u},
            (*squares, (w_u, mean(U_I, p))),
        ),
    )
    last = telescoped.claim.instance({steps: H_local - 1})
    (w_h, w_z), squares = triangle([(h_next, alpha * B1), (-z, radius(H_local - 1))])
    local = Certificate(
        Claim(
            "chain.local",
            "then an average at every H-th step: ‖h₁ − (v~ + h₁~)‖² ≤ α²((H − 1)M + 2B₁)²",
            norm2(h_next - z),
            ((alpha * (2 * B1 + (H_local - 1) * M)) ** 2,),
            (second, last),
            (ROUND,),
        ),
        {second.name: w_h, last.name: w_z},
        squares,
    )
    return (messages, held, delayed, telescoped, local)


def late() -> tuple[Proof, ...]:
    """Local steps on views that lack any parts of the last τ updates: B = (H − 1 + τ)M.

    Of each of the last H − 1 + τ updates a worker has seen the part b since the last meeting, and
    holds the part c; with other entries, or more. x − v is the sum of c's mean and what b lacks of
    its mean, mean(b + c) − b. Opposite gradients that arrive all at once attain it.
    """
    seen, held, drift = (per_worker(name) for name in ("b", "c", "h"))
    parts = Hypothesis(
        "b and c are parts of u, of other entries: ‖b‖² + ‖c‖² ≤ α²M², mean over workers",
        SIZE2 - norm2(seen) - norm2(held),
    )
    gap = mean(held, p) - spread(seen)
    part = Certificate(
        Claim("local.late.part", "‖mean(b + c) − b‖² ≤ α²M²", norm2(gap), (SIZE2,), (parts,)),
        {parts.name: ONE},
        ((ONE, mean(seen, p)), (ONE, spread(held))),
    )
    bounded = part.claim.instance()
    window_sum = Induction(
        "local.late",
        "n updates seen or held: ‖x − v‖² ≤ α²(nM)², n = H − 1 + τ",
        lambda h, k: (norm2(h), (k**2 * SIZE2,)),
        start=(gap, ONE),
        now=(drift, n),
        following=(drift + gap, n + 1),
        start_by=((bounded,), {bounded.name: ONE}, ()),
        step_by=(
            (bounded,),
            {bounded.name: 1 + n, SO_FAR: 1 + 1 / n},
            ((1 / n, drift - gap * n),),
        ),
    )
    return (part, window_sum)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*behind(), *late())


def bounds() -> tuple[Bound, ...]:
    """Return the elastic constants."""
    _, mixed, delayed, _, local = behind()
    steps_late = {n: H_local - 1 + tau}
    both = B1**2 + (mixing * (M + 2 * B1)) ** 2
    at_times = elastic(local, (H_local - 1) * M, 2 * B1, kind="tight")
    late_views = elastic(late()[1], n * M, kind="tight", values=steps_late)
    return (
        elastic(mixed, sp.sqrt(both)),
        elastic(delayed, M * sp.sqrt(n**2 + mixing**2), kind="tight", values={n: tau}),
        replace(at_times, conditions=(TWO,)),
        replace(late_views, conditions=(ROUND,)),
    )
