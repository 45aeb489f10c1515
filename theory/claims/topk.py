"""Top-k without error feedback: with symmetric noise it has no floor, but moves more slowly.

Entry j moves as often as the noise alone would have it sent: with exchangeable noise, as exact
SGD does whose step is k/d as long.
"""

import itertools

import sympy as sp

from theory.bound import Bound
from theory.certificate import Certificate, Claim, Condition, Hypothesis
from theory.claims.nonconvex import AVERAGE, telescope
from theory.claims.sgd import ONE, STEP, STRICT_STEP, A, smooth
from theory.gram import inner, mean, norm2, per_worker, vector
from theory.induction import Proof
from theory.symbols import (
    L,
    T,
    alpha,
    d,
    f_next,
    f_x,
    grad_size,
    grad_sum,
    k,
    kept_sum,
    kept_T,
    kth_square,
    p,
    rest_squares,
    sent_sum,
    sent_T,
    sigma_k,
    top_squares,
)

SENDS_LESS = Condition("k ≤ d", d - k, d)
LONGEST_STEP = Condition("αL ≤ 2", 2 - alpha * L, alpha, 1 / alpha)
DOUBLE_STEP = Condition("αL < 2", 2 - alpha * L, alpha, 1 / alpha, strict=True)

# Top-k of y = ∇f(x) + ξ: S(y) are the entries sent, S(ξ) those that the noise alone would send.
SENT = per_worker("u")  # ∇f(x) on S(y)
SENT_NOISE = per_worker("q")  # ξ on S(y)
KEPT = per_worker("w")  # ∇f(x) on S(ξ)
KEPT_NOISE = per_worker("n")  # ξ on S(ξ)
TOP = SENT + SENT_NOISE  # top_k(y)


def top_k() -> tuple[Proof, ...]:
    """Top-k is a contraction with γ = 1 − k/d: what it leaves out is below average."""
    share = 1 - k / d
    average = Certificate(
        Claim(
            "topk.contraction",
            "‖top_k(y) − y‖² ≤ (1 − k/d)‖y‖²",
            rest_squares,
            (share * (top_squares + rest_squares),),
            (
                Hypothesis("the k largest are at least θ", top_squares - k * kth_square),
                Hypothesis("the others are at most θ", (d - k) * kth_square - rest_squares),
            ),
            (SENDS_LESS,),
        ),
        {"the k largest are at least θ": share, "the others are at most θ": k / d},
    )
    return (average,)


