"""Trains a network with relaxed distributed SGD, on one device or many hosts, and can be killed.

    python -m experiments.train [--workers 8] [--devices 4] [--out DIR] …
    python -m experiments.train --processes 2 --devices 4      a rehearsal of two hosts
    python -m experiments.train --cluster                      one such command on each host

The folder gets config.json, metrics.jsonl (one line a logged step), checkpoints of views, optimizer
states and held mass, and result.json. Stopped or killed at any moment, the same command with
--resume goes on and ends with the same bits; with another --workers the mass that was held moves.
"""

import contextlib
import functools
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import elastic_jax as ej
from elastic_jax.workers import WorkerState
from experiments import data, hosts, models
from experiments.checkpoints import Checkpoints, Metrics, lock, place
from experiments.progress import Progress
from experiments.runs import replacing, versions
from experiments.train_config import AXIS, SHARD, Config, chain, check, plain

MODULE = "experiments.train"


# ---- the program ----


class Program(NamedTuple):
    """A run's compiled functions, over the devices of all processes."""

    init: Callable[[], WorkerState]
    advance: Callable[..., Any]  # states, batch, stops -> states, losses [p], largest stop
    measure: Callable[..., Any]  # states, losses -> {name: scalar}
    accuracy: Callable[[Any], Any]  # states -> scalar
    like: WorkerState  # shapes of the states
    places: WorkerState  # shardings of the states
    batches: Any  # sharding of batches [p, b, ...]
    each: Any  # sharding of what each device has a part of


def build(config: Config, dataset: data.Dataset) -> Program:
    """Builds the program for the devices that there are.

    Raises:
        ValueError: if they do not divide the number of workers, or shards do not divide them.
    """
    groups, rest = divmod(jax.device_count(), config.shard)
    if rest:
        raise ValueError(
            f"--shard {config.shard}: does not divide {jax.device_count()} devices; give a divisor"
        )
    if config.workers % groups:
        raise ValueError(
            f"--workers {config.workers}: cannot be divided among {groups} devices; give a "
            f"multiple of {groups}"
        )
    sizes, names = (groups, config.shard), (AXIS, SHARD)
    if config.shard == 1:
        sizes, names = sizes[:1], names[:1]
    mesh = jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(sizes))
    on_mesh = functools.partial(NamedSharding, mesh)
    batches, each, alike = (on_mesh(PartitionSpec(*a)) for a in (names, (names,), ()))
    axis = AXIS if config.workers == groups else ("simulated", AXIS)
    model = models.make(config.model, dataset)
    loss = models.loss_fn(model)
    step = ej.worker_step(lambda params, batch: loss(params, *batch), chain(config, axis), axis)
    params = model.init(jax.random.key(config.seed))
    specs = spread(params, config.shard)
    run = ej.distribute(
        step, mesh, workers=config.workers, specs=specs if config.shard > 1 else None
    )
    like = jax.eval_shape(run.init, params)
    of_one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tuple(like))
    places = WorkerState(*ej.shards.state_specs(of_one, params, specs))
    places = jax.tree.map(lambda spec: on_mesh(PartitionSpec(AXIS, *spec)), places)

    def advance(states, batch, stops):
        states, losses = run.step(states, batch)
        return states, losses, jax.lax.with_sharding_constraint(jnp.max(stops), alike)

    def measure(states, losses):
        meter = states.opt_state

        def norm(report):
            mass = jax.vmap(report)(meter, states.params)
            return optax.tree.norm(jax.tree.map(lambda x: x.mean(0), mass))

        figures = {
            "loss": losses.mean(),
            "B_hat": meter.elastic_constant.last.max(),
            "B_hat_max": meter.elastic_constant.max.max(),
            "M_hat": jnp.sqrt(jnp.square(meter.second_moment.last).mean()),
            "M_hat_max": meter.second_moment.max.max(),
            "held": norm(ej.held),
            "lost": norm(ej.lost),
        }
        return jax.lax.with_sharding_constraint(figures, alike)

    # the test images are divided among the devices, and padded with a class that there is not
    count = len(dataset.test_labels)
    short = -count % jax.device_count()
    images = np.pad(dataset.test_images, ((0, short), (0, 0), (0, 0), (0, 0)))
    labels = np.pad(dataset.test_labels, (0, short), constant_values=-1)
    images, labels = place(images, each), place(labels, each)

    def accuracy(states, images, labels):
        view = jax.tree.map(lambda v: v.mean(0), states.params)
        right = models.accuracy(model, view, images, labels) * (len(labels) / count)
        return jax.lax.with_sharding_constraint(right, alike)

    score = jax.jit(accuracy)
    return Program(
        lambda: run.init(params),
        jax.jit(advance, donate_argnums=0),
        jax.jit(measure),
        lambda states: score(states, images, labels),
        like,
        places,
        batches,
        each,
    )


def spread(params: Any, devices: int) -> Any:
    """Spreads each array over devices, along the longest dimension that they divide, if any.

    Returns:
        A tree of `PartitionSpec`s shaped like the parameters.
    """

    def place_of(x):
        fits = [i for i, n in enumerate(x.shape) if devices > 1 and n and n % devices == 0]
        along = max(fits, key=lambda i: x.shape[i], default=None)
        return PartitionSpec(*(SHARD if i == along else None for i in range(x.ndim)))

    return jax.tree.map(place_of, params)


