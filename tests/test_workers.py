"""p parallel workers against plain numpy, and what `simulate` promises."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import AXIS
from jax.sharding import PartitionSpec
from steps import draws, mesh_of

import elastic_jax as ej
from elastic_jax import workers
from elastic_jax.workers import WorkerStep

D, STEPS, ALPHA = 6, 30, 0.2
EIGENVALUES = np.linspace(0.1, 1.0, D).astype(np.float32)


def loss(x, noise):
    return 0.5 * jnp.sum(EIGENVALUES * x * x) + jnp.sum(noise * x)


def numpy_workers(noise, k, tau, late):
    """Top-k feedback at each worker, a mean of messages, then each worker's own constant delay."""
    p = noise.shape[1]
    views = np.ones((p, D))
    residual = np.zeros((p, D))
    in_flight = [[np.zeros(D)] * tau for _ in range(p)]
    held_back = [[np.zeros(D)] * late for _ in range(p)]
    gaps = []
    for t in range(len(noise)):
        held = residual + np.array([sum(queue, np.zeros(D)) for queue in in_flight])
        held = held + np.array([sum(queue, np.zeros(D)) for queue in held_back])
        gaps.append(np.sum(((views + held).mean(0) - views) ** 2, axis=1))
        messages = np.zeros((p, D))
        for i in range(p):
            u = -ALPHA * (EIGENVALUES * views[i] + noise[t, i])
            held_back[i] = [*held_back[i], u]
            y = held_back[i].pop(0) + residual[i]
            kept = np.argsort(-np.abs(y), kind="stable")[:k]
            messages[i, kept] = y[kept]
            residual[i] = y - messages[i]
        for i in range(p):
            in_flight[i] = [*in_flight[i], messages.mean(0)]
            views[i] = views[i] + in_flight[i].pop(0)
    return views, residual, np.array(gaps)


@pytest.mark.parametrize(
    ("workers", "k", "tau", "late"), [(1, 2, 0, 0), (3, 2, 3, 0), (4, 1, 2, 1)]
)
def test_equals_numpy(workers, k, tau, late):
    noise = np.random.default_rng(workers).normal(size=(STEPS, workers, D)).astype(np.float32)
    feedback = ej.error_feedback(ej.top_k(k), axis_name=AXIS)
    chain = optax.chain(optax.sgd(ALPHA), ej.delay(late), feedback, ej.delay(tau))
    run = ej.simulate(ej.worker_step(loss, chain, AXIS), workers)
    gap = jax.vmap(lambda s: ej.elastic_gap(s.params, s.opt_state, AXIS), axis_name=AXIS)

    @jax.jit
    def go(state, noise):
        def one(state, batch):
            now = gap(state)
            state, losses = run.step(state, batch)
            return state, (now, losses)

        return jax.lax.scan(one, state, noise)

    state, (gaps, losses) = go(run.init(jnp.ones(D)), jnp.asarray(noise))
    views, residual, want = numpy_workers(noise, k, tau, late)
    np.testing.assert_allclose(state.params, views, atol=2e-5)
    np.testing.assert_allclose(gaps, want, atol=2e-4)
    assert losses.shape == (STEPS, workers)
    held = jax.vmap(lambda s: ej.held(s.opt_state, s.params))(state)
    if tau == late == 0:
        np.testing.assert_allclose(held, residual, atol=2e-5)


def test_synchronous_is_the_mean_gradient():
    """Without relaxations p workers are one worker on the mean of their gradients."""
    noise = jax.random.normal(jax.random.key(0), (STEPS, 3, D))
    chain = optax.chain(optax.sgd(ALPHA, momentum=0.9), ej.all_mean(AXIS))
    run = ej.simulate(ej.worker_step(loss, chain, AXIS), 3)
    state, _ = jax.lax.scan(run.step, run.init(jnp.ones(D)), noise)
    alone = ej.worker_step(loss, optax.sgd(ALPHA, momentum=0.9))
    single, _ = jax.lax.scan(alone.step, alone.init(jnp.ones(D)), noise.mean(1))
    np.testing.assert_allclose(state.params, np.broadcast_to(single.params, (3, D)), atol=1e-5)


@pytest.mark.slow
def test_aux_and_randomness_of_workers():
    chain = optax.chain(optax.sgd(ALPHA), ej.compress(ej.random_k(2), axis_name=AXIS))
    step = ej.worker_step(lambda x, b: (loss(x, b), x.sum()), chain, AXIS, has_aux=True)
    run = ej.simulate(step, 4)
    state = run.init(jnp.ones(D))
    keys = {tuple(key) for key in np.asarray(state.opt_state[1][0].sender.worker_key).tolist()}
    assert len(keys) == 4
    _, (losses, aux) = run.step(state, jnp.zeros((4, D)))
    assert losses.shape == aux.shape == (4,)
    np.testing.assert_allclose(aux, D)


def test_two_relaxations_with_one_seed_draw_apart():
    half = ej.compress(ej.random_k(3))
    step = ej.worker_step(loss, optax.chain(optax.sgd(ALPHA), half, half))
    state = step.init(jnp.ones(D))
    first, second = (np.asarray(part.sender.worker_key) for part in state.opt_state[1:])
    assert (first != second).any()
    # in a loop of one's own they differ once the worker is folded in
    state = optax.chain(half, half).init(jnp.ones(D))
    assert (state[0].sender.worker_key == state[1].sender.worker_key).all()
    state = ej.fold_in_worker(state, 0)
    assert (state[0].sender.worker_key != state[1].sender.worker_key).any()


