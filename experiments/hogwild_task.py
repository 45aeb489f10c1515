"""What racing workers train in `experiments.hogwild`, and a replay that is looked at on the way.

Every worker imports this module and makes the task anew: a small CNN on real images, whose batch is
drawn from (seed, worker, step) alone, so that a replay sees the images that the run saw.
"""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import numpy as np
import optax

import elastic_jax as ej
from elastic_jax.hogwild import Recording, Task
from elastic_jax.recording import COMPUTE, READ
from experiments import data, models
from experiments.rows import DENSE, PLAIN

load = functools.cache(data.load)


def kept_of(fraction: float, d: int) -> int:
    """How many of d entries a message keeps."""
    return max(1, math.ceil(fraction * d - 1e-9))


def chain(method: str, alpha: Any, kept: int) -> optax.GradientTransformation:
    """A worker's chain: SGD, and what it sends of each update."""
    if method == DENSE:
        return optax.sgd(alpha)
    send = ej.compress if method == PLAIN else ej.error_feedback
    return optax.chain(optax.sgd(alpha), send(ej.top_k(kept, scope="tree")))


def task(
    dataset: str,
    params: Any,
    method: str,
    alpha: float,
    kept: int,
    batch: int,
    seed: int,
    sleep: float = 0.0,
) -> Task:
    """Makes the task of a worker.

    Args:
        dataset: name of the images.
        params: the start, a tree of numpy arrays: no worker compiles an initialisation.
        method: dense, topk, or topk+feedback.
        alpha: step size.
        kept: entries in a message.
        batch: images for a gradient.
        seed: of the batches.
        sleep: mean of an exponential pause between reading and writing, ms.

    Returns:
        The task.
    """
    images = load(dataset)
    loss = models.loss_fn(models.make("cnn", images))

    def drawn(worker: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([seed, worker, step])
        index = rng.integers(len(images.train_labels), size=batch)
        if sleep:
            time.sleep(rng.exponential(sleep / 1000))
        return images.train_images[index], images.train_labels[index]

    return Task(
        params, lambda params, batch: loss(params, *batch), drawn, chain(method, alpha, kept)
    )


class Followed(NamedTuple):
    """What a replay found."""

    params: np.ndarray  # [n], at the end
    loss: np.ndarray  # float32 [T], at the views
    points: list[np.ndarray]  # parameters after each T/points updates


Step = Callable[..., Any]  # (view, state, batch, alpha) -> loss, message, state


def compiled_step(made: Task, method: str, kept: int) -> Step:
    """Compiles what a worker does between reading and writing; the step size is traced."""
    unravel = jax.flatten_util.ravel_pytree(made.params)[1]

    @jax.jit
    def step(view, state, batch, alpha):
        params = unravel(view)
        loss, grads = jax.value_and_grad(made.loss)(params, batch)
        updates, state = chain(method, alpha, kept).update(grads, state, params)
        return loss, jax.flatten_util.ravel_pytree(updates)[0], state

    return step


def follow(recording: Recording, made: Task, step: Step, alpha: float, points: int = 1) -> Followed:
    """Replays a recording and keeps the parameters on the way, for any chain and step size.

    To rounding the same as `ej.hogwild.replay`, which gives the parameters at the end alone, and
    compiles anew for every step size.

    Args:
        recording: whose order of reads and writes is followed.
        made: the task, with the chain to be run.
        step: of `compiled_step`, with the same chain.
        alpha: step size.
        points: how many times the parameters are kept, evenly spaced; the last are those at the
            end.

    Returns:
        What was found.
    """
    updates, last = len(recording.worker), len(recording.bounds) - 2
    params = recording.start.copy()
    views = np.empty((recording.workers, len(params)), params.dtype)
    messages = np.empty_like(views)
    states = [made.optimizer.init(made.params)] * recording.workers
    loss, kept, applied = np.empty(updates, np.float32), [], 0
    who, which = recording.worker.tolist(), recording.step.tolist()
    for kind, t, block in recording.events().tolist():
        worker = who[t]
        part = slice(recording.bounds[block], recording.bounds[block + 1])
        if kind == READ:
            views[worker, part] = params[part]
        elif kind == COMPUTE:
            # a copy: jax may alias what it is given, and the row is written again
            found = step(views[worker].copy(), states[worker], made.batch(worker, which[t]), alpha)
            loss[t], messages[worker], states[worker] = found
        else:
            params[part] += messages[worker, part]
            if block == last:
                applied += 1
                while len(kept) < applied * points // updates:
                    kept.append(params.copy())
    return Followed(params, loss, kept)
