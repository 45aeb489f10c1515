"""How workers meet: `mean`, `gather` and `shift` over a named axis, and the plain all-reduce.

`means` is for arrays that may be narrow: no rounding is unseen.

Everything that crosses workers is a function of an axis name, so that one step runs under
`jax.vmap(axis_name=…)`, `jax.shard_map` and `jax.pmap` alike.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from elastic_jax.order import relaxation
from elastic_jax.precision import narrow, wide, wide_dtype

AxisName = str | tuple[str, ...]  # a tuple names several axes, innermost first


def mean(tree: Any, axis_name: AxisName) -> Any:
    """Averages a tree over the workers.

    Args:
        tree: this worker's tree of float arrays.
        axis_name: the workers' axis, or several, innermost first: they are reduced one at a time,
            since a collective over a `vmap` axis and a mesh axis together is not supported.

    Returns:
        The same tree on every worker, averaged in float32 or wider, in the dtypes of `tree`.
    """

    def leaf_mean(x):
        total = wide(x)
        for name in axis_names(axis_name):
            total = jax.lax.pmean(total, name)
        return narrow(total, x.dtype)

    return jax.tree.map(leaf_mean, tree)


def means(arrays: list[jax.Array], axis_name: AxisName) -> tuple[list[Any], list[Any]]:
    """Averages arrays over the workers, those of a dtype in one collective.

    What is narrower than float32 travels, and its mean travels, in its own dtype: worker i averages
    the i-th part in float32 and rounds it. What that drops, p times, is taken off what it counts
    as its own, so that no rounding is unseen.

    Args:
        arrays: this worker's, of floats.
        axis_name: the workers' axis, or several, innermost first.

    Returns:
        What each array counts as, this worker's own, and the mean of that over the workers, the
        same on all; both in float32 or wider.
    """
    names = axis_names(axis_name)
    own, average = list(arrays), list(arrays)
    for dtype in dict.fromkeys(x.dtype for x in arrays):
        group = [i for i, x in enumerate(arrays) if x.dtype == dtype]
        flat = jnp.concatenate([jnp.ravel(arrays[i]) for i in group])
        ends = np.cumsum([arrays[i].size for i in group])[:-1]
        pair = (
            _narrow_mean(flat, names) if wide_dtype(dtype) != dtype else (flat, mean(flat, names))
        )
        for out, joined in zip((own, average), pair, strict=True):
            for i, piece in zip(group, jnp.split(joined, ends), strict=True):
                out[i] = piece.reshape(arrays[i].shape)
    return own, average


def _narrow_mean(x: jax.Array, names: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    if not x.size:
        return wide(x), wide(x)
    workers = math.prod(jax.lax.axis_size(name) for name in names)
    part = -(-x.size // workers)
    x, size = jnp.pad(x, (0, workers * part - x.size)), x.size
    own, start = wide(x), worker_index(names) * part
    if names == device_axes(names):
        # as integers: a reduction of narrow floats would drop mass, and CPU would widen them
        axes, bits = names[::-1], bits_dtype(x)
        rows = varying(jax.lax.bitcast_convert_type(x, bits).reshape(workers, part), names)
        rows = jax.lax.all_to_all(rows, axes, split_axis=0, concat_axis=0, tiled=True)
        exact = jnp.mean(wide(jax.lax.bitcast_convert_type(rows, x.dtype)), axis=0)
        mine = jax.lax.bitcast_convert_type(narrow(exact, x.dtype), bits)
        every = jax.lax.all_gather(mine, axes, tiled=True, to="invarying")
        rounded = wide(jax.lax.bitcast_convert_type(every, x.dtype))
    else:  # workers that are simulated, some or all of them
        every = mean(own, names)
        rounded = wide(narrow(every, x.dtype))
        exact = jax.lax.dynamic_slice_in_dim(every, start, part)
    dropped = workers * (exact - jax.lax.dynamic_slice_in_dim(rounded, start, part))
    left = jax.lax.dynamic_slice_in_dim(own, start, part) - dropped
    own = jax.lax.dynamic_update_slice_in_dim(own, left, start, 0)
    return own[:size], rounded[:size]


def bits_dtype(x: Any) -> Any:
    """Returns the unsigned integer that holds one number of an array, to send it as it is."""
    return jnp.dtype(f"uint{8 * x.dtype.itemsize}")


def gather(tree: Any, axis_name: AxisName) -> Any:
    """Collects every worker's tree.

    Args:
        tree: this worker's tree of arrays.
        axis_name: the workers' axis, or several, innermost first.

    Returns:
        The tree with leaves [p, ...] in the order of `worker_index`, on every worker.
    """

    def leaf_gather(x):
        shape, together = x.shape, x[None]
        for name in axis_names(axis_name):
            together = jax.lax.all_gather(together, name)  # [outer, inner, ...]
            together = together.reshape(together.shape[0] * together.shape[1], *shape)
        return together

    return jax.tree.map(leaf_gather, varying(tree, axis_name))


def shift(tree: Any, axis_name: AxisName, by: int) -> Any:
    """Passes a tree around the ring of workers: each gets that of the worker `by` places on.

    Args:
        tree: this worker's tree of arrays.
        axis_name: the workers' axis, or several, innermost first.
        by: how far, an int; worker i gets the tree of worker (i + by) mod p.

    Returns:
        The other worker's tree.
    """
    name, *outer = axis_names(axis_name)
    size = jax.lax.axis_size(name)
    far, near = divmod(by, size)
    ring = [(source, (source - near) % size) for source in range(size)]

    def along(x):
        return jax.lax.ppermute(x, name, ring) if near else x

    tree = jax.tree.map(along, varying(tree, axis_name))
    if not outer:
        return tree
    # those who looked past the end of the inner axis look one place further on the outer ones
    past = jax.lax.axis_index(name) + near >= size
    here, beyond = (shift(tree, tuple(outer), far + carry) for carry in (0, 1))
    return here if not near else jax.tree.map(lambda a, b: jnp.where(past, b, a), here, beyond)


def axis_names(axis_name: AxisName) -> tuple[str, ...]:
    """Returns the names in an axis name, innermost first; refuses what is none."""
    names = tuple(axis_name) if isinstance(axis_name, (tuple, list)) else (axis_name,)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(
            f"axis_name={axis_name!r} is no axis name; pass the name given to vmap or to the mesh, "
            "for example 'workers', or a tuple of names, innermost first"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"axis_name={axis_name!r} names an axis twice; name each once")
    return names


def worker_index(axis_name: AxisName) -> jax.Array:
    """Returns this worker's index along its axes (an int32 scalar), innermost fastest."""
    index, stride = jnp.int32(0), 1
    for name in axis_names(axis_name):
        index = index + jnp.int32(stride) * jax.lax.axis_index(name).astype(jnp.int32)
        stride *= jax.lax.axis_size(name)
    return index


