"""Instances, run by definition, that break what is claimed too much, or attain what is claimed.

Each is a small system in plain numpy. "Too much" is an assumption left out (a schedule that does
not look at content, convexity), or the sum of two elastic constants where it is not enough.
"""

import itertools

import numpy as np
import pytest

import theory
from theory.bound import Bound

SIGNS = (-1.0, 1.0)


def constant(name: str, **values: float) -> float:
    bound: Bound = theory.bounds()[name]
    needed = {symbol.name for symbol in bound.parameters}
    return bound.at(**{key: value for key, value in values.items() if key in needed})


def expanding_feedback(steps: int, rho: float) -> tuple[np.ndarray, np.ndarray]:
    """Feedback, C(y) = (1 + ρ)y, of updates 1, −1, 1, …: residuals and messages, M = 1, α = 1."""
    updates, h = (-1.0) ** np.arange(steps), np.zeros(steps + 1)
    for t, u in enumerate(updates):
        h[t + 1] = -rho * (h[t] + u)
    return h, updates + h[:-1] - h[1:]


@pytest.mark.parametrize("rho", [0.4, 0.7])
@pytest.mark.parametrize("tau", [2, 4, 8])
def test_feedback_then_every_other_message_late_exceeds_the_sum(rho: float, tau: int) -> None:
    h, messages = expanding_feedback(401, rho)
    t = 400
    B1 = constant("contraction", M=1, ρ=rho)
    assert abs(h).max() == pytest.approx(B1)
    late = [s for s in range(t - tau, t) if (t - s) % 2 == 0]  # whole messages, τ steps at most
    gap = abs(h[t] + messages[late].sum())
    known = {"M": 1, "B₁": B1, "τ": tau}
    assert gap > constant("chain.delay", **known) + 0.1  # B₁ + τM
    assert gap == pytest.approx(constant("chain.holes", **known, **{"#holes": tau // 2}))
    assert gap <= constant("chain.masks", **known)
    # The same messages, all of them late: the sum is enough, and in order.
    assert abs(h[t] + messages[t - tau : t].sum()) <= constant("chain.delay", **known) + 1e-9


@pytest.mark.parametrize("first", [0.3, 0.6])
@pytest.mark.parametrize("second", [0.2, 0.5])
def test_feedback_of_feedback_exceeds_the_sum(first: float, second: float) -> None:
    h, messages = expanding_feedback(400, first)
    rest = 0.0
    for message in messages:
        rest = -second * (rest + message)
    gap = abs(h[-1] + rest)
    known = {"M": 1, "ρ": second, "B₁": constant("contraction", M=1, ρ=first)}
    assert gap > known["B₁"] + constant("contraction", M=1, ρ=second) + 0.1
    assert gap == pytest.approx(constant("chain.contraction", **known))


def test_masks_hold_more_than_whole_messages() -> None:
    """One message late, but only an entry of it: two residuals at right angles."""
    M, B1 = 1.0, 0.8
    old, now, u = np.array([B1, 0]), np.array([0, B1]), np.array([M, 0])
    message = u + old - now
    gap = np.linalg.norm(now + np.array([1, 0]) * message)
    known = {"M": M, "B₁": B1, "τ": 1}
    assert gap**2 == pytest.approx((M + B1) ** 2 + B1**2)
    assert gap > constant("chain.delay", **known)
    for name in ("chain.masks", "chain.masks.small", "chain.masks.large"):
        assert gap <= constant(name, **known)


@pytest.mark.parametrize("tau", [1, 2, 5, 50])
def test_masks_in_turns_nearly_attain_their_bound(tau: int) -> None:
    """Two entries, held in turns: (τ − 1 + √2)B₁ + τM/√2 along y; the bound has (τ + 1)B₁."""
    M, B1 = 1.0, 3.0
    y = np.ones(2) / np.sqrt(2)
    masks = (np.arange(-1, tau)[:, None] + np.arange(2)) % 2 * 1.0  # [age, entry], new to old
    masks[0] = 1.0  # h₁ itself is held
    old_end = np.zeros(2)
    changes = np.vstack([masks, old_end])[:-1] - np.vstack([masks, old_end])[1:]
    residuals = [B1 * change * y / np.linalg.norm(change * y) for change in changes]
    updates = [M * mask * y / np.linalg.norm(mask * y) for mask in masks[1:]]
    held = residuals[0].copy()
    for age, mask in enumerate(masks[1:]):
        message = updates[age] + residuals[age + 1] - residuals[age]
        held += mask * message
    known = {"M": M, "B₁": B1, "τ": tau}
    gap = np.linalg.norm(held)
    assert held @ y == pytest.approx((tau - 1 + np.sqrt(2)) * B1 + tau * M / np.sqrt(2))
    assert (
        held @ y - 1e-9
        <= gap
        <= constant("chain.masks.large", **known)
        < constant("chain.masks", **known)
    )


def test_a_crash_rule_that_looks_at_content_breaks_f_over_p() -> None:
    """Two workers, updates 0 or 1 evenly and independently: the larger one is lost."""
    outcomes = np.array(list(itertools.product([0.0, 1.0], repeat=2)))
    M = np.sqrt((outcomes**2).mean())
    gap = np.sqrt(((outcomes.max(1) / 2) ** 2).mean())
    assert gap > constant("crashes", M=M, f=1, p=2) + 0.05
    assert gap**2 == pytest.approx(3 / 2 * constant("crashes", M=M, f=1, p=2) ** 2)
    assert gap <= constant("crashes.chosen", M=M, f=1, p=2)
    blind = np.sqrt(((outcomes[:, 0] / 2) ** 2).mean())
    assert blind == pytest.approx(constant("crashes", M=M, f=1, p=2))


@pytest.mark.parametrize(("f", "p"), [(1, 3), (2, 5)])
def test_the_weaker_crash_bound_is_attained(f: int, p: int) -> None:
    """f random workers of p have all of the updates, and crash."""
    outcomes = np.array(
        [[i in who for i in range(p)] for who in itertools.combinations(range(p), f)]
    )
    M = np.sqrt((outcomes**2).mean(0).max())
    gap = np.sqrt(((outcomes.sum(1) / p) ** 2).mean())
    assert gap == pytest.approx(constant("crashes.chosen", M=M, f=f, p=p))
    assert gap > constant("crashes", M=M, f=f, p=p)


@pytest.mark.parametrize("steps", [2, 10])
def test_holding_the_largest_gradient_breaks_the_asynchronous_bound(steps: int) -> None:
    """n = 1 gradient is in flight: whichever of the last steps' was not 0. B grows with √steps."""
    outcomes = np.eye(steps)  # one update of T is 1
    M = np.sqrt((outcomes**2).mean(0).max())
    chosen = np.sqrt((outcomes.max(1) ** 2).mean())
    assert chosen == pytest.approx(np.sqrt(steps) * constant("asynchronous", M=M, n=1))
    blind = np.sqrt((outcomes[:, 0] ** 2).mean())
    assert blind == pytest.approx(constant("asynchronous", M=M, n=1))


@pytest.mark.parametrize("P", [0.1, 0.5])
def test_fates_that_look_at_content_break_the_fresh_fates_lemma(P: float) -> None:
    chance, updates = np.array([P, 1 - P]), np.array([1.0, 0.0])
    M = float(np.sqrt(chance @ updates**2))
    gap = np.sqrt(chance @ np.where(updates > 0, updates, 0) ** 2)  # held if it is not 0
    fresh = constant("random_delays", M=M, **{"ΣP": P, "ΣP(1−P)": P * (1 - P)})
    assert gap == pytest.approx(fresh / np.sqrt(P))
    # Any content: N ≤ 1 of the last 1 update, so the window lemma still holds.
    assert gap <= constant("window", M=M, n=1, w=1) + 1e-12


def test_a_scheduler_that_waits_for_the_nearest_breaks_the_variance_bound() -> None:
    """p = 3, m = 1, flat f, noise ±1: the gradient farthest from the own one is missing."""
    noise = np.array(list(itertools.product(SIGNS, repeat=3)))
    stood_in = noise[:, 1:] - noise[:, :1]
    farthest = np.take_along_axis(stood_in, abs(stood_in).argmax(1)[:, None], 1)[:, 0] / 3
    bound = constant("scheduler.variance", σ=1, m=1, p=3, L=1e-9, α=1)
    assert (farthest**2).mean() == pytest.approx(3 / 2 * bound**2)
    assert ((stood_in[:, 0] / 3) ** 2).mean() == pytest.approx(bound**2)  # attained if f is flat


def drift(curvature: float, H: int, p: int) -> float:
    """Views' mean square deviation after H − 1 local steps, α = 1, noise of variance 1."""
    square, L = 0.0, curvature
    for _ in range(H - 1):
        square = (1 - L) ** 2 * square + (p - 1) / p
    return np.sqrt(square)


def test_local_steps_need_convexity_for_the_square_root() -> None:
    bound = constant("local.convex", σ=1, H=5, p=4, L=1, α=1)
    assert drift(0.0, 5, 4) == pytest.approx(bound)  # attained by pure noise
    assert drift(1.5, 5, 4) < bound
    assert drift(-0.5, 5, 4) > bound  # negative curvature drives workers apart


@pytest.mark.parametrize("q", [0.3, 0.9])
@pytest.mark.parametrize("p", [2, 4])
def test_links_that_drop_messages_attain_their_bounds(q: float, p: int) -> None:
    """A constant gradient, M = 1: |h_i| = Σ_j N_j/p, N_j geometric."""
    N = np.arange(2000)
    chance = (1 - q) * q**N
    mean, square = chance @ N, chance @ N**2
    shared = np.sqrt(square) * (p - 1) / p
    independent = np.sqrt((p - 1) * square + (p - 1) * (p - 2) * mean**2) / p
    assert shared == pytest.approx(constant("links.shared", M=1, q=q, p=p))
    assert independent == pytest.approx(constant("links.independent", M=1, q=q, p=p))
