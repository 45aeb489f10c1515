"""Runs of the zoo: a system on a task, with its gap measured at every step."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import elastic_jax as ej
from elastic_jax.traces import Schedule
from experiments import data, models
from experiments.zoo import AXIS, ZOO, Facts, System


class Task(NamedTuple):
    """What a system minimises.

    Attributes:
        name: of it.
        loss: `(params, batch) -> scalar`.
        params: `seed -> x_0`.
        sample: `(seed, shape) -> batches`, stacked.
        alpha: step size.
        updates: worker gradients in a run.
        score: `params -> (loss, accuracy)`; accuracy is NaN where there is none.
        moment: M where it is known, else None: then the largest ||u||/alpha of a run stands in.
        sigma: the noise where it is known; of an estimate, M stands in, which it cannot exceed.
        smoothness: L where it is known, else 0.
        independent: whether workers' gradients differ by independent noise only.
    """

    name: str
    loss: Callable[[Any, Any], jax.Array]
    params: Callable[[int], Any]
    sample: Callable[[int, tuple[int, ...]], Any]
    alpha: float
    updates: int
    score: Callable[[Any], tuple[float, float]]
    moment: float | None
    sigma: float | None
    smoothness: float
    independent: bool = True


def task(name: str, updates: int, dataset: str = "digits", batch: int = 8) -> Task:
    """Makes a task.

    Args:
        name: "constant" (the gradient never changes: the instance that attains most lemmas),
            "opposed" (half the workers pull one way, half the other: it attains those of workers
            that train alone), "logistic" (M is known) or "cnn" (real images).
        updates: worker gradients in a run.
        dataset: of the network's images.
        batch: examples in a gradient.
    """
    if name == "cnn":
        return _network(updates, dataset, batch)
    if name == "logistic":
        key = jax.random.key(0)
        problem = ej.problems.logistic(key, n=200, d=10, batch_size=batch, start=1.0)
        away: Any = problem.init - jnp.asarray(problem.minimiser)
        radius = 2 * float(jnp.linalg.norm(away))
        alpha, moment, sigma = 0.5 / problem.smoothness, problem.second_moment(radius), None
        sample = problem.sample
    else:
        problem, alpha, moment, sigma = ej.problems.linear(12), 0.1, 1.0, 0.0
        if name == "opposed":
            base = problem.loss
            problem, sigma = problem._replace(loss=lambda x, side: side * base(x, 0)), 1.0

        def sample(key, shape):
            if len(shape) == 2:  # the same for a worker at every step
                return jnp.broadcast_to(
                    jnp.where(2 * jnp.arange(shape[1]) < shape[1], 1.0, -1.0), shape
                )
            return jax.random.rademacher(key, shape, jnp.float32)

    value = jax.jit(problem.value)
    return Task(
        name,
        problem.loss,
        lambda seed: problem.init,
        lambda seed, shape: sample(jax.random.key(seed), shape),
        alpha,
        updates,
        lambda params: (float(value(params)), math.nan),
        moment,
        sigma,
        problem.smoothness,
        name != "opposed",
    )


def _network(updates: int, dataset: str, batch: int) -> Task:
    found = data.load(dataset)
    model = models.make("cnn", found)
    images, labels = jnp.asarray(found.train_images), jnp.asarray(found.train_labels)
    test = jnp.asarray(found.test_images[:1000]), jnp.asarray(found.test_labels[:1000])
    of_images = models.loss_fn(model)
    whole = jax.jit(lambda params: of_images(params, images[:1000], labels[:1000]))
    right = jax.jit(functools.partial(models.accuracy, model))

    def sample(seed, shape):
        return jax.random.randint(jax.random.key(seed), (*shape, batch), 0, len(labels), jnp.int32)

    return Task(
        "cnn",
        lambda params, index: of_images(params, images[index], labels[index]),
        lambda seed: model.init(jax.random.key(seed)),
        sample,
        0.05,
        updates,
        lambda params: (float(whole(params)), float(right(params, *test))),
        None,
        None,
        0.0,
    )


class Done(NamedTuple):
    """What a run measured."""

    gap: np.ndarray  # ||x − v||² [steps, workers]; [ticks, 1] for single steps
    moment: np.ndarray  # ||u||/alpha, likewise
    lost: float  # norm of the lost mass; NaN where held mass has no unit
    params: Any  # the mean view at the end
    tau: int  # the longest delay of the trace; 0 for parallel steps


class Runner:
    """Runs systems on a task, compiling each once."""

    def __init__(self, task: Task, workers: int):
        """Takes the task and p."""
        self.task, self.workers = task, workers
        self._parallel = functools.cache(self._compile_parallel)
        self._single = functools.cache(self._compile_single)

    def run(self, name: str, seed: int) -> Done:
        """Runs a system of the zoo once."""
        system, p = ZOO[name], self.workers
        start, number = self.task.params(seed), jnp.int32(seed)
        if system.trace is None:
            steps = self.task.updates // p
            batches = self.task.sample(seed, (steps, p))
            out = self._parallel(name)(start, batches, number)
            return Done(np.asarray(out[0]), np.asarray(out[1]), float(out[2]), out[3], 0)
        trace = system.trace(p, self.task.updates, seed)
        batches = self.task.sample(seed, (self.task.updates,))
        schedule = trace.schedule()
        out = self._single(name, schedule.slots)(start, tuple(schedule[:3]), batches, number)
        gap, moment = (np.asarray(x)[:, None] for x in out[:2])
        return Done(gap, moment, float(out[2]), out[3], int(trace.delay.max()))

    def facts(self, done: list[Done]) -> Facts:
        """Returns what the bound of runs of one system may depend on."""
        task = self.task
        largest = max(float(one.moment.max(initial=0.0)) for one in done)
        moment = largest if task.moment is None else max(task.moment, largest)
        sigma = moment if task.sigma is None else task.sigma
        return Facts(
            moment,
            sigma,
            task.smoothness,
            task.alpha,
            self.workers,
            max(one.tau for one in done),
            done[0].params,
            task.independent,
        )

    def _compile_parallel(self, name: str) -> Callable[..., Any]:
        system, task, p = ZOO[name], self.task, self.workers

        @jax.jit
        def run(start, batches, seed):
            chain = system.chain(task.alpha, seed)
            if system.metered:
                chain = ej.meter(chain, task.alpha, AXIS, every=1)
            simulated = ej.simulate(ej.worker_step(task.loss, chain, AXIS), p)

            def step(states, batch):
                states, _ = simulated.step(states, batch)
                if not system.metered:
                    nothing = jnp.full(p, jnp.nan, jnp.float32)
                    return states, (nothing, nothing)
                meter: Any = states.opt_state
                return states, (meter.gap.last, meter.second_moment.last)

            states, (gap, moment) = jax.lax.scan(step, simulated.init(start), batches)
            lost = jnp.float32(jnp.nan)
            if system.metered:
                each = jax.vmap(ej.lost)(states.opt_state, states.params)
                lost = _norm(jax.tree.map(lambda x: x.mean(0), each))
            mean = jax.tree.map(lambda x: x.mean(0), states.params)
            return gap, moment, lost, mean

        return run

    def _compile_single(self, name: str, slots: int) -> Callable[..., Any]:
        system, task, p = ZOO[name], self.task, self.workers

        @jax.jit
        def run(start, arrays, batches, seed):
            server = None if system.server is None else system.server(seed)
            executor = ej.asynchronous(task.loss, system.chain(task.alpha, seed), server)
            worker, write, read = arrays
            schedule: Any = Schedule(worker, write, read, slots)
            state, ticks = executor.run(executor.init(start, p, slots), schedule, batches)
            of_workers = jax.vmap(ej.lost, in_axes=(0, None), axis_size=p)
            each = of_workers(state.worker_states, state.params)
            lost = _norm(jax.tree.map(lambda x: x.sum(0), each))
            return ticks.gap, jnp.sqrt(ticks.moment) / task.alpha, lost, state.params

        return run


def _norm(tree: Any) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)))


class Constant(NamedTuple):
    """A system's elastic constant on a task: measured, and derived."""

    rms: float  # B̂, root mean square over steps, workers and seeds
    step: float  # the largest over steps of the root mean square over workers and seeds
    largest: float  # the largest of all
    bounded: float  # what B bounds: `largest`, or the largest mean of those that System.mean names
    moment: float  # M
    bound: float | None  # B
    classic: float | None
    holds: bool | None  # whether it is within B; None where there is no B, or chance decides


