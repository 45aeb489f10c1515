"""Graphs and runs of mixes that several tests share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cases import AXIS

import elastic_jax as ej
from elastic_jax import graphs
from elastic_jax.order import check_order

P, STEPS, D = 8, 6, 7
QUICK = {"xla_backend_optimization_level": 0}


def spread_out(p: int, seed: int = 3) -> np.ndarray:
    """A doubly stochastic matrix without zeros: a mean of permutations."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(3 * p))
    return sum(w * np.eye(p)[rng.permutation(p)] for w in weights)


TOP, RANDOM = ej.top_k(0.25), ej.random_k(0.5)
STATIC = {
    "ring": graphs.ring(),
    "torus": graphs.torus(),
    "exponential": graphs.exponential(),
    "complete": graphs.complete(),
    "fast": graphs.fast(graphs.torus(), 3),
}
EVERY = STATIC | {"one_peer": graphs.one_peer()}


def run(opt: Any, u: Any, start: Any, workers: int = P) -> tuple[Any, Any, Any]:
    """Views, iterates and what updates became, after each of the steps in u [steps, p, ...]."""

    def one(index, us):
        state = ej.fold_in_worker(opt.init(start), index)
        check_order(state, workers)

        def step(carry, u):
            view, state = carry
            out, state = opt.update(u, state, view)
            view = optax.apply_updates(view, out)
            x = ej.virtual_params(view, state, AXIS)
            return (view, state), (view, x, out)

        return jax.lax.scan(step, (start, state), us)[1]

    mapped = jax.vmap(one, in_axes=(0, 1), out_axes=1, axis_name=AXIS)
    return jax.tree.map(np.asarray, jax.jit(mapped)(jnp.arange(workers), u))
