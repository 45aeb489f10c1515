"""Outcomes that are known exactly: identities, arrivals, seeds, checkpoints, narrow dtypes."""

import functools
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from cases import AXIS, LOCAL
from steps import EPS, at, double, draws, signature, stepper

import elastic_jax as ej

SGD = optax.sgd(0.5)
CASES = {case.name: case for case in LOCAL}

# ---- identity settings ----


FEEDBACKS = (ej.error_feedback, ej.compress, ej.ef21)


@pytest.mark.parametrize(
    "opt",
    [ej.delay(0), ej.delay(ej.delays.constant(0)), ej.delay(ej.delays.per_leaf([0, 0]))]
    + [make(ej.identity()) for make in FEEDBACKS],
)
def test_identity_settings_are_the_identity(opt):
    updates = [jnp.arange(3.0), jnp.ones(())]
    state = opt.init(updates)
    assert state == optax.identity().init(updates) and isinstance(state, optax.EmptyState)
    out, state = opt.update(updates, state, updates)
    assert all(a is b for a, b in zip(out, updates, strict=True))
    assert isinstance(state, optax.EmptyState)


@pytest.mark.parametrize("make", FEEDBACKS)
def test_identity_with_an_axis_is_all_mean(make):
    grads = draws(jnp.zeros((3, 4)))
    for opt in (make(ej.identity(), AXIS), make(ej.identity(), exchange=ej.all_mean(AXIS))):
        plain = ej.all_mean(AXIS)
        assert opt.init(grads) == plain.init(grads)
        got, expected = (
            jax.vmap(lambda g, o=o: o.update(g, o.init(g))[0], axis_name=AXIS)(grads)
            for o in (opt, plain)
        )
        chex.assert_trees_all_equal(got, expected)


def test_traced_identity_settings_agree_with_sgd():
    start, target = draws(jnp.zeros(9), seed=1), draws(jnp.zeros(9), seed=2)

    def run(*relaxations):
        opt = optax.chain(SGD, *relaxations)

        def step(carry, _):
            view, state = carry
            updates, state = opt.update(view - target, state, view)
            return (optax.apply_updates(view, updates), state), None

        return jax.lax.scan(step, (start, opt.init(start)), length=10)[0][0]

    plain = jax.jit(run)()
    late = jax.jit(lambda steps: run(ej.delay(steps, longest=2)))(jnp.asarray(0))
    sparse = jax.jit(lambda part: run(ej.error_feedback(ej.top_k(part))))(jnp.asarray(1.0))
    kept = jax.jit(lambda c: run(ej.error_feedback(ej.identity(), decay=c)))(jnp.asarray(1.0))
    for other in (late, sparse, kept):
        chex.assert_trees_all_close(other, plain, rtol=10 * EPS, atol=10 * EPS)


# ---- delays ----


def outputs(opt, updates, key=None):
    """What a transformation returns, step by step, in one scan."""
    state = opt.init(at(updates, 0))
    state = state if key is None else ej.fold_in_worker(state, key)

    def step(state, update):
        update, state = opt.update(update, state)
        return state, update

    return jax.jit(functools.partial(jax.lax.scan, step))(state, updates)


@pytest.mark.parametrize("tau", [1, 3, 8, {"a": 0, "b": 3, "c": 1}], ids=str)
def test_delay_returns_step_t_minus_tau(tau: Any):
    updates = draws({"a": jnp.zeros(3), "b": jnp.zeros(()), "c": [jnp.zeros((2, 2))] * 2}, 12)
    each = [tau] * 4 if isinstance(tau, int) else [0, 3, 1, 1]
    _, out = outputs(ej.delay(tau if isinstance(tau, int) else ej.delays.per_leaf(tau)), updates)
    for n, u, late in zip(each, *map(jax.tree.leaves, (updates, out)), strict=True):
        np.testing.assert_array_equal(late[n:], u[: 12 - n])
        assert not late[:n].any()


