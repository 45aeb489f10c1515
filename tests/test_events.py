"""Event-driven asynchrony against plain numpy, plain SGD, and its own laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import elastic_jax as ej
from elastic_jax.traces import Schedule

D = 6
EIGENVALUES = np.linspace(0.1, 1.0, D).astype(np.float32)


def loss(x, noise):
    return 0.5 * jnp.sum(EIGENVALUES * x * x) + jnp.sum(noise * x)


def numpy_run(trace, noise, alpha, k):
    """Asynchronous SGD with top-k feedback at the workers (k = 0: dense), written out."""
    x = np.ones(D, np.float64)
    versions = [x.copy()]
    residual = np.zeros((trace.workers, D))
    views, residuals = [], [residual.copy()]
    for t in range(len(trace.worker)):
        i, view = trace.worker[t], versions[trace.version[t]]
        views.append(view)
        u = -alpha * (EIGENVALUES * view + noise[t])
        if k:
            y = u + residual[i]
            kept = np.argsort(-np.abs(y), kind="stable")[:k]
            message = np.zeros(D)
            message[kept] = y[kept]
            residual[i] = y - message
        else:
            message = u
        x = x + message
        versions.append(x.copy())
        residuals.append(residual.copy())
    return np.array(versions), np.array(views), np.array(residuals)


@st.composite
def traces(draw):
    """Any legal trace: arbitrary versions, not only those of workers with one view at a time."""
    ticks = 24
    workers = draw(st.integers(1, 4))
    worker = draw(st.lists(st.integers(0, workers - 1), min_size=ticks, max_size=ticks))
    version = [draw(st.integers(max(0, t - 7), t)) for t in range(ticks)]
    return ej.make_trace(worker, version=version, workers=workers)


@functools.cache
def executor(k):
    chain = [optax.sgd(0.3)] + ([ej.error_feedback(ej.top_k(k))] if k else [])
    return ej.asynchronous(loss, optax.chain(*chain))


def execute(trace, noise, k, chunks=1):
    """Runs a trace in slices of one compiled program; slots as large as any trace here needs."""
    run = executor(k)
    schedule = trace.schedule()
    rows = 8
    write = np.where(schedule.write == schedule.slots, rows, schedule.write).astype(np.int32)
    state = run.init(jnp.ones(D), workers=4, slots=rows)
    out = []
    for part in np.split(np.arange(len(trace.worker)), chunks):
        piece = Schedule(schedule.worker[part], write[part], schedule.read[part], rows)
        state, ticks = run.run(state, piece, jnp.asarray(noise[part]))
        out.append(ticks)
    return state, jax.tree.map(lambda *leaves: np.concatenate(leaves), *out)


@settings(max_examples=20)
@given(traces(), st.sampled_from([0, 2]))
def test_equals_numpy_for_any_trace(trace, k):
    noise = np.random.default_rng(0).normal(size=(len(trace.worker), D)).astype(np.float32)
    state, ticks = execute(trace, noise, k)
    versions, views, residuals = numpy_run(trace, noise, 0.3, k)
    np.testing.assert_allclose(state.params, versions[-1], atol=2e-5)
    x = versions + residuals.sum(1)
    np.testing.assert_allclose(ticks.gap, np.sum((x[:-1] - views) ** 2, axis=1), atol=2e-4)
    np.testing.assert_allclose(state.params + state.away, x[-1], atol=2e-5)
    by_definition = ej.virtual_params(
        state.params, state.server_state, worker_states=state.worker_states
    )
    np.testing.assert_allclose(state.params + state.away, by_definition, atol=2e-5)


def test_slices_give_the_same_bits():
    trace = ej.draw_trace([ej.speeds.exponential()] * 4, ticks=24, seed=1)
    noise = np.random.default_rng(1).normal(size=(24, D)).astype(np.float32)
    once, whole = execute(trace, noise, 2)
    parts, sliced = execute(trace, noise, 2, chunks=3)
    jax.tree.map(np.testing.assert_array_equal, once.params, parts.params)
    jax.tree.map(np.testing.assert_array_equal, once.worker_states, parts.worker_states)
    jax.tree.map(np.testing.assert_array_equal, whole, sliced)


def network_loss(params, inputs):
    hidden = jnp.tanh(inputs @ params["a"])
    return jnp.mean((hidden @ params["b"]) ** 2) + 0.01 * jnp.sum(params["a"] ** 2)


NETWORK = {
    "a": jax.random.normal(jax.random.key(0), (8, 16)),
    "b": jax.random.normal(jax.random.key(1), (16, 3)),
}


@pytest.mark.parametrize(
    ("loss_fn", "start", "shape", "measure"),
    [
        (loss, jnp.ones(D), (D,), False),
        (network_loss, NETWORK, (4, 8), False),
        (network_loss, NETWORK, (4, 8), True),
    ],
)
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_one_worker_is_plain_sgd_bit_for_bit(loss_fn, start, shape, measure, momentum):
    """One worker has no delay: the same scan of value_and_grad, chain, apply gives the same bits.

    Measuring is left out where the gradient is elementwise: XLA then fuses it with what measures
    it, and contracts other products into fused multiply-adds.
    """
    ticks = 100
    optimizer = optax.sgd(0.1, momentum=momentum)
    batches = jax.random.normal(jax.random.key(2), (ticks, *shape))
    run = ej.asynchronous(loss_fn, optimizer, measure=measure)
    trace = ej.draw_trace([ej.speeds.lognormal()], ticks)
    state, got = run.run(run.init(start, 1), trace.schedule(), batches)

    @jax.jit
    def plain(batches):
        def step(carry, batch):
            params, opt_state = carry
            value, grads = jax.value_and_grad(loss_fn)(params, batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), value

        return jax.lax.scan(step, (start, optimizer.init(start)), batches)

    (params, _), losses = plain(batches)
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    np.testing.assert_array_equal(got.loss, losses)
    if measure:
        np.testing.assert_allclose(got.gap, 0, atol=1e-10)


LOCALS = {
    "compress": ej.compress(ej.random_k(2)),
    "decayed feedback": ej.error_feedback(ej.top_k(2), decay=0.8),
    "delay and feedback": optax.chain(
        ej.delay(ej.delays.uniform(0, 3)), ej.error_feedback(ej.sign())
    ),
    "ef21": ej.ef21(ej.top_k(2)),
}


@pytest.mark.parametrize("name", LOCALS)
@pytest.mark.parametrize("server", [None, "relaxed", "lossy"])
def test_the_iterate_carried_is_the_iterate_by_definition(name, server):
    """Law 1 for single steps, lost mass apart, with relaxations at workers and at the server."""
    at_server = {
        None: None,
        "relaxed": optax.chain(ej.delay(2), ej.error_feedback(ej.top_k(3))),
        "lossy": ej.compress(ej.top_k(3)),
    }[server]
    chain = optax.chain(optax.sgd(0.2), LOCALS[name])
    run = ej.asynchronous(loss, chain, at_server)
    trace = ej.draw_trace([ej.speeds.exponential()] * 3, ticks=60, seed=4)
    noise = jax.random.normal(jax.random.key(3), (60, D))
    state, ticks = run.run(run.init(jnp.ones(D), 3), trace.schedule(), noise)
    by_definition = ej.virtual_params(
        state.params, state.server_state, worker_states=state.worker_states
    )
    np.testing.assert_allclose(state.params + state.away, by_definition, atol=1e-4)
    assert np.isfinite(ticks.gap).all()


def test_counters_count_a_workers_own_steps():
    run = ej.asynchronous(
        lambda x, b: jnp.sum(x), optax.sgd(lambda step: jnp.where(step < 2, 1.0, 0.0))
    )
    trace = ej.make_trace([0, 0, 0, 1, 0, 1], delay=[0] * 6)
    state, _ = run.run(run.init(jnp.zeros(1), 2), trace.schedule(), jnp.zeros(6))
    np.testing.assert_allclose(state.params, [-4.0])  # two steps of either worker


def test_workers_draw_apart():
    run = ej.asynchronous(lambda x, b: jnp.sum(x), optax.chain(optax.sgd(1.0), LOCALS["compress"]))
    state = run.init(jnp.zeros(D), 4)
    keys = {tuple(key.tolist()) for key in np.asarray(state.worker_states[1].sender.worker_key)}
    assert len(keys) == 4


def test_levin_may_threshold():
    """x⁺ = x - αλ x_{t-τ} is stable iff αλ < 2 sin(π/(2(2τ+1))): p equal workers find it."""
    for p in (1, 2, 5):
        tau = p - 1
        edge = 2 * np.sin(np.pi / (2 * (2 * tau + 1)))
        trace = ej.draw_trace([ej.speeds.constant()] * p, ticks=600)
        for factor, stable in ((0.97, True), (1.03, False)):
            run = ej.asynchronous(
                lambda x, b: 0.5 * jnp.sum(x * x), optax.sgd(float(factor * edge))
            )
            state, _ = run.run(run.init(jnp.ones(1), p), trace.schedule(), jnp.zeros(600))
            assert (abs(float(state.params[0])) < 1) == stable


def test_window_lemma():
    """p equal workers, constant gradient of norm M: B̂ = (p - 1) M, attained; and no case above."""
    problem = ej.problems.linear(D, 2.0)
    for speeds in ([ej.speeds.constant()] * 4, [ej.speeds.pareto()] * 4):
        trace = ej.draw_trace(speeds, ticks=80, seed=2)
        run = ej.asynchronous(problem.loss, optax.sgd(0.1))
        batches = problem.sample(jax.random.key(0), (80,))
        state, ticks = run.run(run.init(problem.init, 4), trace.schedule(), batches)
        rounding = 80 * np.spacing(np.abs(state.params).max()) / 2 * np.sqrt(D) / 0.1  # of params
        np.testing.assert_allclose(
            np.sqrt(ticks.gap) / 0.1, 2.0 * trace.delay, rtol=1e-5, atol=float(rounding)
        )


def test_bad_batches_and_rooms_are_refused():
    run = ej.asynchronous(loss, optax.sgd(0.1))
    trace = ej.draw_trace([ej.speeds.constant()] * 3, ticks=9)
    with pytest.raises(ValueError, match="one batch for each of the 9 ticks"):
        run.run(run.init(jnp.ones(D), 3), trace.schedule(), jnp.zeros((8, D)))
    with pytest.raises(ValueError, match="slots=3 but state has room for 2"):
        run.run(run.init(jnp.ones(D), 2), trace.schedule(), jnp.zeros((9, D)))


def test_another_number_of_workers_is_refused():
    trace = ej.make_trace([0, 1, 2], delay=[0, 0, 0])
    run = ej.asynchronous(loss, optax.sgd(0.1, momentum=0.5))
    state = run.init(jnp.ones(D), 2)
    with pytest.raises(ValueError, match="has a worker 2 but state has workers=2"):
        run.run(state, trace.schedule(), jnp.zeros((3, D)))
    # inside the caller's jit it cannot be refused: the answer is NaN, not a number
    inside, _ = jax.jit(run.run)(state, trace.schedule(), jnp.zeros((3, D)))
    assert bool(jnp.isnan(inside.params).all())
    with pytest.raises(ValueError, match="no ticks"):
        run.run(state, Schedule(*(part[:0] for part in trace.schedule()[:3]), 1), jnp.zeros((0, D)))


def test_a_small_drift_of_large_parameters_is_measured():
    """x - params is carried, not x: parameters of 1000 leave the drift of steps of 1e-4 alone."""
    run = ej.asynchronous(
        lambda x, b: jnp.sum(x * b), optax.chain(optax.sgd(1e-4), ej.error_feedback(ej.top_k(1)))
    )
    noise = jax.random.normal(jax.random.key(0), (500, 3))
    trace = ej.draw_trace([ej.speeds.constant()], ticks=500)
    state, ticks = run.run(run.init(jnp.full(3, 1000.0), 1), trace.schedule(), noise)
    held = ej.held(jax.tree.map(lambda leaf: leaf[0], state.worker_states), state.params)
    np.testing.assert_allclose(state.away, held, atol=1e-8)
    moved = np.float64(state.params) + np.float64(state.away) - 1000
    rounding = 500 * float(np.spacing(np.float32(1000))) / 2  # of the parameters, each tick
    np.testing.assert_allclose(moved, -1e-4 * np.asarray(noise).sum(0), atol=rounding)
    assert float(jnp.sqrt(ticks.gap[:100]).max()) < 1.0


def test_state_can_be_donated():
    run = ej.asynchronous(loss, optax.sgd(0.1))
    trace = ej.draw_trace([ej.speeds.constant()] * 2, ticks=4)
    start = jnp.ones(D)
    go = jax.jit(run.run, donate_argnums=0)
    state, _ = go(run.init(start, 2), trace.schedule(), jnp.zeros((4, D)))
    assert bool(jnp.isfinite(state.params).all()) and bool((start == 1).all())


def test_narrow_parameters_move_by_what_they_really_moved():
    """With `absorb` at the server, bfloat16 parameters: x - params is what absorb holds."""
    run = ej.asynchronous(
        lambda x, b: jnp.sum(x.astype(jnp.float32) * b), optax.sgd(1e-3), server=ej.absorb()
    )
    trace = ej.draw_trace([ej.speeds.exponential()] * 3, ticks=200)
    noise = 1 + jax.random.uniform(jax.random.key(0), (200, 4))
    state, _ = run.run(run.init(jnp.ones(4, jnp.bfloat16), 3), trace.schedule(), noise)
    held = ej.held(state.server_state, state.params)
    np.testing.assert_allclose(state.away, held, atol=1e-6)
    x = ej.virtual_params(state.params, state.server_state, worker_states=state.worker_states)
    # the proposals themselves are bfloat16
    grads = np.asarray(noise, jnp.bfloat16).astype(np.float64)
    np.testing.assert_allclose(x, 1 - 1e-3 * grads.sum(0), rtol=2e-2)
