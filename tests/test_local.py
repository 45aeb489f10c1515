"""Local SGD and DiLoCo: exact against loops by hand, their laws, their drift, when they meet."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import AXIS
from local_runs import ALPHA, LIKE, STEPS, P, close, doubles, ej, follow, histories
from steps import EPS, draws

from elastic_jax import local

# ---- against loops by hand ----


def average_by_hand(start: Any, noise: Any, meets: set[int]) -> list[dict[str, np.ndarray]]:
    views = {k: np.stack([np.asarray(x)] * P) for k, x in start.items()}
    history = []
    for t in range(1, STEPS + 1):
        for k in views:
            views[k] = views[k] - ALPHA * (views[k] / 2 + np.asarray(noise[k][t - 1]))
            if t in meets:
                views[k] = np.broadcast_to(views[k].mean(0), views[k].shape)
        history.append(dict(views))
    return history


def stacked(history: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {k: np.stack([views[k] for views in history]) for k in history[0]}


@pytest.mark.slow
def test_average_by_hand():
    with jax.enable_x64(True):
        start, noise = doubles()
        got = histories(local.average(AXIS, 3), noise, start)
        want = stacked(average_by_hand(start, noise, {3, 6, 9, 12}))
        close(got["view"], want)
        close(got["x"], {k: np.stack([v.mean(1)] * P, 1) for k, v in want.items()})

        # H as a hyper-parameter that grows: meetings after 1, 2, 3, … steps
        growing = optax.inject_hyperparams(local.average)(
            AXIS, every=lambda count: jnp.asarray([1, 2, 2, 3, 3, 3] + [4] * 9)[count]
        )
        got = histories(growing, noise, start)
        close(got["view"], stacked(average_by_hand(start, noise, {1, 3, 6, 10})))


def diloco_by_hand(start, noise, part, parts, every, eta, mu, nesterov=True, delay=0):
    """DiLoCo as its authors write it: the outer gradient is the anchor less the views' mean."""
    views = {k: np.stack([np.asarray(x)] * P) for k, x in start.items()}
    anchor = {k: np.asarray(x) for k, x in start.items()}
    buffer = {k: 0 * x for k, x in anchor.items()}
    travelling, history = [], []

    def arrive(t, leaf):
        for message in [m for m in travelling if m[:2] == (t, leaf)]:
            _, k, gradient, then = message
            buffer[k] = mu * buffer[k] + gradient
            direction = gradient + mu * buffer[k] if nesterov else buffer[k]
            anchor[k] = anchor[k] - eta * direction
            views[k] = anchor[k] + (views[k] - then)
            travelling.remove(message)

    for t in range(1, STEPS + 1):
        for k in views:
            views[k] = views[k] - ALPHA * (views[k] / 2 + np.asarray(noise[k][t - 1]))
        for k in views:
            if t % every == part[k] * every // parts % every:
                arrive(t, k)  # if it is as late as the next round's end
                travelling.append((t + delay, k, anchor[k] - views[k].mean(0), views[k]))
            arrive(t, k)
        history.append(dict(views))
    return stacked(history)


BALANCED = {"a": 1, "b": 0, "c": 1}  # 4 and 3 + 1 elements
DILOCO = {
    "as published": dict(every=4, eta=0.7, mu=0.9),
    "heavy ball": dict(every=3, eta=0.5, mu=0.8, nesterov=False),
    "plain outer SGD": dict(every=5, eta=1.3, mu=0.0),
    "in two fragments": dict(every=5, eta=0.7, mu=0.9, fragments=2, part=BALANCED, parts=2),
    "late": dict(every=4, eta=0.7, mu=0.6, delay=2),
    "late by a whole round": dict(every=3, eta=0.7, mu=0.6, delay=3),
    "in fragments of one's own, late": dict(
        every=5,
        eta=0.4,
        mu=0.5,
        nesterov=False,
        delay=3,
        fragments={"a": 2, "b": 0, "c": 1},
        part={"a": 2, "b": 0, "c": 1},
        parts=3,
    ),
    "more fragments than steps": dict(
        every=2, eta=0.7, mu=0.9, delay=1, fragments=5, part={"b": 0, "a": 1, "c": 2}, parts=5
    ),
}