def constant(system: System, done: list[Done], facts: Facts) -> Constant:
    """Compares the measured with the derived constant over runs that differ in their seeds.

    A mean over draws may exceed its own expectation by chance: within three standard errors of B
    it is not said to hold, nor to be broken. A mean of p views of size |x| rounds by p eps |x|; no
    smaller gap can be told from none. A gap that is not finite breaks every bound.
    """
    gaps = [one.gap.astype(np.float64) / facts.alpha**2 for one in done]  # [steps, workers] each
    bound = None if system.bound is None else system.bound(facts)
    classic = None if system.classic is None else system.classic(facts)
    if not all(np.isfinite(gap).all() for gap in gaps):
        nan, holds = math.nan, None if bound is None else False
        return Constant(nan, nan, nan, nan, facts.M, bound, classic, holds)
    steps = max(len(gap) for gap in gaps)
    squares = np.full((len(done), steps), math.nan)  # [seeds, steps], means over workers
    for row, gap in zip(squares, gaps, strict=True):
        row[: len(gap)] = gap.mean(1)
    of_steps = np.nanmean(squares, 0)
    largest = math.sqrt(max(float(gap.max()) for gap in gaps))
    per_step = math.sqrt(float(of_steps.max()))
    per_run = math.sqrt(float(np.nanmax(squares)))
    bounded = {"": largest, "workers": per_run, "draws": per_step}[system.mean]
    found = Constant(
        math.sqrt(float(of_steps.mean())),
        per_step,
        largest,
        bounded,
        facts.M,
        bound,
        classic,
        None,
    )
    if bound is None:
        return found
    size = max(float(_norm(one.params)) for one in done)
    most = bound + facts.p * float(jnp.finfo(jnp.float32).eps) * size / facts.alpha
    if bounded <= most:
        return found._replace(holds=True)
    if system.mean != "draws" or len(done) < 2:
        return found._replace(holds=False)
    error = np.nanstd(squares, 0, ddof=1) / math.sqrt(len(done))
    surely = math.sqrt(float(np.nanmax(np.maximum(of_steps - 3 * error, 0))))
    return found._replace(holds=False if surely > most else None)
