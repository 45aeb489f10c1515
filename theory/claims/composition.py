"""Chains of relaxations: when the elastic constant is the sum of the stages', and when it is not.

The first relaxation proposes u, |u| ≤ αM, keeps h₁, |h₁| ≤ αB₁ for every view, and hands on the
messages m = u + h₁ − h₁⁺. The second one relaxes these messages instead of updates. Because
consecutive messages telescope, what is kept back in order costs no more than the sum; a second
contraction costs more, and so do holes in the order (`reordering`). |X| = (E‖X‖²)^½.
"""

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Hypothesis
from theory.claims.constants import CONTRACTS, NORM_H, elastic, triangle, window
from theory.gram import Vector, norm2, vector
from theory.induction import SO_FAR, Induction, Proof
from theory.symbols import (
    B1,
    M,
    alpha,
    mass,
    mean_N,
    n,
    omega,
    prob,
    rho,
    root_N,
    root_omega,
    share,
    square_N,
    tau,
    total_prob,
)

ONE, ZERO = sp.S.One, sp.S.Zero

U, H1, H1_NEXT, Y = vector("u"), vector("h₁"), vector("h₁⁺"), vector("h")
MESSAGE = U + H1 - H1_NEXT
BOUNDED = Hypothesis("|u| ≤ αM", (alpha * M) ** 2 - norm2(U))
FIRST = Hypothesis("|h₁| ≤ αB₁", (alpha * B1) ** 2 - norm2(H1))
FIRST_NEXT = Hypothesis("|h₁⁺| ≤ αB₁", (alpha * B1) ** 2 - norm2(H1_NEXT))


def in_order() -> tuple[Proof, ...]:
    """In-order hold: the last N messages are held; B = B₁ + M√E[N²], and B₁ + τM if N = τ.

    h₁ + Σ m_s telescopes to Σ u_s plus the h₁ of N steps ago, so N = τ gives B₁ + τM. If N is
    random and oblivious, average over its values: B² = B₁² + 2B₁M E N + M² E N². This covers delay,
    drop-and-resend, random delays that keep the order, and several of these in a row (then N counts
    the messages that all of them hold). A constant gradient with a constant h₁ attains it.
    """
    radius = alpha * (B1 + tau * M)
    shares, squares = triangle([(Y, radius), (U, alpha * M)])
    fixed = Induction(
        "chain.delay",
        "the last τ messages held: ‖h₁ + Σm‖² ≤ α²(B₁ + τM)²",
        lambda h, k: (norm2(h), ((alpha * (B1 + k * M)) ** 2,)),
        start=(H1, ZERO),
        now=(Y, tau),
        # One message more is held, and h₁ becomes h₁⁺.
        following=(Y + MESSAGE + H1_NEXT - H1, tau + 1),
        start_by=((FIRST,), {FIRST.name: ONE}, ()),
        step_by=((BOUNDED,), {SO_FAR: shares[0], BOUNDED.name: shares[1]}, squares),
        remark="attained by a constant gradient and a constant h₁ along it",
    )
    given = fixed.claim.instance()
    average = Induction(
        "chain.random.sum",
        "P-weighted: Σ_N P‖h‖² ≤ α²(B₁² ΣP + 2B₁M ΣPN + M² ΣPN²)",
        lambda total, weight, first, second: (
            total,
            (
                (alpha * B1) ** 2 * weight,
                2 * alpha**2 * B1 * M * first,
                (alpha * M) ** 2 * second,
            ),
        ),
        start=(ZERO, ZERO, ZERO, ZERO),
        now=(mass, total_prob, mean_N, square_N),
        following=(
            mass + prob * norm2(Y),
            total_prob + prob,
            mean_N + prob * tau,
            square_N + prob * tau**2,
        ),
        start_by=((), {}, ()),
        step_by=((given,), {given.name: prob, SO_FAR: ONE}, ()),
    )
    all_values = average.claim.instance({total_prob: ONE})
    square = (alpha * B1) ** 2, 2 * alpha**2 * B1 * M * mean_N, (alpha * M) ** 2 * square_N
    sharp = Certificate(
        Claim(
            "chain.random.sharp",
            "the last N messages held, N oblivious: E‖h‖² ≤ α²(B₁² + 2B₁M E N + M² E N²)",
            mass,
            square,
            (all_values,),
            remark="attained as chain.delay is",
        ),
        {all_values.name: ONE},
    )
    whole = sharp.claim.instance()
    jensen = Hypothesis("(E N)² ≤ E N²", square_N - mean_N**2)
    root = root_N
    slack = 2 * alpha**2 * B1 * M / (root + mean_N)
    random = Certificate(
        Claim(
            "chain.random",
            "the last N messages held, N oblivious: E‖h‖² ≤ α²(B₁ + M√E[N²])²",
            mass,
            ((alpha * (B1 + M * root)) ** 2,),
            (whole, jensen),
            relations=((root, root**2 - square_N),),
        ),
        {whole.name: ONE, jensen.name: slack},
    )
    return (fixed, average, sharp, random)


