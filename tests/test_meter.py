"""The meter: what it reports, when it samples, and that it changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import AXIS

import elastic_jax as ej

LOSS = ej.problems.quadratic([1.0, 0.3, 0.1], noise=0.5)
ROOT = (2 / 3) ** 0.5  # of the contraction of top-1 of 3


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_per_leaf_and_schedule():
    def loss(params, batch):
        return jnp.sum(params["a"] * batch) + 2 * jnp.sum(params["b"])

    schedule = optax.linear_schedule(0.0, 0.1, 10)  # alpha = 0 at step 0: M̂ has no sample there
    chain = optax.chain(optax.sgd(schedule), ej.delay(1))
    step = ej.worker_step(loss, ej.meter(chain, schedule, every=1, per_leaf=True))
    state = step.init({"a": jnp.zeros(2), "b": jnp.zeros(1)})
    for _ in range(12):
        state, _ = step.step(state, jnp.ones(2))
    got = state.opt_state
    assert (int(got.samples), int(got.proposals)) == (12, 11)
    np.testing.assert_allclose(got.gap.last["a"], 2 * 0.1**2, rtol=1e-5)
    np.testing.assert_allclose(got.gap.last["b"], 4 * 0.1**2, rtol=1e-5)
    for of in (got.second_moment.last, got.second_moment.mean, got.second_moment.max):
        np.testing.assert_allclose(of, np.sqrt(6), rtol=1e-5)
    np.testing.assert_allclose(got.elastic_constant.last, np.sqrt(6), rtol=1e-5)


@jax.numpy_dtype_promotion("standard")  # optax's schedules mix int32 and float32
def metered_history(schedule, part, memory=None, steps=60):
    """Gaps before every step, alphas, and the meter after every step."""
    opt = ej.meter(optax.chain(optax.sgd(schedule), part), schedule, every=1, memory=memory)
    step = ej.worker_step(LOSS.loss, opt)

    @jax.jit
    def go(state, batches):
        def one(state, batch):
            gap = ej.elastic_gap(state.params, state.opt_state)
            state, _ = step.step(state, batch)
            return state, (gap, state.opt_state._replace(inner=()))

        return jax.lax.scan(one, state, batches)[1]

    gaps, meter = go(step.init(LOSS.init), LOSS.sample(jax.random.key(2), (steps,)))
    alphas = jax.vmap(schedule)(jnp.arange(steps))
    return np.asarray(gaps, np.float64), np.asarray(alphas, np.float64), meter


SCHEDULES = {
    "decay": optax.cosine_decay_schedule(0.2, 50),  # 0 from step 50 on
    "warm-up": optax.warmup_cosine_decay_schedule(0.0, 0.2, 10, 50),
    "restart": optax.join_schedules([optax.cosine_decay_schedule(0.2, 20)] * 2, [30]),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("memory", [None, 8])
def test_a_schedule_keeps_the_measured_constant_under_the_derived_one(name, memory):
    """The window lemma B = τM, with M̂ for M: mass is measured by the alpha it came with."""
    gaps, alphas, meter = metered_history(SCHEDULES[name], ej.delay(8), memory)
    reach = [alphas[max(0, t - (memory or t)) : t + 1].max() for t in range(len(gaps))]
    own = np.sqrt(gaps) / np.where(np.asarray(reach) > 0, reach, 1)
    np.testing.assert_allclose(meter.elastic_constant.last, own, rtol=1e-5)
    np.testing.assert_allclose(meter.elastic_constant.max[-1], own.max(), rtol=1e-5)
    np.testing.assert_allclose(meter.elastic_constant.mean[-1], np.sqrt((own**2).mean()), rtol=1e-5)
    np.testing.assert_allclose(meter.gap.last, gaps, rtol=1e-5)
    assert gaps[alphas == 0].max() > 0  # mass is held on, and measured, while alpha is 0
    np.testing.assert_array_equal(meter.proposals[-1], np.count_nonzero(alphas))
    assert own.max() <= 8 * meter.second_moment.max[-1]


@pytest.mark.slow
def test_a_drop_that_is_divided_by_the_present_alpha_breaks_the_bound():
    """What `memory=0` asks for, and why it is not the default; feedback holds old mass too."""
    drop = optax.piecewise_constant_schedule(0.2, {30: 0.002})
    for part, B in ((ej.delay(8), 8.0), (ej.error_feedback(ej.top_k(1)), ROOT / (1 - ROOT))):
        for memory, keeps in ((None, True), (0, False)):
            _, _, meter = metered_history(drop, part, memory)
            most = B * meter.second_moment.max[-1]
            assert bool(meter.elastic_constant.max[-1] <= most) is keeps


def test_alarm_is_latched():
    chain = optax.chain(optax.sgd(0.1), ej.delay(3))
    quiet, _ = train(ej.meter(chain, 0.1, every=1, alarm=1e3))
    loud, _ = train(ej.meter(chain, 0.1, every=1, alarm=1e-3))
    assert not bool(quiet.opt_state.alarm) and bool(loud.opt_state.alarm)


def test_meter_skips_under_vmap():
    """Between samples nothing is measured: under vmap too the branches are branches."""
    decay = optax.exponential_decay(0.1, 1, 0.9)
    chain = optax.chain(optax.sgd(decay), ej.all_mean(AXIS))
    step = ej.worker_step(LOSS.loss, ej.meter(chain, decay, AXIS), AXIS)
    run = ej.simulate(step, 2)
    state = run.init(LOSS.init)
    batches = LOSS.sample(jax.random.key(0), (2,))
    jaxpr = str(jax.make_jaxpr(run.step)(state, batches))
    assert jaxpr.count("cond[") == 2
