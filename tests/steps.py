"""Small tools that several tests of transformations share."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cases import AXIS
from jax.sharding import AxisType

EPS = float(jnp.finfo(jnp.float32).eps)


def draws(like: Any, *stack: int, seed: int = 0) -> Any:
    """Normal draws shaped like a tree, [*stack, ...]."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=(*stack, *x.shape)), jnp.float32).astype(x.dtype),
        like,
    )


def stepper(
    opt: optax.GradientTransformation, axis_name: str | None = None
) -> tuple[Callable[..., Any], list[int]]:
    """One step of training, and the list that grows by one whenever it is traced."""
    traces = []

    def step(params, state, grads):
        traces.append(1)
        updates, state = opt.update(grads, state, params)
        return optax.apply_updates(params, updates), state, updates

    return step if axis_name is None else jax.vmap(step, axis_name=axis_name), traces


def at(tree: Any, index: int) -> Any:
    return jax.tree.map(lambda x: x[index], tree)


def double(x: Any) -> np.ndarray:
    return np.asarray(x, np.float64)


def signature(tree: Any) -> Any:
    """Structure, shapes, dtypes and weak types."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(x.shape, x.dtype, bool(x.weak_type)) for x in leaves]


def mesh_of(*sizes: int, names: tuple[str, ...] = (AXIS,), kind: Any = AxisType.Auto) -> Any:
    """A mesh of the first devices, with one axis of workers unless named otherwise."""
    there = jax.devices()[: math.prod(sizes)]
    return jax.make_mesh(sizes, names, axis_types=(kind,) * len(sizes), devices=there)
