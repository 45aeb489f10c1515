"""Sharded parameters in loops: what crosses shards, where states stand, resize, the examples."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import AXIS
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from steps import EPS, draws, mesh_of
from test_devices import apart
from test_sharded import ALPHA, LIKE, QUICK, SPECS, WORKERS, loss, mesh_2x2

import elastic_jax as ej
from elastic_jax import shards
from elastic_jax.resize import resize
from experiments import example_linen, example_nnx
from experiments.checkpoints import Checkpoints

# ---- one worker, in a training loop of one's own: jit and NamedSharding ----

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
MATRIX = {"w": jnp.zeros((8, 6)), "b": jnp.zeros((6,)), "r": jnp.zeros((3,))}
COLUMNS = {"w": P(None, "model"), "b": P("model"), "r": P()}


def placed(specs: Any) -> Any:
    mesh = mesh_of(2, names=("model",))
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


@functools.cache
def compiled(kind: str) -> str:
    """A chain's program on sharded arrays, with its state placed as `state_specs` says."""
    specs = COLUMNS
    by_shard = functools.partial(shards.by_shard, mesh=mesh_of(2, names=("model",)), specs=specs)
    opt = {
        "coordinates": optax.chain(
            ej.delay(2), ej.delay(ej.delays.uniform(0, 3)), ej.correct.predict(2), ej.absorb()
        ),
        "top_k": ej.error_feedback(ej.top_k(0.25)),
        "sign": ej.error_feedback(ej.sign()),
        "by_shard": by_shard(
            optax.chain(
                *(ej.error_feedback(c) for c in (ej.top_k(0.25), ej.sign(), ej.low_rank(1))),
                ej.error_feedback(ej.random_k(0.5)),
                ej.error_feedback(ej.block_top_k(2, 3)),
                ej.compress(ej.quantize(4)),
            )
        ),
    }[kind]
    state = jax.eval_shape(opt.init, MATRIX)
    places = placed(shards.state_specs(state, MATRIX, specs))
    step = jax.jit(
        opt.update,
        in_shardings=(placed(specs), places, placed(specs)),
        out_shardings=(placed(specs), places),
        compiler_options=QUICK,
    )
    return step.lower(MATRIX, state, MATRIX).compile().as_text()


def crossing(text: str) -> set[str]:
    """The collectives in a program, each with the shape of its result."""
    return set(re.findall(rf" = (.* (?:{'|'.join(COLLECTIVES)}))(?:-start)?\(", text))


@pytest.mark.slow
def test_what_crosses_shards():
    """Read from the compiled programs: nothing, scalars, or the whole of a leaf."""
    for kind in ("coordinates", "by_shard"):
        assert crossing(compiled(kind)) == set()
    assert any("all-gather" in one and "[8,6]" in one for one in crossing(compiled("top_k")))
    of_sign = crossing(compiled("sign"))  # its scales
    assert of_sign and not any(re.search(r"\[\d", one) for one in of_sign)


@pytest.mark.slow
def test_each_device_sends_its_part():
    """Between workers: shard by shard half of the payload each; else the leaf is gathered first."""

    def between(by_shard):
        relaxed = ej.error_feedback(ej.top_k(0.25), AXIS)
        relaxed = shards.by_shard(relaxed, mesh_2x2(), COLUMNS) if by_shard else relaxed
        step = ej.worker_step(loss, optax.chain(optax.sgd(ALPHA), relaxed), AXIS)
        run = ej.distribute(step, mesh_2x2(), specs=COLUMNS)
        states = jax.eval_shape(run.init, MATRIX)
        batches = jax.tree.map(lambda x: jnp.zeros((WORKERS, *x.shape)), MATRIX)
        step = jax.jit(run.step, compiler_options=QUICK)
        return " ".join(crossing(step.lower(states, batches).compile().as_text()))

    assert "[8,6]" in between(False) and "u32[2,15]" in between(False)  # 12 + 2 + 1 entries
    assert "[8,6]" not in between(True) and "u32[2,8]" in between(True)  # 6 + 1 + 1


