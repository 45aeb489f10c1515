"""How workers meet: `gather` and `shift` over any axes, and exchanges that must take them all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import AXIS
from steps import mesh_of

import elastic_jax as ej
from elastic_jax.exchange import gather, shift, worker_index
from elastic_jax.workers import WorkerState, WorkerStep

P = 8
LAYOUTS = {  # axes, innermost first; the mesh's sizes, outermost first
    "vmap": (AXIS, ()),
    "shard_map": (AXIS, (8,)),
    "hybrid": (("sim", AXIS), (4,)),
    "two axes": (("b", "a"), (2, 4)),
    "hybrid on two axes": (("sim", "b", "a"), (2, 2)),
}


def run(layout: str, function):
    """What `function(axis)` gives on each of eight workers, stacked."""
    axis, sizes = LAYOUTS[layout]
    step = WorkerStep(
        lambda params: WorkerState(function(axis), ()), lambda state, batch: (state, 0.0), axis
    )
    if not sizes:
        return ej.simulate(step, P).init(jnp.zeros(()))
    names = (AXIS,) if len(sizes) == 1 else ("a", "b")
    return ej.distribute(step, mesh_of(*sizes, names=names), workers=P).init(jnp.zeros(()))


@functools.cache
def met(layout: str):
    def of_one(axis):
        own = worker_index(axis)
        pair = (own, jnp.stack([own, -own]))
        assert gather(jnp.zeros((0, 2)), axis).shape == (P, 0, 2)
        return [gather(pair, axis), {by: shift(pair, axis, by) for by in range(-3, 10)}]

    return jax.tree.map(np.asarray, run(layout, of_one).params)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gather_is_in_the_order_of_workers(layout):
    together, _ = met(layout)
    for worker in range(P):
        np.testing.assert_array_equal(together[0][worker], np.arange(P))
        np.testing.assert_array_equal(
            together[1][worker], np.stack([np.arange(P), -np.arange(P)], 1)
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shift_goes_around_the_ring(layout):
    for by, (number, pair) in met(layout)[1].items():
        want = (np.arange(P) + by) % P
        np.testing.assert_array_equal(number, want)
        np.testing.assert_array_equal(pair, np.stack([want, -want], 1))


ELSEWHERE = {
    "all_mean": ej.all_mean("other"),
    "error_feedback": ej.error_feedback(ej.top_k(1), axis_name="other"),
    "two axes": ej.all_mean(("a", "b")),
    "lossy": ej.links.lossy("other", 0.1),
    "mix": ej.gossip.mix("other", ej.graphs.ring()),
    "average": ej.local.average("other", 2),
}


@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize("axis", ["a", None])
def test_an_exchange_over_an_axis_that_is_not_the_workers_is_named(name, axis):
    """When states are made, and not by JAX, which would only find the name unbound."""
    chain = optax.chain(optax.sgd(0.1), ELSEWHERE[name])
    step = ej.worker_step(lambda x, b: jnp.sum(x * b), chain, axis)
    theirs = ("a", "b") if name == "two axes" else "other"
    with pytest.raises(ValueError) as error:
        (ej.simulate(step, 2) if axis else step).init(jnp.ones(3))
    said = f"exchanges over axis_name={theirs!r} but the worker step has axis_name={axis!r}"
    assert said in str(error.value) and f"pass axis_name={theirs!r} to worker_step" in str(error)


def test_a_meter_over_an_axis_that_is_not_the_workers_is_named():
    metered = ej.meter(optax.chain(optax.sgd(0.1), ej.all_mean("a")), 0.1, "other")
    run = ej.simulate(ej.worker_step(lambda x, b: jnp.sum(x * b), metered, "a"), 2)
    with pytest.raises(ValueError, match=r"meter measures over axis_name='other' but .*'a'"):
        run.init(jnp.ones(3))


@pytest.mark.parametrize(
    "exchange",
    [
        ej.all_mean("a"),
        ej.error_feedback(ej.top_k(1), axis_name="a"),
        ej.compress(ej.sign(), exchange=ej.all_mean(("a",))),
    ],
)
def test_an_exchange_between_some_workers_only_is_refused(exchange):
    """Views of the others would drift apart without a word."""

    def step_of(axis):
        return ej.worker_step(
            lambda x, b: jnp.sum(x * b), optax.chain(optax.sgd(0.1), exchange), axis
        )

    batches = jnp.ones((4, 3))
    run = ej.distribute(step_of(("a", "b")), mesh_of(2, 2, names=("b", "a")))
    words = r"exchanges over axis_name='a' but the worker step has axis_name=\('a', 'b'\)"
    with pytest.raises(ValueError, match=words):
        run.init(jnp.ones(3))
    metered = optax.chain(ej.meter(optax.chain(optax.sgd(0.1), exchange), 0.1, ("a", "b")))
    step = ej.worker_step(lambda x, b: jnp.sum(x * b), metered, ("a", "b"))
    run = ej.distribute(step, mesh_of(2, 2, names=("b", "a")))
    with pytest.raises(ValueError, match="would not all meet; pass axis_name"):
        run.init(jnp.ones(3))
    right = ej.distribute(step_of("a"), mesh_of(4, names=("a",)))
    right.step(right.init(jnp.ones(3)), batches)
