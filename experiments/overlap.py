"""What may run beside a collective, and what does that cost?

    python -m experiments.overlap [--quick] [--resume] [--out DIR] …

Compiles a step, or two of them unrolled, for several exchanges, without a delay and with `delay(1)`
before or after them; reads from each program which operations of the gradient its collectives wait
for, which wait for them, and which may run beside them; on GPUs also how many are scheduled between
a collective's start and its end. Trains for a while, so that the meter says what the delay costs.
The folder gets rows.csv, rows.json and a verdict.
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType

import elastic_jax as ej
from elastic_jax.programs import collectives
from experiments import runs
from experiments.command import Experiment, refuse
from experiments.command import run as run_command

MODULE = "experiments.overlap"
AXIS, ALPHA, ROWS = "devices", 0.1, 8
EXCHANGES = {
    "all_mean": lambda: ej.all_mean(AXIS),
    "identity in bfloat16": lambda: ej.error_feedback(ej.identity("bfloat16"), AXIS),
    "top_k(0.01)": lambda: ej.error_feedback(ej.top_k(0.01), AXIS),
    "low_rank(2)": lambda: ej.error_feedback(ej.low_rank(2), AXIS),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What may run beside a collective, and what does that cost?"""

    out: Path = Path("results/overlap")
    """Folder for rows and verdict."""
    exchanges: tuple[str, ...] = tuple(EXCHANGES)
    """Exchanges: all_mean, or what is sent with error feedback."""
    width: int = 256
    """Of the two layers that are trained."""
    devices: int = 4
    """Devices, a worker on each."""
    steps: int = 50
    """Steps that the meter watches."""
    quick: bool = False
    """A taste in seconds: a smaller default."""
    resume: bool = False
    """Go on with the rows that the folder has."""


QUICK = Config(
    out=Path("results/overlap_quick"), exchanges=("all_mean",), width=16, steps=5, quick=True
)


@dataclasses.dataclass(frozen=True)
class Case:
    """What tells a row from the others, besides the config."""

    exchange: str
    delay: str  # none | before | after
    unrolled: int  # steps in the program


@dataclasses.dataclass(frozen=True)
class Row(Case):
    """What a program allows. Of operations of the gradient, around the first step's collectives."""

    collectives: int  # in the program
    nbytes: int  # that a device hands to them
    needs: int  # operations that the last of them waits for
    delays: int  # operations that wait for the first of them
    beside: float  # gradients' worth of operations that may run beside each, at least
    hiding: int  # operations scheduled between starts and ends
    measured: float  # B̂, the largest
    moment: float  # M̂, the largest


def grid(config: Config) -> list[Case]:
    """Lists all rows.

    Raises:
        ValueError: for a config that cannot be run, or more devices than there are.
    """
    unknown = [name for name in config.exchanges if name not in EXCHANGES]
    if unknown or not config.exchanges or len(set(config.exchanges)) < len(config.exchanges):
        refuse(config, "exchanges", f"give some of {', '.join(EXCHANGES)}, each once")
    for name, least in (("width", 8), ("devices", 2), ("steps", 2)):
        if getattr(config, name) < least:
            refuse(config, name, f"give a whole number of at least {least}")
    try:
        jax.config.update("jax_num_cpu_devices", config.devices)
    except RuntimeError:
        pass  # JAX is in use, and has the devices that it has
    if config.devices > jax.device_count():
        refuse(config, "devices", f"there are {jax.device_count()}; give a number up to that")
    places = (("none", 1), ("before", 1), ("none", 2), ("after", 2))
    pairs = itertools.product(config.exchanges, places)
    return [Case(exchange, *place) for exchange, place in pairs]


def loss(params: Any, batch: jax.Array) -> jax.Array:
    """Fits a narrow output to nothing, through one layer."""
    with jax.named_scope("loss"):
        return jnp.mean(jnp.square(jnp.tanh(batch @ params["in"]) @ params["out"] - 1))


def prepare(case: Case, config: Config) -> tuple[Any, Any, Any, jax.Array]:
    """Makes a row's chain, the mesh, parameters and batches."""
    parts = [EXCHANGES[case.exchange]()]
    if case.delay != "none":
        parts.insert(0 if case.delay == "before" else 1, ej.delay(1))
    there = jax.devices()[: config.devices]
    mesh = jax.make_mesh((config.devices,), (AXIS,), (AxisType.Auto,), devices=there)
    draw = functools.partial(np.random.default_rng(0).standard_normal, dtype=np.float32)
    layers = {"in": draw((config.width, config.width)), "out": draw((config.width, 8))}
    params = jax.tree.map(lambda x: jnp.asarray(x) * config.width**-0.5, layers)
    batches = jnp.asarray(draw((config.steps, config.devices, ROWS, config.width)))
    return optax.chain(optax.sgd(ALPHA), *parts), mesh, params, batches


