"""Crashes over a whole run: f of p workers stop in the middle of a broadcast, and never return.

Each worker's last message reaches some of the others and not the rest, whatever it says. The global
iterate x counts an update as soon as one survivor applies it: a last message that no survivor gets
is as if it had never been computed. A view lacks at most the f last messages, for ever; all other
updates it applies at once, or up to τ steps late. |X| = (E‖X‖²)^½.
"""

from dataclasses import replace

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.constants import NORM_H, U, elastic, window, window_of
from theory.claims.nonconvex import AT_T, DRIFT, GAP, NOISE
from theory.claims.sgd import (
    BELOW,
    LIPSCHITZ,
    ONE,
    QUIET,
    SPREAD,
    STEP,
    XI,
    A,
    E,
    G,
    smooth,
)
from theory.claims.systems import SEVERAL, SIZE2
from theory.gram import inner, mean, norm2, per_worker, vector
from theory.induction import SO_FAR, Induction, Proof
from theory.symbols import (
    B,
    Delta,
    L,
    M,
    T,
    active,
    active_grad_sum,
    active_sum,
    alpha,
    crashed,
    f_0,
    f_next,
    f_T,
    f_T1,
    f_x,
    late,
    n,
    p,
    share,
    sigma,
    steps,
    tau,
)

NORM_U = norm2(U)
MESSAGE = vector("message")  # αG̃ of a worker that crashes
BOUNDED = Hypothesis("|αG̃| ≤ αM", SIZE2 - norm2(MESSAGE))
SOME_SURVIVE = Condition("f < p", p - crashed, p, strict=True)


def last_messages() -> tuple[Proof, ...]:
    """In f crashes every view stays within fαM/p of x, and x of the iterate with all.

    v = x + h, where h sums the last messages, each 1/p of an update, that v lacks and x counts. It
    changes in a crash only, h⁺ = h + l with l the message or nothing, as chance will have it. For a
    view that gets none of them, a constant gradient attains it.
    """
    lost = vector("lost")
    all_or_none = Hypothesis(
        "a view has a last message or lacks it, whatever it says",
        norm2(MESSAGE) / p**2 - norm2(lost),
    )
    part = Certificate(
        Claim(
            "crashes.last",
            "the part of a last message that a view lacks: ‖l‖² ≤ α²(M/p)²",
            norm2(lost),
            (SIZE2 / p**2,),
            (all_or_none, BOUNDED),
        ),
        {all_or_none.name: ONE, BOUNDED.name: 1 / p**2},
    )
    run = window_of(
        "crashes.run",
        "n = f of p workers crash in mid-broadcast, for good: every view's ‖h‖² ≤ α²(nM/p)²",
        part.claim.instance({norm2(lost): NORM_U}),
        SIZE2 / p**2,
    )
    moved = vector("x' − x")
    whole = run.claim.instance({NORM_H: norm2(moved)})
    lost_mass = Certificate(
        Claim(
            "crashes.lost",
            "x' counts every update computed, x those that a survivor got: ‖x' − x‖² ≤ α²(nM/p)²",
            norm2(moved),
            (SIZE2 * (n / p) ** 2,),
            (whole,),
            remark="the same if x counts what all survivors got: however long the run is",
        ),
        {whole.name: ONE},
    )
    return (part, run, lost_mass)


