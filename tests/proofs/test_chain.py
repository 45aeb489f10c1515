"""Chains: their constants against simulations, their steps, rates and horizons."""

from collections.abc import Callable

import numpy as np
import pytest
import sympy as sp
from settings import SETTING, START, at

import theory
from theory import symbols
from theory.chain import Chain
from theory.parts import (
    Part,
    contraction,
    delay,
    feedback,
    inconsistent,
    resend,
    top_k_feedback,
    unbiased,
)

Message = np.ndarray  # [fates, d]
Relax = Callable[[Message], Message]


def relaxation(part: Part, rng: np.random.Generator, fates: int, d: int) -> tuple[Relax, Relax]:
    """Return (messages in → messages out, nothing → what is held), by definition."""
    held = np.zeros((fates, d))
    queue: list[np.ndarray] = []

    def relax(message: Message) -> Message:
        nonlocal held
        if part.label.startswith("delay"):
            queue.append(message)
            out = queue.pop(0) if len(queue) > part.value else np.zeros_like(message)
        elif part.label.endswith("resent"):
            arrives = rng.random((fates, 1)) >= part.value
            out = np.where(arrives, held + message, 0.0)
        elif part.label.startswith("top-k"):
            y, k = held + message, round(d * (1 - part.value))
            ranks = np.argsort(np.argsort(-abs(y), axis=1), axis=1)
            out = np.where(ranks < k, y, 0.0)
        else:  # C(y) = (1 − ρ)y, which a contraction allows
            rho = part.value if part.symbol == symbols.rho else part.value**0.5
            out = (1 - rho) * (held + message)
        held = held + message - out
        return out

    return relax, lambda message: held


def drift(parts: tuple[Part, ...], updates: np.ndarray, fates: int = 400) -> float:
    """Return the largest root mean square of what a chain holds, over all steps."""
    rng, d = np.random.default_rng(0), updates.shape[1]
    stages = [relaxation(part, rng, fates, d) for part in parts]
    worst = 0.0
    for update in updates:
        message = np.broadcast_to(update, (fates, d))
        for relax, _ in stages:
            message = relax(message)
        held = sum(stage(message) for _, stage in stages)
        worst = max(worst, float(np.sqrt((np.asarray(held) ** 2).sum(1).mean())))
    return worst


CHAINS = [
    (top_k_feedback(0.25), resend(0.3), delay(3)),
    (delay(2), feedback(0.6), delay(1)),
    (delay(2), delay(3)),
    (resend(0.5), resend(0.2)),
    (feedback(0.5), feedback(0.3)),
    (resend(0.4), top_k_feedback(0.5)),
    (contraction(0.7), delay(4), resend(0.1)),
]


@pytest.mark.slow
@pytest.mark.parametrize("parts", CHAINS, ids=lambda parts: " → ".join(p.label for p in parts))
@pytest.mark.parametrize("kind", ["constant", "random", "alternating"])
def test_what_a_chain_holds_is_within_its_constant(parts: tuple[Part, ...], kind: str) -> None:
    rng, d, steps = np.random.default_rng(1), 4, 80
    updates = {
        "constant": np.ones((steps, d)),
        "random": rng.normal(size=(steps, d)),
        "alternating": np.ones((steps, d)) * (-1.0) ** np.arange(steps)[:, None],
    }[kind]
    updates /= np.linalg.norm(updates, axis=1, keepdims=True)
    B = Chain(*parts).constant(M=1)
    measured = drift(parts, updates)
    # The mean over 400 fates of N² of heavy tail is uncertain by some 15%.
    drops = any(part.label.endswith("resent") for part in parts)
    assert measured <= B * (1.15 if drops else 1 + 1e-9)
    if kind == "constant" and len({part.kind for part in parts}) == 1 and parts[0].kind == "hold":
        assert measured >= B * 0.85  # holds in a row are tight


