"""Held mass: where every update is, at every moment.

A relaxation delays, drops or defers part of an update. The part that it keeps is *held mass*: a
tree shaped like the parameters, signed, reported by the relaxation's own state. With views `v^i`,
held mass `h^i`, proposals `u^i` of the base optimizer and `p` workers,

    x_t = mean_i (v_t^i + h_t^i)                   the global iterate
    x_{t+1} = x_t + mean_i u_t^i                   law 1: no update is lost
    max_i ||x_t - v_t^i||^2 stays bounded          law 2: views stay near the global iterate
                                                          while the updates are bounded

For single steps (one worker applies its whole update in a tick) the mean over workers becomes a
sum: `x = v_server + h_server + sum_i h^i`. A transformation that loses mass reports the running
total `l^i` of what it lost, and law 1 reads `x + mean_i l^i` in place of `x`.

A relaxation's state is a `NamedTuple` with a method `held()` or `lost()` (or both), returning a
tree shaped like the parameters in which masked leaves may be `optax.MaskedNode`. An outer
optimizer's state has its gain as the attribute `gain`, a float scalar.
"""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from elastic_jax.exchange import AxisName, mean
from elastic_jax.order import changed_after, relaxed_states
from elastic_jax.precision import add, squared_norm, wide
from elastic_jax.shards import over_shards

# These keep the parameters that the user holds apart from the point where gradients are taken.
_VIEW_IS_ELSEWHERE = {
    "LookaheadState": "the slow and the fast parameters of optax.lookahead",
    "ScheduleFreeState": "the averaged and the trained parameters of optax's schedule_free",
}


def held(opt_state: optax.OptState, params: optax.Params) -> optax.Params:
    """Sums the held mass of every relaxation in an optimizer state.

    Args:
        opt_state: the state of one worker, however nested (`optax.chain`, `masked`, `partition`,
            `inject_hyperparams`, …). For a stack of workers use `jax.vmap(held)`.
        params: that worker's view, for the tree, shapes and dtypes of the result.

    Returns:
        A tree shaped like `params`, in the dtype of the held mass (float32 for narrower
        parameters), in the unit of the parameters. Zeros where nothing relaxes.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import elastic_jax as ej
        >>> opt = optax.chain(optax.sgd(1.0), ej.delay(2))
        >>> view = jnp.zeros(2)
        >>> state = opt.init(view)
        >>> for _ in range(3):
        ...     update, state = opt.update(jnp.ones(2), state, view)
        ...     view = optax.apply_updates(view, update)
        >>> print(view, ej.held(state, view))
        [-1. -1.] [-2. -2.]
    """
    return _total(opt_state, params, "held")


def lost(opt_state: optax.OptState, params: optax.Params) -> optax.Params:
    """Sums the mass that transformations in an optimizer state have lost since their start.

    Args:
        opt_state: the state of one worker; see `held`.
        params: that worker's view.

    Returns:
        A tree shaped like `params`: the (signed) sum of all updates that will never be applied.
        Zeros where nothing is lost.
    """
    return _total(opt_state, params, "lost")


def _total(opt_state: optax.OptState, params: optax.Params, what: str) -> optax.Params:
    for found in relaxed_states(params):
        raise ValueError(
            f"params holds a {type(found.state).__name__}: it is an optimizer state; the arguments "
            "are held(opt_state, params), lost(opt_state, params), but virtual_params(params, "
            "opt_state) and elastic_gap(params, opt_state)"
        )
    total = jax.tree.map(lambda leaf: jnp.zeros_like(leaf), params)
    for state, _ in relaxed_states(opt_state):
        if (gain := getattr(state, "gain", None)) is not None:
            # what stands before an outer optimizer will be multiplied when it gets there
            total = jax.tree.map(lambda rest, g=gain: rest * jnp.asarray(g, rest.dtype), total)
        report = getattr(state, what, None)
        if callable(report):  # the meter has a field of that name
            try:
                total = jax.tree.map(
                    lambda part, rest: (
                        rest if isinstance(part, optax.MaskedNode) else add(rest, part)
                    ),
                    report(),
                    total,
                    is_leaf=lambda node: isinstance(node, optax.MaskedNode),
                )
            except (AttributeError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{type(state).__name__} holds a tree of another shape than params; pass the "
                    "params it was made for, one worker's at a time (vmap over a stack), and do "
                    "not wrap relaxations in optax.flatten"
                ) from error
    return total


