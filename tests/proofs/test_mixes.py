"""Chains that end in a mix: constants against simulations by definition, and edge settings."""

from collections.abc import Callable

import numpy as np
import pytest
from settings import SETTING
from test_chain import relaxation

import theory
from theory.chain import Chain
from theory.parts import (
    Mix,
    Part,
    average,
    choco,
    contraction,
    delay,
    diloco,
    feedback,
    gossip,
    inconsistent,
    resend,
    top_k_feedback,
    tracking,
    unbiased,
)

P, D = 6, 3
RING = (np.eye(P) + np.roll(np.eye(P), 1, 0) + np.roll(np.eye(P), -1, 0)) / 3
_, SLOW, *_, FAST = np.linalg.eigvalsh((np.eye(P) - RING) / 3).tolist()  # s = 1/3
RHO, APART = (float(np.linalg.norm(matrix, 2)) for matrix in (RING - 1 / P, np.eye(P) - RING))
LAZY = (np.eye(P) + RING) / 2  # no negative eigenvalue
LAZY_RHO, LAZY_APART = (1 + RHO) / 2, APART / 2

State = tuple[np.ndarray, ...]


def mixing(mix: Mix) -> Callable[[int, np.ndarray, State], State]:
    """Return (step, messages, state) → state, by definition; views come first in the state."""

    def step(t: int, m: np.ndarray, state: State) -> State:
        views, *rest = state
        if "gossip" in mix.label:
            return (RING @ (views + m),)
        if "CHOCO" in mix.label:  # C(y) = (1 + √γ)y, the worst compressor
            public = rest[0] if rest else 0 * views
            z = views + m
            public = z + 0.25**0.5 * (z - public)
            return z - (public - RING @ public) / 3, public
        if "tracking" in mix.label:
            W = LAZY if "lazy" in mix.label else RING
            c = rest[0] if rest else 0 * views
            return W @ (views + m + c), W @ (m + c) - m
        every = int(mix.label.split()[-1])
        views = views + m
        return (views.mean(0) + 0 * views if t % every == 0 else views,)

    return step


def drift(parts: tuple[Part, ...], mix: Mix, updates: np.ndarray) -> float:
    """Return the largest root mean square over workers of x − v; updates are [steps, P, D]."""
    stages = [relaxation(part, np.random.default_rng(0), P, D) for part in parts]
    step, state = mixing(mix), (np.zeros((P, D)),)
    x, worst = np.zeros(D), 0.0
    for t, u in enumerate(updates, 1):
        m = u
        for relax, _ in stages:
            m = relax(m)
        x, state = x + u.mean(0), step(t, m, state)
        worst = max(worst, np.sqrt(((x - state[0]) ** 2).sum(1).mean()))
    return worst


def lazy(mix: Mix) -> Mix:
    return Mix("lazy " + mix.label, mix.values, mix.bounds)


MIXES = {
    "gossip": gossip(RHO),
    "choco": choco(0.25, SLOW, FAST),
    "tracking": tracking(RHO, APART),
    "tracking, lazy": lazy(tracking(LAZY_RHO, LAZY_APART, symmetric=True)),
    "average": average(3),
}
BEFORE = {
    "nothing": (),
    "delay": (delay(2),),
    "feedback, turning": (contraction(0.4),),
    "feedback, delay": (top_k_feedback(0.5), delay(1)),
}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("before", BEFORE)
def test_what_workers_lack_is_within_the_constant(before: str, mix: str) -> None:
    parts, steps = BEFORE[before], 120
    chain, rng = Chain(*parts, MIXES[mix], workers=P), np.random.default_rng(1)
    W = LAZY if "lazy" in mix else RING
    _, modes = np.linalg.eigh(W)
    turns = np.where(np.arange(steps) < 100, -1.0, 1.0)[:, None, None]
    first = np.eye(D)[0]
    for updates in (
        rng.normal(size=(steps, P, D)),
        turns * modes[:, -2, None] * first,  # along the slowest mode, and back
        modes[:, 0, None] * first * (-1.0) ** np.arange(steps)[:, None, None],
        np.where(turns < 0, modes[:, -2, None], 1.0) * first,  # apart, then all alike
    ):
        M = np.sqrt((updates**2).sum(2).mean(1).max())
        assert drift(parts, MIXES[mix], updates) <= chain.constant(M) * (1 + 1e-9)


