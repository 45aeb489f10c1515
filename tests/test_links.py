"""Imperfect links: what views lack, measured constants, limits, every machine, bad input."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import AXIS, exchanges
from histories import (
    ALPHA,
    GRADS,
    NEAR,
    TOTAL,
    P,
    check_attained,
    history,
    masses,
    together,
    worker,
)
from steps import double, draws, mesh_of

import elastic_jax as ej
import theory
from elastic_jax import absent, delays, links
from elastic_jax.exchange import AllMeanState
from elastic_jax.resize import resize

Q = 0.4


def lacking(waiting: np.ndarray) -> np.ndarray:
    """What views lack, where of worker i's updates the last waiting[t, j, i] are not at j."""
    missing = np.zeros((40, P, 3))
    for t, j, i in np.ndindex(40, P, P):
        n = int(waiting[t, j, i])
        before = TOTAL[t - n, i] if t >= n else 0.0
        missing[t, j] += (TOTAL[t, i] - before) / P
    return missing


# ---- lossy ----


@pytest.mark.parametrize("fate", links.FATES)
def test_a_view_lacks_what_its_links_have_not_brought(fate):
    mass, state = history(links.lossy(AXIS, Q, fate=fate, seed=7), GRADS)
    waiting = {
        "link": lambda w: w,
        "sender": lambda w: np.broadcast_to(w[:, None, :], (40, P, P)),
        "receiver": lambda w: np.broadcast_to(w[:, :, None], (40, P, P)),
    }[fate](state.waiting) * (1 - np.eye(P))
    down = waiting > 0
    assert 0.3 < down.sum() / (40 * P * (P - 1)) < 0.5 and waiting.max() > 2
    x = TOTAL.mean(1, keepdims=True)
    np.testing.assert_allclose(mass["view"], x - lacking(waiting), rtol=0, atol=NEAR)
    np.testing.assert_allclose((mass["view"] + mass["held"]).mean(1), x[:, 0], rtol=0, atol=NEAR)
    if fate != "sender":  # held where it is missing
        np.testing.assert_allclose(mass["held"], lacking(waiting), rtol=0, atol=NEAR)
    before = np.concatenate([np.zeros((1, P, P)), waiting[:-1]])
    lost, resent = down.sum((1, 2)).cumsum(), np.where(down, 0, before).sum((1, 2)).cumsum()
    for i in range(P):
        np.testing.assert_array_equal(state.messages_lost[:, i], lost)
        np.testing.assert_array_equal(state.messages_resent[:, i], resent)


@pytest.mark.slow
@pytest.mark.parametrize("fate", links.FATES)
def test_what_is_not_sent_again_is_lost(fate):
    mass, state = history(links.lossy(AXIS, Q, fate=fate, resend=False, seed=7), GRADS)
    same, again = history(links.lossy(AXIS, Q, fate=fate, seed=7), GRADS)
    np.testing.assert_array_equal(state.messages_lost, again.messages_lost)  # the same fates
    assert not mass["held"].any()
    down = again.waiting > 0
    u = -ALPHA * double(GRADS)
    if fate == "sender":  # nobody applies it
        lost = np.where(down[..., None], u, 0).cumsum(0)
        assert np.ptp(mass["view"], axis=1).max() == 0
    else:
        down = down if fate == "link" else down[..., None] & ~np.eye(P, dtype=bool)
        lost = np.einsum("tji,tid->tjd", down / P, u).cumsum(0)
    np.testing.assert_allclose(mass["lost"], lost, rtol=0, atol=NEAR)
    x = TOTAL.mean(1)
    np.testing.assert_allclose((mass["view"] + mass["lost"]).mean(1), x, rtol=0, atol=NEAR)
    assert np.abs(same["view"] - mass["view"]).max() > 0.1


# ---- measured constants ----


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fate", "name"),
    [
        ("link", "links.independent"),
        ("sender", "links.independent"),
        ("receiver", "links.shared"),
    ],
)
def test_lossy_attains_the_bound_of_the_theory(fate, name):
    make = functools.partial(lossy_of_seed, fate)
    check_attained(make, theory.bounds()[name].at(M=1, p=3, q=Q))