def shared_out() -> tuple[Proof, ...]:
    """If x is the mean of the survivors' views, they are within fαM/(2p) of it, in L² mean.

    x counts of a last message u the share π of the survivors that got it: l_i = (π − χ_i)u/p, χ_i
    = 1 or 0, has mean square π(1 − π)‖u‖²/p² ≤ ‖u‖²/(4p²). A constant gradient attains it, if one
    half of the survivors gets all last messages and the other half none. This x is that of no rate:
    it jumps when a worker crashes, as the mean is then over fewer.
    """
    got = per_worker("χu")
    missed = got - mean(got, p)
    mask = Hypothesis("χ is 1 or 0: ⟨χu, u⟩ = ‖χu‖²", inner(got, MESSAGE) - norm2(got))
    part = Certificate(
        Claim(
            "crashes.mean.last",
            "x counts the share π of a last message: mean ‖(π − χ_i)u/p‖² ≤ α²(M/(2p))²",
            norm2(missed * (1 / p)),
            (SIZE2 / (4 * p**2),),
            (mask, BOUNDED),
        ),
        {mask.name: 1 / p**2, BOUNDED.name: 1 / (4 * p**2)},
        ((1 / p**2, mean(got, p) - MESSAGE * sp.S.Half),),
    )
    run = window_of(
        "crashes.mean",
        "x the mean of the views alive now, n = f: mean ‖h_i‖² ≤ α²(nM/(2p))²",
        part.claim.instance({norm2(missed): NORM_U}),
        SIZE2 / (4 * p**2),
        part=U * (1 / p),
    )
    no_rate = "x is the mean of the workers alive now, which jumps at a crash: no x of crashes.rate"
    return (part, replace(run, remark=no_rate))


def delayed() -> tuple[Proof, ...]:
    """Crashes among late messages cost nothing more: B = τM(p − 1)/p, as without them, if τ ≥ 1.

    Of each other worker a view lacks its last o ≤ τ updates; of one that crashed long ago, one.
    """
    each = vector("of one worker")
    few = Hypothesis("o ≤ τ: at most τ updates are late, and 1 ≤ τ is lost", tau - late)
    held = window()[0].claim.instance({NORM_H: norm2(each), n: late, share: 1 / p})
    one = Certificate(
        Claim(
            "crashes.late.one",
            "of each other worker a view lacks o ≤ τ updates, or its last one: ‖·‖² ≤ α²(τM/p)²",
            norm2(each),
            (SIZE2 * (tau / p) ** 2,),
            (held, few),
        ),
        {held.name: ONE, few.name: (tau + late) * SIZE2 / p**2},
    )
    total = window_of(
        "crashes.late.sum",
        "n other workers, τ ≥ 1: ‖h_i‖² ≤ α²(τnM/p)²",
        one.claim.instance({norm2(each): NORM_U}),
        SIZE2 * (tau / p) ** 2,
    )
    others = total.claim.instance({n: p - 1})
    every = Certificate(
        Claim(
            "crashes.late",
            "any crashes, delays ≤ τ, τ ≥ 1, own updates at once: ‖h_i‖² ≤ α²(τM(p − 1)/p)²",
            NORM_H,
            (SIZE2 * (tau * (p - 1) / p) ** 2,),
            (others,),
            (SEVERAL,),
            remark="what message passing lacks without crashes; at τ = 0, crashes.run",
        ),
        {others.name: ONE},
    )
    return (one, total, every)


