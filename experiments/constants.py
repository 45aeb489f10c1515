"""L, σ and M of the loss that the error-feedback experiment trains, along its best runs.

A bound asks for constants that hold everywhere; samples tell them at the parameters looked at. L
changes along a run, by its step size too, so it is estimated at the start of the best run of every
mode and number of workers, after the first stretch, and at the end.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax.numpy as jnp

from elastic_jax import estimate
from experiments.rows import PIECE, Row, Run, Settings
from experiments.simulation import Trainer, draw_batches

ITERATIONS = 12  # Hessian products of Lanczos' method; its interval says if they are too few
GRADIENTS = 100  # batches for σ and M


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the constants are estimated: on a run, after some evaluations."""

    run: Run
    evaluation: int  # 0 is the start


@dataclasses.dataclass(frozen=True)
class Constants:
    """The constants at a place. L is of the training loss, σ and M are of one worker's gradient."""

    mode: str
    workers: int
    method: str
    fraction: float
    alpha: float
    seed: int
    gradients: int  # applied so far
    L: float  # largest |eigenvalue| of the Hessian
    L_high: float  # the end of its 95% interval; the other end is L
    sigma: float  # noise, (E‖G̃ − ∇f‖²)^½
    M: float  # second moment, (E‖G̃‖²)^½


def places(rows: Sequence[Row], settings: Settings) -> list[Place]:
    """Lists the places: start, first evaluation and end of the best run of each mode and p."""
    best: dict[tuple[str, int], Row] = {}
    for row in rows:
        place = row.mode, row.workers
        if row.train_loss is not None and (
            place not in best or row.train_loss < (best[place].train_loss or 0.0)
        ):
            best[place] = row
    fields = [field.name for field in dataclasses.fields(Run)]
    found = [Run(**{name: getattr(row, name) for name in fields}) for row in best.values()]
    return [Place(run, at) for run in found for at in sorted({0, 1, settings.points})]


def measure(wanted: Sequence[Place], settings: Settings) -> Iterator[tuple[Place, Constants]]:
    """Estimates the constants, place by place, with so much work for each.

    Args:
        wanted: the places.
        settings: common to all runs.

    Yields:
        A place and its constants.
    """
    if not wanted:
        return
    trainer = Trainer(settings)
    # L is of the loss that rows report.
    everything = jnp.arange(settings.eval_images).reshape(-1, PIECE)

    def loss(params, index):
        return trainer.loss(params, trainer.images[index], trainer.labels[index])

    for run in dict.fromkeys(place.run for place in wanted):
        left = {place.evaluation for place in wanted if place.run == run}
        drawn = draw_batches(run.seed, len(trainer.labels), settings)[:GRADIENTS]
        batches = jnp.asarray(drawn)
        for evaluation, params in enumerate(trainer.path(run)):
            if evaluation in left:
                L = estimate.smoothness(loss, params, everything, iterations=ITERATIONS)
                row = Constants(
                    **dataclasses.asdict(run),
                    gradients=evaluation * settings.gradients // settings.points,
                    L=L.value,
                    L_high=L.high,
                    sigma=estimate.noise(loss, params, batches).value,
                    M=estimate.second_moment(loss, params, batches).value,
                )
                yield Place(run, evaluation), row
            if evaluation == max(left):
                break
