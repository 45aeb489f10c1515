"""Corrections for stale gradients, against loops written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import draws

import elastic_jax as ej
from elastic_jax import correct

D, TICKS, ALPHA = 3, 40, 0.1


def loss(x, noise):
    return jnp.sum(x * x) / 2 + jnp.sum(x * noise)


def asynchronous(*parts: optax.GradientTransformation):
    """Final parameters of four workers on a trace; the trace; the noise."""
    trace = ej.draw_trace([ej.speeds.pareto()] * 4, TICKS, seed=1)
    noise = draws(jnp.zeros(D), TICKS)
    run = ej.asynchronous(loss, optax.chain(*parts))
    state, ticks = run.run(run.init(jnp.ones(D), 4), trace.schedule(), noise)
    return np.asarray(state.params), trace, np.asarray(noise, np.float64), ticks


def loop(trace, noise, step):
    """The same by definition: `step(g, staleness, now, view) -> proposal`."""
    versions = [np.ones(D)]
    for t in range(TICKS):
        view = versions[trace.version[t]]
        g = view + noise[t]
        versions.append(versions[-1] + step(g, t - trace.version[t], versions[-1], view))
    return versions[-1]


RULES = {
    "inverse": (correct.inverse(0.5), lambda late: (1 + late) ** -0.5),
    "capped": (correct.capped(2), lambda late: min(1, 2 / max(late, 1))),
    "dropped": (correct.dropped(3), lambda late: float(late < 3)),
}


@pytest.mark.parametrize("name", RULES)
def test_by_staleness(name):
    rule, factor = RULES[name]
    got, trace, noise, ticks = asynchronous(correct.by_staleness(rule), optax.sgd(ALPHA))
    want = loop(trace, noise, lambda g, late, now, view: -ALPHA * factor(late) * g)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    plain = loop(trace, noise, lambda g, late, now, view: -ALPHA * g)
    assert np.abs(plain - want).max() > 1e-2  # the trace has what the rule is for
    assert np.isfinite(ticks.gap).all()  # it stands before the base: held mass keeps its unit


@pytest.mark.parametrize(("limit", "applied"), [(1, 1), (3, 3), (4, 30)])
def test_what_is_too_stale_stays_so_among_workers_of_equal_speed(limit, applied):
    trace = ej.draw_trace([ej.speeds.constant(1.0)] * 4, 30, seed=0)
    factors = correct.dropped(limit).factor(jnp.asarray(trace.delay, jnp.float32))
    assert float(factors.sum()) == applied


@pytest.mark.parametrize("name", RULES)
def test_factors_are_as_wide_as_the_gradients(name):
    rule, factor = RULES[name]
    opt = correct.by_staleness(rule)
    with jax.enable_x64(True):
        tree = {"d": jnp.ones(2, "float64"), "b": jnp.full(2, 1.75, "bfloat16")}
        out, _ = jax.jit(opt.update)(tree, optax.EmptyState(), staleness=jnp.int32(6))
    assert out["d"].dtype == np.float64 and out["b"].dtype == jnp.bfloat16
    np.testing.assert_allclose(out["d"], factor(6), rtol=4 * float(jnp.finfo("float64").eps))
    # multiplied first, then rounded, once
    want = np.float32(1.75 * factor(6)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(out["b"], want)


@pytest.mark.parametrize("decay", [None, 0.5])
def test_compensate_leaves_large_gradients_of_fresh_views_alone(decay):
    opt = correct.compensate(1.0, decay)
    view, g = jnp.ones(2), jnp.asarray([1e25, 1.0])
    out, _ = opt.update(g, opt.init(view), view, server_params=view)
    np.testing.assert_array_equal(out, g)


def test_compensate_some_leaves():
    """Masked and parted trees: what the server's parameters are is told of all leaves."""
    view, now = ({"a": jnp.full(2, x), "b": jnp.full(3, x)} for x in (0.0, 0.5))
    grads, mask = {"a": jnp.full(2, 2.0), "b": jnp.ones(3)}, {"a": True, "b": False}
    one = correct.compensate(1.0, 0.5, epsilon=1.0)
    parts = {"x": one, "y": optax.identity()}
    want = {"a": np.full(2, 2 + 4 * 0.5 / np.sqrt(2 + 1)), "b": np.ones(3)}
    for opt in (
        optax.masked(one, mask),
        optax.masked(one, mask, mask_compatible_extra_args=True),
        optax.partition(parts, {"a": "x", "b": "y"}),
    ):
        out, _ = opt.update(grads, opt.init(view), view, server_params=now)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), out, want)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_compensate(decay):
    strength = 0.5
    chain = correct.compensate(strength, decay, epsilon=1e-3), optax.sgd(ALPHA)
    got, trace, noise, _ = asynchronous(*chain)
    means = np.zeros((4, D))

    def step(g, late, now, view):
        scale = strength
        if decay is not None:
            worker = trace.worker[step.tick]
            means[worker] = decay * means[worker] + (1 - decay) * g**2
            scale = strength / np.sqrt(means[worker] + 1e-3)
        step.tick += 1
        return -ALPHA * (g + scale * g * g * (now - view))

    step.tick = 0
    want = loop(trace, noise, step)
    np.testing.assert_allclose(got, want, rtol=2e-5)
    plain = loop(trace, noise, lambda g, late, now, view: -ALPHA * g)
    assert np.abs(plain - want).max() > 1e-2


