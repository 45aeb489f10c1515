"""Relaxations in a `jax.shard_map` of one's own, which checks what varies from device to device.

What that check (`check_vma`, on unless told otherwise) refuses, it refuses while it traces: no
device is needed. That such loops compute what simulated workers do, `test_devices` says.
"""

import contextlib
from typing import Any

import jax
import numpy as np
import optax
import pytest
from cases import AXIS, COMPRESSORS, LOCAL, exchanges, mixes
from jax.sharding import PartitionSpec as P
from steps import mesh_of
from test_devices import side_by_side
from test_sharded import ALPHA, FEW, LIKE, QUICK, SPECS, WORKERS, close, inputs, joined, loss
from test_sharded import results as of_shards

import elastic_jax as ej
from elastic_jax import shards, wire
from elastic_jax.wire import Wire
from elastic_jax.workers import WorkerState

MEAN = ej.all_mean(AXIS)
FEEDBACK = {name: ej.error_feedback(c, axis_name=AXIS) for name, c in COMPRESSORS.items()}
# name -> parts, and whether all workers apply the same update, and JAX can know
TABLE = {case.name: ([case.make(LIKE), MEAN], True) for case in LOCAL}
TABLE |= {case.name: ([case.make(LIKE)], case.alike) for case in exchanges(AXIS)}
TABLE |= {case.name: ([case.make(LIKE)], False) for case in mixes(AXIS)}
TABLE |= {f"feedback({name})": ([opt], True) for name, opt in FEEDBACK.items()}
for late in (1, 2):  # what was in flight is each worker's own, as far as JAX knows
    TABLE[f"feedback, delay({late})"] = ([FEEDBACK["top_k(2)"], ej.delay(late)], False)
TABLE["ef21(axis_name)"] = (TABLE["ef21(axis_name)"][0], False)  # and so is the mean that it keeps
# What looks at all leaves at once would move what is on every device by what is in a shard.
DISAGREES = [name for name in TABLE if name == "norm_bounded" or "tree" in name]
OF_WHOLE = [name for name in TABLE if "low_rank" in name]  # keep a factor as wide as a whole leaf


def trace(parts: list[Any], specs: Any, alike: bool = False) -> None:
    """Traces a loop over steps on 4 workers of 2 devices each; views are stacked, or replicated."""
    step = ej.worker_step(loss, optax.chain(optax.sgd(ALPHA), *parts), AXIS)
    states = jax.eval_shape(ej.simulate(step, 4).init, LIKE)
    of_one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), states)
    places = WorkerState(*shards.state_specs(tuple(of_one), LIKE, specs))
    stacked = jax.tree.map(lambda spec: P(AXIS, *spec), places)
    inside = WorkerState(places.params if alike else stacked.params, stacked.opt_state)
    given = WorkerState(of_one.params if alike else states.params, states.opt_state)

    def one(tree: Any, keep: bool) -> Any:
        return tree if keep else jax.tree.map(lambda x: x[0], tree)

    def train(state, batch):
        def body(state, _):
            return step.step(state, one(batch, False))[0], None

        start = WorkerState(one(state.params, alike), one(state.opt_state, False))
        end, _ = jax.lax.scan(body, start, length=2)
        back = jax.tree.map(lambda x: x[None], end)
        return WorkerState(end.params if alike else back.params, back.opt_state)

    mesh = mesh_of(4, 2, names=(AXIS, "model"))
    run = jax.shard_map(train, mesh=mesh, in_specs=(inside, stacked.params), out_specs=inside)
    jax.eval_shape(run, given, states.params)


@pytest.mark.parametrize("name", TABLE)
def test_replicated_views_stay_so_where_all_apply_the_same_update(name):
    """The mean of messages is known to be alike on all devices; elsewhere views are stacked."""
    parts, alike = TABLE[name]
    if alike:
        trace(parts, P(), alike=True)
        return
    trace(parts, P())
    with pytest.raises(TypeError, match="carry output must have equal types"):
        trace(parts, P(), alike=True)