def batch_of(config: Config, dataset: data.Dataset, step: int, sharding: Any) -> Any:
    """Draws one batch for each worker, a function of seed, worker and step alone.

    Returns:
        Images [p, b, h, w, c] and labels [p, b]; each process reads what its devices need.
    """
    p, count = config.workers, len(dataset.train_labels)

    def rows(worker: int) -> np.ndarray:
        rng = np.random.default_rng((config.seed, worker, step))
        return rng.integers(count, size=config.batch)

    def stack(array: np.ndarray) -> jax.Array:
        def part(index):
            return np.stack([array[rows(worker)[index[1]]] for worker in range(p)[index[0]]])

        return jax.make_array_from_callback((p, config.batch, *array.shape[1:]), sharding, part)

    return stack(dataset.train_images), stack(dataset.train_labels)


# ---- the loop ----


def train(config: Config, dataset: data.Dataset, command: str) -> int:
    """Trains, from the start or the latest checkpoint, to the end or a signal.

    Args:
        config: checked.
        dataset: its data.
        command: for the record.

    Returns:
        The exit status: 0, or 128 + n after signal n, with all of it in a checkpoint.
    """
    signals = hosts.Signals()
    program = build(config, dataset)
    first = jax.process_index() == 0  # of the processes; it alone writes, apart from checkpoints
    checkpoints = Checkpoints(config.out / "checkpoints")
    done = checkpoints.latest() or 0
    if done:
        workers = checkpoints.about(done)["workers"]
        states = checkpoints.restore(done, program.like, workers, program.places)
        if first:
            moved = f", moved from {workers} to {config.workers} workers"
            print(f"resumed after step {done}{moved * (workers != config.workers)}", flush=True)
    else:
        states = program.init()
    metrics = progress = None
    if first:
        with replacing(config.out / "config.json") as part:
            part.write_text(json.dumps(plain(config), indent=1) + "\n")
        metrics = Metrics(config.out / "metrics.jsonl", done)
        progress = Progress(config.steps, done, unit="steps")
    start, asked, ahead = done, 0, jax.default_backend() != "cpu"
    stop: Any = 0
    try:
        while done < config.steps and not asked:
            flags = np.full(jax.device_count(), signals.number, np.int32)
            batch = batch_of(config, dataset, done, program.batches)
            former = stop
            states, losses, stop = program.advance(states, batch, place(flags, program.each))
            # All processes read the same flag; elsewhere than on CPUs that of the step before, so
            # that the next one is made ready while this one runs.
            asked = int(former if ahead else stop)
            if done % config.log_every == 0:
                row = {name: float(x) for name, x in program.measure(states, losses).items()}
                if done % config.eval_every == 0:
                    row["accuracy"] = float(program.accuracy(states))
                if metrics is not None:
                    metrics.append({"step": done, "workers": config.workers, **row})
            done += 1
            if progress is not None:
                progress.step()
            if done % config.checkpoint_every == 0 or done == config.steps or asked:
                if metrics is not None:
                    metrics.sync()
                checkpoints.save(done, states, {"workers": config.workers})
        accuracy = float(program.accuracy(states)) if done == config.steps else 0.0
        checkpoints.close()
    finally:
        if progress is not None:
            progress.stop()
        signals.close()
    if done > config.steps:
        print(f"nothing to do: {start} steps are done", file=sys.stderr)
    if first and done == config.steps:
        result = {"steps": done, "accuracy": accuracy, "command": command, "versions": versions()}
        with replacing(config.out / "result.json") as part:
            part.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{done} steps, test accuracy {accuracy:.3f}; all of it is in {config.out}")
    return 128 + asked if done < config.steps else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains as the command line says.

    Args:
        arguments: of the command line; None takes the process's own.

    Returns:
        The exit status: 0; 2 for bad arguments; 3 where another process was lost; 128 + n after
        signal n, with a checkpoint of all that was done.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    config = tyro.cli(Config, args=arguments, prog=f"python -m {MODULE}")
    command = f"python -m {MODULE} {shlex.join(arguments)}".strip()
    again = command if config.resume else f"{command} --resume"
    try:
        dataset = check(config)
        config.out.mkdir(parents=True, exist_ok=True)
        if config.processes > 1:
            one = [sys.executable, "-m", MODULE, *_without(arguments, "--processes")]
            return hosts.rehearse(one, config.processes, again)
        if config.devices is not None:
            jax.config.update("jax_num_cpu_devices", config.devices)
        first = not config.cluster and not config.process_id
        with lock(config.out) if first else contextlib.nullcontext():
            hosts.connect(
                config.coordinator, config.process_id, config.process_count, config.cluster
            )
            first = config.cluster and jax.process_index() == 0  # known only now
            with lock(config.out) if first else contextlib.nullcontext():
                return _train(config, dataset, command, again)
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _train(config: Config, dataset: data.Dataset, command: str, again: str) -> int:
    try:
        status = train(config, dataset, command)
    except Exception as error:
        if jax.process_count() > 1:
            hosts.give_up(error, again)
        raise
    if status and jax.process_index() == 0:
        print(f"stopped, and kept; to go on: {again}", file=sys.stderr)
    return status


def _without(arguments: Sequence[str], flag: str) -> list[str]:
    """Leaves a flag and its value out."""
    out, skip = [], False
    for argument in arguments:
        if not skip and argument != flag and not argument.startswith(f"{flag}="):
            out.append(argument)
        skip = argument == flag
    return out


if __name__ == "__main__":
    sys.exit(main())
