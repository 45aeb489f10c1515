"""Runs of local steps that several tests share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cases import AXIS
from steps import draws

import elastic_jax

ej: Any = elastic_jax


P, STEPS, ALPHA = 3, 13, 0.25
LIKE = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2)), "c": jnp.zeros(())}


def loss(params, noise):
    """Quadratic of curvature 1/2: the gradient is x/2 + noise."""
    square = jax.tree.map(lambda x, n: jnp.sum(x * x / 4 + n * x), params, noise)
    return sum(jax.tree.leaves(square))


def follow(mix: Any, axis: Any = AXIS, base: Any = None):
    """A worker's step that reports the view, x, the gap and the proposal, before and after."""
    base = optax.sgd(ALPHA) if base is None else base
    step = ej.worker_step(loss, optax.chain(base, mix), axis)

    def reporting(state, noise):
        after, _ = step.step(state, noise)
        grads = jax.grad(loss)(state.params, noise)
        out = {
            "view": after.params,
            "x": ej.virtual_params(after.params, after.opt_state, axis),
            "gap": ej.elastic_gap(after.params, after.opt_state, axis),
            "u": jax.tree.map(lambda g: -jnp.asarray(ALPHA, g.dtype) * g, grads),
        }
        return after, out

    return step._replace(step=reporting)


def histories(mix: Any, noise: Any, start: Any, base: Any = None) -> dict[str, Any]:
    """What p simulated workers report, [steps, p, ...]; float64 where the start is."""
    workers = jax.tree.leaves(noise)[0].shape[1]
    run = ej.simulate(follow(mix, base=base), workers)
    _, out = jax.jit(lambda start, noise: jax.lax.scan(run.step, run.init(start), noise))(
        start, noise
    )
    return jax.tree.map(np.asarray, out)


def doubles(like: Any = LIKE) -> tuple[Any, Any]:
    """A start and noise [steps, p, ...] in float64."""
    like = jax.tree.map(lambda x: x.astype(jnp.float64), like)
    return [
        jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)
        for tree in (draws(like, seed=1), draws(like, STEPS, P, seed=2))
    ]


def close(got: Any, want: Any, eps: float = 2.0**-52, size: float = 100.0) -> None:
    """Equal up to the rounding of STEPS steps, on numbers below `size`."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=8 * STEPS * eps * size)
