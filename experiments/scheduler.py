"""What do elastic schedulers save against full waiting, and what do they cost?

    python -m experiments.scheduler [--quick] [--resume] [--out DIR] …

Trains a small network on real images with simulated workers that go on before everything has
arrived: norm-bounded, once at most a part β of the pending mass is missing, and variance-bounded,
with at most m of p gradients missing, its own standing in for them. Compute times are log-normal
and every worker's link sends one leaf after another, so that the time to a given loss is simulated;
the ratio is how long a link needs for a gradient, in median compute times. The folder gets
rows.csv, rows.json, a figure and a verdict.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import elastic_jax as ej
from elastic_jax.arrivals import backward
from elastic_jax.schedulers import norm_bounded, variance_bounded
from experiments import simulation
from experiments.command import Experiment, check_common, refuse
from experiments.command import run as run_command
from experiments.rows import PIECE, Settings
from experiments.scheduler_verdict import (
    NORM,
    VARIANCE,
    Row,
    conclude,
    elastic_bound,
    finite,
    first_time,
)

MODULE = "experiments.scheduler"
AXIS = simulation.AXIS
COMPUTE = 1.0  # median seconds of a gradient: the unit of simulated time


@dataclasses.dataclass(frozen=True)
class Config:
    """What do elastic schedulers save against full waiting, and what do they cost?"""

    out: Path = Path("results/scheduler")
    """Folder for rows, figure and verdict."""
    data: Literal["mnist", "digits"] = "mnist"
    """Images to classify."""
    workers: int = 8
    """Workers p."""
    betas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
    """Norm-bounded: parts of the mass that may be missing; 0 is always run too."""
    missing: tuple[int, ...] = (1, 2, 4)
    """Variance-bounded: numbers m of gradients that may be missing."""
    ratios: tuple[float, ...] = (0.1, 0.5, 2.0)
    """How long a link takes for a gradient, in median compute times."""
    spread: float = 0.3
    """Standard deviation of the logarithm of the compute time."""
    alpha: float = 0.2
    """Step size."""
    steps: int = 320
    """Steps of each run; a multiple of points."""
    points: int = 40
    """Evaluations in each run."""
    target: float = 0.2
    """Training loss to which time is taken, nats."""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """Seeds of parameters, batches and compute times."""
    batch: int = 8
    """Images for each worker's gradient."""
    eval_images: int = 1000
    """Training images that the loss is evaluated on."""
    quick: bool = False
    """A taste in seconds: other defaults, a tiny grid."""
    resume: bool = False
    """Go on with the rows that the folder has."""


QUICK = Config(
    out=Path("results/scheduler_quick"),
    data="digits",
    workers=4,
    betas=(0.2, 0.6),
    missing=(1,),
    ratios=(0.5,),
    steps=96,
    points=12,
    target=1.0,
    seeds=(0, 1),
    eval_images=500,
    quick=True,
)


@dataclasses.dataclass(frozen=True)
class Run:
    """What tells a run from the others, besides the config."""

    rule: str
    value: float
    ratio: float
    seed: int


def check(config: Config) -> None:
    """Refuses a config that cannot be run.

    Raises:
        ValueError: naming the argument, its value, and what would be right.
    """
    check_common(config, ("workers", "steps", "points", "batch"))
    if config.eval_images < PIECE or config.eval_images % PIECE:
        refuse(config, "eval_images", f"give a multiple of {PIECE}")
    for name in ("betas", "missing", "ratios"):
        values = getattr(config, name)
        if len(set(values)) < len(values):
            refuse(config, name, "give each value once")
    if not config.ratios or not all(0 < ratio < math.inf for ratio in config.ratios):
        refuse(config, "ratios", "give finite numbers above 0")
    if not all(0 < beta < 1 for beta in config.betas):
        refuse(config, "betas", "give numbers above 0, below 1; 0 is always run")
    if not all(0 < m < config.workers for m in config.missing):
        refuse(config, "missing", f"give whole numbers from 1, below --workers, {config.workers}")
    for name in ("alpha", "target"):
        if not 0 < getattr(config, name) < math.inf:
            refuse(config, name, "give a finite number above 0")
    if not 0 <= config.spread < math.inf:
        refuse(config, "spread", "give a finite number of at least 0")


def grid(config: Config) -> list[Run]:
    """Lists all runs, full waiting first."""
    settings = [(NORM, beta) for beta in (0.0, *config.betas)]
    settings += [(VARIANCE, float(m)) for m in config.missing]
    return [
        Run(rule, value, ratio, seed)
        for rule, value in settings
        for ratio in config.ratios
        for seed in config.seeds
    ]