def of_case(case: dict[str, Any]) -> tuple[Any, dict[str, Any], float]:
    """The transformation, the settings of the loop by hand, and the gain."""
    case = {"part": dict.fromkeys(LIKE, 0), "parts": 1} | case
    fragments = case.pop("fragments", 1)
    made = case | {"fragments": fragments, "learning_rate": case["eta"], "momentum": case["mu"]}
    made = {k: v for k, v in made.items() if k not in ("part", "parts", "eta", "mu")}
    return local.diloco(AXIS, **made), case, case["eta"] / (1 - case["mu"])


@functools.cache
def of_diloco(name: str) -> tuple[Any, Any, dict[str, Any]]:
    with jax.enable_x64(True):
        start, noise = doubles()
        return start, noise, histories(of_case(DILOCO[name])[0], noise, start)


@pytest.mark.parametrize("name", DILOCO)
def test_diloco_by_hand(name):
    _, by_hand, _ = of_case(DILOCO[name])
    start, noise, got = of_diloco(name)
    close(got["view"], diloco_by_hand(start, noise, **by_hand))


def law_1_errors(start: Any, got: dict[str, Any], gain: float) -> list[float]:
    """The largest |x_t - x_0 - G sum mean u|, for each leaf."""
    found = []
    for x, u, x_0 in zip(*map(jax.tree.leaves, (got["x"], got["u"], start)), strict=True):
        x, u, x_0 = (np.asarray(leaf, np.float64) for leaf in (x, u, x_0))
        want = x_0 + gain * np.cumsum(u.mean(1), axis=0)
        assert np.all(x == x[:, :1])  # the same for all
        found.append(float(np.max(np.abs(x[:, 0] - want))))
    return found


@pytest.mark.parametrize("name", DILOCO)
def test_law_1_with_a_gain(name):
    """Also between meetings, and while a result is on its way."""
    start, _, got = of_diloco(name)
    _, _, gain = of_case(DILOCO[name])
    assert max(law_1_errors(start, got, gain)) <= 8 * STEPS * 2.0**-52 * 100
    wrong = law_1_errors(start, got, gain * 1.01)
    assert min(wrong) > 1e-3


# ---- what equals what ----


@pytest.mark.slow
def test_identities():
    with jax.enable_x64(True):
        start, noise = doubles()

        def views(mix, base=None):
            return histories(mix, noise, start, base)["view"]

        close(views(local.average(AXIS, 1)), views(ej.all_mean(AXIS)))
        same = local.diloco(AXIS, 4, learning_rate=1.0, momentum=0.0)
        close(views(same), views(local.average(AXIS, 4)))
        for nesterov in (False, True):  # meeting at every step, it is momentum SGD
            outer = local.diloco(AXIS, 1, 0.7, 0.9, nesterov=nesterov)
            momentum = optax.sgd(0.7 * ALPHA, momentum=0.9, nesterov=nesterov)
            close(views(outer), views(ej.all_mean(AXIS), momentum))


@pytest.mark.parametrize("mix", [local.average(AXIS, 3), local.diloco(AXIS, 3, 1.0, 0.0)])
def test_one_worker_alone_is_plain_sgd(mix):
    start, noise = draws(LIKE, seed=1), draws(LIKE, STEPS, 1, seed=2)
    got = histories(mix, noise, start)
    want = histories(ej.all_mean(AXIS), noise, start)
    close(got["view"], want["view"], EPS, 10)
    assert np.max(got["gap"]) <= (8 * STEPS * EPS * 10) ** 2


