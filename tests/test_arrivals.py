"""When gradients arrive, and clocks that long runs do not wear out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import AXIS
from scheduler_runs import SHAPES, STEPS, P, run
from steps import EPS, double, draws

from elastic_jax.arrivals import backward, fixed, new_clock
from elastic_jax.schedulers import norm_bounded


def test_backward_sends_from_the_last_leaf_to_the_first():
    like = {"a": jnp.zeros(2), "b": jnp.zeros(1), "c": jnp.zeros(5)}
    like = jax.tree.map(lambda x: x.astype(jnp.float32), like) | {"b": jnp.zeros((), jnp.bfloat16)}

    def draw(model, busy=0.0):
        found = model.draw(jax.random.key(0), 0, like, 2, jnp.full(2, busy))
        return jax.tree.map(lambda x: float(x[0]), found)

    got = draw(backward(8.0, 4.0, 0.25))
    assert got.ready == {"c": 5.0, "b": 6.0, "a": 8.0}
    # c is 20 bytes, so 5 s; b waits for it and takes 0.5 s; so does a, and takes 2 s
    assert got.arrives == {"c": 10.25, "b": 10.75, "a": 12.75} and got.free == 12.5
    got = draw(backward(8.0, 4.0), busy=9.0)  # the link has still to send the step before
    assert got.arrives == {"c": 14.0, "b": 14.5, "a": 16.5} and got.free == 16.5
    assert draw(backward(8.0, math.inf, 1.0)).arrives == {"c": 6.0, "b": 7.0, "a": 9.0}
    weighted = backward(8.0, math.inf, flops_by={"a": 1.0, "b": 2, "c": 1})
    assert draw(weighted).ready == {"c": 2.0, "b": 6.0, "a": 8.0}


def test_compute_times_are_lognormal_and_alike_on_all_leaves():
    draw = backward(2.0, math.inf, spread=0.5).draw
    times = draw(jax.random.key(1), 0, SHAPES, 4000, jnp.zeros(4000))
    logs = np.log(double(times.ready["a"]) / 2)
    assert abs(logs.mean()) < 5 * 0.5 / math.sqrt(4000)
    assert abs(logs.std() / 0.5 - 1) < 5 / math.sqrt(8000)
    np.testing.assert_allclose(times.ready["b"] / times.ready["a"], 0.4, rtol=4 * EPS)


def test_a_link_is_never_faster_than_its_bandwidth():
    """Whoever goes on at once has the link still send what came before: time is not imagined."""
    updates = draws(SHAPES, STEPS, P)
    nbytes, bandwidth = 40, 4.0
    got = run(norm_bounded(AXIS, 0.9, backward(0.1, bandwidth)), updates)
    first = 0.1 * 4 / 10  # when b, the last leaf, is ready
    want = first + nbytes / bandwidth * np.arange(1, STEPS + 1)
    free, least = double(got["free"]), want[:, None] * (1 - 4 * STEPS * EPS)
    assert (free >= least).all() and (free[:2].min(1) <= want[:2] * (1 + 4 * STEPS * EPS)).all()
    assert float(got["elapsed"][0].min()) < nbytes / bandwidth  # some go on before it is sent


def test_time_does_not_wear_out():
    """After a million seconds a step of a millisecond is still seen."""
    arrivals = fixed(np.stack([np.full((2, 2), 1e6), np.full((2, 2), 1e-3)]))
    opt = norm_bounded(AXIS, 0.0, arrivals)

    def one(u):
        _, state = opt.update(u, opt.init(u))
        return opt.update(u, state)[1].clock

    clock = jax.jit(jax.vmap(one, axis_name=AXIS))(jnp.ones((2, 1)))
    np.testing.assert_allclose(clock.now, 1e-3, rtol=EPS)
    np.testing.assert_allclose(clock.origin, 1e6)


def test_a_long_run_keeps_its_time():
    """Sums of 1e5 steps of 0.1 s: a plain float32 sum would be off by a second and more."""
    steps, spent = 100_000, 0.1
    clock = new_clock()
    later = jnp.float32(spent)
    clock, _ = jax.lax.scan(
        lambda clock, _: (clock.moved(later, later, later), None), clock, length=steps
    )
    assert float(clock.time()) == pytest.approx(float(later) * (steps + 1), rel=2e-7)