def lossy_of_seed(fate, seed):
    return links.lossy(AXIS, Q, fate=fate, seed=seed)


def late_of_seed(seed):
    return links.late(AXIS, delays.pmf([0.3, 0.0, 0.5, 0.2]), seed=seed)


@pytest.mark.slow
def test_random_delays_attain_the_bound_of_the_theory():
    above, others = np.array([0.7, 0.7, 0.2]), 2  # P(D > s), of each other worker's messages
    sums = {"prob_sum": others * above.sum(), "prob_var": others * (above * (1 - above)).sum()}
    check_attained(late_of_seed, theory.bounds()["random_delays"].at(M=1 / 3, **sums))


@pytest.mark.parametrize("tau", [1, 4])
def test_constant_delays_attain_the_bound_of_the_theory(tau):
    mass, state = history(links.late(AXIS, delays.constant(tau)), jnp.ones((12, P, 1)))
    b = np.abs(mass["held"]) / ALPHA
    most = theory.bounds()["message_passing"].at(M=1, p=P, tau=tau)
    want = np.minimum(np.arange(1, 13) / tau, 1)[:, None, None] * most
    np.testing.assert_allclose(b, np.broadcast_to(want, b.shape), rtol=1e-6)
    np.testing.assert_array_equal(state.messages_late[:, 0], P * (P - 1) * np.arange(1, 13))


# ---- late ----


def test_late_messages_by_hand():
    """Delays 0, 2, 1 in turn: what a view lacks at each step, of the other workers."""
    mass, state = history(links.late(AXIS, delays.replay([0, 2, 1])), GRADS[:7])
    u = -ALPHA * double(GRADS)
    others = (u.sum(1, keepdims=True) - u) / P
    flying = [[], [1], [1, 2], [], [4], [4, 5], []]  # the updates on their way after each step
    for t, steps in enumerate(flying):
        lacks = sum((others[s] for s in steps), np.zeros((P, 3)))
        np.testing.assert_allclose(mass["held"][t], lacks, rtol=0, atol=NEAR)
        want = TOTAL[t].mean(0) - lacks
        np.testing.assert_allclose(mass["view"][t], want, rtol=0, atol=NEAR)
    np.testing.assert_array_equal(state.messages_late[:, 1], 12 * np.array([0, 1, 2, 2, 3, 4, 4]))


@pytest.mark.slow
def test_a_constant_delay_is_the_same_drawn_or_not():
    fixed, _ = history(links.late(AXIS, delays.constant(3)), GRADS)
    drawn, _ = history(links.late(AXIS, delays.replay([3])), GRADS)
    traced, _ = history(links.late(AXIS, delays.constant(jnp.asarray(3), 5)), GRADS)
    for other in (drawn, traced):
        np.testing.assert_allclose(other["view"], fixed["view"], rtol=0, atol=NEAR)
        np.testing.assert_allclose(other["held"], fixed["held"], rtol=0, atol=NEAR)


# ---- limits: nothing lost, one worker ----

ZERO = {
    **{
        f"lossy({fate}, resend={resend})": functools.partial(
            lambda q, **how: links.lossy(AXIS, q, **how), fate=fate, resend=resend
        )
        for fate in links.FATES
        for resend in (True, False)
    },
    "partial": lambda q: absent.partial(AXIS, 1 - q),
    "partial, kept": lambda q: absent.partial(AXIS, 1 - q, keep=True),
    "crashes": lambda q: absent.crashes(AXIS, q),
}