@pytest.mark.slow
def test_a_sweep_of_outer_optimizers_is_one_trace():
    rates, momenta, traces = jnp.array([0.5, 0.7]), jnp.array([0.0, 0.9]), []
    start, noise = draws(LIKE, seed=1), draws(LIKE, STEPS, P, seed=2)

    def views(rate, momentum):
        traces.append(1)
        run = ej.simulate(follow(local.diloco(AXIS, 4, rate, momentum)), P)
        return jax.lax.scan(run.step, run.init(start), noise)[1]["x"]

    together = jax.jit(jax.vmap(views))(rates, momenta)
    assert len(traces) == 1
    for i, settings in enumerate(((0.5, 0.0), (0.7, 0.9))):
        alone = histories(local.diloco(AXIS, 4, *settings), noise, start)["x"]
        close(jax.tree.map(lambda x, i=i: x[i], together), alone, EPS)


# ---- narrow parameters ----

NARROW = {
    "average": (local.average(AXIS, 3), 1.0),
    "diloco": (local.diloco(AXIS, 3, 0.7, 0.9), 7.0),
    "diloco, in fragments and late": (local.diloco(AXIS, 3, 0.7, 0.9, fragments=2, delay=2), 7.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NARROW)
def test_bfloat16_loses_nothing(name):
    mix, gain = NARROW[name]
    like = jax.tree.map(lambda x: x.astype(jnp.bfloat16), LIKE)
    start, noise = draws(like, seed=1), draws(like, STEPS, P, seed=2)
    noise = jax.tree.map(lambda n: n * jnp.asarray(2.0**-7, n.dtype), noise)  # updates that vanish
    got = histories(mix, noise, start)
    assert max(law_1_errors(start, got, gain)) <= 8 * STEPS * EPS * 2 * gain
    assert got["view"]["a"].dtype == jnp.bfloat16
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(got["x"]))


# ---- drift ----


def drift(mix: Any, gradients: np.ndarray, alpha: float = 0.5) -> np.ndarray:
    """B̂ at the steps of given gradients [steps, p, d] of norm 1: [steps, p]."""
    opt: Any = optax.chain(optax.sgd(alpha), mix)
    start = jnp.zeros(gradients.shape[2])

    def one(grads):
        def step(carry, g):
            view, state = carry
            gap = ej.elastic_gap(view, state, AXIS)
            updates, state = opt.update(g, state, view)
            return (optax.apply_updates(view, updates), state), gap

        return jax.lax.scan(step, (start, opt.init(start)), grads)[1]

    run = jax.jit(jax.vmap(one, in_axes=1, out_axes=1, axis_name=AXIS))
    return np.sqrt(np.asarray(run(jnp.asarray(gradients, jnp.float32)))) / alpha