def test_what_is_called_tight_is_attained() -> None:
    """Gossip behind a delay, local steps behind one, and tracking, to 1.5 of its constant."""
    _, modes = np.linalg.eigh(RING)
    mode = np.sqrt(P) * modes[:, -2, None] * np.eye(D)[0]
    alike = np.ones((P, 1)) * np.eye(D)[0]
    updates = np.array([mode] * 60 + [alike] * 2)
    B = Chain(delay(2), gossip(RHO), workers=P).constant(1)
    assert B == pytest.approx(np.hypot(2, RHO / (1 - RHO)))
    assert drift((delay(2),), gossip(RHO), updates) == pytest.approx(B, rel=1e-6)
    apart = np.resize([1.0, -1.0], P)[:, None] * np.eye(D)[0]
    updates = np.array([alike] * 10 + [apart, apart, alike, alike])  # a meeting at step 12
    B = Chain(delay(2), average(3), workers=P).constant(1)
    assert B == pytest.approx(np.hypot(2, 2))
    assert drift((delay(2),), average(3), updates) == pytest.approx(B)
    mixed = MIXES["tracking, lazy"]
    t = round(1 / np.log(1 / LAZY_RHO))
    _, modes = np.linalg.eigh(LAZY)
    mode = np.sqrt(P) * modes[:, -2, None] * np.eye(D)[0]
    reached = drift((), mixed, np.array([-mode] * 200 + [mode] * t))
    assert reached == pytest.approx(2 * t * LAZY_RHO**t)
    assert reached <= Chain(mixed, workers=P).constant(1) <= 1.5 * reached


def test_constants_of_mixes_by_hand() -> None:
    def B(*parts: Part | Mix, workers: int = 8) -> float:
        return Chain(*parts, workers=workers).constant(1)

    assert B(gossip(total=2.5)) == 2.5 and B(gossip(total=0)) == 0
    assert B(delay(2), gossip(total=1)) == pytest.approx(5**0.5)
    assert B(feedback(0.25), gossip(total=1)) == B(feedback(0.25), gossip(0.5))
    assert B(gossip(0.5)) == 1 and B(average(4)) == 3 and B(tracking(0.5)) == 4
    assert B(tracking(0.5, 1.0, symmetric=True)) == pytest.approx(2**0.5)
    assert B(tracking(0.5, 1.3, symmetric=True)) == pytest.approx(3.6)  # an eigenvalue is −0.3
    assert B(tracking(0.04, 1.0, symmetric=True)) == pytest.approx((1 + 1 / 0.96) * 0.04 / 0.96)
    rate = (0.9 / 1.1) ** 0.5
    assert B(choco(0.25, 0.1, 0.2)) == pytest.approx((rate**2 + 0.25) ** 0.5 / (1 - rate))
    beta = 0.5**0.5 / (1 - 0.5**0.5)
    assert B(feedback(0.5), gossip(0.5)) == pytest.approx(np.hypot(beta, 1 + 2 * beta))
    assert B(feedback(0.5), tracking(0.5)) == pytest.approx(np.hypot(beta, 4 * (1 + 2 * beta)))
    assert B(feedback(0.5), average(4)) == pytest.approx(3 + 2 * beta)
    assert B(feedback(0.5), average(1)) == pytest.approx(beta)
    assert B(inconsistent(2), average(4)) == B(unbiased(0), inconsistent(2), average(4)) == 5
    assert B(unbiased(3), inconsistent(2), average(4)) == 10
    assert B(unbiased(3), delay(2), tracking(0.5)) == pytest.approx(2 * np.hypot(2, 4))
    assert B(unbiased(3), diloco(4, 1.0, 0.0)) == 6
    assert B(resend(0.5), gossip(0)) == B(resend(0.5))
    # The symbols of a mix are told from those before it.
    chain = Chain(feedback(0.3), choco(0.25, 0.1, 0.2), workers=8)
    assert {s.name for s in chain.values} == {"γ", "γ'", "a_min", "a_max"}
    late = Chain(delay(2), gossip(0.5), workers=8)
    assert [share for _, share in late.costs()] == pytest.approx([1 - 0.2**0.5, 1 - 0.8**0.5])


