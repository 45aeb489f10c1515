"""How workers meet: `mean`, `gather` and `shift` over a named axis, and the plain all-reduce.

`means` is for arrays that may be narrow: no rounding is unseen.

Everything that crosses workers is a function of an axis name, so that one step runs under
`jax.vmap(axis_name=…)`, `jax.shard_map` and `jax.pmap` alike.
"""

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
    names = axis_names(axis_name)
    for name in device_axes(names):
        # XLA fails at sums over an axis of one device where arrays are sharded over others
        if jax.lax.axis_size(name) == 1 and not _checks(name):
            names = tuple(other for other in names if other != name)

    def leaf_mean(x):
        total = wide(x)
        for name in names:
            total = jax.lax.pmean(total, name)
        return narrow(total, x.dtype)

    return jax.tree.map(leaf_mean, tree)


def means(arrays: list[jax.Array], axis_name: AxisName) -> tuple[list[Any], list[Any]]:
    """Averages arrays over the workers, those of a dtype in one collective.

    What is narrower than float32 travels, and its mean travels, in its own dtype: worker i averages
    the i-th part in float32 and rounds it. What that drops, p times, is taken off what it counts
    as its own, so that no rounding is unseen.

    Args:
        arrays: this worker's, of floats; what is no float is the same on all workers, and stays.
        axis_name: the workers' axis, or several, innermost first.

    Returns:
        What each array counts as, this worker's own, and the mean of that over the workers, the
        same on all; both in float32 or wider.
    """
    names = axis_names(axis_name)
    own, average = list(arrays), list(arrays)
    groups: dict[Any, list[int]] = {}
    for i, x in enumerate(arrays):
        if jnp.issubdtype(x.dtype, jnp.floating):
            groups.setdefault((x.dtype, shard_axes(x, names)), []).append(i)
        else:
            average[i] = alike(x, names)
    for (dtype, _), group in groups.items():
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
    """Returns those axes that stand for devices (`jax.shard_map`, `jax.pmap`), not for a `vmap`.

    Raises:
        ValueError: for axes of both kinds where `jax.shard_map` checks what varies: JAX fails then.
    """
    manual = jax.sharding.get_abstract_mesh().manual_axes
    found = tuple(name for name in names if name in manual)
    if found and len(found) < len(names) and _checks(found[0]):
        raise ValueError(
            f"axis_name={names!r} names simulated workers inside a shard_map that checks what "
            "varies, which JAX cannot do with a vmap axis; use distribute(step, mesh, workers=…), "
            "or pass check_vma=False to the shard_map around the vmap"
        )
    return found


def varying(tree: Any, axis_name: AxisName) -> Any:
    """Makes a tree each worker's own: under `jax.shard_map` replicated arrays become varying.

    Elsewhere, and where they are varying already, it does nothing.
    """
    names = device_axes(axis_names(axis_name))

    def own(leaf):
        for name in names:
            cast = _as_varying(leaf, name)
            leaf = leaf if cast is None else cast
        return leaf

    return jax.tree.map(own, tree)


def varying_as(x: jax.Array, like: jax.Array) -> jax.Array:
    """Makes an array vary, under `jax.shard_map`, along the axes that another does too."""
    names = shard_axes(like)
    return varying(x, names) if names else x


def alike(tree: Any, axis_name: AxisName) -> Any:
    """Has `jax.shard_map` know that a tree of integers is the same on all workers.

    Where it checks that, and does not know yet, a maximum over the workers says so; else it does
    nothing.
    """
    names = device_axes(axis_names(axis_name))

    def of_all(leaf):
        for name in names:
            leaf = jax.lax.pmax(leaf, name) if _as_varying(leaf, name) is None else leaf
        return leaf

    return jax.tree.map(of_all, tree)


def shard_axes(x: jax.Array, names: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Returns the axes, other than these, along which `jax.shard_map` knows an array to vary.

    Arrays that vary along others would, if they travelled as one, come back varying along all.
    """
    manual = jax.sharding.get_abstract_mesh().manual_axes
    others = (name for name in manual if name not in names)
    return tuple(name for name in others if _as_varying(x, name) is None)


def _checks(name: str) -> bool:
    """Whether the `jax.shard_map` that an axis is of checks what varies along it."""
    cast = _as_varying(jnp.zeros(()), name)
    return cast is not None and _as_varying(cast, name) is None


def _as_varying(x: Any, name: str) -> Any:
    """Casts an array to one that varies along an axis; None where JAX knows that it does."""
    try:
        return jax.lax.pcast(x, name, to="varying")
    except ValueError:
        return None


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
