"""What `experiments.train` can be asked for, and what it refuses."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import optax

import elastic_jax as ej
from elastic_jax.types import Compressor
from experiments import data, models

AXIS, SHARD = "workers", "shard"
COMPRESSORS: dict[str, tuple[Callable[..., Compressor], float | int | None]] = {
    "none": (ej.identity, None),  # and the default amount
    "top_k": (ej.top_k, 0.01),
    "block_top_k": (ej.block_top_k, 0.01),
    "random_k": (ej.random_k, 0.1),
    "threshold": (ej.threshold, 0.001),
    "sign": (ej.sign, None),
    "natural": (ej.natural, None),
    "quantize": (ej.quantize, 8),
    "low_rank": (ej.low_rank, 2),
}
OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": optax.adam,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a network with relaxed distributed SGD."""

    out: Path = Path("results/train")
    """Folder for metrics and checkpoints; hosts share it."""
    data: Literal["mnist", "fashion", "digits", "cifar10"] = "digits"
    """Images to classify."""
    data_dir: Path | None = None
    """Folder with the files of fashion or cifar10."""
    model: Literal["cnn", "resnet20"] = "cnn"
    """Network."""
    workers: int = 8
    """Workers p; a multiple of the number of all devices (over shard), which simulate several."""
    shard: int = 1
    """Devices among which each worker's parameters, states and batch are spread (FSDP)."""
    devices: int | None = None
    """Virtual CPU devices of each process; none takes the devices that are there."""
    optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    """Base optimizer of each worker."""
    learning_rate: float = 0.1
    """Step size α."""
    compressor: Literal[
        "none",
        "top_k",
        "block_top_k",
        "random_k",
        "threshold",
        "sign",
        "natural",
        "quantize",
        "low_rank",
    ] = "top_k"
    """What crosses the wire."""
    amount: float | None = None
    """Of the compressor: fraction (or whole number) kept, threshold, bits, or rank."""
    feedback: bool = True
    """Hold what the compressor drops (error feedback); without it that mass is lost."""
    delay: int = 0
    """Steps by which the mean of the workers' updates arrives late."""
    batch: int = 16
    """Images for each worker and step."""
    steps: int = 500
    """Steps in all."""
    seed: int = 0
    """Seed of parameters, batches and compressors."""
    log_every: int = 10
    """Steps from line to line of the metrics."""
    eval_every: int = 100
    """Steps from one test accuracy to the next; a multiple of log-every."""
    checkpoint_every: int = 100
    """Steps from checkpoint to checkpoint."""
    resume: bool = False
    """Go on from the latest checkpoint in the folder, with the same settings."""
    processes: int = 1
    """Rehearse several hosts on this machine: so many processes, over gloo on 127.0.0.1."""
    coordinator: str | None = None
    """Host and port of process 0, where several are started by hand."""
    process_id: int | None = None
    """This process's number, from 0; with coordinator."""
    process_count: int | None = None
    """How many processes there are; with coordinator."""
    cluster: bool = False
    """Find the other processes by what SLURM, GKE, a TPU pod or Open MPI tell JAX."""


# What may be different when a run is resumed.
FREE = ("out", "data_dir", "workers", "shard", "devices", "steps", "checkpoint_every", "resume")
FREE += ("processes", "coordinator", "process_id", "process_count", "cluster")


def check(config: Config) -> data.Dataset:
    """Refuses a config that cannot be run, and returns its data.

    Args:
        config: any.

    Raises:
        ValueError: naming the argument, its value, and what would be right.
        FileNotFoundError: if the data are missing.
        ImportError: if a package that ships data is missing.
    """

    def refuse(name: str, remedy: str) -> None:
        raise ValueError(f"--{name.replace('_', '-')} {getattr(config, name)}: {remedy}")

    counts = ("workers", "shard", "batch", "steps", "log_every", "checkpoint_every", "processes")
    for name in counts:
        if getattr(config, name) < 1:
            refuse(name, "give a whole number of at least 1")
    for name in ("delay", "seed"):
        if not 0 <= getattr(config, name) < 2**31:
            refuse(name, "give a whole number from 0, below 2^31")
    if config.batch % config.shard:
        refuse("batch", f"give a multiple of --shard, {config.shard}")
    if config.devices is not None and config.devices < 1:
        refuse("devices", "give a whole number of at least 1, or leave it out")
    if not 0 < config.learning_rate < math.inf:
        refuse("learning_rate", "give a finite number above 0")
    if config.eval_every < 1 or config.eval_every % config.log_every:
        refuse("eval_every", f"give a multiple of --log-every, {config.log_every}")
    if config.amount is not None and COMPRESSORS[config.compressor][1] is None:
        refuse("amount", f"--compressor {config.compressor} takes none; leave it out")
    place = (config.coordinator, config.process_id, config.process_count)
    if any(value is not None for value in place) and None in place:
        refuse("coordinator", "give --coordinator, --process-id and --process-count together")
    ways = (config.processes > 1, config.coordinator is not None, config.cluster)
    if sum(ways) > 1:
        refuse("processes", "give one of --processes, --coordinator and --cluster")
    if config.process_id is not None and not 0 <= config.process_id < (config.process_count or 0):
        refuse("process_id", f"give one from 0, below --process-count {config.process_count}")
    if config.out.exists() and not config.out.is_dir():
        refuse("out", "that is a file; name a folder")
    about = config.out / "config.json"
    if about.exists() and not config.resume:
        refuse("out", "a run is there already; add --resume to go on with it, or name another")
    if about.exists():
        former = json.loads(about.read_text())
        for name, value in plain(config).items():
            if name not in FREE and former.get(name) != value:
                refuse(name, f"the run in {config.out} has {former.get(name)}; resume with that")
    chain(config, AXIS)
    dataset = data.load(config.data, config.data_dir)
    models.make(config.model, dataset)
    return dataset


def plain(config: Config) -> dict[str, Any]:
    """Returns a config as JSON has it."""
    pairs = dataclasses.asdict(config).items()
    return {name: str(value) if isinstance(value, Path) else value for name, value in pairs}


def make_compressor(name: str, amount: float | None = None) -> Compressor:
    """Makes a compressor of the table.

    Args:
        name: a key of COMPRESSORS.
        amount: fraction or number kept, threshold, bits, or rank; None takes the default.

    Raises:
        TypeError: for an amount of a compressor that takes none.
        ValueError: for an amount out of range.
    """
    make, default = COMPRESSORS[name]
    amount = default if amount is None else amount
    # 0.01 and 1.0 are fractions; 20 is a count, and so is every rank
    if amount is not None and float(amount).is_integer() and (amount > 1 or make is ej.low_rank):
        amount = int(amount)
    return make() if amount is None else make(amount)


def chain(config: Config, axis: Any) -> optax.GradientTransformation:
    """Builds base → compressed exchange → delay, with a meter around it."""
    try:
        compressor = make_compressor(config.compressor, config.amount)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--amount {config.amount}: {error}") from error
    relax = ej.error_feedback if config.feedback else ej.compress
    parts = optax.chain(
        OPTIMIZERS[config.optimizer](config.learning_rate),
        relax(compressor, axis_name=axis, seed=config.seed),
        ej.delay(config.delay),
    )
    return ej.meter(parts, config.learning_rate, axis_name=axis, every=config.log_every)