@pytest.mark.slow
def test_without_chance_they_are_the_mean():
    """Known at construction: its very state. Traced: its values, to rounding, and nothing held."""
    for make in ZERO.values():
        assert isinstance(make(0.0).init(jnp.zeros(1)), AllMeanState)
    for same in (links.late(AXIS, delays.uniform(0, 0)), absent.crashes(AXIS, [])):
        assert isinstance(same.init(jnp.zeros(1)), AllMeanState)

    @jax.jit
    def views(q, grads):
        late = links.late(AXIS, delays.constant(q.astype(jnp.int32), 2))
        parts = [*(make(q) for make in ZERO.values()), late, absent.partial(AXIS, P)]
        run = ej.simulate(together([worker(part) for part in (*parts, ej.all_mean(AXIS))]), P)
        states, _ = jax.lax.scan(run.step, run.init(jnp.zeros(3)), grads)
        return [masses(state) for state in states]

    *found, want = jax.tree.map(double, views(jnp.float32(0), GRADS))
    for name, mass in zip((*ZERO, "late", "partial(p)"), found, strict=True):
        np.testing.assert_allclose(mass["view"], want["view"], rtol=0, atol=NEAR, err_msg=name)
        assert not mass["held"].any() and not mass["lost"].any(), name


MINE = ("lossy", "late", "partial", "crashes")
SHAPES = {"m": jnp.zeros((3, 2)), "s": jnp.zeros(())}


def rows(axis, p: int = P) -> dict[str, optax.GradientTransformation]:
    """The table's rows of these modules; for one worker all_mean too, and no other that crashes."""
    names = [case.name for case in exchanges(axis) if case.name.startswith(MINE)]
    if p == 1:
        names = ["all_mean", *(name for name in names if name != "crashes(table)")]
    return {case.name: case.make(SHAPES) for case in exchanges(axis) if case.name in names}


@functools.cache
def ran(mode: str, dtype: str = "float32", p: int = P, steps: int = 8):
    """Of each row: masses and counters after some steps; and the sum of all proposals."""
    axis = ("sim", AXIS) if mode == "hybrid" else AXIS
    run = together([worker(part, axis, ej.absorb()) for part in rows(axis, p).values()])
    if mode == "vmap":
        run = ej.simulate(run, p)
    else:
        run = ej.distribute(run, mesh_of(p // 2 if mode == "hybrid" else p), workers=p)
    like = jax.tree.map(lambda x: x.astype(dtype), SHAPES)
    grads = draws(like, steps, p, seed=4)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def go(grads):
        states, _ = jax.lax.scan(run.step, run.init(like), grads)
        return [(masses(s), counters(s.opt_state[1])) for s in states]

    u = jax.tree.map(lambda g: -ALPHA * double(g).sum(0), grads)
    return dict(zip(rows(axis, p), jax.tree.map(np.asarray, go(grads)), strict=True)), u


def counters(state) -> dict[str, jax.Array]:
    return {
        name: leaf
        for name, leaf in state._asdict().items()
        if name.startswith(("messages", "crashes", "absences"))
    }


@pytest.mark.slow  # compiles all of them twice more; test_devices.py has them too
@pytest.mark.parametrize("mode", ["shard_map", "hybrid"])
@pytest.mark.parametrize("name", rows(AXIS))
def test_every_machine_gives_the_same(mode, name):
    (got, counted), (want, there) = (ran(m)[0][name] for m in (mode, "vmap"))
    jax.tree.map(np.testing.assert_array_equal, counted, there)
    near = functools.partial(np.testing.assert_allclose, rtol=0, atol=8 * 12 * 2.0**-23 * 4)
    jax.tree.map(near, got, want)


@pytest.mark.slow
@pytest.mark.parametrize("name", rows(AXIS))
def test_bfloat16_loses_nothing_to_rounding(name):
    found, u = ran("vmap", "bfloat16", P, 12)
    (mass, _), size = found[name], 12 * 12 * 8 * 2.0**-24
    for leaf in SHAPES:
        x = sum(double(mass[part][leaf]).mean(0) for part in mass)
        np.testing.assert_allclose(x, u[leaf].mean(0), rtol=0, atol=size * np.abs(u[leaf]).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in rows(AXIS, 1) if "0.5)" not in name])
def test_one_worker_alone_trains_as_ever(name):
    """But where it may be absent itself, or down."""
    found, _ = ran("vmap", "bfloat16", 1, 12)
    mass, counted = found[name]
    if counted.get("crashes", np.zeros(1)).any() or counted.get("absences", np.zeros(1)).any():
        assert any(np.any(leaf) for leaf in jax.tree.leaves((mass["lost"], mass["held"])))
        return
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(counted))
    jax.tree.map(np.testing.assert_array_equal, mass, found["all_mean"][0])