def test_slices_know_how_stale_they_are():
    trace = ej.draw_trace([ej.speeds.lognormal()] * 4, TICKS, seed=2)
    noise, schedule = draws(jnp.zeros(D), TICKS), trace.schedule()
    chain = optax.chain(correct.by_staleness(correct.inverse()), optax.sgd(ALPHA))
    run = ej.asynchronous(loss, chain)
    whole, _ = run.run(run.init(jnp.ones(D), 4, schedule.slots), schedule, noise)
    state = run.init(jnp.ones(D), 4, schedule.slots)
    for half in (slice(0, TICKS // 2), slice(TICKS // 2, TICKS)):
        piece = schedule._replace(
            worker=schedule.worker[half], write=schedule.write[half], read=schedule.read[half]
        )
        state, _ = run.run(state, piece, noise[half])
    np.testing.assert_array_equal(state.params, whole.params)


def test_predict_by_hand():
    """The view is what the true parameters are, plus steps times the mean update."""
    updates = np.asarray(draws(jnp.zeros(2), 20), np.float64)
    opt = correct.predict(4.0, momentum=0.8)
    view = jnp.zeros(2)
    state, x, trend = opt.init(view), np.zeros(2), np.zeros(2)
    for u in updates:
        out, state = opt.update(jnp.asarray(u, jnp.float32), state, view)
        view = optax.apply_updates(view, out)
        x, trend = x + u, 0.8 * trend + 0.2 * u
        np.testing.assert_allclose(view, x + 4 * trend, atol=1e-5)
        np.testing.assert_allclose(ej.virtual_params(view, state), x, atol=1e-5)


def test_updates_that_turn_attain_the_bound_of_a_predicted_delay():
    """What is in flight is all new, what is predicted all old: 2τM, and never more."""
    opt = optax.chain(ej.delay(4), correct.predict(4, momentum=0.5))

    def step(carry, u):
        view, state = carry
        update, state = opt.update(u, state, view)
        view = optax.apply_updates(view, update)
        return (view, state), ej.elastic_gap(view, state)

    start, ones = jnp.zeros(1), jnp.ones((40, 1))
    updates = jnp.concatenate([ones, -ones])
    _, gap = jax.lax.scan(step, (start, opt.init(start)), updates)
    assert float(gap.max()) ** 0.5 == pytest.approx(2 * 4)


@pytest.mark.slow
def test_settings_can_be_swept_in_one_vmap():
    """Traced settings are those given at construction, to rounding; 0 steps look nowhere."""
    u, view, now = draws(jnp.zeros((3, 4)), seed=3)

    def of(steps, strength, decay):
        opt = optax.chain(
            correct.by_staleness(correct.inverse(strength)),
            correct.compensate(strength, decay, epsilon=strength),
            correct.predict(steps, decay),
        )
        return opt.update(u, opt.init(u), view, staleness=2, server_params=now)[0]

    settings = (0.0, 0.5, 0.1), (2.0, 1.5, 0.9)
    together = jax.vmap(of)(*jnp.asarray(settings).T)
    for got, own in zip(together, settings, strict=True):
        np.testing.assert_allclose(got, of(*own), rtol=1e-5)


@pytest.mark.slow
def test_prediction_helps_where_updates_persist():
    """A trend that is as old as the delay is good for that long again; not where updates turn."""
    problem = ej.problems.quadratic([0.02, 0.05, 0.1, 0.2], noise=0.0)

    def mean_gap(alpha, *parts):
        opt = ej.meter(optax.chain(optax.sgd(alpha), ej.delay(8), *parts), alpha, every=1)
        step = ej.worker_step(problem.loss, opt)
        state, _ = jax.lax.scan(step.step, step.init(problem.init), jnp.zeros((300, 4)))
        return float(state.opt_state.gap.mean)

    def ratio(alpha):
        return mean_gap(alpha, correct.predict(8, momentum=0.5)) / mean_gap(alpha)

    assert ratio(0.02) < 0.25
    assert ratio(0.5) > 1


BAD = {
    "rule": (lambda: correct.by_staleness(0.5), "rule=0.5 is no Rule"),
    "power": (lambda: correct.inverse(0), "power=0 is out of range"),
    "limit": (lambda: correct.capped(0), "limit=0 is no number of updates"),
    "strength": (lambda: correct.compensate(-1), "strength=-1 is out of range"),
    "decay": (lambda: correct.compensate(1, 1.0), "decay=1.0 is out of range"),
    "steps": (lambda: correct.predict(-1), "steps=-1 is out of range"),
    "momentum": (lambda: correct.predict(1, 1.0), "momentum=1.0 is out of range"),
    "steps of an array": (
        lambda: correct.predict(jnp.ones(2)),
        "steps has shape .2,.*float scalar",
    ),
    "a decay of JAX": (
        lambda: correct.compensate(1, jnp.float32(1)),
        "decay=Array.1.*out of range",
    ),
    "untold staleness": (
        lambda: correct.by_staleness(correct.inverse()).update(jnp.ones(1), optax.EmptyState()),
        "staleness is None.*use asynchronous",
    ),
    "untold parameters": (
        lambda: correct.compensate().update(
            jnp.ones(1), correct.compensate().init(jnp.ones(1)), jnp.ones(1)
        ),
        "server_params is None",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_with_a_message_that_helps(name):
    call, match = BAD[name]
    with pytest.raises((TypeError, ValueError), match=match):
        call()