def test_gap_where_views_differ():
    """Delays of each worker's own part the views: the gap is ||x - v||², x the same for all."""
    chain = optax.chain(optax.sgd(ALPHA), ej.all_mean(AXIS), ej.delay(ej.delays.uniform(0, 4)))
    run = ej.simulate(ej.worker_step(loss, chain, AXIS), 3)
    noise = jax.random.normal(jax.random.key(1), (STEPS, 3, D))
    state, _ = jax.lax.scan(run.step, run.init(jnp.ones(D)), noise)

    def one(state):
        x = ej.virtual_params(state.params, state.opt_state, AXIS)
        return x, ej.elastic_gap(state.params, state.opt_state, AXIS)

    x, gap = jax.vmap(one, axis_name=AXIS)(state)
    assert float(jnp.abs(state.params - state.params[:1]).max()) > 0.01
    np.testing.assert_allclose(x, np.broadcast_to(x[0], (3, D)), atol=1e-6)
    np.testing.assert_allclose(gap, np.sum((x - state.params) ** 2, axis=1), rtol=1e-4)


# ---- gradients are each worker's own ----


def linear_loss(x, noise):
    return jnp.sum(x * noise)


def small(axis: Any, *parts: optax.GradientTransformation) -> WorkerStep:
    return ej.worker_step(linear_loss, optax.chain(optax.sgd(1.0), *parts), axis)


def feedback_by_hand(batches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Top-1 feedback of gradients that are the batches: the parameters, and residuals [p, d]."""
    params, residual = np.zeros(batches.shape[-1]), np.zeros((len(batches), batches.shape[-1]))
    for t in range(batches.shape[1]):
        y = residual - batches[:, t]
        message = np.where(np.abs(y) == np.abs(y).max(1, keepdims=True), y, 0)
        params, residual = params + message.mean(0), y - message
    return params, residual


def users_own(check_vma: bool, batches: jax.Array) -> Any:
    """A shard_map of the user's around `step.step`, with replicated parameters."""
    step = small(AXIS, ej.error_feedback(ej.top_k(1), axis_name=AXIS))

    def train(params, batches):
        state = step.init(params)
        for t in range(batches.shape[1]):
            state, _ = step.step(state, batches[0, t])
        return state.params, ej.held(state.opt_state, state.params)[None]

    specs = (PartitionSpec(), PartitionSpec(AXIS))
    run = jax.shard_map(
        train, mesh=mesh_of(4), in_specs=specs, out_specs=specs, check_vma=check_vma
    )
    return jax.jit(run)(jnp.zeros(5), batches)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("broken", [False, True])
def test_gradients_are_local_in_a_shard_map_of_ones_own(check_vma, broken, monkeypatch):
    """Feedback holds each worker's own mass; without the cast in `_local` it would not."""
    if broken:
        monkeypatch.setattr(workers, "_local", lambda params, axis_name: params)
    batches = draws(jnp.zeros(5), 4, 3, seed=3)
    params, held = users_own(check_vma, batches)
    want_params, want_held = feedback_by_hand(np.asarray(batches, np.float64))
    right = np.allclose(held, want_held, atol=1e-5) and np.allclose(params, want_params, atol=1e-5)
    assert right != (broken and check_vma)  # unchecked, JAX does not sum
    if not broken:
        assert len(np.unique(np.asarray(held), axis=0)) == 4


@pytest.mark.slow
def test_stacked_states_make_gradients_local(monkeypatch):
    """`distribute` does not lean on the cast: each device holds views of its own."""
    monkeypatch.setattr(workers, "_local", lambda params, axis_name: params)
    batches = draws(jnp.zeros(5), 4, 3, seed=3)
    for axis, mesh in ((AXIS, mesh_of(4)), (("sim", AXIS), mesh_of(2))):
        step = small(axis, ej.error_feedback(ej.top_k(1), axis_name=axis))
        run = ej.distribute(step, mesh, workers=4)
        states, _ = jax.lax.scan(run.step, run.init(jnp.zeros(5)), jnp.swapaxes(batches, 0, 1))
        params, held = feedback_by_hand(np.asarray(batches, np.float64))
        np.testing.assert_allclose(states.params, np.broadcast_to(params, (4, 5)), atol=1e-5)
        np.testing.assert_allclose(states.opt_state[1][0].residual, held, atol=1e-5)


def test_a_meter_in_a_shard_map_of_ones_own():
    """Its branches agree on what varies, also where states start replicated."""
    chain = optax.chain(optax.sgd(1.0), ej.error_feedback(ej.top_k(1), axis_name=AXIS))
    step = ej.worker_step(linear_loss, ej.meter(chain, 1.0, AXIS, every=1), AXIS)

    def train(params, batches):
        state = step.step(step.init(params), batches[0])[0]
        state = step.step(state, batches[0])[0]
        return state.opt_state.gap.last[None], state.opt_state.second_moment.max[None]

    spec = PartitionSpec(AXIS)
    run = jax.shard_map(
        train, mesh=mesh_of(2), in_specs=(PartitionSpec(), spec), out_specs=(spec, spec)
    )
    gap, moment = jax.jit(run)(jnp.zeros(2), jnp.array([[3.0, 1.0], [1.0, 5.0]]))
    np.testing.assert_allclose(gap, [0.5, 0.5])  # the mean of residuals (0, -1) and (-1, 0)
    np.testing.assert_allclose(moment, [10**0.5, 26**0.5], rtol=1e-6)