def test_constants_by_hand() -> None:
    beta = 0.6**0.5 / (1 - 0.6**0.5)
    assert Chain(feedback(0.6), delay(3)).constant(M=2) == pytest.approx(2 * (beta + 3))
    assert Chain(delay(3), feedback(0.6)).constant(M=2) == pytest.approx(2 * (beta + 3))
    N2 = 0.2 * 1.2 / 0.8**2
    assert Chain(resend(0.2)).constant(M=1) == pytest.approx(N2**0.5)
    assert Chain(feedback(0.6), resend(0.2)).constant(M=1) == pytest.approx(beta + N2**0.5)
    assert Chain(inconsistent(3)).constant(M=1) == 3
    masked = Chain(feedback(0.6), inconsistent(3)).constant(M=1)
    assert masked == pytest.approx(4 * beta + 3 / 2**0.5)
    low = 0.1**0.5 / (1 - 0.1**0.5)  # below M/√2
    masked = Chain(feedback(0.1), inconsistent(3)).constant(M=1)
    assert masked == pytest.approx(low + 3 * (1 + 2 * low**2) ** 0.5)
    twice = beta + beta * (1 + 0.6**0.5) / (1 - 0.6**0.5)
    assert Chain(feedback(0.6), feedback(0.6)).constant(M=1) == pytest.approx(twice)
    assert Chain(unbiased(3), delay(2)).constant(M=1) == pytest.approx(2 * 2)
    assert Chain().constant(M=1) == Chain(unbiased(3)).constant(M=1) == 0
    tau, second = symbols.tau, sp.Symbol("τ'", nonnegative=True, real=True)
    assert Chain(delay(2), feedback(0.5), delay(3)).elastic_constant.expr.free_symbols == {
        symbols.M, symbols.gamma, tau, second
    }  # fmt: skip


def test_costs_name_the_dearest_part() -> None:
    chain = Chain(top_k_feedback(0.01), resend(0.05), delay(8), workers=16)
    assert [label for label, _ in chain.costs()] == [part.label for part in chain.parts]
    assert max(chain.costs(), key=lambda cost: cost[1])[0] == "top-k 1% with feedback"
    whole = chain.constant(M=3)
    for i, (_, share) in enumerate(chain.costs()):
        rest = Chain(*chain.parts[:i], *chain.parts[i + 1 :])
        assert rest.constant(M=3) == pytest.approx(whole * (1 - share))


def test_links_that_resend_without_a_second_moment() -> None:
    def weights(*parts: Part) -> tuple[float, float]:
        """Return n₂, from the largest step, and n₁ for one worker."""
        chain = Chain(*parts)
        step = chain.largest_step("W", L=1)
        rate = chain.rate("W").at(alpha=0.5 * step, L=1, sigma=1, Delta=0, T=1)
        return (1 - step) / step**2, (rate - 0.5 * step) / (0.5 * step) ** 2

    # A link is a compressor with γ = q; q = 0 is none.
    assert weights(resend(0.3)) == pytest.approx(weights(feedback(0.3)))
    assert weights(feedback(0.6), resend(0.0), delay(2)) == weights(feedback(0.6), delay(2))
    assert weights(feedback(0.0), delay(2)) == weights(delay(2))
    # All delays in order: (E N + √(Var N + β²))².
    gamma, mean = 0.6, 0.3 / 0.7
    beta = gamma**0.5 / (1 - gamma**0.5)
    parts = feedback(gamma), resend(0.3), delay(3)
    n2, _ = weights(*parts)
    assert n2 == pytest.approx((3 + mean + (mean * (1 + mean) + beta**2) ** 0.5) ** 2)
    assert weights(*parts) == pytest.approx(weights(parts[0], parts[2], parts[1]))


def average_square_gradient(parts: tuple[Part, ...], alpha: float, steps: int) -> float:
    """Return (1/T) Σ E‖∇f(x_t)‖² of f = x²/2 from x = 1 with noise ±1, over many fates."""
    rng, fates = np.random.default_rng(0), 2000
    stages = [relaxation(part, rng, fates, 1) for part in parts]
    x = view = np.ones((fates, 1))
    total = 0.0
    for _ in range(steps):
        total += float((x**2).mean())
        message = alpha * (view + rng.choice([-1.0, 1.0], size=(fates, 1)))
        x = x - message
        for relax, _ in stages:
            message = relax(message)
        view = view - message
    return total / steps