def symmetric_noise() -> tuple[Proof, ...]:
    """Top-k without feedback, noise as likely to be −ξ as ξ, αL ≤ 1: no floor.

    (1/T) Σ [(1 − αL) Σ_j π_j E(∂_j f)² + E‖∇f on S(y)‖²] ≤ 2Δ/(αT) + αLσ_k². S(y), S(ξ) are the
    entries that top-k takes of y = ∇f + ξ and of ξ, π_j = P(j ∈ S(ξ)), σ_k² = E‖top_k(ξ)‖².
    Each set beats the other on its own vector, and ξ on S(ξ) has mean zero: ⟨∇f, C⟩ is at least
    half of both terms. S may break ties as it likes, S(ξ) if it depends on |ξ| alone. Workers'
    noises may depend on each other.
    """
    only = Hypothesis("⟨∇f, top_k(y)⟩ = ⟨∇f on S(y), top_k(y)⟩", inner(A - SENT, TOP))
    best = Hypothesis("S(ξ) keeps most of ξ", norm2(KEPT_NOISE) - norm2(SENT_NOISE))
    best_y = Hypothesis("S(y) keeps most of y", norm2(TOP) - norm2(KEPT + KEPT_NOISE))
    even = Hypothesis("ξ is symmetric: E[ξ on S(ξ)] = 0", inner(KEPT, KEPT_NOISE))
    chance = Hypothesis("π_j = P(j ∈ S(ξ))", norm2(KEPT) - kept_T)
    part = Hypothesis("S_T = E‖∇f on S(y)‖²", norm2(SENT) - sent_T)
    quiet = Hypothesis("E‖top_k(ξ)‖² ≤ σ_k²", sigma_k**2 - norm2(KEPT_NOISE))
    short = alpha * (1 - alpha * L) / 2
    step = Certificate(
        Claim(
            "topk.step",
            "E f(x⁺) ≤ f(x) − (α/2)[(1 − αL) Σπ_j(∂_j f)² + E‖∇f on S(y)‖²] + Lα²σ_k²/2",
            short * kept_T + alpha / 2 * sent_T,
            (f_x - f_next, L * alpha**2 * sigma_k**2 / 2),
            (smooth(mean(TOP, p)), only, best, best_y, even, chance, part, quiet),
            (STEP,),
        ),
        {
            "f is L-smooth": ONE,
            only.name: alpha,
            best.name: alpha / 2,
            best_y.name: short,
            even.name: 2 * short,
            chance.name: short,
            part.name: alpha / 2,
            quiet.name: L * alpha**2 / 2,
        },
        ((L * alpha**2 / 2, TOP - mean(TOP, p)),),
    )
    total, rate = telescope(
        step.claim,
        (
            "(α/2) Σ_{t<T} [(1 − αL) Σπ_jE(∂_j f)² + E‖∇f on S‖²] ≤ f_0 − E f(x_T) + TLα²σ_k²/2",
            "(1/T) Σ [(1 − αL) Σπ_jE(∂_j f)² + E‖∇f on S(y)‖²] ≤ 2Δ/(αT) + αLσ_k²",
        ),
        alpha / 2,
        [(short, kept_T, kept_sum), (alpha / 2, sent_T, sent_sum)],
    )
    whole = rate.claim.instance()
    fair = Hypothesis("ξ is exchangeable: π_j = k/d", kept_sum - k / d * grad_sum)
    favoured = Hypothesis(
        "a larger ∂_j f is sent no less often: S ≥ (k/d)‖∇f‖²", sent_sum - k / d * grad_sum
    )
    exchangeable = Certificate(
        Claim(
            "topk.exchangeable",
            "exchangeable noise: (1/T) Σ E‖∇f‖² ≤ (d/k)[2Δ/(αT) + αLσ_k²]/(1 − αL)",
            grad_sum / T,
            tuple(d / k / (1 - alpha * L) * term for term in rate.claim.rhs),
            (whole, fair),
            (STRICT_STEP,),
            remark="proves what simulation suggested: such noise leaves no floor",
        ),
        {whole.name: d / k / (1 - alpha * L), fair.name: d / (k * T)},
        ((d / k / (1 - alpha * L) * sent_sum / T, ONE),),
    )
    slow = Certificate(
        Claim(
            "topk.slowdown",
            "larger ∂_j f sent no less often: (1/T) Σ E‖∇f‖² ≤ (d/k)[2Δ/(αT) + αLσ_k²]/(2 − αL)",
            grad_sum / T,
            tuple(d / k / (2 - alpha * L) * term for term in rate.claim.rhs),
            (whole, fair, favoured),
            (STEP,),
            remark="exact SGD's own bound, with α shortened to αk/d in the term that falls with T",
        ),
        {
            whole.name: d / k / (2 - alpha * L),
            fair.name: d / k * (1 - alpha * L) / ((2 - alpha * L) * T),
            favoured.name: d / k / ((2 - alpha * L) * T),
        },
    )
    return (step, total, rate, exchangeable, slow, _unfavoured(), _skewed())


def _unfavoured() -> Certificate:
    """Noise of sizes 2, 3/2, 3/2 in any order, any signs; ∇f = (0, 2, 0); k = 2 of d = 3.

    Entry 2 of y is the largest if the noise has its sign, and else the smallest: it is sent half
    of the time, though π_2 = 2/3.
    """
    sizes = (sp.Integer(2), sp.Rational(3, 2), sp.Rational(3, 2))
    sent = [
        bool(abs(2 + sign * order[1]) > min(order[0], order[2]))
        for order in itertools.permutations(sizes)
        for sign in (1, -1)
    ]
    return Certificate(
        Claim(
            "topk.unfavoured",
            "noise of sizes 2, 3/2, 3/2 in any order, ∇f = (0, 2, 0): P(top-2 sends entry 2) = 1/2",
            sp.Rational(sum(sent), len(sent)),
            (sp.Rational(3, 4) * sp.Rational(2, 3),),
            equality=True,
            remark="refutes: a larger ∂_j f is always sent no less often; topk.slowdown assumes it",
        ),
        {},
    )


