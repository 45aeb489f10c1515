"""Workers on several devices: the step that `simulate` runs, under `jax.shard_map`."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from elastic_jax.checks import whole
from elastic_jax.exchange import axis_names
from elastic_jax.shards import check_axes, state_specs
from elastic_jax.workers import (
    WorkerState,
    WorkerStep,
    check_batches,
    check_one_axis,
    check_states,
    check_step,
)


def distribute(
    step: WorkerStep, mesh: Mesh, *, workers: int | None = None, specs: Any = None
) -> WorkerStep:
    """Runs p workers on the devices of a mesh, one or several on each.

    What `simulate` computes, up to the rounding of sums over workers, and with the same randomness:
    worker i is the one whose state and batch stand i-th in the stacks, and its index counts the
    innermost axis fastest. Stacks [p, ...] are sharded along their first axis, over the workers'
    axes of the mesh; what each of its other axes does is left to XLA: nothing, unless parameters
    are sharded over it (`specs`). Then losses are written as on one device, and so are relaxations:
    see `elastic_jax.shards`, and `by_shard` there, for what that costs.

    Args:
        step: of one worker, whose `axis_name` is an axis of the mesh, or a tuple of axes, innermost
            first. The first name of a tuple may be missing from the mesh: that axis runs under
            `jax.vmap` on each device.
        mesh: of devices, on one host or many (`jax.distributed`).
        workers: p, where a device simulates several: a multiple of the number of devices on the
            workers' axes. None for one worker on each.
        specs: where each worker's parameters stand on the mesh's other axes: `PartitionSpec`s, a
            tree shaped like the parameters or a prefix of it. What an optimizer keeps in their
            shape (see `elastic_jax.shards.state_specs`) stands there too. None where every device
            has them whole.

    Returns:
        A step with the same signature, compiled: `init(params)` gives states stacked [p, ...], all
        views alike; `step(states, batches)` takes batches stacked [p, ...] and returns losses [p].

    Raises:
        TypeError: for what is no worker step, mesh or `PartitionSpec`.
        ValueError: for axis names that the mesh has not, a number of workers that its devices do
            not divide, batches that are not stacked [p, ...], or specs that name the workers' axes.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> import elastic_jax as ej
        >>> loss = lambda x, target: 0.5 * jnp.sum((x - target) ** 2)
        >>> opt = optax.chain(optax.sgd(0.5), ej.error_feedback(ej.top_k(1), ("sim", "gpu")))
        >>> mesh = jax.make_mesh((1,), ("gpu",))  # make_mesh((8,), ("gpu",)) on eight
        >>> step = ej.worker_step(loss, opt, axis_name=("sim", "gpu"))
        >>> run = ej.distribute(step, mesh, workers=2)  # two workers simulated on each
        >>> states = run.init(jnp.zeros(2))
        >>> states, losses = run.step(states, jnp.array([[4.0, 0.0], [0.0, 2.0]]))
        >>> print(losses, states.params[0])
        [8. 2.] [1.  0.5]
    """
    inner, outer, workers = _layout(step, mesh, workers)
    stacked, alike = PartitionSpec(outer[::-1]), PartitionSpec()
    auto = Mesh(mesh.devices, mesh.axis_names)
    if specs is not None:
        check_axes(specs, mesh, outer)

    def on_device(function, *blocks):
        """Runs one worker's function on a device's block of a stack."""
        if inner is not None:
            return jax.vmap(function, axis_name=inner)(*blocks)
        out = function(*(jax.tree.map(lambda x: x[0], block) for block in blocks))
        return jax.tree.map(lambda x: jnp.asarray(x)[None], out)

    # States are stacked, so that each device differentiates with respect to views of its own: the
    # check of replication would find nothing, only refuse losses whose loops start from constants.
    def shard(function, in_specs):
        def call(*args):
            # Results can be used as those of `simulate`, even if the mesh has explicit axes (as
            # jax.make_mesh makes them), unless they are in force: then they are to be obeyed.
            explicit = AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types
            if explicit and specs is not None:
                raise ValueError(
                    "specs are for axes that XLA manages, but the mesh in force has explicit ones; "
                    "call this outside jax.set_mesh, or give the mesh AxisType.Auto"
                )
            if explicit:
                args = [
                    jax.sharding.reshard(tree, NamedSharding(mesh, spec))
                    for tree, spec in zip(args, in_specs, strict=True)
                ]
            return jax.shard_map(
                function,
                mesh=mesh if explicit else auto,
                in_specs=in_specs,
                out_specs=stacked,
                axis_names=set(outer),
                check_vma=False,
            )(*args)

        return call

    def placed(states):
        """Has XLA keep what is shaped like sharded parameters where they are."""

        def of_one(state):
            params, opt_state = jax.tree.map(  # of one worker
                lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tuple(state)
            )
            places = WorkerState(*state_specs((params, opt_state), params, specs))
            return jax.tree.map(
                lambda x, spec: (
                    jax.lax.with_sharding_constraint(
                        x, NamedSharding(auto, PartitionSpec(outer[::-1], *spec))
                    )
                    if any(spec)
                    else x
                ),
                state,
                places,
            )

        if specs is None:
            return states
        return jax.tree.map(of_one, states, is_leaf=lambda x: isinstance(x, WorkerState))

    def init_block(index, params):
        return on_device(lambda _: step.init(params), index)

    def step_block(states, batches):
        return on_device(step.step, states, batches)

    start = shard(init_block, (stacked, alike))
    run = shard(step_block, (stacked, stacked))

    @jax.jit
    def initialize(params):
        return placed(start(jnp.arange(workers), params))

    @jax.jit
    def run_placed(states, batches):
        states, out = run(states, batches)
        return placed(states), out

    return _checked(step, workers, initialize, run_placed)


def pmap(step: WorkerStep, workers: int) -> WorkerStep:
    """Runs p workers on the first p devices of this host, under `jax.pmap`.

    For programs that are written with `pmap`; `distribute` does the same on any mesh.

    Args:
        step: of one worker, made with one `axis_name`.
        workers: p, at most the number of this host's devices.

    Returns:
        As `distribute`.

    Raises:
        TypeError: for what is no worker step.
        ValueError: for more workers than devices, a step without an axis name or with several, or
            batches that are not stacked [p, ...].

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import elastic_jax as ej
        >>> opt = optax.chain(optax.sgd(0.5), ej.all_mean("gpu"))
        >>> run = pmap(ej.worker_step(lambda x, b: jnp.sum(x * b), opt, axis_name="gpu"), workers=1)
        >>> states, losses = run.step(run.init(jnp.ones(2)), jnp.array([[1.0, 2.0]]))
        >>> print(losses, states.params)
        [3.] [[0.5 0. ]]
    """
    workers = whole("workers", workers, "number of workers")
    check_one_axis(step)
    there = jax.local_device_count()
    if workers > there:
        raise ValueError(
            f"workers={workers} but this host has {there} devices; use "
            "distribute(step, mesh, workers=…), which simulates several workers on each"
        )

    def init_one(_, params):
        return step.init(params)

    initialize = jax.pmap(init_one, axis_name=step.axis_name, in_axes=(0, None))
    run = jax.pmap(step.step, axis_name=step.axis_name)
    return _checked(step, workers, lambda params: initialize(jnp.arange(workers), params), run)


def _checked(
    step: WorkerStep,
    workers: int,
    init: Callable[[Any], WorkerState],
    run: Callable[[WorkerState, Any], tuple[WorkerState, Any]],
) -> WorkerStep:
    def checked(states, batches):
        check_states(states, workers)
        check_batches(batches, workers)
        return run(states, batches)

    return WorkerStep(init, checked, step.axis_name)


def _layout(step: Any, mesh: Any, workers: int | None) -> tuple[str | None, tuple[str, ...], int]:
    """Parts the workers' axes in the simulated one and the mesh's; returns them and p."""
    check_step(step)
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh={mesh!r} is no mesh; pass jax.make_mesh((devices,), (axis_name,))")
    if step.axis_name is None:
        raise ValueError(
            "step has axis_name=None; make it with worker_step(..., axis_name=...), the name of an "
            f"axis of the mesh: {mesh.axis_names}"
        )
    names = axis_names(step.axis_name)
    inner = names[0] if names[0] not in mesh.axis_names else None
    outer = names[inner is not None :]
    missing = [name for name in outer if name not in mesh.axis_names]
    if missing or not outer:
        raise ValueError(
            f"step has axis_name={step.axis_name!r} but the mesh has axes {mesh.axis_names}; name "
            "axes of the mesh, innermost first, and at most one simulated axis before them"
        )
    devices = math.prod(mesh.shape[name] for name in outer)
    if workers is None:
        if inner is not None:
            raise ValueError(
                f"workers=None but axis {inner!r} is not in the mesh {mesh.axis_names}: pass "
                f"workers=…, a multiple of its {devices} devices, to simulate several on each"
            )
        return None, outer, devices
    workers = whole("workers", workers, "number of workers")
    if workers % devices:
        raise ValueError(
            f"workers={workers} cannot be divided among the {devices} devices of axes {outer}; "
            f"pass a multiple of {devices}"
        )
    if inner is None and workers != devices:
        raise ValueError(
            f"workers={workers} but the axes {outer} have {devices} devices; to simulate several "
            f"on each, make step and exchange with axis_name={('simulated', *names)!r}"
        )
    return inner, outer, workers