@pytest.mark.parametrize("name", [name for name in TABLE if name not in OF_WHOLE])
def test_arrays_may_be_shards(name):
    """What is sharded stays sharded, and a bias beside it stays alike on all shards."""
    parts, alike = TABLE[name]
    if name in DISAGREES:
        with pytest.raises(TypeError, match="carry output must have equal types"):
            trace(parts, SPECS)
    else:
        trace(parts, SPECS, alike)


WHOLE_OR_NOT = [
    (name, P() if f"feedback({name})" in DISAGREES else SPECS)
    for name in FEEDBACK
    if f"feedback({name})" not in OF_WHOLE
]


@pytest.mark.parametrize(("name", "specs"), WHOLE_OR_NOT)
def test_every_payload_may_be_gathered(name, specs, monkeypatch):
    """Even where another way is cheaper; each device decodes the same mean."""
    monkeypatch.setattr(wire, "_cheapest", lambda *args: Wire("gather", 0, 0))
    trace([FEEDBACK[name]], specs, alike=True)


NAMES = [name for name in FEW if name not in OF_WHOLE]


def of_all_shards(params, noise):
    """The loss of `test_sharded`, which shards of one leaf have to add up."""
    alone = {name: loss(params[name], noise[name]) for name in params}
    return jax.lax.psum(alone["m"], "model") + alone["r"]


@pytest.mark.slow
def test_shards_do_what_they_would_do_alone():
    """Payloads of shards, and of a bias beside them, averaged over workers."""
    chains = [optax.chain(optax.sgd(ALPHA), *TABLE[name][0]) for name in NAMES]
    step = side_by_side([ej.worker_step(of_all_shards, chain, AXIS) for chain in chains])
    params, batches = inputs()
    states = ej.simulate(step, WORKERS).init(params)

    def place(state):
        of_one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tuple(state))
        found = WorkerState(*shards.state_specs(of_one, of_one[0], SPECS))
        return jax.tree.map(lambda spec: P(AXIS, *spec), found)

    def train(states, batches):
        def body(states, batch):
            return step.step(states, jax.tree.map(lambda x: x[0], batch))[0], None

        end, _ = jax.lax.scan(body, jax.tree.map(lambda x: x[0], states), batches)
        mass = [(s.params, ej.held(s.opt_state, s.params)) for s in end]
        return jax.tree.map(lambda x: x[None], mass)

    places = [P(None, AXIS, *SPECS[name]) for name in SPECS]
    places = tuple(map(place, states)), dict(zip(SPECS, places, strict=True))
    ends = [(one.params, one.params) for one in places[0]]
    mesh = mesh_of(WORKERS, 2, names=(AXIS, "model"))
    run = jax.shard_map(train, mesh=mesh, in_specs=places, out_specs=ends)
    found = jax.jit(run, compiler_options=QUICK)(states, batches)
    for name, got in zip(NAMES, found, strict=True):
        alone = of_shards("shards", FEW)[name]["mass"]
        want = joined((alone["params"], alone["held"]))
        assert close(jax.tree.map(np.asarray, got), want), name


def test_simulated_workers_inside_are_refused():
    """JAX cannot check what varies there, and fails without a word."""
    axis = ("sim", AXIS)
    step = ej.worker_step(loss, optax.chain(optax.sgd(ALPHA), ej.all_mean(axis)), axis)
    states = jax.eval_shape(ej.distribute(step, mesh_of(2), workers=4).init, LIKE)

    def block(*args):
        return jax.vmap(step.step, axis_name="sim")(*args)

    for check in (True, False):
        run = jax.shard_map(
            block, mesh=mesh_of(2), in_specs=P(AXIS), out_specs=P(AXIS), check_vma=check
        )
        refused = pytest.raises(ValueError, match="check_vma=False")
        with refused if check else contextlib.nullcontext():
            jax.eval_shape(run, states, states.params)
