"""Elastic constants of systems whose views miss updates: delays, crashes, links that drop messages.

Each is an instance of a lemma of `constants`. Workers average, so one worker's update is
held with the share 1/p; a single-step system (shared memory, one gradient a tick) has w = 1.
"""

from dataclasses import replace

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.constants import NORM_H, U, elastic, fresh_fates, window, window_of
from theory.gram import Vector, inner, norm2, vector
from theory.induction import SO_FAR, Induction, Proof
from theory.symbols import (
    M,
    T,
    alpha,
    crashed,
    d,
    longest,
    mass,
    mean_N,
    n,
    p,
    prob_sum,
    prob_var,
    q,
    share,
    square_links,
    square_N,
    square_sum,
    tau,
)

ONE, ZERO = sp.S.One, sp.S.Zero
SEVERAL = Condition("p > 1", p - 1, p, strict=True)
LOSSY = Condition("q < 1", 1 - q, q, 1 / q, strict=True)
SIZE2 = (alpha * M) ** 2
NORM_U = norm2(U)


def synchronous() -> tuple[Proof, ...]:
    """Synchronous SGD holds nothing: B = 0."""
    nothing = norm2(Vector(()))
    claim = Claim("synchronous", "v = x: ‖h‖² = 0", nothing, (ZERO,), equality=True)
    return (Certificate(claim, {}),)


def shared_memory() -> tuple[Proof, ...]:
    """Shared memory: a view lacks any entries of the last n = τ updates: B = τM.

    An update and its masked part have ⟨Du, u⟩ = ‖Du‖², so the part is shorter, and the window lemma
    applies. Each coordinate on its own gives only |h_j| ≤ ταM, so √d·τ·M: the classic constant.
    """
    masked, coordinate = vector("Du"), vector("h_j")
    mask = Hypothesis("D is a mask: ⟨Du, u⟩ = ‖Du‖²", inner(masked, U) - norm2(masked))
    bounded = Hypothesis("|u| ≤ αM", SIZE2 - norm2(U))
    part = Certificate(
        Claim("shared_memory.part", "‖Du‖² ≤ α²M²", norm2(masked), (SIZE2,), (mask, bounded)),
        {mask.name: 2, bounded.name: ONE},
        ((ONE, U - masked),),
    )
    sharp = window_of(
        "shared_memory",
        "shared memory, inconsistent reads, n = τ updates late: ‖h‖² ≤ α²(nM)²",
        part.claim.instance({norm2(masked): NORM_U}),
        SIZE2,
    )
    late = window()[0].claim.instance({NORM_H: norm2(coordinate), share: ONE})
    classic = Induction(
        "shared_memory.classic",
        "coordinate by coordinate: ‖h‖² ≤ α²d(nM)²",
        lambda total, k: (total, (k * n**2 * SIZE2,)),
        start=(norm2(coordinate), ONE),
        now=(mass, d),
        following=(mass + norm2(coordinate), d + 1),
        start_by=((late,), {late.name: ONE}, ()),
        step_by=((late,), {late.name: ONE, SO_FAR: ONE}, ()),
    )
    order = Certificate(
        Claim(
            "shared_memory.order",
            "sharp² ≤ classic²: n²M² ≤ d n²M²",
            n**2 * M**2,
            (d * n**2 * M**2,),
            (),
            (Condition("d ≥ 1", d - 1, d),),
        ),
        {},
        (((d - 1) * n**2 * M**2, ONE),),
    )
    return (part, sharp, classic, order)


def in_flight() -> tuple[Proof, ...]:
    """Asynchronous SGD: at a read n other gradients are in flight: B = nM, whatever the delays.

    Steps are numbered by reads, and who is how late does not depend on the gradients. A gradient
    that is at most τ steps late is in flight at τ reads at most: then n ≤ τ, and B = τM.
    """
    held = window()[0].claim.instance({share: ONE})
    flight = Certificate(
        Claim(
            "asynchronous",
            "n gradients in flight at every read, any oblivious delays: ‖h‖² ≤ α²(nM)²",
            NORM_H,
            (n**2 * SIZE2,),
            (held,),
            remark="n workers that read what they have just updated: n − 1 are in flight",
        ),
        {held.name: ONE},
    )
    few = Hypothesis("at most τ late, so n ≤ τ in flight: one is read in each step", tau - n)
    in_all = flight.claim.instance()
    late = Certificate(
        Claim(
            "asynchronous.delay",
            "every gradient at most τ steps late: ‖h‖² ≤ α²(τM)²",
            NORM_H,
            (tau**2 * SIZE2,),
            (in_all, few),
        ),
        {in_all.name: ONE, few.name: (tau + n) * SIZE2},
    )
    return (flight, late)