def test_mixes_that_leave_all_views_alike() -> None:
    """One step to the mean, or one worker."""
    assert all(f"`{part}(" in (Chain.__doc__ or "") for part in ("gossip", "choco", "tracking"))
    assert all(f"`{part}(" in (Chain.__doc__ or "") for part in ("average", "diloco"))
    for mix in (gossip(0), tracking(0), tracking(0, 1.0), average(1), choco(0, 1.0, 1.0)):
        assert Chain(mix, workers=8).constant(1) == 0
        assert Chain(delay(3), mix, workers=8).constant(1) == 3
        assert Chain(mix, workers=8).rate("W").name == "exact SGD"
    for mix in MIXES.values():
        assert Chain(mix).constant(1) == 0 and Chain(delay(3), mix).constant(1) == 3
    assert choco(0, 0.1, 0.4).bounds == ("gossip",)
    assert Chain(choco(0, 0.1, 1.95), workers=8).constant(1) == pytest.approx(0.95 / 0.05)


def test_no_digits_are_lost_at_small_spectral_gaps() -> None:
    for gap in (1e-3, 1e-9, 1e-16, 1e-30, 1e-200):
        B = Chain(choco(0.25, gap, 2 * gap), workers=8).constant(1)
        assert B == pytest.approx(1.25**0.5 * 2 / (2 * gap), rel=3 * gap + 1e-12)
    one_mode = Chain(choco(0.25, 0.3, 0.3), workers=8)  # a_min = a_max: all pairs mix alike
    nearly = theory.bounds()["choco"].at(gamma=0.25, slow=0.3 * (1 - 1e-12), fast=0.3, M=1)
    assert one_mode.constant(1) == pytest.approx(nearly)


@pytest.mark.parametrize("late", [0, 2])
def test_diloco_without_momentum(late: int) -> None:
    """η = 1 and μ = 0 is local SGD, and what no momentum carries costs nothing."""
    n = 3 + late
    assert Chain(diloco(4, 1.0, 0.0, delay=late), workers=8).constant(1) == n
    for gain, expected in ((0.5, n), (1.5, n), (2.0, n), (3.0, 2 * n)):
        chain = Chain(diloco(4, gain, 0.0, delay=late), workers=8)
        assert chain.gain == gain and chain.constant(1) == pytest.approx(expected)
    tiny = Chain(diloco(4, 1.0, 1e-9, delay=late), workers=8).constant(1)
    assert tiny == pytest.approx(n, abs=1e-7)
    each = theory.bounds()["diloco.each"]
    assert each.at(M=1, H=4, tau=late, G=1, coast=0, momentum=0, p=4) == pytest.approx(1.5 * n)