# ---- in company ----


def test_a_lossy_exchange_of_what_feedback_compresses():
    fed = ej.error_feedback(ej.top_k(1), exchange=links.lossy(AXIS, Q))
    mass, _ = history(fed, GRADS)
    x = (mass["view"] + mass["held"]).mean(1)
    np.testing.assert_allclose(x, TOTAL.mean(1), rtol=0, atol=2 * NEAR)
    assert np.ptp(mass["view"], axis=1).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "exchange",
    [
        links.lossy(AXIS, Q, fate="sender"),
        links.lossy(AXIS, Q, fate="receiver"),
        links.late(AXIS, delays.uniform(1, 3)),
        absent.partial(AXIS, 2, keep=True),
        absent.crashes(AXIS, [(1, 2, 5)]),
    ],
    ids=["sender", "receiver", "late", "partial", "crashes"],
)
def test_another_number_of_workers_takes_over_the_mass(exchange):
    step = worker(exchange)
    run = ej.simulate(step, P)
    states, _ = jax.lax.scan(run.step, run.init(jnp.zeros(3)), GRADS[:6])
    moved = resize(states, 3)
    more = ej.simulate(step, 3)
    want = TOTAL[5].mean(0)
    np.testing.assert_allclose(whole(moved), want, rtol=0, atol=NEAR)
    moved, _ = more.step(moved, GRADS[6, :3])
    want = want - ALPHA * double(GRADS)[6, :3].mean(0)
    np.testing.assert_allclose(whole(moved), want, rtol=0, atol=NEAR)


def whole(states) -> Any:
    """The global iterate and what is lost."""
    found = masses(jax.tree.map(jnp.asarray, states))
    return sum(double(part).mean(0) for part in found.values())


# ---- bad input ----

BAD = {
    "a probability of 1": (lambda: links.lossy("w", 1.0), "probability=1.0", "[0, 1)"),
    "a negative probability": (lambda: links.lossy("w", -0.1), "probability=-0.1", "[0, 1)"),
    "a probability that is a bool": (lambda: links.lossy("w", True), "=True", "[0, 1)"),
    "a probability that is none": (lambda: links.lossy("w", float("nan")), "=nan", "[0, 1)"),
    "a probability of JAX": (
        lambda: links.lossy("w", jnp.float32(1)),
        "probability=Array(1",
        "[0, 1)",
    ),
    "probabilities": (lambda: links.lossy("w", jnp.ones(2)), "shape (2,)", "float scalar"),
    "resend": (lambda: links.lossy("w", 0.1, resend=cast(Any, 1)), "resend=1", "True or False"),
    "a fate": (lambda: links.lossy("w", 0.1, fate="all"), "fate='all'", "'receiver'"),
    "an axis": (lambda: links.lossy("", 0.1), "axis_name=''", "'workers'"),
    "a seed": (lambda: links.lossy("w", 0.1, seed=cast(Any, "a")), "seed='a'", "pass an int"),
    "a delay for a model": (lambda: links.late("w", cast(Any, 4)), "model=4", "constant(4)"),
    "parts": (lambda: links.late("w", delays.per_coordinate(2)), "per_coordinate(2)", "whole"),
    "layers": (lambda: links.late("w", delays.per_leaf([1, 2])), "per_leaf", "whole messages"),
    "a state of no axis": (
        lambda: unbound(links.lossy(AXIS, 0.1)),
        "made for 1 workers",
        "there are 3",
        "where the axis is bound",
    ),
    "updates that are narrower": (
        lambda: unbound(links.lossy(AXIS, 0.1, fate="sender"), jnp.bfloat16),
        "updates are bfloat16",
        "float32",
        "cast the updates",
    ),
}


def unbound(exchange, dtype=jnp.float32):
    """Starts outside of the axis."""
    state = exchange.init(jnp.zeros(2))

    def one(u):
        return exchange.update(u, state)[0]

    return jax.vmap(one, axis_name=AXIS)(jnp.ones((3, 2), dtype))


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_message_that_helps(name):
    call, *words = BAD[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