def then_contraction() -> tuple[Proof, ...]:
    """Anything, then a contraction ρ of messages: B = B₂ + B₁(1 + ρ)/(1 − ρ), B₂ = Mρ/(1 − ρ).

    In all y = h₁ + h₂ is held, and |h₂⁺| ≤ ρ|h₂ + m| = ρ|y + u − h₁⁺|. So |y⁺| is at most
    αB₁ + ρ(|y| + αM + αB₁). Alternating updates and residuals attain it: feedback of feedback.
    """
    H2_NEXT = vector("h₂⁺")
    limit = (B1 * (1 + rho) + M * rho) / (1 - rho)
    second = rho * (limit + M + B1)  # what h₂⁺ can reach; B₁ + second = limit
    message = Y + MESSAGE - H1  # h₂ + m, where y = h₁ + h₂
    shrinks = Hypothesis("|h₂⁺| ≤ ρ|h₂ + m|", rho**2 * norm2(message) - norm2(H2_NEXT))
    (w_y, w_u, w_h), inner = triangle([(Y, alpha * limit), (U, alpha * M), (-H1_NEXT, alpha * B1)])
    (w_1, w_2), outer = triangle([(H1_NEXT, alpha * B1), (H2_NEXT, alpha * second)])
    bound = Induction(
        "chain.contraction",
        "then a contraction: ‖h₁ + h₂‖² ≤ α²B², B = B₁ + Mρ/(1 − ρ) + 2B₁ρ/(1 − ρ)",
        lambda h: (norm2(h), ((alpha * limit) ** 2,)),
        start=(H1,),
        now=(Y,),
        following=(H1_NEXT + H2_NEXT,),
        start_by=((FIRST,), {FIRST.name: ONE}, ((alpha**2 * (limit**2 - B1**2), ONE),)),
        step_by=(
            (FIRST_NEXT, BOUNDED, shrinks),
            {
                FIRST_NEXT.name: w_1 + w_2 * rho**2 * w_h,
                BOUNDED.name: w_2 * rho**2 * w_u,
                shrinks.name: w_2,
                SO_FAR: w_2 * rho**2 * w_y,
            },
            (*outer, *((w_2 * rho**2 * weight, v) for weight, v in inner)),
        ),
        conditions=(CONTRACTS,),
    )
    attained = Certificate(
        Claim(
            "chain.contraction.attained",
            "h₁⁺ = −αB₁, h₂⁺ = −ρ(h₂ + m), u = αM: |y⁺| = |y| = B₁ + Mρ/(1 − ρ) + 2B₁ρ/(1 − ρ)",
            B1 + rho * (limit + M + B1),
            (B1, M * rho / (1 - rho), 2 * B1 * rho / (1 - rho)),
            (),
            (CONTRACTS,),
            equality=True,
            remark="refutes: the constant of a chain is the sum of its stages' (feedback twice)",
        ),
        {},
    )
    return (bound, attained)