def message_passing() -> tuple[Proof, ...]:
    """Message passing: own updates at once, the other workers' n = τ late: B = τM(p − 1)/p.

    A step's missing part is (1/p)Σ_{j≠i} u_j: p − 1 vectors with the share 1/p. A constant
    gradient attains it.
    """
    others = window()[0].claim.instance({NORM_H: NORM_U, n: p - 1, share: 1 / p})
    return (
        window_of(
            "message_passing",
            "n = τ updates late, own ones at once: ‖h_i‖² ≤ α²(nM(p − 1)/p)²",
            others,
            SIZE2 * ((p - 1) / p) ** 2,
            (SEVERAL,),
        ),
    )


def crashes() -> tuple[Proof, ...]:
    """Crashes: n = f of p workers' updates are missing for a step: B = fM/p, or M√(f/p).

    fM/p needs a crash rule that does not look at content. One that does can choose n of T updates:
    then ‖Σu‖² ≤ nΣ‖u‖² gives nwM·√(T/n), and T = p, w = 1/p gives M√(f/p). Updates that are 0 but
    for a random n of T attain it: those n are held.
    """
    held = window()[0].claim.instance({share: 1 / p})
    oblivious = Certificate(
        Claim(
            "crashes",
            "n = f of p workers crash, whatever they computed: ‖h‖² ≤ α²(nM/p)²",
            NORM_H,
            (SIZE2 * (n / p) ** 2,),
            (held,),
        ),
        {held.name: ONE},
    )
    sums = window()[2].claim.instance()
    size2 = SIZE2 * share**2
    among = Hypothesis("Σ‖u‖² of the T candidates ≤ T(αMw)²", T * size2 - square_sum)
    chosen = Certificate(
        Claim(
            "crashes.chosen",
            "n of T updates held, chosen by content: ‖h‖² ≤ nT(αMw)²",
            NORM_H,
            (n * T * size2,),
            (sums, among),
            remark="n of p workers that crash: T = p, w = 1/p, so M√(f/p)",
        ),
        {sums.name: ONE, among.name: n},
    )
    large2 = size2 * T / n  # E‖u‖² = (n/T) large2 = size2
    attained = Certificate(
        Claim(
            "crashes.chosen.attained",
            "u is 0 but for a random n of T, which are held: E‖u‖² = (αMw)², ‖h‖² = nT(αMw)²",
            n**2 * large2,
            (n * T * size2,),
            equality=True,
            remark="refutes: nwM whatever the rule that chooses, so fM/p for f crashes of p",
        ),
        {},
    )
    two = Certificate(
        Claim(
            "crashes.chosen.two",
            "p = 2, u = a or 0 evenly, the larger crashes: E‖h‖² = (3/4)(a/2)² = (3/2)(αM/2)²",
            sp.Rational(3, 4) * (2 * SIZE2) / 4,
            (sp.Rational(3, 2) * SIZE2 / 4,),
            equality=True,
            remark="refutes: fM/p for a rule that looks at content, even of independent workers",
        ),
        {},
    )
    return (oblivious, chosen, attained, two)


def failures() -> tuple[Proof, ...]:
    """Dropped messages: N messages pend on a link that fails with probability q, then all go.

    N⁺ = N + 1 with probability q, else 0: from N = 0, E N ≤ q/(1 − q), E N² ≤ q(1 + q)/(1 − q)²;
    both are stationary.
    """
    first, second = q / (1 - q), q * (1 + q) / (1 - q) ** 2
    mean = Induction(
        "failures.mean",
        "N⁺ = N + 1 w.p. q, else 0: E N ≤ q/(1 − q)",
        lambda m: (m, (first,)),
        start=(ZERO,),
        now=(mean_N,),
        following=(q * (mean_N + 1),),
        start_by=((), {}, ((first, ONE),)),
        step_by=((), {SO_FAR: q}, ()),
        conditions=(LOSSY,),
    )
    below = mean.claim.instance()
    square = Induction(
        "failures.square",
        "N⁺ = N + 1 w.p. q, else 0: E N² ≤ q(1 + q)/(1 − q)²",
        lambda s: (s, (second,)),
        start=(ZERO,),
        now=(square_N,),
        following=(q * (square_N + 2 * mean_N + 1),),
        start_by=((), {}, ((second, ONE),)),
        step_by=((below,), {SO_FAR: q, below.name: 2 * q}, ()),
        conditions=(LOSSY,),
    )
    return (mean, square)


