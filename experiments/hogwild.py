"""Does error feedback help when workers really race?

    python -m experiments.hogwild [--quick] [--resume] [--out DIR] …

Trains a small network on real images with processes that race on shared memory, in every mode, for
1 … p workers, dense, with top-k sparsification, and with top-k and error feedback; and with workers
that sleep between reading and writing, for delays that few cores do not give. Each race is
recorded; the trace of a race without feedback is replayed with feedback, at feedback's own step
size. Step sizes are chosen by simulation, on a seed that no race uses. The folder gets rows.csv,
rows.json, figures and a verdict.
"""

import dataclasses
import functools
import math
import multiprocessing
import multiprocessing.forkserver
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

import elastic_jax as ej
from elastic_jax.hogwild import Recording
from experiments import data, runs, simulation
from experiments.command import Experiment
from experiments.command import run as run_command
from experiments.figures import save
from experiments.hogwild_config import QUICK, Config, Race, candidates, check, grid
from experiments.hogwild_figures import curves, draw
from experiments.hogwild_task import Followed, compiled_step, follow, kept_of, task
from experiments.hogwild_verdict import Row, above, races_of, verdict
from experiments.rows import DENSE, FEEDBACK, PLAIN, Run, Settings, elastic_bound
from experiments.verdict import best_alpha

MODULE = "experiments.hogwild"


class Track(simulation.Trainer):
    """Where races are held, and looked at afterwards."""

    def __init__(self, config: Config):
        """Loads the data, and starts the process that workers are forked from."""
        common = config.points, config.eval_images, "lognormal", 4.0
        super().__init__(Settings(config.data, None, "cnn", config.steps, config.batch, *common))
        self.config = config
        start = self.model.init(jax.random.key(0))
        flat, self.unravel = jax.flatten_util.ravel_pytree(start)
        self.d, self.kept = flat.size, kept_of(config.fraction, flat.size)
        self.tune = functools.cache(self._tune)
        self.step = functools.cache(
            lambda method: compiled_step(
                self._task(Race("", 1, method, 0, 0), 0.0)(), method, self.kept
            )
        )
        _serve_forks()

    def _tune(self, run: Run) -> Row:
        """Simulates a run with a drawn trace."""
        return Row(**dataclasses.asdict(self.run(run)))

    def alpha(self, workers: int, method: str) -> float:
        """Chooses a step size: least final loss; the smallest, if all diverge."""
        found = best_alpha(self.tune(run) for run in candidates(self.config, workers, method))
        return min(self.config.alphas) if found is None else found

    def race(self, race: Race) -> Row:
        """Holds a race, and replays it."""
        config, load = self.config, os.getloadavg()[0]
        alpha = self.alpha(race.workers, race.method)
        make = self._task(race, alpha)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # who died is in the recording
            recording = ej.hogwild.train(
                functools.partial(make, sleep=race.sleep),
                workers=race.workers,
                updates=config.steps,
                mode=race.mode,
                seconds=config.seconds,
                start="forkserver",
            )
        loss, accuracy = self._at_end(recording.params)
        measured, delay = recording.constants(alpha), recording.delay
        gaps, T = recording.gap[np.isfinite(recording.gap)], len(recording.worker)
        gamma = 1 - self.kept / self.d
        bound = elastic_bound(
            "asynchronous", race.method, race.workers, gamma, measured.tau, measured.M
        )
        ends = np.arange(1, config.points + 1) * T // config.points
        return Row(
            data=config.data,
            model="cnn",
            d=self.d,
            mode=race.mode,
            workers=race.workers,
            method=race.method,
            fraction=1.0 if race.method == DENSE else config.fraction,
            kept=self.d if race.method == DENSE else self.kept,
            alpha=alpha,
            seed=race.seed,
            gradients=T,
            train_loss=loss,
            test_accuracy=accuracy,
            diverged=loss is None or recording.end != "done",
            drift_rms=_finite(math.sqrt(gaps.mean(dtype=np.float64)) / alpha),
            drift_max=_finite(measured.B),
            moment_rms=_finite(math.sqrt(recording.moment.mean(dtype=np.float64)) / alpha),
            moment_max=_finite(measured.M),
            delay_mean=float(delay.mean()),
            delay_max=measured.tau,
            bound=_finite(bound),
            drift_to_bound=_finite(measured.B / bound) if bound > 0 else None,
            lost_norm=None,
            seconds=float(recording.time[0].max()),
            curve=_windows(recording.loss, ends),
            sleep=race.sleep,
            end=recording.end,
            window=_finite(measured.window),
            updates_per_second=T / float(recording.time[0].max()),
            retries=float(recording.retries.mean()),
            load=load,
            delays=tuple(np.bincount(delay).tolist()),
            clock=tuple(recording.time[0][ends - 1].tolist()),
            **self._replays(race, recording, alpha, ends),
        )

    def _replays(
        self, race: Race, recording: Recording, alpha: float, ends: np.ndarray
    ) -> dict[str, Any]:
        """Looks at the parameters on the way; and without feedback, replays the trace with it."""
        found: dict[str, Any] = {}
        if race.method == PLAIN or race.seed in self.config.replayed:
            own = self._follow(race, recording, alpha)
            apart = float(np.linalg.norm(own.params - recording.params))
            moved = float(np.linalg.norm(recording.params - recording.start))
            found |= dict(apart=_finite(apart / moved), own_loss=self._at_end(own.params)[0])
            if race.seed in self.config.replayed:
                found["accuracies"] = tuple(self._at_end(params)[1] for params in own.points)
        if race.method == PLAIN:
            alpha = self.alpha(race.workers, FEEDBACK)
            fed = self._follow(dataclasses.replace(race, method=FEEDBACK), recording, alpha)
            loss, accuracy = self._at_end(fed.params)
            found |= dict(fed_alpha=alpha, fed_loss=loss, fed_accuracy=accuracy)
            found |= dict(fed_curve=_windows(fed.loss, ends))
        return found

    def _follow(self, race: Race, recording: Recording, alpha: float) -> Followed:
        made, step = self._task(race, alpha)(), self.step(race.method)
        return follow(recording, made, step, alpha, self.config.points)

    def _task(self, race: Race, alpha: float) -> Any:
        """The function that makes the task, for workers that do not sleep."""
        config = self.config
        params = jax.tree.map(np.asarray, self.model.init(jax.random.key(race.seed)))
        made = config.data, params, race.method, alpha, self.kept, config.batch, race.seed
        return functools.partial(task, *made)

    def _at_end(self, params: np.ndarray) -> tuple[float | None, float | None]:
        """Training loss and test accuracy; None where they are no better than guessing."""
        tree = self.unravel(jnp.asarray(params))
        loss = self._train_loss(tree)
        if not loss < math.log(self.classes):
            return None, None
        return loss, self._test_accuracy(tree)


