"""How long a step may be: exact stability limits of delay, compression and error feedback.

On a quadratic of curvature L every scheme here is a linear recursion, which `theory.roots` shows
to be stable up to a step size αL, and not beyond.
"""

from dataclasses import replace

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition
from theory.claims.constants import ROOT_CONTRACTS
from theory.claims.sgd import ONE
from theory.induction import Proof
from theory.roots import STEP_SIZE, DelayStability, LinearStability, ranges
from theory.symbols import alpha, d, gamma, k, n, root_gamma, tau

BLOCKS = d / k
JURY = "by Jury's criteria on the recursion's characteristic polynomial"


def _limit(
    name: str,
    text: str,
    limit: sp.Expr,
    remark: str = "",
    conditions: tuple[Condition, ...] = (),
) -> Claim:
    """Return the claim of a scheme that is stable below a limit: αL ≤ limit, where αL < limit."""
    below = Condition("αL < limit", limit - STEP_SIZE, alpha, 1 / alpha, strict=True)
    return Claim(name, text, STEP_SIZE, (limit,), (), (*conditions, below), remark=remark)


def delay_limits() -> tuple[Proof, ...]:
    """Delay τ (Levin and May 1976), and cyclic compression of D = d/k blocks with feedback and τ.

    αL < 2 sin(π/(2(2τ + 1))); with curvature shared by all entries, n = D + 2τ,
    αL < 2D sin²(π/(2n))/sin(πD/(2n)): at z = e^{iπ/n}, |z − 1|² = (αL/D)|z^D − 1|. Roots cross the
    unit circle at known αL, outwards only, and z = e^{iπ/n} is the first to do so.
    """
    window = BLOCKS + 2 * tau
    late = 2 * sp.sin(sp.pi / (2 * (2 * tau + 1)))
    cyclic = 2 * BLOCKS * sp.sin(sp.pi / (2 * window)) ** 2 / sp.sin(sp.pi * BLOCKS / (2 * window))
    return (
        DelayStability(
            _limit(
                "delay.limit",
                "x_{t+1} = x_t − αL x_{t−τ} is stable iff αL < 2 sin(π/(4τ + 2)), for every τ",
                late,
                "given continuity of roots, Jordan's inequality; τ ≤ 5 also by counting roots",
            ),
            {},
            cases={(1, delay): ranges(1, delay) for delay in range(6)},
        ),
        DelayStability(
            _limit(
                "cyclic.shared",
                "D = d/k blocks in turn, n = D + 2τ: stable iff αL < 2D sin²(π/(2n))/sin(πD/(2n))",
                cyclic,
                "exact, for whole D ≥ 1, with feedback and curvature along (1, …, 1) only",
            ),
            {},
            blocks=BLOCKS,
            cases={(D, delay): ranges(D, delay) for D in range(2, 5) for delay in range(2)},
        ),
    )


def _each_alone(delay: sp.Symbol) -> tuple[tuple[sp.Expr, ...], ...]:
    """Return (v, v⁻) ↦ (v − αL[(D − τ)v + τv⁻], v)."""
    return (1 - STEP_SIZE * (BLOCKS - delay), -STEP_SIZE * delay), (ONE, sp.S.Zero)


def separate_limits() -> tuple[Proof, ...]:
    """Cyclic compression with feedback, delay τ (or n) ≤ D = d/k, curvature of a single entry.

    Between two sends, D steps apart, the view changes once, τ steps after the last one:
    v⁺ = v − αL[(D − τ)v + τv⁻]. The longest step is 2/(D − 2τ) up to τ = D/4, then 1/τ: a delay
    of D/4 doubles it.
    """
    y = STEP_SIZE
    rare, late = y * (BLOCKS - 2 * tau), y * n
    conditions = (
        Condition("αLτ < 1", 1 - y * tau, alpha, 1 / alpha, strict=True),
        Condition("αL(d/k − 2τ) < 2", 2 - rare, d, k / d, strict=True),
    )
    return (
        LinearStability(
            Claim(
                "cyclic.separate",
                "an entry sent every d/k ≥ τ steps: stable if αLτ < 1 and αL(d/k − 2τ) < 2",
                rare,
                (sp.Integer(2),),
                (),
                conditions,
                remark="by Jury's criteria; at τ = d/(4k) the longest step is twice that at τ = 0",
            ),
            {},
            matrix=_each_alone(tau),
        ),
        LinearStability(
            Claim(
                "cyclic.rare",
                "an entry sent every d/k ≥ τ steps: not stable if αL(d/k − 2τ) ≥ 2",
                sp.Integer(2),
                (rare,),
                (),
                (Condition("αL(d/k − 2τ) ≥ 2", rare - 2, d),),
                remark=JURY,
            ),
            {},
            matrix=_each_alone(tau),
            stable=False,
        ),
        LinearStability(
            Claim(
                "cyclic.late",
                "an entry sent every d/k ≥ n steps, delay n ≥ 1: not stable if αLn ≥ 1",
                ONE,
                (late,),
                (),
                (Condition("αLn ≥ 1", late - 1, alpha),),
                remark=JURY,
            ),
            {},
            matrix=_each_alone(n),
            stable=False,
        ),
    )


