"""What does a step cost, in seconds and bytes, and would compressing the exchange pay?

    python -m experiments.scaling [--quick] [--resume] [--out DIR] …

Lays workers on devices, with the dense mean and with compressed messages and error feedback; times
steps in turns, reads from each compiled program what it hands to the collectives, and times what
coding takes a machine: encoding, feedback, and decoding the messages of all. From that follows the
bandwidth below which the compressed exchange is the faster one. Takes the accelerators that are
there, else virtual CPU devices, which share their cores. The folder gets rows.csv, rows.json, a
figure and a verdict.
"""

import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import elastic_jax as ej
from elastic_jax.programs import collectives
from elastic_jax.types import Compressor
from elastic_jax.wire import wire
from experiments.command import Experiment, refuse
from experiments.command import run as run_command
from experiments.scaling_programs import Program, coding, in_turns, matrix, training
from experiments.scaling_verdict import Row, conclude
from experiments.train_config import COMPRESSORS, make_compressor

MODULE = "experiments.scaling"


@dataclasses.dataclass(frozen=True)
class Config:
    """What does a step cost, in seconds and bytes, and would compressing the exchange pay?"""

    out: Path = Path("results/scaling")
    """Folder for rows, figure and verdict."""
    compressors: tuple[str, ...] = (
        "top_k 0.001",
        "top_k 0.01",
        "top_k 0.1",
        "block_top_k 0.01",
        "sign",
        "quantize 4",
        "low_rank 2",
    )
    """Compressors, with their amount: fraction or number kept, threshold, bits, or rank."""
    sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    """Numbers d in an update, a float32 matrix as square as can be."""
    workers: tuple[int, ...] = (2, 4, 8)
    """Numbers of workers p."""
    devices: tuple[int, ...] = ()
    """Numbers of devices n that divide a p; none takes 1, 2, 4 … as far as there are any."""
    rounds: int = 11
    """Times that each program is timed, in turns."""
    quick: bool = False
    """A taste in seconds: other defaults, a tiny grid."""
    resume: bool = False
    """Go on with the rows that the folder has."""


QUICK = Config(
    out=Path("results/scaling_quick"),
    compressors=("top_k 0.01", "sign"),
    sizes=(5_000,),
    workers=(4,),
    devices=(2, 4),
    rounds=3,
    quick=True,
)
VIRTUAL = 8  # CPU devices, where none are asked for


@dataclasses.dataclass(frozen=True)
class Case:
    """What tells a row from the others, besides the config."""

    compressor: str
    d: int
    workers: int
    devices: int
    device: str  # its kind, as JAX names it


def parse(text: str) -> Compressor:
    """Makes a compressor from its name and, where it takes one, its amount.

    Raises:
        ValueError: naming what is wrong and what would be right.
    """
    name, *amounts = text.split()
    if name not in COMPRESSORS or name == "none":
        known = [known for known in COMPRESSORS if known != "none"]
        raise ValueError(f"{name!r} is no compressor: use one of {', '.join(known)}")
    if len(amounts) > 1:
        raise ValueError(f"{text!r}: give one amount")
    try:
        return make_compressor(name, *map(float, amounts))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{text!r}: {error}") from error


def check(config: Config) -> None:
    """Refuses a config that cannot be run.

    Raises:
        ValueError: naming the argument, its value, and what would be right.
    """
    for name in ("compressors", "sizes", "workers"):
        if not getattr(config, name):
            refuse(config, name, "give at least one")
    for name in ("compressors", "sizes", "workers", "devices"):
        values = getattr(config, name)
        if len(set(values)) < len(values):
            refuse(config, name, "give each value once")
        if name != "compressors" and not all(value >= 1 for value in values):
            refuse(config, name, "give whole numbers of at least 1")
    if min(config.workers) < 2:
        refuse(config, "workers", "give at least 2: one has nobody to send to")
    if config.rounds < 2:
        refuse(config, "rounds", "give at least 2: quartiles are of several")
    for n in config.devices:
        if all(p % n for p in config.workers):
            refuse(config, "devices", f"{n} divides none of --workers; give divisors of them")
    for text in config.compressors:
        try:
            parse(text)
        except ValueError as error:
            refuse(config, "compressors", str(error))
    if config.out.exists() and not config.out.is_dir():
        refuse(config, "out", "that is a file; name a folder")


