"""What `experiments.bound_vs_run` minimises; one run of a chain, and its constants."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import elastic_jax as ej
from elastic_jax import estimate
from elastic_jax.estimate import Constants, Estimate
from elastic_jax.precision import squared_norm
from experiments import data, models
from experiments.chains import AXIS, Part

PIECE = 250  # images at once
SAMPLES = 100  # gradients for σ and M at each of the places
Tree = Any


# ---- the tasks ----


class Task(NamedTuple):
    """A function f, its stochastic gradients, and what is known about it."""

    name: str
    loss: Callable[[Tree, Any], jax.Array]  # (params, batch) → scalar
    params: Callable[[int], Tree]  # seed → x_0
    sample: Callable[..., Any]  # (key, shape) → batches, stacked
    whole: Any  # batches, stacked, of which f is the mean loss
    minimiser: Tree | None
    constants: Callable[[list[Tree], list[Tree], float], Constants]
    said: str  # where the constants come from

    def gradient(self, params: Tree) -> Tree:
        """Returns ∇f, batch by batch."""

        def add(total, batch):
            return jax.tree.map(jnp.add, total, jax.grad(self.loss)(params, batch)), None

        total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), self.whole)
        return jax.tree.map(lambda g: g / len(jax.tree.leaves(self.whole)[0]), total)


def make(name: str, batch: int, images: int, dataset: str) -> Task:
    """Makes a task.

    Args:
        name: `quadratic`, `logistic` or `cnn`.
        batch: examples for each gradient.
        images: the first so many make up the network's f; a multiple of PIECE.
        dataset: of `experiments.data`.

    Raises:
        ValueError: if there are not so many images.
    """
    if name == "cnn":
        return _network(batch, images, dataset)
    if name == "quadratic":
        problem = ej.problems.quadratic(np.geomspace(0.1, 1.0, 20))
        whole = jnp.zeros((1, 20))
        said = "constants known, M in the ball that the run stays in"
    else:
        key = jax.random.key(0)
        problem = ej.problems.logistic(key, n=200, d=10, batch_size=batch, start=1.0)
        whole = jnp.arange(200, dtype=jnp.int32)[None]
        said = "L, c, Δ known, M in the ball that the run stays in; σ estimated along the run"
    gap = float(problem.value(problem.init)) - problem.minimum

    def constants(iterates: list[Tree], views: list[Tree], radius: float) -> Constants:
        moment = problem.second_moment(radius) if math.isfinite(radius) else math.inf
        numbers = (problem.smoothness, problem.strong_convexity, problem.noise, moment, gap)
        L, c, sigma, M, Delta = map(_exactly, numbers)
        if name == "logistic":  # the σ that is known is that of x*
            first, *more = views
            batches = problem.sample(jax.random.key(1), (SAMPLES,))
            sigma = estimate.noise(problem.loss, first, batches, points=more)
        return Constants(L, c, sigma, M, Delta)

    start, minimiser = problem.init, problem.minimiser
    return Task(
        name, problem.loss, lambda _: start, problem.sample, whole, minimiser, constants, said
    )


def _network(batch: int, count: int, dataset: str) -> Task:
    found = data.load(dataset)
    if len(found.train_labels) < count:
        raise ValueError(f"--images {count}: {dataset} has {len(found.train_labels)}; give fewer")
    model = models.make("cnn", found)
    images, labels = (jnp.asarray(x[:count]) for x in (found.train_images, found.train_labels))
    of_images = models.loss_fn(model)
    whole = jnp.arange(count, dtype=jnp.int32).reshape(-1, PIECE)

    def loss(params: Tree, index: jax.Array) -> jax.Array:
        return of_images(params, images[index], labels[index])

    def sample(key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        return jax.random.randint(key, (*shape, batch), 0, count, jnp.int32)

    value = jax.jit(lambda params: jax.lax.map(lambda piece: loss(params, piece), whole).mean())

    def constants(iterates: list[Tree], views: list[Tree], radius: float) -> Constants:
        (x, *more), (view, *others) = iterates, views
        L, c = (of(loss, x, whole, points=more) for of in (estimate.smoothness, estimate.curvature))
        batches = sample(jax.random.key(1), (SAMPLES,))
        sigma, M = (
            of(loss, view, batches, points=others)
            for of in (estimate.noise, estimate.second_moment)
        )
        return Constants(L, c, sigma, M, _exactly(float(value(x))))  # f ≥ 0

    def params(seed: int) -> Tree:
        return model.init(jax.random.key(seed))

    said = "L, σ, M estimated along the run; Δ = f(x_0), as f ≥ 0"
    return Task("cnn", loss, params, sample, whole, None, constants, said)


def _exactly(number: float) -> Estimate:
    return Estimate(number, number, number)


# ---- a run ----


@dataclasses.dataclass(frozen=True)
class Done:
    """What came of a run."""

    problem: str
    alpha: float
    seed: int
    gradient: tuple[float, ...]  # (1/T) Σ_{t<T} ‖∇f(x_t)‖², at every T looked at
    distance: tuple[float, ...]  # ‖x_T − x*‖²; none where x* is not known
    moment: tuple[float, ...]  # mean of ‖G̃‖² between one T and the next
    L: tuple[float, ...]  # value, low, high, as for the others
    c: tuple[float, ...]
    sigma: tuple[float, ...]
    M: tuple[float, ...]
    Delta: tuple[float, ...]
    seconds: float


class Runner:
    """A task's compiled chain."""

    def __init__(self, task: Task, chain: list[Part], workers: int, alpha: float, chunk: int):
        """Builds the program; `chunk` steps at a time."""
        self.task, self.alpha, self.chunk = task, alpha, chunk

        def simulated(seed):
            relaxed = [part.relax(seed + place) for place, part in enumerate(chain)]
            step = ej.worker_step(task.loss, optax.chain(optax.sgd(alpha), *relaxed), AXIS)
            return ej.simulate(step, workers)

        run = simulated(0)  # a seed is for the start only
        self.init = jax.jit(lambda x, seed: simulated(seed).init(x))

        def iterate(state):
            of_worker = jax.vmap(
                lambda view, opt_state: ej.virtual_params(view, opt_state, AXIS), axis_name=AXIS
            )
            return jax.tree.map(lambda x: x[0], of_worker(state.params, state.opt_state))

        def one(state, batch):
            grads = jax.vmap(jax.grad(task.loss))(state.params, batch)
            measured = (
                _square(task.gradient(iterate(state))),
                _square(grads) / workers,
                jnp.float32(jnp.nan) if task.minimiser is None else _away(state.params, task),
            )
            return run.step(state, batch)[0], measured

        def go_on(state, key):
            batches = task.sample(key, (chunk, workers))
            state, (squares, moments, away) = jax.lax.scan(one, state, batches)
            return state, iterate(state), squares.sum(), moments.mean(), away.max()

        self.go_on = jax.jit(go_on, donate_argnums=0)

    def run(self, seed: int, points: int, looks: int) -> Iterator[Done | None]:
        """Runs `points` chunks; yields None after each, and last what came of it."""
        began, task = time.perf_counter(), self.task
        x = task.params(seed)
        state, key = self.init(x, jnp.int32(seed)), jax.random.key(seed)
        gradient, distance, moment, away, total = [], [], [], 0.0, 0.0
        iterates, views = [x], [x]
        seen = {round(place) for place in np.linspace(points / looks, points, looks)}
        for point in range(1, points + 1):
            state, x, squares, moments, radius = self.go_on(state, jax.random.fold_in(key, point))
            total += float(squares)
            gradient.append(total / (point * self.chunk))
            moment.append(float(moments))
            away = max(away, float(radius)) if math.isfinite(radius) else math.inf
            if task.minimiser is not None:
                distance.append(float(_square(jax.tree.map(jnp.subtract, x, task.minimiser))))
            if point in seen and math.isfinite(total):
                iterates.append(x)
                views.append(jax.tree.map(lambda v: v[0], state.params))
            yield None
        found = task.constants(iterates, views, away)
        yield Done(
            task.name,
            self.alpha,
            seed,
            gradient=tuple(gradient),
            distance=tuple(distance),
            moment=tuple(moment),
            **{name: tuple(one) for name, one in found._asdict().items()},
            seconds=time.perf_counter() - began,
        )


def _square(tree: Tree) -> jax.Array:
    return jnp.sum(jnp.stack([squared_norm(x) for x in jax.tree.leaves(tree)]))


def _away(views: Tree, task: Task) -> jax.Array:
    """Returns the largest distance of a view from x*."""
    each = jax.vmap(lambda view: _square(jax.tree.map(jnp.subtract, view, task.minimiser)))(views)
    return jnp.sqrt(each.max())