def _windows(losses: np.ndarray, ends: np.ndarray) -> tuple[float | None, ...]:
    """Means of the losses between one end and the next."""
    parts = np.split(losses.astype(np.float64), ends[:-1])
    return tuple(_finite(float(part.mean())) if part.size else None for part in parts)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _serve_forks() -> None:
    """Starts the server that forks workers, with all that they import; one thread for each."""
    for name in ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    imports = ("command", "hogwild_figures", "hogwild_task")  # each worker runs this module again
    preload = [f"experiments.{name}" for name in imports]
    multiprocessing.get_context("forkserver").set_forkserver_preload(preload)
    multiprocessing.forkserver.ensure_running()


# ---- the program ----


def _grid(config: Config) -> list[Run | Race]:
    check(config)
    data.load(config.data)
    return grid(config)


def _do(config: Config, to_do: Sequence[Run | Race], step: Any) -> Iterator[tuple[Run | Race, Row]]:
    if to_do:
        track = Track(config)
        for one in to_do:
            yield one, track.tune(one) if isinstance(one, Run) else track.race(one)


def _conclude(
    config: Config, rows: Mapping[Run | Race, Row], about: dict[str, Any], warnings: list[str]
) -> tuple[list[str], bool]:
    found = list(rows.values())
    said = [*warnings, *verdict(found)]
    about |= {"seeds": list(config.seeds), "cores": os.cpu_count(), "verdict": said}
    columns = [f.name for f in dataclasses.fields(Row) if not str(f.type).startswith("tuple")]
    runs.write_tables(config.out, found, about, columns)
    if races_of(found):
        held = runs.evidence(found, [f.name for f in dataclasses.fields(Row)], about)
        drawn = {"hogwild.png": draw(found), "curves.png": curves(found)}
        save(config.out, drawn, {"hogwild.png": held})
    with runs.replacing(config.out / "verdict.txt") as part:
        part.write_text("\n".join(said) + "\n")
    return said, bool(above(found))


EXPERIMENT = Experiment(
    MODULE,
    Config(),
    QUICK,
    ("modes", "workers", "sleepers", "sleep", "sleep_mode", "seeds"),
    Row,
    _grid,
    _do,
    _conclude,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment; see `experiments.command.run`."""
    return run_command(EXPERIMENT, arguments)


if __name__ == "__main__":
    sys.exit(main())
