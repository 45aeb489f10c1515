"""The meter: what it reports, when it samples, and that it changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import AXIS

import elastic_jax as ej

LOSS = ej.problems.quadratic([1.0, 0.3, 0.1], noise=0.5)


def train(optimizer, steps=40, workers=None):
    """Runs the quadratic; returns final states and the histories of true gaps and proposals."""
    problem = LOSS
    step = ej.worker_step(problem.loss, optimizer, AXIS if workers else None)
    run = ej.simulate(step, workers) if workers else step
    shape = (steps, workers) if workers else (steps,)
    batches = problem.sample(jax.random.key(1), shape)

    def gap(state):
        return ej.elastic_gap(state.params, state.opt_state, AXIS if workers else None)

    if workers:
        gap = jax.vmap(gap, axis_name=AXIS)

    @jax.jit
    def go(state, batches):
        def one(state, batch):
            now = gap(state)
            grads = jax.vmap(jax.grad(problem.loss))(state.params, batch) if workers else None
            state, _ = run.step(state, batch)
            return state, (now, grads)

        return jax.lax.scan(one, state, batches)

    return go(run.init(problem.init), batches)


@pytest.mark.parametrize("every", [1, 7])
def test_meter_reports_the_true_gap(every):
    alpha = 0.1
    chain = optax.chain(optax.sgd(alpha), ej.error_feedback(ej.top_k(1), AXIS), ej.delay(2))
    state, (gaps, grads) = train(ej.meter(chain, alpha, AXIS, every=every), workers=3)
    got = state.opt_state
    seen = np.asarray(gaps)[::every]
    moment = np.sum(np.asarray(grads)[::every] ** 2, axis=-1)
    np.testing.assert_array_equal(got.samples, len(seen))
    np.testing.assert_allclose(got.gap.mean, seen.mean(0), rtol=1e-5)
    np.testing.assert_allclose(got.gap.max, seen.max(0), rtol=1e-6)
    np.testing.assert_allclose(got.gap.last, seen[-1], rtol=1e-6)
    np.testing.assert_allclose(got.elastic_constant.mean, np.sqrt(seen.mean(0)) / alpha, rtol=1e-5)
    np.testing.assert_allclose(got.elastic_constant.max, np.sqrt(seen.max(0)) / alpha, rtol=1e-5)
    np.testing.assert_allclose(got.second_moment.mean, np.sqrt(moment.mean(0)), rtol=1e-4)
    np.testing.assert_allclose(got.second_moment.max, np.sqrt(moment.max(0)), rtol=1e-4)
    np.testing.assert_array_equal(got.lost_mass.max, 0)


def test_meter_changes_nothing():
    chain = optax.chain(optax.sgd(0.1), ej.compress(ej.random_k(1)), ej.delay(3))
    plain, _ = train(chain)
    metered, _ = train(ej.meter(chain, 0.1, every=3))
    np.testing.assert_allclose(plain.params, metered.params, rtol=1e-6)
    gone = ej.lost(plain.opt_state, plain.params)
    assert float(jnp.sum(gone**2)) > 0


def test_lost_mass_is_reported_apart():
    chain = optax.chain(optax.sgd(0.1), ej.compress(ej.top_k(1)))
    state, (gaps, _) = train(ej.meter(chain, 0.1, every=1))
    assert float(state.opt_state.lost_mass.last) > 0
    np.testing.assert_array_equal(gaps, 0)  # without feedback the views are the iterate


def test_per_leaf_and_schedule():
    def loss(params, batch):
        return jnp.sum(params["a"] * batch) + 2 * jnp.sum(params["b"])

    schedule = optax.linear_schedule(0.0, 0.1, 10)  # alpha = 0 at step 0: no sample there
    chain = optax.chain(optax.sgd(schedule), ej.delay(1))
    step = ej.worker_step(loss, ej.meter(chain, schedule, every=1, per_leaf=True))
    state = step.init({"a": jnp.zeros(2), "b": jnp.zeros(1)})
    for _ in range(12):
        state, _ = step.step(state, jnp.ones(2))
    got = state.opt_state
    assert int(got.samples) == 11
    np.testing.assert_allclose(got.gap.last["a"], 2 * 0.1**2, rtol=1e-5)
    np.testing.assert_allclose(got.gap.last["b"], 4 * 0.1**2, rtol=1e-5)
    np.testing.assert_allclose(got.second_moment.last, np.sqrt(6), rtol=1e-5)
    np.testing.assert_allclose(got.elastic_constant.last, np.sqrt(6), rtol=1e-5)


def test_alarm_is_latched():
    chain = optax.chain(optax.sgd(0.1), ej.delay(3))
    quiet, _ = train(ej.meter(chain, 0.1, every=1, alarm=1e3))
    loud, _ = train(ej.meter(chain, 0.1, every=1, alarm=1e-3))
    assert not bool(quiet.opt_state.alarm) and bool(loud.opt_state.alarm)


def test_meter_skips_under_vmap():
    """Between samples nothing is measured: under vmap too the branch is a branch."""
    chain = optax.chain(optax.sgd(0.1), ej.all_mean(AXIS))
    step = ej.worker_step(LOSS.loss, ej.meter(chain, 0.1, AXIS), AXIS)
    run = ej.simulate(step, 2)
    state = run.init(LOSS.init)
    batches = LOSS.sample(jax.random.key(0), (2,))
    jaxpr = str(jax.make_jaxpr(run.step)(state, batches))
    assert "cond[" in jaxpr
