"""What the benchmarks train: the small CNN on random images, and a quadratic that costs little."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import models
from experiments.data import Dataset


class Problem(NamedTuple):
    """A loss `(params, batch) -> float`, and one batch for each of T steps, stacked [T, ...]."""

    name: str
    loss: Callable[[Any, Any], jax.Array]
    params: Any
    batches: Any


def cnn(shape: tuple[int, int, int], steps: int, batch: int = 16) -> Problem:
    """The CNN of the experiments; its speed does not depend on what the pixels show."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(steps, batch, *shape)).astype(np.float32)
    labels = rng.integers(0, 10, (steps, batch)).astype(np.int32)
    model = models.make("cnn", Dataset("random", images[0], labels[0], images[0], labels[0], 10))
    loss = models.loss_fn(model)
    name = f"CNN {'×'.join(map(str, shape))}"
    params = model.init(jax.random.key(0))
    batches = jnp.asarray(images), jnp.asarray(labels)
    return Problem(name, lambda params, batch: loss(params, *batch), params, batches)


def quadratic(d: int, steps: int) -> Problem:
    """½‖x − batch‖²: the gradient is one pass over memory."""
    return Problem(
        f"quadratic d = {d:.0e}",
        lambda x, shift: 0.5 * jnp.sum((x - shift) ** 2),
        jnp.ones(d, jnp.float32),
        jnp.zeros(steps, jnp.float32),
    )


def size(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
