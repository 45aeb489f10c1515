"""Histories of exchanges under `simulate`: who has what after each step, and measured constants."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cases import AXIS
from steps import double, draws

import elastic_jax as ej
from elastic_jax.workers import WorkerStep

ALPHA, P, STEPS = 0.5, 4, 40
SGD = optax.sgd(ALPHA)


def linear(x, b):
    """A loss whose gradient is the batch."""
    return sum(jax.tree.leaves(jax.tree.map(lambda v, g: jnp.sum(v * g), x, b)))


def worker(exchange, axis=AXIS, *more) -> WorkerStep:
    return ej.worker_step(linear, optax.chain(SGD, exchange, *more), axis)


def together(steps: list[WorkerStep]) -> WorkerStep:
    """Several worker steps on the same batches, as one: they compile sooner."""

    def step(states, batch):
        done = [one.step(state, batch) for one, state in zip(steps, states, strict=True)]
        return tuple(state for state, _ in done), tuple(out for _, out in done)

    return WorkerStep(lambda params: tuple(s.init(params) for s in steps), step, steps[0].axis_name)


def masses(state) -> dict[str, Any]:
    """Of all workers."""
    held = jax.vmap(lambda s: ej.held(s.opt_state, s.params))(state)
    gone = jax.vmap(lambda s: ej.lost(s.opt_state, s.params))(state)
    return {"view": state.params, "held": held, "lost": gone}


@functools.partial(jax.jit, static_argnums=0)
def scanned(run: WorkerStep, grads):
    """Masses and exchange states after each step [steps, p, ...]."""

    def step(states, g):
        states, _ = run.step(states, g)
        return states, (masses(states), states.opt_state[1])

    return jax.lax.scan(step, run.init(jax.tree.map(lambda g: g[0, 0] * 0, grads)), grads)[1]


def history(exchange, grads):
    """As `scanned`, in NumPy; float64 masses."""
    found, state = scanned(ej.simulate(worker(exchange), grads.shape[1]), grads)
    return jax.tree.map(double, found), jax.tree.map(np.asarray, state)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def squares(make, steps: int, workers: int, seeds) -> jax.Array:
    """B̂² / M² [seeds, steps, p] under constant updates, to be averaged over seeds."""

    def of_seed(seed):
        run = ej.simulate(worker(make(seed)), workers)

        def step(states, g):
            states, _ = run.step(states, g)
            gap = jax.vmap(lambda s: ej.elastic_gap(s.params, s.opt_state, AXIS), axis_name=AXIS)
            return states, gap(states)

        return jax.lax.scan(step, run.init(jnp.zeros(())), jnp.ones((steps, workers)))[1]

    return jax.vmap(of_seed)(seeds) / ALPHA**2


def check_attained(make, bound: float, workers: int = 3) -> None:
    """E B̂² = B² after the start, and never more, up to four standard errors over 300 seeds."""
    found = double(squares(make, 60, workers, jnp.arange(300)))
    late = found[:, 30:].mean((1, 2))
    error = late.std() / np.sqrt(len(late))
    assert error < 0.05 * bound**2  # the test sees a difference of a tenth in B
    assert abs(late.mean() - bound**2) < 4 * error
    start = found[:, :30].mean(2)
    assert (start.mean(0) <= bound**2 + 5 * start.std(0) / np.sqrt(len(start))).all()


GRADS = draws(jnp.zeros(3), STEPS, P, seed=5)
TOTAL = -ALPHA * np.cumsum(double(GRADS), axis=0)  # what each worker has proposed so far
NEAR = (
    STEPS * 8 * 2.0**-23 * np.abs(TOTAL).max()
)  # each step rounds sums of such numbers a few times