def virtual_params(
    params: optax.Params,
    opt_state: optax.OptState,
    axis_name: AxisName | None = None,
    *,
    worker_states: optax.OptState | None = None,
) -> optax.Params:
    """Returns the global iterate `x = mean_i (v^i + h^i)`.

    Args:
        params: this worker's view `v^i`.
        opt_state: this worker's optimizer state.
        axis_name: the axis (or axes, innermost first) over which the workers stand; None for one
            worker, where `x = v + h`.
        worker_states: single steps: `params` and `opt_state` are the server's, this holds the
            workers' states stacked [p, ...], and `x = v + h + sum_i h^i`.

    Returns:
        A tree shaped like `params`, in the dtype of the held mass.

    Raises:
        ValueError: if the parameters are not the point at which gradients are taken
            (`optax.lookahead`, `schedule_free`), or if something that is no relaxation stands
            behind one (`optax.scale(-learning_rate)`), so that what is held is not in the unit of
            the parameters: no held mass then leads from them to `x`.
    """
    _refuse_no_distance(params, *(() if worker_states is None else (worker_states,)), opt_state)
    x = jax.tree.map(add, params, held(opt_state, params))
    if worker_states is not None and any(True for _ in relaxed_states(worker_states)):
        of_workers = jax.vmap(held, in_axes=(0, None))(worker_states, params)
        x = jax.tree.map(lambda leaf, h: add(leaf, jnp.sum(h, axis=0)), x, of_workers)
    return x if axis_name is None else mean(x, axis_name)


def elastic_gap(
    params: optax.Params,
    opt_state: optax.OptState,
    axis_name: AxisName | None = None,
    *,
    per_leaf: bool = False,
    specs: Any = None,
) -> Any:
    """Returns `||x - v^i||^2`, the distance that elastic consistency bounds by `alpha^2 B^2`.

    Args:
        params: this worker's view `v^i`. For the stacks [p, ...] that `simulate` returns, map over
            them: `jax.vmap(lambda v, s: elastic_gap(v, s, "w"), axis_name="w")(params, opt_state)`;
            a stack that is passed as it is would be taken for one worker.
        opt_state: this worker's optimizer state.
        axis_name: as in `virtual_params`.
        per_leaf: return a tree of the leaves' shares in place of their sum.
        specs: inside a `shard_map` of your own that is manual over the parameters' axes too, where
            arrays are shards: the parameters' `PartitionSpec`s (a tree shaped like them, or a
            prefix), so that shards are added up. Elsewhere, `distribute` too, leave it None.

    Returns:
        A float scalar (float32 or wider), or a tree of them; the parameters' unit, squared.

    Raises:
        ValueError: as `virtual_params`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import elastic_jax as ej
        >>> opt = optax.chain(optax.sgd(1.0), ej.error_feedback(ej.top_k(1)))
        >>> view = jnp.zeros(2)
        >>> update, state = opt.update(jnp.array([3.0, 1.0]), opt.init(view), view)
        >>> print(update, ej.elastic_gap(view, state))
        [-3.  0.] 1.0
    """
    _refuse_no_distance(params, opt_state)
    away = held(opt_state, params)
    views = jax.tree.map(wide, params)
    if axis_name is not None:  # mean(h) + (mean(v) - v): exactly zero where all views agree
        away = jax.tree.map(
            lambda h, x, v: add(h, x - v), mean(away, axis_name), mean(views, axis_name), views
        )
    gaps = over_shards(jax.tree.map(squared_norm, away), specs)
    return gaps if per_leaf else tree_total(gaps)


def tree_total(tree: Any) -> chex.Array:
    """Returns the sum of a tree of scalars, in the widest of their dtypes."""
    return functools.reduce(add, jax.tree.leaves(tree), jnp.zeros((), jnp.float32))


def _refuse_no_distance(params: optax.Params, *opt_states: optax.OptState) -> None:
    """Refuses optimizers of which v + h is not the global iterate."""
    nodes = jax.tree.leaves(
        (params, opt_states), is_leaf=lambda node: type(node).__name__ in _VIEW_IS_ELSEWHERE
    )
    for name in (type(node).__name__ for node in nodes):
        if name in _VIEW_IS_ELSEWHERE:
            raise ValueError(
                f"opt_state holds a {name}: {_VIEW_IS_ELSEWHERE[name]} differ, so the parameters "
                "are not the view and v + h is not the global iterate; measure the inner "
                "optimizer without that wrapper"
            )
    changed = changed_after(*opt_states)
    if changed is not None:
        raise ValueError(
            f"opt_state has the {type(changed).__name__} of something that is no relaxation behind "
            "one (optax.scale, a base optimizer, …): it changes what was held, which is then no "
            "distance between parameters, and there is no gap to measure; put relaxations after "
            "the base optimizer and its learning rate: chain(sgd(learning_rate), relaxations, "
            "exchange), and leave out what does nothing (optax.identity)"
        )