def upstream() -> tuple[Proof, ...]:
    """A delay before a contraction adds; unbiased compression before anything scales M.

    An in-order delay hands on single updates, one in each step, and holds the last n = τ of them;
    so behind it |h₂⁺| ≤ ρ|h₂ + u| keeps |h₂| ≤ αB₂, B₂ = Mρ/(1 − ρ), and in all h₂ + Σu is held:
    B₂ + τM. Compressed updates have |C(u)|² ≤ (1 + ω)α²M².
    """
    second, window_sum, next_second = vector("h₂"), vector("Σu"), vector("h₂⁺")
    B2 = M * rho / (1 - rho)
    shrinks = Hypothesis(
        "|h₂⁺| ≤ ρ|h₂ + u|, u the update that arrives",
        rho**2 * norm2(second + U) - norm2(next_second),
    )
    (w_h, w_u), squares = triangle([(second, alpha * B2), (U, alpha * M)])
    arrives = Induction(
        "chain.behind.held",
        "updates arrive one by one, τ steps late or not: ‖h₂‖² ≤ α²(Mρ/(1 − ρ))²",
        lambda h: (norm2(h), ((alpha * B2) ** 2,)),
        start=(Vector(()),),
        now=(second,),
        following=(next_second,),
        start_by=((), {}, ((ONE, alpha * B2),)),
        step_by=(
            (shrinks, BOUNDED),
            {shrinks.name: ONE, SO_FAR: rho**2 * w_h, BOUNDED.name: rho**2 * w_u},
            tuple((rho**2 * weight, v) for weight, v in squares),
        ),
        conditions=(CONTRACTS,),
    )
    late = window()[0].claim.instance({NORM_H: norm2(window_sum), share: ONE})
    behind = arrives.claim.instance()
    shares, squares = triangle([(second, alpha * B2), (window_sum, alpha * n * M)])
    delayed = Certificate(
        Claim(
            "chain.behind",
            "delay n = τ, then a contraction: ‖h₂ + Σu‖² ≤ α²(Mρ/(1 − ρ) + nM)²",
            norm2(second + window_sum),
            ((alpha * (B2 + n * M)) ** 2,),
            (behind, late),
            (CONTRACTS,),
        ),
        dict(zip((behind.name, late.name), shares, strict=True)),
        squares,
    )
    root = root_omega
    scaled = window()[0].claim.instance({M: root * M})
    compressed = Certificate(
        Claim(
            "chain.compression",
            "unbiased compression, then a window: ‖h‖² ≤ α²(1 + ω)(nwM)²",
            NORM_H,
            ((1 + omega) * (alpha * n * share * M) ** 2,),
            (scaled,),
            relations=((root, root**2 - 1 - omega),),
        ),
        {scaled.name: ONE},
    )
    return (arrives, delayed, compressed)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*in_order(), *then_contraction(), *upstream())


def bounds() -> tuple[Bound, ...]:
    """Return the elastic constants of chains."""
    fixed, _, sharp, random = in_order()
    second = M * rho / (1 - rho)
    _, behind, compressed = upstream()
    in_all = B1**2 + 2 * B1 * M * mean_N + M**2 * square_N
    return (
        elastic(fixed, B1, tau * M, kind="tight"),
        elastic(sharp, sp.sqrt(in_all), kind="tight"),
        elastic(random, B1, M * root_N, whatever=(mean_N,)),
        elastic(then_contraction()[0], B1, second, 2 * B1 * rho / (1 - rho), kind="tight"),
        elastic(behind, second, n * M, kind="tight", values={n: tau}),
        elastic(compressed, root_omega * n * share * M, kind="tight"),
    )