def grid(config: Config) -> list[Case]:
    """Lists all rows: every compressor and size, on every number of devices that divides p.

    Raises:
        ValueError: for a config that cannot be run, or more devices than there are.
    """
    check(config)
    try:
        jax.config.update("jax_num_cpu_devices", max(config.devices, default=VIRTUAL))
    except RuntimeError:
        pass  # JAX is in use, and has the devices that it has
    there = jax.device_count()
    if max(config.devices, default=1) > there:
        refuse(config, "devices", f"there are {there}; give numbers up to that")
    counts = config.devices or [2**i for i in range(there.bit_length())]
    return [
        Case(compressor, d, p, n, jax.devices()[0].device_kind)
        for d, p, n in itertools.product(config.sizes, config.workers, counts)
        if p % n == 0
        for compressor in config.compressors
    ]


# ---- the program ----


def quartiles(name: str, values: np.ndarray) -> dict[str, Any]:
    """Names the median and the quartiles for a row."""
    found = np.quantile(values, (0.5, 0.25, 0.75)).tolist()
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


def measure(case: Case, dense: tuple[Program, str], rounds: int) -> Row:
    """Measures one row, against a dense program of the same layout."""
    compressor, like = parse(case.compressor), matrix(case.d)
    p, n = case.workers, case.devices
    load = os.getloadavg()[0]
    compressed, text = training(compressor, case.d, p, n)
    programs = {"dense": dense[0], "step": compressed, "coding": coding(compressor, case.d, p)}
    times = in_turns(programs, rounds)
    coded = times["coding"].wall
    if jax.default_backend() == "cpu":  # what other processes do meanwhile is no cost of coding
        coded = np.minimum(coded, times["coding"].processor)
    dense_step, step = times["dense"].wall, times["step"].wall
    wires = [wire(one, like, p, on_each=p // n) for one in (compressor, ej.identity())]
    machines = [wire(one, like, p) for one in (compressor, ej.identity())]
    return Row(
        **dataclasses.asdict(case),
        kind=wires[0].kind,
        declared=wires[0].nbytes,
        handed=sum(one.nbytes for one in collectives(text)),
        sent=wires[0].sent,
        dense_declared=wires[1].nbytes,
        dense_handed=sum(one.nbytes for one in collectives(dense[1])),
        dense_sent=wires[1].sent,
        **quartiles("seconds", step),
        **quartiles("dense_seconds", dense_step),
        **quartiles("ratio", step / dense_step),
        machine_kind=machines[0].kind,
        machine_sent=machines[0].sent,
        machine_dense_sent=machines[1].sent,
        **quartiles("coding", coded),
        load=load,
    )


def _do(config: Config, to_do: Sequence[Case], step: Any) -> Iterator[tuple[Case, Row]]:
    dense = functools.lru_cache(maxsize=1)(functools.partial(training, None))
    for case in to_do:
        yield case, measure(case, dense(case.d, case.workers, case.devices), config.rounds)


def _conclude(
    config: Config, rows: Mapping[Case, Row], about: dict[str, Any], warnings: list[str]
) -> tuple[list[str], bool]:
    about |= {"machine": {"cores": os.cpu_count(), "device": jax.devices()[0].device_kind}}
    return conclude(config.out, list(rows.values()), about, warnings)


EXPERIMENT = Experiment(
    MODULE,
    Config(),
    QUICK,
    ("compressors", "sizes", "workers", "devices"),
    Row,
    grid,
    _do,
    _conclude,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment; see `experiments.command.run`. The status is 1 if bytes are wrong."""
    return run_command(EXPERIMENT, arguments)


if __name__ == "__main__":
    sys.exit(main())