def test_drift_of_average_attains_its_bounds():
    steps, every = 24, 5
    opposite = np.ones((steps, 4, 1)) * np.array([1, -1, 1, -1])[:, None]
    b = drift(local.average(AXIS, every), opposite)
    rms = np.sqrt((b**2).mean(1))
    np.testing.assert_allclose(rms.max(), every - 1, rtol=1e-6)
    np.testing.assert_allclose(rms[::every], 0, atol=1e-6)
    one_against_all = np.ones((steps, 4, 1)) * np.array([1, -1, -1, -1])[:, None]
    b = drift(local.average(AXIS, every), one_against_all)
    np.testing.assert_allclose(b.max(), 2 * (every - 1) * 3 / 4, rtol=1e-6)
    leaning = draws(jnp.zeros(6), steps, 4, seed=5) + 1.0
    leaning = np.asarray(leaning / jnp.linalg.norm(leaning, axis=2, keepdims=True))
    b = drift(local.average(AXIS, every), leaning)
    assert 0.1 < np.sqrt((b**2).mean(1)).max() < every - 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "momentum", "nesterov", "delay"),
    [(0.7, 0.9, True, 0), (0.7, 0.6, False, 2), (4.0, 0.5, True, 3), (0.5, 0.5, True, 4)],
)
def test_drift_of_diloco_attains_its_bound(rate, momentum, nesterov, delay):
    """All agree for many rounds; in the last one worker turns, if that drives it further away."""
    every, p, rounds = 4, 4, 60
    gain = rate / (1 - momentum)
    coast = gain * momentum ** (2 if nesterov else 1)
    each = abs(gain / p - 1) + gain * (p - 1) / p
    last = every - 1 + delay
    bound = each * last + coast * every / (1 - momentum)
    steps = rounds * every + last + 1
    gradients = np.ones((steps, p, 1))
    if gain < p:
        gradients[rounds * every :, 0] = -1
    mix = local.diloco(AXIS, every, rate, momentum, nesterov=nesterov, delay=delay)
    b = drift(mix, gradients)
    missing = coast * every * momentum**rounds / (1 - momentum)  # of the rounds before the first
    np.testing.assert_allclose(b[-1, 0], bound - missing, rtol=1e-5)
    assert b.max() <= bound * (1 + 1e-5)
    split = local.diloco(
        AXIS, every, rate, momentum, nesterov=nesterov, delay=delay, fragments=[0, 1, 2]
    )
    leaning = draws([jnp.zeros(2)] * 3, 80, p, seed=6)
    norm = jnp.sqrt(sum(jnp.sum((g + 1) ** 2, axis=2, keepdims=True) for g in leaning))
    assert leaves_drift(split, [(g + 1) / norm for g in leaning]).max() <= bound * (1 + 1e-5)


def leaves_drift(mix: Any, gradients: list[jax.Array]) -> np.ndarray:
    """As `drift`, for parameters of several leaves."""
    start = [jnp.zeros(g.shape[2]) for g in gradients]
    step = ej.worker_step(
        lambda x, g: sum(jnp.sum(a * b) for a, b in zip(x, g, strict=True)),
        optax.chain(optax.sgd(1.0), mix),
        AXIS,
    )
    run = ej.simulate(step, gradients[0].shape[1])

    def body(states, g):
        gap = jax.vmap(lambda s: ej.elastic_gap(s.params, s.opt_state, AXIS), axis_name=AXIS)(
            states
        )
        return run.step(states, g)[0], gap

    return np.sqrt(np.asarray(jax.lax.scan(body, run.init(start), gradients)[1]))


@pytest.mark.slow
def test_mass_of_a_stack_of_workers():
    """As `jax.vmap` makes it: the gain and its like stand for whole workers."""
    chain = optax.chain(optax.sgd(1.0), local.diloco(AXIS, 4, 0.3, 0.6, delay=2))
    run = ej.simulate(ej.worker_step(lambda x, b: jnp.sum(x["w"] * b), chain, AXIS), 2)
    states = run.init({"w": jnp.zeros((3, 5))})
    for _ in range(5):
        states, _ = run.step(states, jnp.arange(30.0).reshape(2, 3, 5))
    mix = states.opt_state[1]
    expected = jax.vmap(lambda state: state.held())(mix)["w"]
    assert expected.shape == (2, 3, 5) and np.ptp(expected) > 0
    np.testing.assert_array_equal(mix.held()["w"], expected)


@pytest.mark.slow
def test_states_that_went_through_numpy_have_the_same_mass():
    """As a checkpoint gives them back: the gain counts all the same."""
    chain = optax.chain(optax.sgd(1.0), ej.delay(2), local.diloco(AXIS, 4, 0.3, 0.6))
    run = ej.simulate(ej.worker_step(lambda x, b: jnp.sum(x * b), chain, AXIS), 2)
    states = run.init(jnp.zeros(2))
    for _ in range(3):
        states, _ = run.step(states, jnp.ones((2, 2)))
    one = jax.tree.map(lambda x: x[0], states)
    host = jax.device_get(one)
    np.testing.assert_array_equal(
        ej.virtual_params(host.params, host.opt_state), ej.virtual_params(*one)
    )