def test_states_stay_where_the_parameters_are():
    """Sharded as the parameters after init and after steps, and equal to what one device has."""
    opt = optax.chain(optax.sgd(0.1, 0.9), ej.error_feedback(ej.sign()), ej.delay(2))
    params, grads = (draws(MATRIX, seed=seed) for seed in (1, 2))
    want = params, opt.init(params)
    specs = COLUMNS, shards.state_specs(want[1], params, COLUMNS)
    places = placed(specs)

    def step(params, state, grads):
        updates, state = opt.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    got = jax.device_put(params, places[0])
    got = got, jax.jit(opt.init, out_shardings=places[1])(got)
    on_many, on_one = (jax.jit(step, compiler_options=QUICK) for _ in range(2))
    for _ in range(4):
        where = jax.tree.map(lambda x: x.sharding, got)
        assert jax.tree.all(
            jax.tree.map(lambda a, b, x: a.is_equivalent_to(b, x.ndim), where, places, got)
        )
        got, want = on_many(*got, grads), on_one(*want, grads)
    assert specs[1][2].queues["w"].slots == P(None, None, "model")
    np.testing.assert_allclose(got[0]["w"], want[0]["w"], rtol=0, atol=64 * EPS)
    assert got[1][2].queues["w"].slots.addressable_shards[0].data.shape == (3, 8, 3)


def test_the_innermost_path_says_whose_state_it_is():
    """Of parameters whose names hold one another, in trees and in sequences."""
    like = {"w": jnp.zeros((4, 4)), "deep": {"w": jnp.zeros((4, 4))}}
    specs = {"w": P("model"), "deep": {"w": P(None, "model")}}
    state = jax.eval_shape(optax.chain(optax.adam(0.1), ej.delay(2)).init, like)
    found = shards.state_specs(state, like, specs)
    assert found[0][0].mu == specs
    assert found[1].queues["deep"]["w"].slots == P(None, None, "model")
    assert found[1].queues["w"].slots == P(None, "model")
    like, specs = [jnp.zeros((4, 4)), [jnp.zeros((4, 4))]], [P(), [P("model")]]
    state = jax.eval_shape(optax.chain(ej.delay(1), ej.compress(ej.sign())).init, like)
    assert shards.state_specs(state, like, specs)[1].dropped == specs


# ---- resize, and several simulated workers on each pair of devices ----


@pytest.mark.slow
def test_resize_and_checkpoints_of_simulated_workers(tmp_path):
    """Two workers become four, simulated two by two: law 1 goes on, states stay sharded."""
    axis = ("sim", AXIS)

    def run(workers):
        inner = optax.chain(ej.error_feedback(ej.top_k(0.5), axis), ej.delay(2))
        inner = shards.by_shard(inner, mesh_2x2(), SPECS)
        step = ej.worker_step(loss, optax.chain(optax.sgd(ALPHA), inner), axis)
        return ej.distribute(step, mesh_2x2(), workers=workers, specs=SPECS)

    def iterate(state):
        held = jax.vmap(lambda s: ej.held(s.opt_state, s.params))(state)
        return jax.tree.map(lambda v, h: np.asarray(v + h).mean(0), state.params, held)

    params, batches = draws(LIKE, seed=2), draws(LIKE, 4, seed=1)
    two, four = run(2), run(4)
    state, _ = two.step(two.init(params), jax.tree.map(lambda x: x[:2], batches))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {})
    checkpoints.close()
    found = Checkpoints(tmp_path).restore(1, state, 2, NamedSharding(mesh_2x2(), P(AXIS)))
    found = jax.device_put(found, jax.tree.map(lambda x: x.sharding, state))  # where they were
    ends = (two.step(one, jax.tree.map(lambda x: x[2:], batches))[0] for one in (found, state))
    jax.tree.map(np.testing.assert_array_equal, *ends)
    moved = resize(state, 4)
    assert apart(iterate(moved), iterate(state)) <= 8 * EPS
    state, _ = four.step(moved, batches)
    want = jax.tree.map(lambda x, u: x - ALPHA * u.mean(0), iterate(moved), batches)
    assert apart(iterate(state), want) <= 32 * EPS
    residual = state.opt_state[1][0][0].residual["m"]
    for array in (state.params["m"], residual):
        assert array.addressable_shards[0].data.shape == (2, 6, 2)


# ---- the examples ----


@pytest.mark.slow
def test_linen_example():
    """Sharded over two devices it trains as on one."""
    got, want = (np.asarray(example_linen.main(devices, steps=10)) for devices in (2, 1))
    np.testing.assert_allclose(got, want, rtol=1e3 * EPS)  # sums of up to 128 terms, ten steps
    assert got[-3:, 0].mean() < got[0, 0] - 0.5 and got[-1, 1] > 0


@pytest.mark.slow
def test_nnx_example():
    """Split over two devices each, two workers train as with one each; their gaps are whole."""
    got, want = (np.asarray(example_nnx.main(2, split, steps=10)) for split in (2, 1))
    np.testing.assert_allclose(got, want, rtol=1e3 * EPS, atol=1e3 * EPS)
    assert got[-3:, 0].mean() < got[0, 0].mean() - 0.5 and got[-1, 1].min() > 0
