"""Every case of the table on a tree of several dtypes, where 64-bit numbers are on."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from cases import AXIS, EXCHANGES, LOCAL, MIXES, Case

import elastic_jax as ej

CROSSING = EXCHANGES + MIXES
ALONE = [case for case in LOCAL if not case.name.startswith(("compress", "error_feedback"))]


@pytest.mark.parametrize("case", ALONE + CROSSING, ids=lambda case: case.name)
def test_traces_and_keeps_every_dtype(case: Case):
    """Nothing is promoted unseen, and mass is as wide as its leaf, or float32."""
    with jax.enable_x64(True):
        params = {
            "d": jnp.ones((2, 2), "float64"),
            "f": [jnp.ones((), "float32"), None],
            "b": jnp.ones(3, "bfloat16"),
            "h": jnp.ones(4, "float16"),
        }
        opt = case.make(params)

        def start(_):
            state = opt.init(params)
            return ej.fold_in_worker(state, 0), ej.held(state, params)

        def step(state, u):
            updates, state = opt.update(u, state, params)
            return updates, state, optax.apply_updates(params, updates)

        crossing = case in CROSSING
        both = functools.partial(jax.vmap, axis_name=AXIS) if crossing else jax.vmap
        state, held = jax.eval_shape(both(start), jnp.arange(2))
        stack = jax.eval_shape(lambda: jax.tree.map(lambda x: jnp.stack([x, x]), params))
        updates, after, moved = jax.eval_shape(both(step), state, stack)
        for found in (updates, moved):
            chex.assert_trees_all_equal_shapes_and_dtypes(found, stack)
        chex.assert_trees_all_equal_structs(after, state)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
        wide = {"float64": "float64"}
        assert all(
            h.dtype in (x.dtype, wide.get(x.dtype.name, "float32"))
            for h, x in zip(*map(jax.tree.leaves, (held, stack)), strict=True)
        )
