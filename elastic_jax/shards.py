"""Parameters that are sharded over a mesh: relaxations shard by shard, and where states stand.

XLA runs every relaxation on sharded parameters as it is, to the same result: under `jax.jit`, and
under `distribute` on the mesh axes that are not the workers'. What acts coordinate by coordinate
(`delay`, `predict`, `absorb`, means of workers, messages to neighbours) touches each shard where it
is. What looks at a whole leaf (compressors), or gathers those of all workers (`links`, schedulers),
makes XLA gather its shards first. `by_shard` takes each shard as a leaf of its own instead, and
nothing crosses shards.

Parameters' places are said by `specs`: a tree of `jax.sharding.PartitionSpec`s shaped like the
parameters, or a prefix of it, as `flax.linen.get_partition_spec` and
`flax.nnx.get_partition_spec` make them. Meshes are such that XLA manages (`AxisType.Auto`).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from elastic_jax.order import Passage, proposals, record_passages
from elastic_jax.schedulers import SchedulerState
from elastic_jax.wire import Sender

EVERYWHERE = PartitionSpec()  # on every device


def state_specs(opt_state: optax.OptState, params: optax.Params, specs: Any) -> Any:
    """Says where an optimizer's state stands, beside parameters that are sharded.

    An array of floats that belongs to a parameter (its path holds the parameter's) and is shaped
    like it, but for axes in front (as a queue of updates has), stands where the parameter does; so
    does what `by_shard` keeps for each shard. Everything else is on every device.

    Args:
        opt_state: of one worker; arrays or `ShapeDtypeStruct`s.
        params: the parameters that it is for, likewise.
        specs: the parameters' places.

    Returns:
        A tree of `PartitionSpec`s shaped like `opt_state`.

    Raises:
        TypeError: for specs that are no `PartitionSpec`s.
        ValueError: for specs that are no tree, or prefix, of the parameters'.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jax.sharding import PartitionSpec
        >>> import elastic_jax as ej
        >>> opt = optax.chain(optax.sgd(0.1, momentum=0.9), ej.delay(2))
        >>> params, specs = {"w": jnp.zeros((8, 4))}, {"w": PartitionSpec(None, "model")}
        >>> of_sgd, of_delay = state_specs(jax.eval_shape(opt.init, params), params, specs)
        >>> of_delay.queues["w"].slots, of_delay.step
        (P(None, None, 'model'), P())
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    known = [
        (path, tuple(x.shape), spec)
        for (path, x), spec in zip(flat, leaf_specs(specs, params), strict=True)
    ]
    axes = tuple(dict.fromkeys(axis for _, _, spec in known for axis in spec_axes(spec)))

    def place(path, x):
        if any(getattr(entry, "name", None) == "of_shards" for entry in path):
            return PartitionSpec(axes)
        best, found = (-1, -1), EVERYWHERE
        for name, shape, spec in known:
            front = len(x.shape) - len(shape)
            if front < 0 or x.shape[front:] != shape or not jnp.issubdtype(x.dtype, jnp.floating):
                continue
            for start in range(len(path) - len(name) + 1):  # the innermost, and longest, wins
                rank = (start + len(name), len(name))
                if path[start : start + len(name)] == name and rank > best:
                    front_spec = (None,) * front if any(spec) else ()
                    best, found = rank, PartitionSpec(*front_spec, *spec)
        return found

    return jax.tree_util.tree_map_with_path(place, opt_state)


class Apart(NamedTuple):
    """A part of a state in `by_shard` that is no tree [params]: each shard has its own."""

    of_shards: Any  # [shards, ...]


def by_shard(
    inner: optax.GradientTransformation, mesh: Mesh, specs: Any
) -> optax.GradientTransformationExtraArgs:
    """Runs relaxations on every shard of the parameters by itself.

    Nothing crosses shards; between workers each device sends what it has of the message. What acts
    coordinate by coordinate stays what it is. A compressor takes each shard for a leaf: `top_k`
    keeps k of each, `sign` has a scale for each. It is another function with the same laws:
    `||C(y) - y||² <= gamma ||y||²` and `omega` add up over shards, so that those of a shard (say
    `compressor.gamma` of an array of its shape) are those of the whole.

    All shards of a worker draw alike: who takes part, what arrives late, which places of a shard
    `random_k` keeps. So what is on every device (a bias, say) stays the same on every device.
    Relaxations must go leaf by leaf for that, as all here do but two kinds, which are refused:
    `scope="tree"` beside leaves that are not sharded, and elastic schedulers, whose clocks are one
    for all leaves.

    Args:
        inner: relaxations, one or a chain of them, with the exchange or mix; the base optimizer
            stays outside. Extra arguments of its update are not passed on.
        mesh: of devices, which has the axes that `specs` name.
        specs: the parameters' places: `PartitionSpec`s, a tree shaped like the parameters or a
            prefix of it.

    Returns:
        An `optax.GradientTransformationExtraArgs` on whole arrays, for `jax.jit`, `simulate` and
        `distribute`. Its state is that of `inner`, shaped like whole parameters; what is no such
        tree and depends on a shard's shape (`low_rank`'s factors) is `Apart`, stacked [shards, …].

    Raises:
        TypeError: for what is no transformation, mesh or `PartitionSpec`.
        ValueError: for axes that the mesh has not; from `init` and `update`, for shards that do not
            divide a leaf, a transformation that is no relaxation, and those that are refused.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jax.sharding import PartitionSpec
        >>> import elastic_jax as ej
        >>> mesh = jax.make_mesh((jax.device_count(),), ("model",))
        >>> feedback = by_shard(ej.error_feedback(ej.top_k(1)), mesh, PartitionSpec("model"))
        >>> opt = optax.chain(optax.sgd(1.0), feedback)
        >>> grads = jnp.arange(1.0, 1 + 2 * mesh.size)  # two entries on each device
        >>> update, _ = opt.update(grads, opt.init(grads), grads)
        >>> print(update[:2])  # of each shard the largest
        [ 0. -2.]
    """
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"inner={inner!r} is no transformation; pass a relaxation or a chain")
    names = check_axes(specs, mesh)
    inner = optax.with_extra_args_support(inner)
    if not names:
        return inner
    auto = Mesh(mesh.devices, mesh.axis_names)

    def layout(params):
        """Says where the parameters are, and the state, some of it `Apart`."""
        leaves, treedef = jax.tree.flatten(params)
        places = leaf_specs(specs, params)
        whole = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
        shard = [
            jax.ShapeDtypeStruct(_shard_shape(x.shape, spec, mesh), x.dtype)
            for x, spec in zip(leaves, places, strict=True)
        ]
        of_whole, of_shard = (
            jax.eval_shape(inner.init, treedef.unflatten(x)) for x in (whole, shard)
        )
        _refuse_disagreement(of_shard, places)
        found = state_specs(of_whole, treedef.unflatten(whole), treedef.unflatten(places))

        def place(x, part, spec):
            if x.shape == part.shape:
                return EVERYWHERE
            follows = any(spec) and _shard_shape(x.shape, spec, mesh) == part.shape
            return spec if follows else Apart(PartitionSpec(names))

        return treedef.unflatten(places), jax.tree.map(place, of_whole, of_shard, found)

    def on_shards(function, in_specs, out_specs, *args):
        there = jax.sharding.get_abstract_mesh()  # inside distribute, say: then it is in force
        return jax.shard_map(
            function,
            mesh=None if there.axis_names else auto,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=set(names),
            check_vma=False,
        )(*args)

    def pack(state, places):
        leaves, treedef = jax.tree.flatten(state)
        columns = leaves, treedef.flatten_up_to(places)
        return treedef.unflatten(
            Apart(x[None]) if isinstance(place, Apart) else x
            for x, place in zip(*columns, strict=True)
        )

    def unpack(state):
        return jax.tree.map(
            lambda x: x.of_shards[0] if isinstance(x, Apart) else x,
            state,
            is_leaf=lambda x: isinstance(x, Apart),
        )

    def init(params):
        places, of_state = layout(params)

        def of_shard(params):
            return pack(inner.init(params), of_state)

        return on_shards(of_shard, (places,), of_state, params)

    def update(updates, state, params=None, **extra):
        places, of_state = layout(updates if params is None else params)

        def of_shard(updates, state, params):
            with record_passages() as passages:
                out, state = inner.update(updates, unpack(state), params)
            base = jax.tree.leaves(proposals(passages, out))
            given = jax.tree.leaves(updates)
            if len(base) != len(given) or any(a is not b for a, b in zip(base, given, strict=True)):
                raise ValueError(
                    "inner holds a transformation that is no relaxation: of a shard it may be "
                    "another function (a norm, say); keep by_shard for relaxations, behind the "
                    "base optimizer: chain(base, by_shard(chain(relaxations, exchange), …))"
                )
            return out, pack(state, of_state)

        in_specs = (places, of_state, None if params is None else places)
        with record_passages() as passages:
            out, state = on_shards(of_shard, in_specs, (places, of_state), updates, state, params)
            axes = tuple(dict.fromkeys(axis for passage in passages for axis in passage.axes))
            # to a meter outside all of it is one relaxation
            passages[:] = [Passage(jax.tree.leaves(updates), jax.tree.leaves(out), axes)]
        return out, state

    return optax.GradientTransformationExtraArgs(init, update)