def feedback_limits() -> tuple[Proof, ...]:
    """The γ-contraction C(y) = (1 + √γ)y on curvature L, with error feedback and without.

    (v, h) ↦ (v − (1 + r)(h + αLv), −r(h + αLv)), r = √γ, is stable if and only if
    αL < 2(1 − r)/(1 + r); v ↦ (1 − (1 + r)αL)v if and only if αL < 2/(1 + r).
    """
    r, y = root_gamma, STEP_SIZE
    memory = (1 - (1 + r) * y, -(1 + r)), (-r * y, -r)
    none = ((1 - (1 + r) * y,),)
    with_it, without = 2 * (1 - r) / (1 + r), 2 / (1 + r)

    def beyond(name: str, text: str, limit: sp.Expr, *where: Condition) -> Claim:
        above = Condition("αL ≥ limit", y - limit, alpha)
        return Claim(name, text, limit, (y,), (), (*where, above), remark=JURY)

    return (
        LinearStability(
            _limit(
                "feedback.limit",
                "C(y) = (1 + √γ)y with feedback: stable if αL < 2(1 − √γ)/(1 + √γ)",
                with_it,
                JURY,
                (ROOT_CONTRACTS,),
            ),
            {},
            matrix=memory,
        ),
        LinearStability(
            beyond(
                "feedback.beyond",
                "C(y) = (1 + √γ)y with feedback: not stable if αL ≥ 2(1 − √γ)/(1 + √γ)",
                with_it,
                replace(ROOT_CONTRACTS, text="γ ≤ 1", strict=False),
            ),
            {},
            matrix=memory,
            stable=False,
        ),
        LinearStability(
            _limit(
                "nofeedback.limit",
                "C(y) = (1 + √γ)y without feedback: stable if αL < 2/(1 + √γ)",
                without,
                JURY,
            ),
            {},
            matrix=none,
        ),
        LinearStability(
            beyond(
                "nofeedback.beyond",
                "C(y) = (1 + √γ)y without feedback: not stable if αL ≥ 2/(1 + √γ)",
                without,
            ),
            {},
            matrix=none,
            stable=False,
        ),
        Certificate(
            Claim(
                "feedback.shortens",
                "feedback's stability limit is 1 − √γ of that without it",
                with_it,
                ((1 - r) * without,),
                equality=True,
            ),
            {},
        ),
    )


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*delay_limits(), *separate_limits(), *feedback_limits())


WHOLE_DELAY = Condition("τ is a whole number", sp.floor(tau) - tau, tau)
WHOLE_BLOCKS = Condition("d/k is a whole number", sp.floor(BLOCKS) - BLOCKS, d)


def bounds() -> tuple[Bound, ...]:
    """Return the stability limits, as bounds of αL."""
    delayed, cyclic = delay_limits()
    alone = separate_limits()[0]
    memory, none = feedback_limits()[0], feedback_limits()[2]
    longest = 2 / sp.Max(2 * tau, BLOCKS - 2 * tau)
    root = sp.sqrt(gamma)
    contracts = replace(ROOT_CONTRACTS, expr=1 - root)
    with_it, without = (
        sp.sympify(proof.claim.rhs[0]).subs(root_gamma, root) for proof in (memory, none)
    )
    rare, whole = Condition("τ ≤ d/k", BLOCKS - tau, tau), (WHOLE_DELAY, WHOLE_BLOCKS)
    rows = (
        (delayed, "αL, delay τ", sp.sympify(delayed.claim.rhs[0]), (WHOLE_DELAY,)),
        (cyclic, "αL, blocks sent in turn, delay τ", sp.sympify(cyclic.claim.rhs[0]), whole),
        (alone, "αL, an entry sent every d/k ≥ τ steps, delay τ", longest, (*whole, rare)),
        (memory, "αL, feedback", with_it, (contracts,)),
        (none, "αL, no feedback", without, (contracts,)),
    )
    return tuple(
        Bound(proof.claim.name, quantity, (limit,), proof, "tight", conditions)
        for proof, quantity, limit, conditions in rows
    )