def rates() -> tuple[Proof, ...]:
    """N with crashes: f smooth and bounded below, αL ≤ 1, and at most f workers stop.

    x⁺ = x − (α/p) Σ_I (g_i + ξ_i), where I are the |I| = ηp workers whose messages reach a
    survivor. A step with fewer workers is worth as much less: weighted by η,
    E‖∇f‖² ≤ 2Δ/(α(1 − f/p)T) + L²α²B² + Lασ²/p. In the proof a mean is one over I.
    """
    smoothness = smooth(mean(G + XI, active * p) * active)
    near = Hypothesis("every view has E‖x − v‖² ≤ α²B²", alpha**2 * B**2 - norm2(E))
    few = Condition("αηL ≤ 1", 1 - alpha * active * L, alpha, 1 / alpha)
    most = Condition("η ≤ 1", 1 - active, active, 1 / active)
    step = Certificate(
        Claim(
            "crashes.step",
            "E f(x⁺) ≤ f(x) − η[(α/2)‖∇f(x)‖² − (α/2)L²α²B² − Lα²σ²/(2p)],  |I| = ηp",
            alpha * active / 2 * norm2(A),
            (f_x - f_next, active * DRIFT, active * NOISE),
            (smoothness, LIPSCHITZ, near, QUIET),
            (few,),
        ),
        {
            smoothness.name: ONE,
            LIPSCHITZ.name: alpha * active / 2,
            near.name: alpha * active / 2 * L**2,
            QUIET.name: L * alpha**2 * active / (2 * p),
        },
        (
            (alpha * active / 2 * (1 - alpha * active * L), mean(G, p)),
            (alpha * active / 2, SPREAD),
        ),
    )
    at_T = step.claim.instance(AT_T)
    total = Induction(
        "crashes.sum",
        "(α/2) Σ ηE‖∇f‖² + E f(x_T) − f(x_0) ≤ Ση·((α/2)L²α²B² + Lα²σ²/(2p))",
        lambda f, s, w: (alpha / 2 * s + f - f_0, (w * DRIFT, w * NOISE)),
        start=(f_0, 0, 0),
        now=(f_T, active_grad_sum, active_sum),
        following=(f_T1, active_grad_sum + active * AT_T[norm2(A)], active_sum + active),
        start_by=((), {}, ()),
        step_by=((at_T,), {at_T.name: ONE, SO_FAR: ONE}, ()),
        conditions=(most, STEP),
    )
    alive = Hypothesis("at most f workers are missing: η ≥ 1 − f/p", active - 1 + crashed / p)
    weights = Induction(
        "crashes.weights",
        "Ση ≥ (1 − f/p)T",
        lambda w, t: (t * (1 - crashed / p), (w,)),
        start=(0, 0),
        now=(active_sum, steps),
        following=(active_sum + active, steps + 1),
        start_by=((), {}, ()),
        step_by=((alive,), {alive.name: ONE, SO_FAR: ONE}, ()),
    )
    # From here on η is its mean over the steps.
    summed = total.claim.instance({active_sum: active * T})
    at_least = weights.claim.instance({steps: T, active_sum: active * T})
    first = 2 * Delta / (alpha * T * active)
    rate = Certificate(
        Claim(
            "crashes.rate",
            "Σ ηE‖∇f(x_t)‖²/Ση ≤ 2Δ/(α(1 − f/p)T) + L²α²B² + Lασ²/p",
            active_grad_sum / (active * T),
            (
                2 * Delta * p / (alpha * (p - crashed) * T),
                L**2 * alpha**2 * B**2,
                L * alpha * sigma**2 / p,
            ),
            (summed, BELOW, GAP, at_least),
            (most, SOME_SURVIVE, STEP),
            remark="B = fM/p, or τM(p − 1)/p with delays; who crashes must not look at noise",
        ),
        {
            **{h.name: 2 / (alpha * active * T) for h in (summed, BELOW, GAP)},
            at_least.name: first * p / ((p - crashed) * T),
        },
    )
    return (step, total, weights, rate)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*last_messages(), *shared_out(), *delayed(), *rates())


def bounds() -> tuple[Bound, ...]:
    """Return the elastic constants, what x and the survivors' mean lack, and the rate."""
    _, run, lost = last_messages()
    how_many = {n: crashed}
    whole = Condition("τ ≥ 1", tau - 1, tau)
    rate = Bound.of(rates()[-1], "Σ η_t E‖∇f(x_t)‖²/Σ η_t")  # η is no parameter of it
    return (
        elastic(run, n * M / p, kind="tight", values=how_many),
        Bound.of(
            shared_out()[-1],
            "(mean ‖h‖²)^½/α among workers alive now; not the x of crashes.rate",
            n * M / (2 * p),
            kind="tight",
            values=how_many,
            link=lambda size: (alpha * size) ** 2,
        ),
        Bound.of(
            lost,
            "‖x' − x‖/α, x' counts every update",
            n * M / p,
            kind="tight",
            values=how_many,
            link=lambda size: (alpha * size) ** 2,
        ),
        Bound.of(
            delayed()[-1],
            "B",
            tau * M * (p - 1) / p,
            kind="tight",
            where=(whole,),
            whatever=(late,),
            link=lambda constant: (alpha * constant) ** 2,
        ),
        replace(rate, conditions=tuple(c for c in rate.conditions if not c.expr.has(active))),
    )
