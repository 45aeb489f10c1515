"""Local steps on every machine: the same, and nothing crosses between meetings."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import AXIS
from jax.extend.core import jaxprs_in_params
from jax.sharding import PartitionSpec
from local_runs import ALPHA, LIKE, STEPS, close, ej, follow
from steps import EPS, draws, mesh_of

from elastic_jax import devices, local
from elastic_jax.exchange import varying

MIXES = {
    "average": lambda axis: local.average(axis, 3),
    "diloco": lambda axis: local.diloco(axis, 3),
    "diloco, in fragments and late": lambda axis: local.diloco(axis, 4, fragments=2, delay=1),
}


LAYOUTS = {  # axes, innermost first, and the mesh's sizes, outermost first
    "shard_map": (AXIS, (4,)),
    "pmap": (AXIS, ()),
    "hybrid": (("sim", AXIS), (2,)),
    "two axes": (("b", "a"), (2, 2)),
}


@functools.cache
def on(layout: str) -> Any:
    """Views and x of all transformations after each step, in one program."""
    axis, sizes = LAYOUTS.get(layout, (AXIS, ()))
    steps = [follow(make(axis), axis) for make in MIXES.values()]

    def init(params):
        return tuple(step.init(params) for step in steps)

    def one(states, noise):
        done = [step.step(state, noise) for step, state in zip(steps, states, strict=True)]
        return tuple(state for state, _ in done), [(out["view"], out["x"]) for _, out in done]

    step = steps[0]._replace(init=init, step=one)
    if layout == "vmap":
        run = ej.simulate(step, 4)
        run = run._replace(step=jax.jit(run.step))
    elif layout == "pmap":
        run = devices.pmap(step, 4)
    else:
        names = (AXIS,) if len(sizes) == 1 else ("a", "b")
        run = ej.distribute(step, mesh_of(*sizes, names=names), workers=4)
    states, history = run.init(draws(LIKE, seed=1)), []
    for noise in [draws(LIKE, 4, seed=seed) for seed in range(9)]:
        states, out = run.step(states, noise)
        history.append(jax.tree.map(np.asarray, out))
    return history


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_simulate(layout):
    """They meet under every layout, and nobody waits for ever."""
    close(on(layout), on("vmap"), EPS, 20)


def crossings(jaxpr: Any, inside: bool = False) -> list[tuple[str, bool]]:
    """Every collective of a program, and whether it stands in a branch."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name.startswith(("psum", "pmax", "pmin", "all_", "ppermute")):
            found.append((eqn.primitive.name, inside))
        inner = inside or eqn.primitive.name == "cond"
        for sub in jaxprs_in_params(eqn.params):
            found += crossings(sub, inner)
    return found


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize("check_vma", [False, True])
def test_nothing_crosses_devices_between_meetings(name, check_vma):
    """Every collective stands in a branch; also where JAX checks what varies."""
    opt: Any = optax.chain(optax.sgd(ALPHA), MIXES[name](AXIS))

    def block(noise):
        def step(carry, g):
            view, state = carry
            updates, state = opt.update(g, state, view)
            return (optax.apply_updates(view, updates), state), view

        start = varying(jnp.zeros(3), AXIS)
        state = varying(opt.init(start), AXIS)
        return jax.lax.scan(step, (start, state), noise[:, 0])[1][:, None]

    spec = PartitionSpec(None, AXIS)
    run = jax.shard_map(block, mesh=mesh_of(2), in_specs=spec, out_specs=spec, check_vma=check_vma)
    noise = draws(jnp.zeros(3), STEPS, 2, seed=3)
    found = crossings(jax.make_jaxpr(run)(noise).jaxpr)
    assert found and all(inside for _, inside in found), found
    assert np.isfinite(jax.jit(run)(noise)).all()


def test_simulated_workers_skip_the_meeting_too():
    """Under vmap the branch stays one: no select computes the mean at every step."""
    opt: Any = optax.chain(optax.sgd(ALPHA), local.average(AXIS, 3))
    step = jax.vmap(lambda g, state, view: opt.update(g, state, view), axis_name=AXIS)
    views = jnp.zeros((4, 3))
    text = str(jax.make_jaxpr(step)(views, jax.vmap(opt.init)(views), views))
    assert "cond[" in text and "f32[4,3] = select_n" not in text, text
