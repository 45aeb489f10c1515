"""Absent workers: who takes part, who crashes, what is held and lost, measured constants."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import AXIS
from histories import ALPHA, GRADS, NEAR, TOTAL, P, check_attained, history, scanned, worker
from steps import at, double

import elastic_jax as ej
import theory
from elastic_jax import absent

Q = 0.4

# ---- partial ----


@pytest.mark.parametrize("participants", [1, 3, 0.5])
def test_only_participants_are_averaged(participants):
    mass, state = history(absent.partial(AXIS, participants, seed=3), GRADS)
    u, lost = -ALPHA * double(GRADS), np.diff(mass["lost"], axis=0, prepend=0.0)
    absent_now = np.abs(lost - u).max(2) < NEAR
    present = ~absent_now
    number = present.sum(1)
    assert (number == participants).all() if participants != 0.5 else np.ptp(number) > 1
    np.testing.assert_array_equal(state.absences[:, 0], absent_now.sum(1).cumsum())
    total = np.where(present[..., None], u, 0).sum(1)
    moves = total / np.maximum(number, 1)[:, None]
    for i in range(P):
        np.testing.assert_allclose(mass["view"][:, i], moves.cumsum(0), rtol=0, atol=NEAR)
    x = TOTAL.mean(1)
    np.testing.assert_allclose((mass["view"] + mass["lost"]).mean(1), x, rtol=0, atol=2 * NEAR)
    share = participants / P if participants != 0.5 else 0.5  # everyone's, to 4 standard deviations
    assert np.abs(present.sum(0) - 40 * share).max() < 4 * np.sqrt(40 * share * (1 - share))


def test_absent_workers_bring_later_what_they_keep():
    mass, state = history(absent.partial(AXIS, 2, keep=True, seed=3), GRADS)
    present = ~mass["held"].any(2)
    assert (present.sum(1) == 2).all() and not mass["lost"].any()
    np.testing.assert_array_equal(state.absences[:, 0], 2 * np.arange(1, 41))
    for t, i in np.ndindex(40, P):
        last = np.flatnonzero(present[: t + 1, i])
        brought = TOTAL[last[-1], i] if last.size else 0.0
        np.testing.assert_allclose(mass["held"][t, i], TOTAL[t, i] - brought, rtol=0, atol=NEAR)
    np.testing.assert_allclose(
        mass["view"][:, 0], (TOTAL - mass["held"]).mean(1), rtol=0, atol=NEAR
    )


@pytest.mark.slow
def test_weights_are_as_wide_as_the_updates():
    exchange = absent.partial(AXIS, 3)
    with jax.enable_x64(True):

        def one(_):
            u = jnp.ones((), "float64")
            return exchange.update(u, exchange.init(u), u)[0]

        moved = jax.vmap(one, axis_name=AXIS)(jnp.arange(P))
    np.testing.assert_allclose(moved, 1, rtol=P * float(jnp.finfo("float64").eps))


# ---- crashes ----


PLAN = [(1, 3, None), (4, 3, None)]


@functools.partial(jax.jit, static_argnums=0)
def crashed(forward, seeds):
    """Five workers, constant updates, several seeds."""

    def of_seed(seed):
        crash = absent.crashes(AXIS, PLAN, forward=forward, seed=seed)
        return scanned(ej.simulate(worker(crash), 5), jnp.ones((7, 5, 1)))

    return jax.vmap(of_seed)(seeds)


@pytest.mark.slow
@pytest.mark.parametrize("forward", [False, True])
def test_crashes_attain_the_bound_of_the_theory(forward):
    """Two of five crash at once: some view lacks both last messages, and none lacks more."""
    bound, most = theory.bounds()["crashes"].at(M=1, p=5, f=2), 0.0
    runs = jax.tree.map(np.asarray, crashed(forward, jnp.arange(8)))
    for run in range(8):
        mass, state = at(runs, run)
        lacks = np.abs(double(mass["held"])[..., 0]) / ALPHA
        assert lacks.max() <= bound * (1 + 1e-6) and not lacks[:3].any()
        most = max(most, lacks[3].max())
        after = lacks[4:]
        rounding = 7 * 5 * float(jnp.finfo(jnp.float32).eps)  # steps, messages in a sum
        stays = np.abs(after - (0 if forward else lacks[3])).max()
        assert stays == 0 if forward else stays <= rounding
        lost = np.diff(double(mass["lost"])[..., 0], axis=0)[2]  # messages that nobody got
        unheard = 3 * np.round(np.abs(lost).sum() / ALPHA)
        missing = np.round(lacks[3, [0, 2, 3]] * 5).sum()
        assert state.crashes[-1, 0] == 2
        assert state.messages_missed[-1, 0] == missing + unheard
        assert state.messages_forwarded[-1, 0] == (missing if forward else 0)
    assert most == pytest.approx(bound, rel=1e-6)


@pytest.mark.slow
def test_a_worker_that_is_down_proposes_in_vain_and_starts_again_where_others_are():
    plan = [(0, 2, 6), (3, 4, None)]
    mass, _ = history(absent.crashes(AXIS, plan, seed=2), GRADS)
    u = -ALPHA * double(GRADS)
    lost = np.diff(mass["lost"], axis=0, prepend=0.0)
    up = np.ones((40, P), bool)
    up[3:6, 0] = up[5:, 3] = False
    for t, i in np.ndindex(40, P):
        in_vain = not np.abs(lost[t, i] - u[t, i]).max() > NEAR
        assert in_vain == (not up[t, i]) or (t, i) in ((2, 0), (4, 3))  # a last message may be lost
        assert in_vain or np.abs(lost[t, i]).max() < NEAR
    down = ~up
    down[2, 0] = down[4, 3] = True
    down[5, 0] = True  # after step 5 it has not yet taken part
    first = [np.flatnonzero(~row)[0] for row in down]
    for t, i in zip(*np.nonzero(down), strict=True):
        np.testing.assert_allclose(mass["view"][t, i], mass["view"][t, first[t]], atol=NEAR)
        np.testing.assert_allclose(mass["held"][t, i], mass["held"][t, first[t]], atol=NEAR)
    x = TOTAL.mean(1) - mass["lost"].mean(1)
    whole = mass["view"] + mass["held"]
    np.testing.assert_allclose(whole, np.broadcast_to(x[:, None], whole.shape), atol=2 * NEAR)


def test_who_is_down_for_ages_is_down():
    crash = absent.crashes(AXIS, 0.9, down=2**31 - 2, seed=1)
    _, state = scanned(ej.simulate(worker(crash), 2), jnp.ones((6, 2, 1)))
    assert state.crashes[-1, 0] == 2  # each once


@pytest.mark.slow
@pytest.mark.parametrize("down", [None, 2])
def test_crashes_that_are_drawn(down):
    mass, state = history(absent.crashes(AXIS, 0.25, down=down, forward=True, seed=1), GRADS)
    moved = np.abs(np.diff(mass["lost"], axis=0, prepend=0.0)).max(2) > 0
    number = state.crashes[:, 0]
    assert (state.crashes == number[:, None]).all()
    if down is None:  # at last nobody is left, and nothing moves
        assert number[-1] == P and moved[-1].all() and np.ptp(mass["view"][-5:], axis=0).max() == 0
        return
    crashed = np.diff(state.back, axis=0, prepend=0) > 0
    np.testing.assert_array_equal(number, crashed.sum(1).cumsum())
    assert 8 < number[-1] < 4 * P * 40 / 6  # of 160/6 or so: up for 1/0.25 steps, down for two
    for t, i in zip(*np.nonzero(crashed[:-3]), strict=True):
        assert moved[t + 1 : t + 3, i].all()
    away = np.zeros_like(crashed)
    away[1:] |= crashed[:-1]
    away[2:] |= crashed[:-2]
    assert not (moved & ~away & ~crashed).any()  # but for last messages that nobody got
    assert not (crashed & away).any()


# ---- measured constants ----


def kept_of_seed(seed):
    return absent.partial(AXIS, 1 - Q, keep=True, seed=seed)


def test_kept_updates_attain_the_bound_of_the_theory():
    """As links of p + 1 workers that are independent, with shares 1/p."""
    check_attained(kept_of_seed, theory.bounds()["links.independent"].at(M=4 / 3, p=4, q=Q))


# ---- bad input ----

BAD = {
    "nobody": (lambda: absent.partial("w", 0), "participants=0", "int >= 1"),
    "no chance": (lambda: absent.partial("w", 0.0), "participants=0.0", "(0, 1]"),
    "too likely": (lambda: absent.partial("w", 1.5), "participants=1.5", "(0, 1]"),
    "keep": (lambda: absent.partial("w", 1, keep=cast(Any, 1)), "keep=1", "True or False"),
    "forward": (lambda: absent.crashes("w", 0.1, forward=cast(Any, 2)), "forward=2", "no bool"),
    "nobody of JAX": (
        lambda: absent.partial("w", jnp.int32(0)),
        "participants=Array(0",
        "int >= 1",
    ),
    "participants by name": (lambda: absent.partial("w", jnp.ones(2, int)), "shape (2,)", "scalar"),
    "too many": (
        lambda: history(absent.partial(AXIS, 5), GRADS),
        "participants=5",
        "there are 4 workers",
    ),
    "crashes of a worker": (
        lambda: absent.crashes("w", cast(Any, [1, 2])),
        "when holds 1",
        "pass tuples",
    ),
    "a step back": (lambda: absent.crashes("w", [(0, 3, 3)]), "back=3", "crash at 3", "int from 4"),
    "a negative step": (lambda: absent.crashes("w", [(0, -1, None)]), "step=-1", "int from 0"),
    "back in ages": (
        lambda: absent.crashes("w", [(0, 3, 2**31)]),
        "back=2147483648",
        "to 2147483646",
    ),
    "down already": (
        lambda: absent.crashes("w", [(0, 3, 8), (0, 5, None)]),
        "worker 0 crash at step 5",
        "is down",
    ),
    "a worker that is not there": (
        lambda: history(absent.crashes(AXIS, [(4, 0, None)]), GRADS),
        "worker 4",
        "there are 4 workers, 0…3",
    ),
    "down with a table": (
        lambda: absent.crashes("w", [(0, 1, 2)], down=3),
        "down=3",
        "`when` says who returns",
    ),
    "down for no step": (lambda: absent.crashes("w", 0.1, down=0), "down=0", "int from 1"),
    "a reach": (lambda: absent.crashes("w", 0.1, reach=2), "reach=2", "[0, 1]"),
    "a plan by name": (
        lambda: absent.crashes("w", cast(Any, "x")),
        "when='x'",
        "[0, 1), or a list of tuples",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_message_that_helps(name):
    call, *words = BAD[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