def _skewed() -> Certificate:
    """Without symmetry there is a floor: entries 2 or −1, with P = 1/3 and 2/3; d = 2, k = 1.

    At ∇f = (−g, −g), g < 1/2, top-1 sends a 2 if there is one: the sum of what it sends has mean
    (5/9)(2 − g) − (4/9)(1 + g) > 0, so x moves away from the minimum.
    """
    two, one = sp.Rational(1, 3), sp.Rational(2, 3)
    rows = [(P * Q, max(a, b)) for P, a in ((two, 2), (one, -1)) for Q, b in ((two, 2), (one, -1))]
    sent = sp.Add(*(weight * (value - grad_size) for weight, value in rows))
    return Certificate(
        Claim(
            "topk.skewed",
            "skewed exchangeable noise, ∇f = (−g, −g), g < 1/2: ⟨∇f, E top_1(y)⟩ = −g(2/3 − g)",
            -grad_size * sent,
            (-grad_size * (sp.Rational(2, 3) - grad_size),),
            equality=True,
            remark="refutes: exchangeable noise needs no symmetry; top-1 moves uphill",
        ),
        {},
    )


def noiseless() -> tuple[Proof, ...]:
    """Top-k without feedback and without noise, αL < 2.

    (1/T) Σ ‖∇f(x_t)‖² ≤ (d/k)·2Δ/(αT(2 − αL)): ⟨a, C(a)⟩ = ‖C(a)‖² ≥ (k/d)‖a‖², so the step is
    gradient descent's, its progress k/d of it, and its largest step the same.
    """
    C = vector("c")
    inside = Hypothesis("⟨∇f, top_k(∇f)⟩ = ‖top_k(∇f)‖²", inner(A, C) - norm2(C))
    most = Hypothesis("‖top_k(∇f)‖² ≥ (k/d)‖∇f‖²", norm2(C) - k / d * norm2(A))
    slope = alpha * k / d * (1 - alpha * L / 2)
    step = Certificate(
        Claim(
            "topk.noiseless.step",
            "f(x⁺) ≤ f(x) − α(k/d)(1 − αL/2)‖∇f(x)‖²",
            slope * norm2(A),
            (f_x - f_next,),
            (smooth(C), inside, most),
            (LONGEST_STEP,),
        ),
        {"f is L-smooth": ONE, inside.name: alpha, most.name: alpha * (1 - alpha * L / 2)},
    )
    total, rate = telescope(
        step.claim,
        (
            "α(k/d)(1 − αL/2) Σ_{t<T} ‖∇f(x_t)‖² ≤ f(x_0) − f(x_T)",
            "(1/T) Σ ‖∇f(x_t)‖² ≤ (d/k)·2Δ/(αT(2 − αL))",
        ),
        slope,
        conditions=(DOUBLE_STEP,),
    )
    return (step, total, rate)


def proofs() -> tuple[Proof, ...]:
    """Return all proofs of this module, each after those it uses."""
    return (*top_k(), *symmetric_noise(), *noiseless())


def bounds() -> tuple[Bound, ...]:
    """Return the contraction of top-k, and without feedback its rates and its slowdown."""
    _, _, symmetric, exchangeable, slow, _, _ = symmetric_noise()
    sent = "(1/T) Σ [(1 − αL) Σπ_jE(∂_j f)² + E‖∇f on S(y)‖²]"
    return (
        Bound.of(
            top_k()[0],
            "‖top_k(y) − y‖²/‖y‖²",
            1 - k / d,
            kind="tight",  # nofeedback.extreme attains it
            where=(SENDS_LESS,),
            link=lambda share: share * (top_squares + rest_squares),
        ),
        Bound.of(symmetric, sent),
        Bound.of(exchangeable, AVERAGE, where=(SENDS_LESS,)),
        Bound.of(slow, AVERAGE, where=(SENDS_LESS,)),
        Bound.of(noiseless()[2], "(1/T) Σ ‖∇f(x_t)‖²", where=(SENDS_LESS,)),
    )
