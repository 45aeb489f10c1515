"""One run of the error-feedback experiment: p simulated workers train a classifier, and are timed.

A method is compiled once for each number of workers; step size, number of entries kept, batches
and trace enter as traced values, so a sweep over them never compiles again.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import elastic_jax as ej
from elastic_jax.traces import Schedule
from experiments import data, models
from experiments.rows import DENSE, LAST, PIECE, PLAIN, Row, Run, Settings, elastic_bound

AXIS = "workers"  # of synchronous runs


class _Measured(NamedTuple):
    """Sums and maxima of a stretch of the run."""

    gap: Any  # sum of ||x − v||²
    gap_max: Any
    moment: Any  # sum of ||u||²
    moment_max: Any


class _Program(NamedTuple):
    """A compiled method: how a run starts, goes on, and what is read from its state."""

    init: Callable[..., Any]  # (params, alpha, kept, images, labels) → state
    go_on: Callable[..., Any]  # (state, part, alpha, kept, images, labels) → (state, _Measured)
    params: Callable[[Any], Any]  # state → the parameters to evaluate
    lost: Callable[[Any], Any]  # state → norm of the lost mass


class Trainer:
    """Runs one after the other, keeping compiled programs."""

    def __init__(self, settings: Settings):
        """Loads the data and moves it to the device.

        Args:
            settings: common to all runs.
        """
        self.settings = settings
        dataset = data.load(settings.data, settings.data_dir)
        self.classes = dataset.classes
        self.model = models.make(settings.model, dataset)
        if settings.eval_images > len(dataset.train_labels):
            raise ValueError(
                f"eval_images={settings.eval_images} but {settings.data} has "
                f"{len(dataset.train_labels)} training images; give at most as many"
            )
        self.images = jnp.asarray(dataset.train_images)
        self.labels = jnp.asarray(dataset.train_labels)
        self.test = jnp.asarray(dataset.test_images), jnp.asarray(dataset.test_labels)
        self.loss = models.loss_fn(self.model)
        self.evaluate = jax.jit(self.loss)
        self.accuracy = jax.jit(functools.partial(models.accuracy, self.model))
        self._program = functools.cache(self._make_program)

    def run(self, run: Run) -> Row:
        """Trains once.

        Args:
            run: which.

        Returns:
            Its row.
        """
        settings, start = self.settings, time.perf_counter()
        params = self.model.init(jax.random.key(run.seed))
        d = sum(leaf.size for leaf in jax.tree.leaves(params))
        kept = _kept(run, d)
        trace = draw_trace(run, settings)
        program = self._program(*run.program)
        curve = [self._train_loss(params)]
        measured: list[_Measured] = []
        diverged, state = False, None
        for state, summary in self._stretches(run, trace):
            curve.append(self._train_loss(program.params(state)))
            measured.append(_Measured(*(float(value) for value in summary)))
            if not curve[-1] <= settings.diverged * curve[0]:
                diverged = True
                break
        last = float(np.mean(curve[-LAST:]))
        diverged = diverged or not last < math.log(self.classes)  # no better than guessing
        if run.mode == "synchronous":
            delay_mean, delay_max = 0.0, 0
        else:
            delay_mean, delay_max = float(trace.delay.mean()), int(trace.delay.max())
        total = _Measured(*np.array(measured).T)
        chunk = settings.gradients // settings.points
        done = chunk * len(measured)
        moment_max = math.sqrt(total.moment_max.max()) / run.alpha
        gamma = 1 - kept / d
        bound = elastic_bound(run.mode, run.method, run.workers, gamma, delay_max, moment_max)
        drift_max = math.sqrt(total.gap_max.max()) / run.alpha
        steps = done // run.workers if run.mode == "synchronous" else done
        return Row(
            data=settings.data,
            model=settings.model,
            d=d,
            **dataclasses.asdict(run),
            kept=kept,
            gradients=done,
            train_loss=None if diverged else last,
            test_accuracy=None if diverged else self._test_accuracy(program.params(state)),
            diverged=diverged,
            drift_rms=_finite(math.sqrt(total.gap.sum() / steps) / run.alpha),
            drift_max=_finite(drift_max),
            moment_rms=_finite(math.sqrt(total.moment.sum() / done) / run.alpha),
            moment_max=_finite(moment_max),
            delay_mean=delay_mean,
            delay_max=delay_max,
            bound=_finite(bound),
            drift_to_bound=_finite(drift_max / bound) if bound > 0 else None,
            lost_norm=_finite(float(program.lost(state))),
            seconds=time.perf_counter() - start,
            curve=tuple(_finite(loss) for loss in curve),
        )

    def path(self, run: Run) -> Iterator[Any]:
        """Trains once more; yields the parameters at every evaluation, good until the next."""
        yield self.model.init(jax.random.key(run.seed))
        program = self._program(*run.program)
        for state, _ in self._stretches(run, draw_trace(run, self.settings)):
            yield program.params(state)

    def _stretches(self, run: Run, trace: ej.Trace) -> Iterator[tuple[Any, _Measured]]:
        """Runs from evaluation to evaluation; a state is good until the next one."""
        params = self.model.init(jax.random.key(run.seed))
        kept = _kept(run, sum(leaf.size for leaf in jax.tree.leaves(params)))
        traced = jnp.float32(run.alpha), jnp.int32(kept), self.images, self.labels
        program = self._program(*run.program)
        state = program.init(params, *traced)
        for part in self._parts(run, trace):
            state, summary = program.go_on(state, part, *traced)
            yield state, summary

    def _train_loss(self, params: Any) -> float:
        pieces = [slice(i, i + PIECE) for i in range(0, self.settings.eval_images, PIECE)]
        losses = [self.evaluate(params, self.images[s], self.labels[s]) for s in pieces]
        return float(np.mean([float(loss) for loss in losses]))

    def _test_accuracy(self, params: Any) -> float:
        images, labels = self.test
        right = 0.0
        for i in range(0, len(labels), PIECE):
            part = slice(i, i + PIECE)
            share = self.accuracy(params, images[part], labels[part])
            right += float(share) * len(labels[part])
        return right / len(labels)

    def _parts(self, run: Run, trace: ej.Trace) -> list[Any]:
        """Cuts a run's input into `points` parts; the same batches for all methods of a seed."""
        points = self.settings.points
        batches = draw_batches(run.seed, len(self.labels), self.settings)
        if run.mode == "synchronous":
            batches = batches.reshape(-1, run.workers, self.settings.batch)
            return np.split(batches, points)
        schedule = trace.schedule()
        spare = schedule.write == schedule.slots
        write = np.where(spare, run.workers, schedule.write).astype(np.int32)
        arrays = (schedule.worker, write, schedule.read, batches)
        return list(zip(*(np.split(array, points) for array in arrays), strict=True))

    def _make_program(self, mode: str, workers: int, method: str) -> _Program:
        if mode == "synchronous":
            return _synchronous(self.loss, workers, method)
        return _asynchronous(self.loss, workers, method)