class Simulator(simulation.Trainer):
    """Trains with a scheduler; a rule is compiled once."""

    def __init__(self, config: Config):
        """Loads the data and moves it to the device."""
        gradients = config.steps * config.workers
        common = config.points, config.eval_images, "constant", math.inf
        super().__init__(Settings(config.data, None, "cnn", gradients, config.batch, *common))
        self.config = config
        self.program = functools.cache(self._make_rule)

    def train(self, run: Run) -> Row:
        """Trains once."""
        config = self.config
        params = self.model.init(jax.random.key(run.seed))
        nbytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
        bandwidth = nbytes / (run.ratio * COMPUTE)
        traced = jnp.float32(run.value), jnp.float32(bandwidth), jnp.int32(run.seed)
        batches = simulation.draw_batches(run.seed, len(self.labels), self.settings)
        parts = np.split(batches.reshape(-1, config.workers, config.batch), config.points)
        init, go_on = self.program(run.rule)
        state, curve, clock = init(params, *traced), [self._train_loss(params)], [0.0]
        for part in parts:
            state = go_on(state, part, *traced)
            curve.append(self._train_loss(_view(state)))
            clock.append(float(state.opt_state.inner[1].elapsed.max()))
        meter, scheduler = state.opt_state, state.opt_state.inner[1]
        drift_max = float(meter.elastic_constant.max.max())
        moment = float(meter.second_moment.max.max())
        bound = elastic_bound(run.rule, run.value, config.workers, moment)
        fine = math.isfinite(curve[-1])
        return Row(
            **dataclasses.asdict(run),
            workers=config.workers,
            alpha=config.alpha,
            steps=config.steps,
            target=config.target,
            seconds_to_target=first_time(clock, curve, config.target),
            seconds=clock[-1],
            seconds_waiting=float(scheduler.synchronous.max()),
            train_loss=finite(curve[-1]),
            test_accuracy=self._test_accuracy(_view(state)) if fine else None,
            drift_rms=finite(float(meter.elastic_constant.mean.max())),
            drift_max=finite(drift_max),
            moment_max=finite(moment),
            bound=finite(bound),
            drift_to_bound=finite(drift_max / bound) if bound > 0 else None,
            curve=tuple(finite(loss) for loss in curve),
            clock=tuple(clock),
        )

    def _make_rule(self, rule: str) -> tuple[Any, Any]:
        config = self.config

        def simulated(value, bandwidth, seed):
            arrivals = backward(COMPUTE, bandwidth, spread=config.spread)
            if rule == NORM:
                scheduler = norm_bounded(AXIS, value, arrivals, seed=seed)
            else:
                m = value.astype(jnp.int32)
                scheduler = variance_bounded(AXIS, arrivals, missing=m, seed=seed)
            chain = optax.chain(optax.sgd(config.alpha), scheduler)
            metered = ej.meter(chain, config.alpha, AXIS, every=1)

            def loss(params, index):
                return self.loss(params, self.images[index], self.labels[index])

            return ej.simulate(ej.worker_step(loss, metered, AXIS), config.workers)

        @functools.partial(jax.jit, donate_argnums=0)
        def go_on(state, batches, *traced):
            return jax.lax.scan(simulated(*traced).step, state, batches)[0]

        return jax.jit(lambda params, *traced: simulated(*traced).init(params)), go_on


def _view(state: Any) -> Any:
    """Worker 0's view, which is what it would be asked to predict with."""
    return jax.tree.map(lambda leaf: leaf[0], state.params)


# ---- the program ----


def _grid(config: Config) -> list[Run]:
    check(config)
    return grid(config)


def _train(config: Config, to_do: Sequence[Run], step: Any) -> Iterator[tuple[Run, Row]]:
    simulator = Simulator(config)
    for run in to_do:
        yield run, simulator.train(run)


def _conclude(
    config: Config, rows: Mapping[Run, Row], about: dict[str, Any], warnings: list[str]
) -> tuple[list[str], bool]:
    about |= {"seeds": list(config.seeds)}
    return conclude(config.out, list(rows.values()), about, warnings), False


EXPERIMENT = Experiment(
    MODULE,
    Config(),
    QUICK,
    ("betas", "missing", "ratios", "seeds"),
    Row,
    _grid,
    _train,
    _conclude,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment; see `experiments.command.run`."""
    return run_command(EXPERIMENT, arguments)


if __name__ == "__main__":
    sys.exit(main())