def arrivals(model: ej.delays.DelayModel, worker: int) -> np.ndarray:
    """Delays [40, 3] drawn for updates t = 2^t, read off the bits of what is returned."""
    steps, longest = 40, model.longest
    ones = np.r_[np.ldexp(1.0, np.arange(steps)), np.zeros(longest)]
    updates = jnp.asarray(np.stack([ones] * 3, axis=1), jnp.float32)
    state, out = outputs(ej.delay(model), updates, key=worker)
    assert not double(ej.held(state, updates[0])).any()
    bits = np.asarray(out).astype(np.int64)[:, None, :] >> np.arange(steps)[None, :, None] & 1
    assert (bits.sum(0) == 1).all()  # each exactly once
    return bits.argmax(0) - np.arange(steps)[:, None]


@pytest.mark.parametrize(
    ("model", "possible"),
    [
        (ej.delays.uniform(1, 4), {1, 2, 3, 4}),
        (ej.delays.pmf([0.5, 0.0, 0.5]), {0, 2}),
        (ej.delays.geometric(1.0, 5), set(range(6))),
        (ej.delays.per_coordinate(3), {0, 1, 2, 3}),
        (ej.delays.replay([0, 3, 1, 2, 2]), {0, 1, 2, 3}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_each_update_arrives_once_at_its_time(model: ej.delays.DelayModel, possible: set[int]):
    late, other = arrivals(model, 0), arrivals(model, 1)
    assert possible - {5} <= set(late.ravel().tolist()) <= possible
    whole = (late == late[:, :1]).all()
    assert whole == (not model.name.startswith("per_coordinate"))
    if model.name.startswith("replay"):
        np.testing.assert_array_equal(late[:, 0], np.resize([0, 3, 1, 2, 2], 40))
        np.testing.assert_array_equal(late, other)
    else:
        assert (late != other).any()  # a worker draws for itself
        spread = np.bincount(late.ravel()).max() / late.size
        assert spread < 0.8


# ---- seeds ----


RANDOM = {
    "uniform": lambda seed: ej.delay(ej.delays.uniform(0, 5), seed=seed),
    "random_k": lambda seed: ej.error_feedback(ej.random_k(4), seed=seed),
    "random_k, shared": lambda seed: ej.compress(ej.random_k(4, shared_seed=1), seed=seed),
    "quantize": lambda seed: ej.compress(ej.quantize(2), seed=seed),
    "natural": lambda seed: ej.ef21(ej.natural(), seed=seed),
}


@pytest.mark.parametrize("name", RANDOM)
def test_seeds_and_workers(name: str):
    params = jnp.zeros(16)
    make, grads = RANDOM[name], draws(params, 6)
    first, again, other = (make(seed).init(params) for seed in (0, 0, 1))
    states = [first, again, other, *(ej.fold_in_worker(first, i) for i in (0, 1))]
    states = jax.tree.map(lambda *rows: jnp.stack(rows), *states)

    def run(state):
        def step(state, grad):
            out, state = make(7).update(grad, state)  # the seed matters in init alone
            return state, out

        return jax.lax.scan(step, state, grads)[1]

    out = np.asarray(jax.jit(jax.vmap(run))(states))
    same = {(i, j) for i in range(5) for j in range(i) if (out[i] == out[j]).all()}
    shared = {(i, j) for i in range(5) for j in range(i)}
    assert same == (shared if "shared" in name else {(1, 0)})


# ---- checkpoints ----


@pytest.mark.slow
def test_a_restored_run_goes_on_with_the_same_bits(tmp_path):
    """Every type of state, saved in the middle of a run."""
    params = {"m": jnp.ones((6, 4)), "v": jnp.ones(5)}
    only_v = {"m": False, "v": True}
    chain = optax.chain(
        optax.inject_hyperparams(optax.sgd)(0.1),
        optax.trace(0.9),
        optax.masked(ej.error_feedback(ej.random_k(2)), only_v),
        ej.delay(ej.delays.per_leaf({"m": 0, "v": 2})),
        optax.partition(
            {"x": ej.delay(ej.delays.uniform(0, 2)), "y": ej.delay(1)}, {"m": "x", "v": "y"}
        ),
        ej.error_feedback(ej.low_rank(1), decay=0.9),
        ej.compress(ej.random_k(0.5, shared_seed=1)),
        ej.ef21(ej.top_k(0.5)),
        ej.absorb(),
    )
    opt = ej.meter(chain, 0.1, every=1, per_leaf=True, alarm=1e-3)
    step = jax.jit(stepper(opt)[0])
    run: Any = params, opt.init(params)
    for t in range(6):
        if t == 3:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(tmp_path / "run", run)
                checkpointer.wait_until_finished()
                target = jax.tree.map(jnp.zeros_like, (params, opt.init(params)))
                restored = checkpointer.restore(tmp_path / "run", target)
            assert signature(restored) == signature(run)
        grads = draws(params, seed=t)
        run = step(*run, grads)[:2]
        if t >= 3:
            restored = step(*restored, grads)[:2]
            chex.assert_trees_all_equal(restored, run)
    assert run[1].alarm


# ---- narrow parameters ----


def bf16_run(opt, updates: jax.Array, view: jax.Array, scanned: bool):
    """Views, and x, after every step of `view += updates`, both [T, ...]."""

    def step(carry, update):
        view, state = carry
        update, state = opt.update(update, state, view)
        view = optax.apply_updates(view, update)
        return (view, state), (view, ej.virtual_params(view, state))

    carry = view, opt.init(view)
    if scanned:  # two steps an iteration: XLA sees one step's rounding next to the other's use
        return jax.jit(lambda c, u: jax.lax.scan(step, c, u, unroll=2))(carry, updates)[1]
    step, seen = jax.jit(step), []
    for update in updates:
        carry, out = step(carry, update)
        seen.append(out)
    return jax.tree.map(lambda *rows: jnp.stack(rows), *seen)


@pytest.mark.slow
@pytest.mark.parametrize("scanned", [True, False])
def test_absorb_keeps_what_bfloat16_rounds_away(scanned: bool):
    steps, view = 200, jnp.linspace(1, 2, 64).astype(jnp.bfloat16)
    size = np.random.default_rng(0).uniform(2e-4, 2e-3, (steps, 64))
    updates = jnp.asarray(size, jnp.float32).astype(jnp.bfloat16)
    views, x = bf16_run(ej.absorb(), updates, view, scanned)
    should = double(view) + double(updates).cumsum(0)
    assert np.abs(double(x) - should).max() <= steps * EPS * 2
    assert np.abs(double(views) - should).max() <= 2**-7 * 1.01  # half a spacing in [2, 4)
    plain, _ = bf16_run(optax.identity(), updates, view, scanned)
    moved, all_of_it = double(plain[-1] - view).sum(), double(updates).sum()
    assert moved < 0.5 * all_of_it


LOSSLESS_IN_BF16 = """error_feedback(top_k(0.25)); error_feedback(quantize(8)); delay(5); ef21;
error_feedback(sign); delay(uniform); delay(per_coordinate); compress(quantize(4))"""


@pytest.mark.parametrize("name", re.split(r";\s", LOSSLESS_IN_BF16))
def test_bf16_updates_conserve_mass(name: str):
    """Sum of outputs + held + lost = sum of inputs; XLA must not drop a cast on the way."""
    updates = draws(jnp.zeros(32, jnp.bfloat16), 100)
    opt = CASES[name].make(updates[0])
    state, out = outputs(opt, updates)
    rest = double(ej.held(state, updates[0])) + double(ej.lost(state, updates[0]))
    error = double(out).sum(0) + rest - double(updates).sum(0)
    assert np.abs(error).max() <= 100 * EPS * 8
