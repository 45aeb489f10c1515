"""Runs of schedulers that several tests share."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cases import AXIS
from steps import double

SHAPES = {"a": jnp.zeros((2, 3), jnp.float32), "b": jnp.zeros(4, jnp.float32)}
STEPS, P = 6, 3
# compiles sooner
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def run(opt: Any, updates: Any) -> dict[str, Any]:
    """Each worker's output and state after every step, [steps, p, ...], of given updates."""

    def step(state, u):
        out, state = opt.update(u, state)
        return state, {
            "out": out,
            "held": state.held(),
            "elapsed": state.elapsed,
            "synchronous": state.synchronous,
            "free": state.clock.origin + state.clock.free,
        }

    def one(updates):
        start = opt.init(jax.tree.map(lambda x: x[0], updates))
        return jax.lax.scan(step, start, updates)[1]

    return quick(jax.vmap(one, in_axes=1, out_axes=1, axis_name=AXIS))(updates)


def norm(tree: Any) -> float:
    return float(np.sqrt(sum(float((double(x) ** 2).sum()) for x in jax.tree.leaves(tree))))