def over_shards(squares: Any, specs: Any) -> Any:
    """Sums scalars, one for each leaf's shard, over the shards of that leaf.

    Args:
        squares: a tree of scalars shaped like the parameters.
        specs: the parameters' places, where this is inside a `shard_map` that is manual over their
            axes; None elsewhere: nothing is done.

    Raises:
        ValueError: for specs that name axes over which no `shard_map` is manual here.
    """
    if specs is None:
        return squares
    leaves, treedef = jax.tree.flatten(squares)
    bound = jax.sharding.get_abstract_mesh().manual_axes

    def total(x, spec):
        axes = spec_axes(spec)
        for axis in axes:
            if axis not in bound:
                raise ValueError(
                    f"specs name the axis {axis!r}, which no shard_map splits here (it splits "
                    f"{bound}); under jit, simulate and distribute XLA adds up shards: leave specs "
                    "away"
                )
        return jax.lax.psum(x, axes) if axes else x

    return treedef.unflatten(map(total, leaves, leaf_specs(specs, squares)))


def leaf_specs(specs: Any, tree: Any = None) -> list[PartitionSpec]:
    """Returns the spec of every leaf of a tree; without a tree, all the specs that there are."""
    found = jax.tree.leaves(specs, is_leaf=lambda x: x is None or isinstance(x, PartitionSpec))
    for spec in found:
        if not isinstance(spec, PartitionSpec):
            raise TypeError(
                f"specs hold {spec!r}, no PartitionSpec; pass jax.sharding.PartitionSpec(…) for "
                "every leaf, PartitionSpec() for one that is on every device"
            )
    if tree is None:
        return found
    try:
        each = jax.tree.map(lambda spec, part: jax.tree.map(lambda _: spec, part), specs, tree)
    except ValueError as error:
        raise ValueError(f"specs={specs} is no tree (or prefix) of the parameters'") from error
    return jax.tree.leaves(each)