def device_axes(names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns those axes that stand for devices (`jax.shard_map`, `jax.pmap`), not for a `vmap`."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(name for name in names if name in manual)


def varying(tree: Any, axis_name: AxisName) -> Any:
    """Makes a tree each worker's own: under `jax.shard_map` replicated arrays become varying.

    Elsewhere, and where they are varying already, it does nothing.
    """

    def own(leaf, name):
        try:
            return jax.lax.pcast(leaf, name, to="varying")
        except ValueError:  # it is already
            return leaf

    for name in device_axes(axis_names(axis_name)):
        tree = jax.tree.map(functools.partial(own, name=name), tree)
    return tree


class AllMeanState(NamedTuple):
    """The plain exchange keeps nothing; its type marks where workers meet."""

    role = "exchange"


def all_mean(axis_name: AxisName) -> optax.GradientTransformationExtraArgs:
    """Averages the updates over all workers: synchronous data-parallel SGD.

    `u_i -> mean_j u_j`. It holds nothing and loses nothing (for parameters narrower than float32,
    nothing beyond the rounding of the mean to their dtype). For half the bytes on the wire use
    `error_feedback(identity("bfloat16"), axis_name)`, which holds what rounding drops.

    Args:
        axis_name: the workers' axis, or several, innermost first.

    Returns:
        An `optax.GradientTransformationExtraArgs`; use it where that axis is bound.

    Raises:
        ValueError: for an axis name that is not a string or a tuple of strings.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> import elastic_jax as ej
        >>> opt = optax.chain(optax.sgd(0.5), ej.all_mean("workers"))
        >>> def step(view, gradient):
        ...     update, _ = opt.update(gradient, opt.init(view), view)
        ...     return view + update
        >>> run = jax.vmap(step, axis_name="workers")
        >>> print(run(jnp.zeros((2, 1)), jnp.array([[1.0], [3.0]])).tolist())
        [[-1.0], [-1.0]]
    """
    names = axis_names(axis_name)
    return relaxation(
        lambda params: AllMeanState(),
        lambda updates, state, params=None, **extra: (mean(updates, names), state),
        names,
    )
