"""The rows of the error-feedback experiment: what a run is, and what came of it."""

import dataclasses
import math

LAST = 3  # the final loss is the mean of this many last evaluations
PIECE = 250  # images evaluated at once
DENSE, PLAIN, FEEDBACK = "dense", "topk", "topk+feedback"


@dataclasses.dataclass(frozen=True)
class Run:
    """What tells one run of a sweep from the others."""

    mode: str  # sequential | asynchronous | synchronous
    workers: int
    method: str  # dense | topk | topk+feedback
    fraction: float  # of the entries that a message keeps; 1 for dense
    alpha: float  # step size
    seed: int

    @property
    def program(self) -> tuple[str, int, str]:
        """Runs with the same program share a compilation."""
        return self.mode, self.workers, self.method


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all runs of a sweep have in common."""

    data: str
    data_dir: str | None
    model: str
    gradients: int  # worker gradients in each run
    batch: int  # images for each of them
    points: int  # evaluations in each run, evenly spaced
    eval_images: int  # training images on which the loss is evaluated, the first ones
    speed: str  # lognormal | exponential | constant
    diverged: float  # a run has diverged when its loss exceeds this many times its first loss


@dataclasses.dataclass(frozen=True)
class Row:
    """One run and what came of it. None: not finite, or nothing to state."""

    data: str
    model: str
    d: int  # parameters
    mode: str
    workers: int
    method: str
    fraction: float
    kept: int  # entries in a message
    alpha: float
    seed: int
    gradients: int  # computed; fewer than asked for where the run diverged
    train_loss: float | None  # mean of the last evaluations, nats
    test_accuracy: float | None
    diverged: bool
    drift_rms: float | None  # B̂, root mean square over the steps
    drift_max: float | None
    moment_rms: float | None  # M̂
    moment_max: float | None
    delay_mean: float  # applied updates
    delay_max: int
    bound: float | None  # B from moment_max
    drift_to_bound: float | None  # drift_max / bound
    lost_norm: float | None  # of the mass that compression lost in all
    seconds: float
    curve: tuple[float | None, ...]  # loss at the start and after every gradients/points


def elastic_bound(
    mode: str, method: str, workers: int, gamma: float, delay_max: int, moment: float
) -> float:
    """Derives the elastic constant B of a run whose proposals satisfy ||u|| <= alpha·moment.

    * Contraction lemma: a residual obeys ||h|| <= alpha·moment·β, β = √gamma/(1 − √gamma).
    * Window lemma: updates of the last τ ticks amount to at most τ·alpha·moment.
    * Synchronous feedback holds mean_i h_i: B = β·moment. Without feedback all views agree: 0.
    * Asynchronous single steps. x − view is what was held when the view was taken, Σ_i h_i with
      feedback, and the proposals since then: B = (p·β + τ_max)·moment, or τ_max·moment without
      feedback, where messages are no longer than proposals.

    Args:
        mode: `synchronous`, or the single steps `asynchronous` and `sequential`.
        method: `dense`, `topk` or `topk+feedback`.
        workers: p.
        gamma: the compressor's contraction, 1 − k/d.
        delay_max: τ_max in applied updates.
        moment: M, the largest ||u||/alpha.

    Returns:
        B, in the unit of a gradient.
    """
    beta = math.sqrt(gamma) / (1 - math.sqrt(gamma)) if method == FEEDBACK else 0.0
    if mode == "synchronous":
        return beta * moment
    return (workers * beta + delay_max) * moment
