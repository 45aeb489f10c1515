"""One worker's step, and p of them side by side."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from elastic_jax.checks import whole
from elastic_jax.exchange import AxisName, axis_names, varying, worker_index
from elastic_jax.order import check_order, workers_on


class WorkerState(NamedTuple):
    """What one worker keeps; stacked [p, ...] for p workers."""

    params: optax.Params  # its view v
    opt_state: optax.OptState


class WorkerStep(NamedTuple):
    """A worker's step as two pure functions.

    Attributes:
        init: `params -> WorkerState`; checks the order of the optimizer's parts.
        step: `(WorkerState, batch) -> (WorkerState, loss)`; or `(…, (loss, aux))`.
        axis_name: the workers' axis, or None.
    """

    init: Callable[[optax.Params], WorkerState]
    step: Callable[[WorkerState, Any], tuple[WorkerState, Any]]
    axis_name: AxisName | None


def worker_step(
    loss_fn: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    axis_name: AxisName | None = None,
    *,
    has_aux: bool = False,
) -> WorkerStep:
    """Makes the step of one worker: gradient at its view, its chain, its new view.

    Args:
        loss_fn: `(params, batch) -> loss`, a float scalar; with `has_aux`, `(loss, aux)`.
        optimizer: the worker's whole chain: base → relaxation* → (exchange → relaxation* | mix).
        axis_name: the axis over which workers stand, the one that the exchange names.
        has_aux: as in `jax.value_and_grad`.

    Returns:
        The step. Alone it is ordinary training; `simulate` runs p of them.

    Raises:
        ValueError: for what is no axis name; from `init`, where the chain's order would lose mass
            or let views drift apart, or where it crosses other axes than `axis_name`.
    """
    gradient = jax.value_and_grad(loss_fn, has_aux=has_aux)
    names = () if axis_name is None else axis_names(axis_name)

    def init(params):
        with workers_on(names):
            opt_state = optimizer.init(params)
        workers = math.prod(jax.lax.axis_size(name) for name in names)
        check_order(opt_state, workers)
        worker = 0 if axis_name is None else worker_index(axis_name)
        return WorkerState(params, fold_in_worker(opt_state, worker))

    def step(state, batch):
        out, grads = gradient(_local(state.params, axis_name), batch)
        with workers_on(names):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return WorkerState(optax.apply_updates(state.params, updates), opt_state), out

    return WorkerStep(init, step, axis_name)


def _local(params: optax.Params, axis_name: AxisName | None) -> optax.Params:
    """Makes replicated parameters this worker's own under `jax.shard_map`.

    JAX would return the *sum* over workers as their gradient, and relaxations would hold the wrong
    mass without a word.
    """
    return params if axis_name is None else varying(params, axis_name)


def fold_in_worker(opt_state: optax.OptState, worker: chex.Numeric) -> optax.OptState:
    """Gives a worker, and each relaxation in its chain, randomness of its own.

    All workers start from the same seed, and so do relaxations that were given the same one; this
    folds the worker's index and the relaxation's place into every PRNG key that a relaxation keeps.
    `worker_step` and `asynchronous` do it; a training loop of your own calls it after `init`.

    Args:
        opt_state: one worker's optimizer state.
        worker: its index, an int scalar.

    Returns:
        The state with other keys.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(opt_state)
    leaves, place = [], 0
    for path, leaf in flat:
        if any(getattr(entry, "name", None) == "worker_key" for entry in path):
            key = jax.random.fold_in(jax.random.wrap_key_data(leaf), worker)
            leaf, place = jax.random.key_data(jax.random.fold_in(key, place)), place + 1
        leaves.append(leaf)
    return treedef.unflatten(leaves)


def simulate(step: WorkerStep, workers: int) -> WorkerStep:
    """Runs p workers on one device, under `jax.vmap` with the workers' axis named.

    Args:
        step: of one worker, made with an `axis_name`.
        workers: p, an int >= 1.

    Returns:
        A step with the same signature: `init(params)` gives states stacked [p, ...], all views
        alike; `step(states, batches)` takes batches stacked [p, ...] and returns losses [p].

    Raises:
        ValueError: for p below 1, a step without an axis name, several axes, or batches that are
            not stacked [p, ...].

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import elastic_jax as ej
        >>> loss = lambda x, target: 0.5 * jnp.sum((x - target) ** 2)
        >>> opt = optax.chain(optax.sgd(0.5), ej.error_feedback(ej.top_k(1), axis_name="w"))
        >>> run = ej.simulate(ej.worker_step(loss, opt, axis_name="w"), workers=2)
        >>> states = run.init(jnp.zeros(2))
        >>> states, losses = run.step(states, jnp.array([[4.0, 0.0], [0.0, 2.0]]))
        >>> print(losses, states.params[0])
        [8. 2.] [1.  0.5]
    """
    workers = whole("workers", workers, "number of workers")
    check_one_axis(step)
    index = jnp.arange(workers)

    def init(params):
        def of_one(_, params):
            return step.init(params)

        return jax.vmap(of_one, in_axes=(0, None), axis_name=step.axis_name)(index, params)

    def run(states, batches):
        check_states(states, workers)
        check_batches(batches, workers)
        return jax.vmap(step.step, axis_name=step.axis_name)(states, batches)

    return WorkerStep(init, run, step.axis_name)


def check_step(step: Any) -> None:
    """Refuses what is no worker step."""
    if not isinstance(step, WorkerStep):
        raise TypeError(f"step={step!r} is no worker step; pass worker_step(loss_fn, optimizer, …)")


def check_one_axis(step: Any) -> None:
    """Refuses a worker step that does not stand on one axis."""
    check_step(step)
    if not isinstance(step.axis_name, str):
        raise ValueError(
            f"step has axis_name={step.axis_name!r}; make it with worker_step(..., axis_name=...), "
            "one name: the axis of its exchange"
        )


def check_states(states: Any, workers: int) -> None:
    """Refuses states of another number of workers."""
    _check_stacked(
        "states", states, workers, f"these are not {workers} workers', as init makes them"
    )


def check_batches(batches: Any, workers: int) -> None:
    """Refuses batches that are not stacked [p, ...]."""
    advice = f"stack one batch for each of the {workers} workers along the first axis"
    _check_stacked("batches", batches, workers, advice)


def _check_stacked(name: str, tree: Any, workers: int, advice: str) -> None:
    for leaf in jax.tree.leaves(tree):
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != workers:
            raise ValueError(f"{name} hold an array of shape {jnp.shape(leaf)}; {advice}")