def spec_axes(spec: PartitionSpec) -> tuple[str, ...]:
    """Returns the names of the mesh axes in a spec."""
    parts = (part if isinstance(part, tuple) else (part,) for part in spec)
    return tuple(axis for part in parts for axis in part if axis is not None)


def check_axes(specs: Any, mesh: Any, taken: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Returns the axes that specs name; refuses those that a mesh has not, or that are taken."""
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh={mesh!r} is no mesh; pass jax.make_mesh((devices,), (axis_name,))")
    names = tuple(dict.fromkeys(axis for spec in leaf_specs(specs) for axis in spec_axes(spec)))
    room = tuple(name for name in mesh.axis_names if name not in taken)
    if not set(names) <= set(room):
        raise ValueError(
            f"specs name the axes {names} but parameters can be sharded over {room}; name axes of "
            "the mesh other than the workers', or use PartitionSpec()"
        )
    return names


def _refuse_disagreement(state: Any, places: list[PartitionSpec]) -> None:
    """Refuses relaxations that would move what is on every device by what is in a shard."""
    kinds = (Sender, SchedulerState)
    for node in jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kinds)):
        if isinstance(node, SchedulerState):
            raise ValueError(
                "inner holds an elastic scheduler, whose clock looks at all leaves, whole; leave "
                "by_shard away: XLA gathers what it needs"
            )
        alone = isinstance(node, Sender) and isinstance(node.state, tuple) and len(node.state) == 1
        if alone and len(places) > 1 and not all(map(any, places)):
            raise ValueError(
                "inner compresses all leaves as one vector (scope='tree'), and some are not "
                "sharded: what a shard keeps of those would differ from device to device; use "
                "scope='leaf', shard every leaf, or leave by_shard away"
            )


def _shard_shape(shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> tuple[int, ...]:
    sizes = [1] * len(shape)
    for i, part in enumerate(spec):
        sizes[i] = math.prod(mesh.shape[axis] for axis in spec_axes(PartitionSpec(part)))
    if any(n % parts for n, parts in zip(shape, sizes, strict=True)):
        raise ValueError(
            f"{spec} does not divide an array of shape {shape} on a mesh {dict(mesh.shape)}; shard "
            "another dimension, or use PartitionSpec()"
        )
    return tuple(n // parts for n, parts in zip(shape, sizes, strict=True))