def links() -> tuple[Proof, ...]:
    """Links drop messages with probability q and resend: all alike, or each on its own.

    Alike: N steps of (1/p)Σ_{j≠i} u_j are held, B = M((p − 1)/p)√(q(1 + q))/(1 − q). Independent:
    ΣN_j updates of share 1/p, E(ΣN_j)² = (p − 1)E N² + (p − 1)(p − 2)(E N)², so
    B = M(√(p − 1)/p)√(q + (p − 1)q²)/(1 − q), which is never more. Constant gradients attain both.
    """
    mean, square = (proof.claim.instance() for proof in failures())
    lemma = window()[1].claim
    alike = lemma.instance({share: (p - 1) / p})
    shared = Certificate(
        Claim(
            "links.shared",
            "all of a worker's links fail at once: E‖h‖² ≤ α²M²((p − 1)/p)² q(1 + q)/(1 − q)²",
            mass,
            (SIZE2 * ((p - 1) / p) ** 2 * q * (1 + q) / (1 - q) ** 2,),
            (alike, square),
            (SEVERAL, LOSSY),
        ),
        {alike.name: ONE, square.name: SIZE2 * ((p - 1) / p) ** 2},
    )
    number = Induction(
        "links.number",
        "n independent links: E(ΣN)² ≤ n E N² + n(n − 1)(E N)²",
        lambda s, k: (s, (k * square_N, k * (k - 1) * mean_N**2)),
        start=(square_N, ONE),
        now=(square_links, n),
        following=(square_links + 2 * n * mean_N * mean_N + square_N, n + 1),
        start_by=((), {}, ()),
        step_by=((), {SO_FAR: ONE}, ()),
    )
    pair = Condition("p ≥ 2", p - 2, p)
    own = lemma.instance({share: 1 / p, square_N: square_links})
    count = number.claim.instance({n: p - 1})
    size2 = SIZE2 / p**2
    independent = Certificate(
        Claim(
            "links.independent",
            "links fail independently: E‖h‖² ≤ α²(M/p)²(p − 1)(q + (p − 1)q²)/(1 − q)²",
            mass,
            (size2 * (p - 1) * (q + (p - 1) * q**2) / (1 - q) ** 2,),
            (own, count, mean, square),
            (pair, LOSSY),
        ),
        {
            own.name: ONE,
            count.name: size2,
            square.name: size2 * (p - 1),
            mean.name: size2 * (p - 1) * (p - 2) * (q / (1 - q) + mean_N),
        },
    )
    order = Certificate(
        Claim(
            "links.order",
            "independent ≤ shared: (p − 1)(q + (p − 1)q²) ≤ (p − 1)² q(1 + q)",
            (p - 1) * (q + (p - 1) * q**2),
            ((p - 1) ** 2 * q * (1 + q),),
            (),
            (pair,),
        ),
        {},
        (((p - 1) * (p - 2) * q, ONE),),
    )
    return (shared, number, independent, order)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (
        *synchronous(),
        *shared_memory(),
        *in_flight(),
        *message_passing(),
        *crashes(),
        *failures(),
        *links(),
    )


def bounds() -> tuple[Bound, ...]:
    """Return the elastic constant of every system, and the classic one where it differs."""
    _, shared, classic, _ = shared_memory()
    late = {n: tau}
    flight, delayed = in_flight()
    crash, chosen, *_ = crashes()
    any_rule = {n: crashed, T: p, share: ONE / p}
    alike, _, independent, _ = links()
    dropped = M * (p - 1) / p * sp.sqrt(q * (1 + q)) / (1 - q)
    dropped_own = M * sp.sqrt(p - 1) / p * sp.sqrt(q + (p - 1) * q**2) / (1 - q)
    random = M * sp.sqrt(prob_sum**2 + prob_var)
    fresh = elastic(fresh_fates()[1], random, name="random_delays", kind="tight")
    return (
        Bound.of(synchronous()[0], "B"),
        elastic(shared, M * n, kind="tight", values=late),
        elastic(classic, sp.sqrt(d) * n * M, values=late),
        replace(elastic(flight, n * M, kind="tight"), quantity="B, n gradients in flight"),
        elastic(delayed, tau * M, kind="tight", whatever=(n,)),
        elastic(
            message_passing()[0],
            n * M * (p - 1) / p,
            kind="tight",
            values=late,
        ),
        replace(fresh, conditions=()),  # P is no parameter of it
        elastic(shared, n * M, name="random_delays.classic", values={n: longest}),
        elastic(crash, n * M / p, kind="tight", values={n: crashed}),
        elastic(
            chosen,
            M * share * sp.sqrt(n) * sp.sqrt(T),
            kind="tight",
            values=any_rule,
        ),
        elastic(alike, dropped, kind="tight"),
        elastic(independent, dropped_own, kind="tight"),
    )