@pytest.mark.parametrize(
    "parts",
    [(resend(0.3),), (resend(0.8),), (feedback(0.6), resend(0.5), delay(2))],
    ids=lambda parts: " → ".join(p.label for p in parts),
)
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_runs_stay_within_the_rate_without_a_second_moment(
    parts: tuple[Part, ...], share: float
) -> None:
    chain = Chain(*parts)
    alpha = share * chain.largest_step("W", L=1)
    limit = chain.rate("W").at(alpha=alpha, L=1, sigma=1, Delta=0.5, T=60)
    measured = average_square_gradient(parts, alpha, 60)
    print(measured, limit)
    assert measured <= limit


@pytest.mark.slow
def test_report_says_it_all() -> None:
    chain = Chain(top_k_feedback(0.1), delay(8), workers=16)
    text = chain.report(**SETTING, M=2)
    for part in ("top-k 10% with feedback → delay 8, p = 16", "elastic constant", "N ", "W.both"):
        assert part in text
    assert "E‖G̃‖² ≤ M² along the run" in text
    assert text.count("largest step") == 2
    assert "adds noise" in Chain(unbiased(2)).report(**SETTING, M=2)
    assert chain.report(**SETTING, M=2, dist_0=1).count("from T") == 6
    assert chain.report(**SETTING, M=2, c=0.1).count("ln T/(cT)") == 1
    longest = chain.report(**SETTING, **START)
    assert longest.count("from T") == 10
    assert "S.simple" in longest and "P.simple" in longest
    without_moment = chain.report(**SETTING)
    assert without_moment.count("largest step") == 1 and "W.both" in without_moment
    assert f"= {chain.constant(M=1):.4g}·M" in without_moment
    assert "with γ = 0.9, τ = 8" in without_moment
    negative = chain.report(**SETTING, **{**START, "c": -1.0})
    assert negative.count("largest step") == 3  # N, W and C; S and P say why not
    assert "C " in negative and "α < " in negative and "must be positive" in negative
    assert "give Delta" in chain.report(L=1, sigma=1)


def test_what_holds_nothing_is_exact_sgd() -> None:
    exact = Chain(workers=4).rate("W")
    assert exact.expr == theory.bounds()["N"].put(B=0, p=4).expr
    for part in (delay(0), feedback(0), resend(0), inconsistent(0), unbiased(0)):
        chain = Chain(part, workers=4)
        assert chain.rate("W").expr == exact.expr
        assert chain.costs() == [(part.label, 0.0)]
        assert "rates are proved for" not in chain.report(**SETTING, **START)
        assert chain.report(**SETTING, M=2).count("from T") == 4
        assert chain.horizon(0.1, "W", **SETTING) == chain.horizon(0.1, **SETTING, M=2)


@pytest.mark.parametrize("rate", ["N", "S", "C", "P"])
def test_the_best_step_where_constants_have_roots(rate: str) -> None:
    """The bound's coefficients are no rational numbers: √γ stands in B."""
    bound = Chain(feedback(0.5), inconsistent(3), workers=4).rate(rate)
    known = {"L": 1, "M": 2, "T": 1000, "Delta": 1, "sigma": 1, "c": 0.1, "dist_0": 1}
    values = {k: v for k, v in known.items() if vars(symbols)[k] in bound.parameters}
    step, least = bound.minimise("alpha").at(**values)
    assert least == pytest.approx(bound.at(alpha=step, **values))
    assert all(bound.at(alpha=k * step, **values) > least for k in (0.5, 1 - 1e-6, 1 + 1e-6, 1.5))


