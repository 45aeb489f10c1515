"""What is run in `experiments.hogwild`: its settings, and the grid that they span."""

import dataclasses
import math
from pathlib import Path
from typing import Literal

from experiments.command import check_common, refuse
from experiments.rows import DENSE, FEEDBACK, LAST, PIECE, PLAIN, Run

METHODS = (DENSE, PLAIN, FEEDBACK)
Mode = Literal["lock-free", "block", "leashed", "locked"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Does error feedback help when workers really race?"""

    out: Path = Path("results/hogwild")
    """Folder for rows, figures and verdict."""
    data: Literal["mnist", "digits"] = "mnist"
    """Images to classify."""
    modes: tuple[Mode, ...] = ("lock-free", "block", "leashed", "locked")
    """How workers share the parameters."""
    workers: tuple[int, ...] = (1, 2, 4)
    """Numbers of workers p."""
    sleepers: tuple[int, ...] = (8,)
    """Numbers of workers that sleep between reading and writing."""
    sleep: float = 10.0
    """Mean of their pauses, exponential, in ms."""
    sleep_mode: Mode = "leashed"
    """How sleepers share the parameters."""
    fraction: float = 0.01
    """Fraction of the entries that a message keeps."""
    alphas: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)
    """Step sizes to choose from, for each method and p."""
    steps: int = 768
    """Updates of each race, of all workers together; a multiple of points."""
    batch: int = 8
    """Images for each update."""
    points: int = 8
    """Points of a curve."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of parameters, batches and pauses."""
    tuning_seed: int = 1000
    """The seed on which step sizes are chosen; none of the others."""
    replayed: tuple[int, ...] = (0,)
    """Seeds whose races are all replayed, to look at the parameters on the way."""
    eval_images: int = 1000
    """Training images that the loss is evaluated on."""
    seconds: float = 60.0
    """The most that a race may take."""
    quick: bool = False
    """A taste in seconds: other defaults, a tiny grid."""
    resume: bool = False
    """Go on with the rows that the folder has."""


QUICK = Config(
    out=Path("results/hogwild_quick"),
    modes=("lock-free",),
    workers=(2,),
    sleepers=(2,),
    alphas=(0.02, 0.05, 0.1),
    steps=256,
    points=4,
    seeds=(0, 1),
    eval_images=500,
    quick=True,
)


@dataclasses.dataclass(frozen=True)
class Race:
    """What tells a race from the others, besides the config."""

    mode: str
    workers: int
    method: str
    sleep: float  # ms; 0: nobody sleeps
    seed: int


def check(config: Config) -> None:
    """Refuses a config that cannot be run.

    Raises:
        ValueError: naming the argument, its value, and what would be right.
    """
    check_common(config, ("steps", "points", "batch"))
    if config.points < LAST:
        refuse(config, "points", f"give at least {LAST}")
    if config.eval_images < PIECE:
        refuse(config, "eval_images", f"give at least {PIECE}")
    for name in ("modes", "workers", "sleepers", "alphas"):
        values = getattr(config, name)
        if len(set(values)) < len(values):
            refuse(config, name, "give each value once")
    if not config.modes or not config.workers:
        refuse(config, "modes" if not config.modes else "workers", "give at least one")
    for name in ("workers", "sleepers"):
        if not all(1 <= p <= 256 for p in getattr(config, name)):
            refuse(config, name, "give whole numbers from 1 to 256, one process each")
    if not config.alphas or not all(0 < alpha < math.inf for alpha in config.alphas):
        refuse(config, "alphas", "give finite numbers above 0")
    for name in ("sleep", "seconds"):
        if not 0 < getattr(config, name) < math.inf:
            refuse(config, name, "give a finite number above 0")
    if not 0 < config.fraction < 1:
        refuse(config, "fraction", "give a number above 0, below 1; dense is always run")
    if config.tuning_seed in config.seeds or not 0 <= config.tuning_seed < 2**31:
        refuse(config, "tuning_seed", "give a whole number from 0 that is none of --seeds")


def grid(config: Config) -> list[Run | Race]:
    """Lists what chooses the step sizes, then the races, seed by seed.

    One worker has no race to lose: it runs with the first seed alone, for its speed.
    """
    tuning: list[Run | Race] = [
        run
        for p in sorted({*config.workers, *config.sleepers})
        for method in METHODS
        for run in candidates(config, p, method)
    ]
    kinds = [(mode, p, 0.0) for p in config.workers for mode in config.modes]
    kinds += [(config.sleep_mode, p, config.sleep) for p in config.sleepers]
    return tuning + [
        Race(mode, p, method, sleep, seed)
        for seed in config.seeds
        for mode, p, sleep in kinds
        for method in METHODS
        if p > 1 or seed == config.seeds[0]
    ]


def candidates(config: Config, workers: int, method: str) -> list[Run]:
    """Lists the simulated runs among which a step size is chosen."""
    how = "sequential" if workers == 1 else "asynchronous"
    fraction = 1.0 if method == DENSE else config.fraction
    seed = config.tuning_seed
    return [Run(how, workers, method, fraction, alpha, seed) for alpha in config.alphas]