def test_rates_of_diloco_are_those_of_the_step_of_x() -> None:
    chain, plain = Chain(diloco(4, 0.7, 0.9), workers=8), Chain(workers=8)
    B, G = chain.constant(2.0), chain.gain
    assert pytest.approx(7) == G
    assert chain.largest_step(L=2.0) == pytest.approx(plain.largest_step(L=2.0) / G)
    known = SETTING | {"T": 100.0}
    rate = theory.bounds()["N"].at(alpha=0.05 * G, B=B / G, p=8, **known)
    assert chain.rate().at(alpha=0.05, M=2.0, **known) == pytest.approx(rate)
    assert chain.rate("S.tuned").quantity.endswith("at Gα = ln T/(cT)")
    T = chain.horizon(0.1, **SETTING, M=2.0)[0]
    within = chain.rate().at(alpha=(8 / T) ** 0.5 / G, M=2.0, **SETTING, T=T)
    exact = plain.rate().at(alpha=(8 / T) ** 0.5, **SETTING, T=T)
    assert within == pytest.approx(1.1 * exact)
    assert "at Gα = √(p/T)" in chain.report(**SETTING, M=2.0)


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_runs_of_diloco_stay_within_the_rate(share: float) -> None:
    """f = x²/2 with noise ±1 on three workers; M is that of the run, the gradient is taken at x."""
    every, eta, mu, steps = 3, 0.5, 0.6, 60
    chain = Chain(diloco(every, eta, mu), workers=3)
    alpha, G = share * chain.largest_step(L=1.0), eta / (1 - mu)
    rng = np.random.default_rng(0)
    anchor, m, d = np.ones((2000, 1)), np.zeros((2000, 1)), np.zeros((2000, 3))
    squares, moments = [], []
    for t in range(1, steps + 1):
        x = anchor + G * d.mean(1, keepdims=True) + G * mu**2 * m
        gradients = anchor + d + rng.choice([-1.0, 1.0], size=d.shape)
        squares.append((x**2).mean())
        moments.append((gradients**2).mean())
        d = d - alpha * gradients
        if t % every == 0:
            q = d.mean(1, keepdims=True)
            m = mu * m + q
            anchor, d = anchor + eta * (q + mu * m), 0 * d
        moved = anchor + G * d.mean(1, keepdims=True) + G * mu**2 * m - x
        np.testing.assert_allclose(moved[:, 0], -chain.gain * alpha * gradients.mean(1), atol=1e-12)
    limit = chain.rate().at(alpha=alpha, L=1, M=max(moments) ** 0.5, sigma=1, Delta=0.5, T=steps)
    assert np.mean(squares) <= limit


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: gossip(1.0), "rho=1.0 .*workers never agree"),
        (lambda: gossip(), "rho=None, total=None: pass one of them"),
        (lambda: gossip(0.5, total=1.0), "pass one of them"),
        (lambda: gossip(total=float("inf")), "total=inf .*workers never agree"),
        (lambda: tracking(0.5, 0.4), "apart=0.4 .*from 1 − ρ = 0.5 to 1 [+] ρ = 1.5"),
        (lambda: tracking(0.5, 1.6, symmetric=True), "apart=1.6 .*of the same W"),
        (lambda: choco(1.0, 0.1, 0.2), "gamma=1.0 .*must say something"),
        (lambda: choco(0.25, 0.0, 0.2), "slow=0.0 .*connected graph"),
        (lambda: choco(0.25, 0.3, 0.2), "fast=0.2 .*largest eigenvalue"),
        (lambda: choco(0.9, 0.1, 0.5), "gamma=0.9 .*allows γ <= 0.272727; .*shorter one"),
        (lambda: choco(0.1, 1.0, 1.5), "allows γ <= 0;"),
        (lambda: average(0), "every=0"),
        (lambda: diloco(0), "every=0"),
        (lambda: diloco(4, 0.0), "learning_rate=0.0"),
        (lambda: diloco(4, 0.7, 1.0), "momentum=1.0 .*in .0, 1"),
        (lambda: diloco(4, delay=5), "delay=5 .*0…4"),
        (lambda: diloco(4, fragments=0), "fragments=0"),
        (lambda: Chain(gossip(0.5), delay(1)), "gossip.*→ delay 1: a mix comes last"),
        (lambda: Chain(average(2), gossip(0.5)), "a mix comes last"),
        (lambda: Chain(delay(1), diloco(4)), "multiplies what reaches it.*takes delay="),
        (lambda: Chain(gossip(0.5), workers=4).rate("W"), "without M"),
    ],
)
def test_what_mixes_refuse(make: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_tracking_at_combinations_that_no_graph_has() -> None:
    bound = theory.bounds()["tracking"]
    for apart in (0.5, 1.0, 1.5):
        assert bound.at(M=1, rho=0.5, apart=apart) == pytest.approx(1 + 2 * apart)
    for apart, match in ((0.499, "1 − ρ ≤ ‖I − W‖"), (1.501, "‖I − W‖ ≤ 1 [+] ρ")):
        with pytest.raises(ValueError, match=match):
            bound.at(M=1, rho=0.5, apart=apart)


def test_an_average_at_every_step_is_another_case() -> None:
    local = theory.bounds()["chain.local"]
    assert local.at(M=1, H=2, B1=3) == 7
    with pytest.raises(ValueError, match=r"H ≥ 2 \(at H = 1, B = B₁\)"):
        local.at(M=1, H=1, B1=3)
    assert theory.bounds()["chain.mix"].at(M=1, mixing=0, B1=3) == 3