def test_a_delay_has_its_best_proved_rate() -> None:
    """No other rate of the catalogue for a delay is less, or allows a longer step."""
    known = {"L": 1.0, "sigma": 1.0, "Delta": 1.0, "T": 100.0}
    for tau in (1, 4):
        chain = Chain(delay(tau), workers=4)
        others = [
            theory.bounds()["W.delay"].put(tau=tau, p=4),
            theory.bounds()["W.random"].put(mean_N=tau, square_N=tau**2, p=4),
        ]
        longest = chain.largest_step("W", L=1)
        for alpha in np.geomspace(1e-3, 1, 15):
            for other in others:
                try:
                    limit = at(other, **known, alpha=alpha)
                except ValueError:
                    continue
                assert alpha < longest
                assert at(chain.rate("W"), **known, alpha=alpha) <= limit * (1 + 1e-12)


def test_a_chain_says_what_it_is() -> None:
    chain = Chain(feedback(0.25), delay(8), workers=16)
    assert repr(chain) == "<Chain feedback, γ = 0.25 → delay 8, p = 16: B ≤ 9·M>"
    assert repr(Chain()) == "<Chain exact SGD, p = 1: B ≤ 0·M>"
    for part in ("delay", "resend", "feedback", "top_k_feedback", "contraction", "inconsistent"):
        assert f"`{part}(" in (Chain.__doc__ or "")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: delay(-1), "steps=-1 .*pass an int >= 0"),
        (lambda: delay(1.5), "steps=1.5"),
        (lambda: resend(1.0), "probability=1.0 .*in .0, 1"),
        (lambda: feedback(1), "needs a contraction"),
        (lambda: top_k_feedback(0), "fraction"),
        (lambda: contraction(-0.1), "rho=-0.1"),
        (lambda: unbiased(-1), "omega=-1"),
        (lambda: inconsistent(-2), "steps=-2"),
        (lambda: Chain(delay(1), workers=0), "workers=0"),
        (lambda: Chain(delay(1), unbiased(1)), "put it first"),
        (lambda: Chain(delay(1)).rate("W.delay"), "no rate in B"),
        (lambda: Chain(unbiased(1)).rate("W"), "without M"),
        (lambda: Chain(unbiased(1)).horizon(0.1, **SETTING, M=1), "adds noise"),
        (lambda: Chain(delay(1)).horizon(0.1, "S.tuned", **SETTING), "known for N, W, C, S, P"),
        (lambda: Chain(delay(1)).horizon(0.1, L=1, sigma=0, Delta=1, M=1), "pass sigma > 0"),
        (lambda: Chain(delay(1)).horizon(0.1, "S", L=1, sigma=1, M=1, dist_0=0, c=0.5), "is 0 for"),
        (lambda: Chain(delay(1)).horizon(0.1, "S", L=1, sigma=1, M=1, dist_0=1, c=2), "c < L"),
        (lambda: Chain(delay(1)).horizon(-1, "P", **SETTING, M=1, c=1), "ε .* must be positive"),
    ],
)
def test_what_a_chain_refuses(make: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_unknown_parts_and_rates() -> None:
    with pytest.raises(TypeError, match="no part of a chain"):
        Chain(8)
    with pytest.raises(ValueError, match=r"'Q' is no rate in B; pass one of N, N.tuned"):
        Chain(delay(1)).rate("Q")
    for name, missing in {"N": "M", "C": "dist_0", "S": "dist_0 and c", "P": "c"}.items():
        given = {} if name == "N" else {"M": 1}
        with pytest.raises(TypeError, match=f"of {name} also needs {missing}$"):
            Chain(delay(1)).horizon(0.1, name, **SETTING, **given)
    with pytest.raises(ValueError, match="sets no limit to α"):
        Chain(delay(1)).largest_step("N.tuned", L=1)


def test_parts_that_do_nothing() -> None:
    nothing = (feedback(0), resend(0), delay(0), contraction(0), unbiased(0), top_k_feedback(1))
    for part in nothing:
        assert Chain(part).constant(M=1) == 0
        assert part.kind == "unbiased" or Chain(delay(3), part).constant(M=1) == 3
    assert Chain(feedback(0), delay(2), resend(0)).costs()[1] == ("delay 2", 1.0)