def drift(case: Case, config: Config) -> tuple[float, float]:
    """Trains, and returns the largest B̂ and M̂."""
    chain, mesh, params, batches = prepare(case, config)
    metered = ej.meter(chain, ALPHA, AXIS, every=1)
    run = ej.distribute(ej.worker_step(loss, metered, AXIS), mesh)
    last, _ = jax.lax.scan(run.step, run.init(params), batches)
    meter: Any = last.opt_state
    return float(meter.elastic_constant.max.max()), float(meter.second_moment.max.max())


def measure(case: Case, config: Config) -> Row:
    """Compiles one row's program, and reads it."""
    chain, mesh, params, batches = prepare(case, config)
    run = ej.distribute(ej.worker_step(loss, chain, AXIS), mesh)

    def train(states, batches):
        for batch in batches:
            states, _ = run.step(states, batch)
        return states

    compiled = jax.jit(train).lower(run.init(params), batches[: case.unrolled]).compile()
    found = collectives(compiled.as_text() or "", "loss")
    first = found[: max(1, len(found) // case.unrolled)]
    operations = first[0].needs + first[0].delays + first[0].beside
    measured, moment = drift(case, config)
    return Row(
        **dataclasses.asdict(case),
        collectives=len(found),
        nbytes=sum(one.nbytes for one in found),
        needs=max(one.needs for one in first),
        delays=max(one.delays for one in first),
        beside=min(one.beside for one in first) * case.unrolled / operations,
        hiding=sum(one.hiding for one in first),
        measured=measured,
        moment=moment,
    )


def conclude(
    config: Config, rows: Mapping[Case, Row], about: dict[str, Any], warnings: list[str]
) -> tuple[list[str], bool]:
    """Writes the tables; refuted if `delay(1)` before an exchange leaves it tied to the gradient.

    Or if what it costs exceeds B = τ M, for the mean that adds nothing of its own.
    """
    head = f"{'exchange':<22}{'delay':<8}{'steps':>5}{'bytes':>9}{'beside':>8}{'B̂':>8}{'M̂':>8}"
    lines = [
        f"{row.exchange:<22}{row.delay:<8}{row.unrolled:>5}{row.nbytes:>9}{row.beside:>8.2f}"
        f"{row.measured:>8.3f}{row.moment:>8.3f}"
        for row in rows.values()
    ]
    tied = [row for row in rows.values() if row.delay == "before" and row.needs + row.delays]
    dear = [
        row
        for row in rows.values()
        if row.exchange == "all_mean"
        and row.measured > (row.delay != "none") * row.moment * (1 + 1e-5) + 1e-5
    ]
    said = [
        *warnings,
        head,
        *lines,
        "beside: gradients' worth of operations that may run beside each collective of the first "
        "step; 1 hides it behind a whole gradient.",
        f"delay(1) before the exchange: {len(tied)} programs tie a collective to the gradient.",
        f"delay(1) with the plain mean: {len(dear)} runs drift further than B = M.",
    ]
    joined = [row.exchange for row in rows.values() if row.delay == "after" and row.beside < 0.5]
    if joined:
        said.append(
            f"delay(1) after {', '.join(joined)}: XLA joined the all-reduces of both steps into "
            "one, which waits for both gradients."
        )
    if not any(row.hiding for row in rows.values()):
        said.append("No collective here has a start and an end: what may be hidden, is not.")
    columns = [field.name for field in dataclasses.fields(Row)]
    runs.write_tables(config.out, list(rows.values()), {**about, "verdict": said}, columns)
    with runs.replacing(config.out / "verdict.txt") as part:
        part.write_text("\n".join(said) + "\n")
    return said, bool(tied or dear)


def _do(config: Config, to_do: Sequence[Case], step: Any) -> Iterator[tuple[Case, Row]]:
    for case in to_do:
        yield case, measure(case, config)


EXPERIMENT = Experiment(MODULE, Config(), QUICK, (), Row, grid, _do, conclude)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment; see `experiments.command.run`. The status is 1 if a claim fails."""
    return run_command(EXPERIMENT, arguments)


if __name__ == "__main__":
    sys.exit(main())
