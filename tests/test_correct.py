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