def _kept(run: Run, d: int) -> int:
    return max(1, math.ceil(run.fraction * d - 1e-9))


def draw_trace(run: Run, settings: Settings) -> ej.Trace:
    """Draws who applies when; depends on the seed and the number of workers alone."""
    speeds = {
        "lognormal": ej.speeds.lognormal,
        "exponential": ej.speeds.exponential,
        "constant": ej.speeds.constant,
    }
    return ej.draw_trace([speeds[settings.speed]()] * run.workers, settings.gradients, run.seed)


def draw_batches(seed: int, images: int, settings: Settings) -> np.ndarray:
    """Draws batches of indices, epoch by epoch without replacement: int32 [gradients, batch]."""
    rng = np.random.default_rng([seed, images])
    need = settings.gradients * settings.batch
    epochs = [rng.permutation(images) for _ in range(-(-need // images))]
    order = np.concatenate(epochs)[:need].astype(np.int32)
    return order.reshape(settings.gradients, settings.batch)


def _worker_chain(method: str, alpha: Any, kept: Any, axis_name: str | None) -> Any:
    if method == DENSE:
        after = [] if axis_name is None else [ej.all_mean(axis_name)]
    else:
        make = ej.compress if method == PLAIN else ej.error_feedback
        after = [make(ej.top_k(kept, scope="tree"), axis_name=axis_name)]
    return optax.chain(optax.sgd(alpha), *after)


def _asynchronous(loss: Callable[..., Any], workers: int, method: str) -> _Program:
    def executor(alpha, kept, images, labels):
        def batch_loss(params, index):
            return loss(params, images[index], labels[index])

        return ej.asynchronous(batch_loss, _worker_chain(method, alpha, kept, None))

    @jax.jit
    def init(params, *traced):
        return executor(*traced).init(params, workers, slots=workers)

    @functools.partial(jax.jit, donate_argnums=0)
    def go_on(state, part, *traced):
        worker, write, read, batches = part
        schedule: Any = Schedule(worker, write, read, workers)
        state, ticks = executor(*traced).run(state, schedule, batches)
        sums = ticks.gap.sum(), ticks.gap.max(), ticks.moment.sum(), ticks.moment.max()
        return state, _Measured(*sums)

    @jax.jit
    def lost(state):
        of_workers = jax.vmap(ej.lost, in_axes=(0, None), axis_size=workers)
        each = of_workers(state.worker_states, state.params)
        return optax.tree.norm(jax.tree.map(lambda leaf: leaf.sum(0), each))

    return _Program(init, go_on, lambda state: state.params, lost)


def _synchronous(loss: Callable[..., Any], workers: int, method: str) -> _Program:
    def simulated(alpha, kept, images, labels):
        def batch_loss(params, index):
            return loss(params, images[index], labels[index])

        chain = _worker_chain(method, alpha, kept, AXIS)
        metered = ej.meter(chain, alpha, axis_name=AXIS, every=1)
        return ej.simulate(ej.worker_step(batch_loss, metered, axis_name=AXIS), workers)

    @jax.jit
    def init(params, *traced):
        return simulated(*traced).init(params)

    @functools.partial(jax.jit, donate_argnums=0)
    def go_on(state, batches, alpha, *traced):
        before: Any = state.opt_state
        state, _ = jax.lax.scan(simulated(alpha, *traced).step, state, batches)
        meter: Any = state.opt_state
        scale = jnp.square(alpha)

        def added(name):  # means over all steps so far, back to the sum over these
            total, old = getattr(meter, name).mean, getattr(before, name).mean
            count, old_count = (m.samples.astype(jnp.float32) for m in (meter, before))
            return total**2 * count - old**2 * old_count

        gap, moment = added("elastic_constant")[0], added("second_moment").sum()
        gap_max = jnp.square(meter.elastic_constant.max.max())
        moment_max = jnp.square(meter.second_moment.max.max())
        return state, _Measured(gap * scale, gap_max * scale, moment * scale, moment_max * scale)

    @jax.jit
    def lost(state):
        each = jax.vmap(ej.lost)(state.opt_state, state.params)
        return optax.tree.norm(jax.tree.map(lambda leaf: leaf.mean(0), each))

    return _Program(
        init, go_on, jax.jit(lambda state: jax.tree.map(lambda leaf: leaf[0], state.params)), lost
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
