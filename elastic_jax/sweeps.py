"""Sweeps over all batches at given parameters: gradients, or Hessian products."""

import functools
import math
import numbers
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.lanczos import Ritz, lanczos
from elastic_jax.precision import norm, wide, wide_dtype, wider
from elastic_jax.types import Tree

Loss = Callable[[Any, Any], jax.Array]  # (params, batch) → scalar
FEWEST = 3  # gradients: the spread of fewer has no interval


class Settings(TypedDict, total=False):
    """Keyword arguments of every estimate, and their defaults.

    Attributes:
        points: more parameters, alike in shapes and dtypes. None.
        level: probability of an interval, for all points together. 0.95.
        iterations: of Lanczos' method, k at most; memory for k + 3 copies of the parameters. 32.
        seed: of Lanczos' random start. 0.
        seconds: start no batch after so long; intervals are then wider. None, no limit.
        note: called with (done, total) after every batch, for progress. None.
    """

    points: Iterable[Tree]
    level: float
    iterations: int
    seed: int
    seconds: float | None
    note: Callable[[int, int], None] | None


class _Work:
    """Counts batches, phase by phase, and minds the time; each phase has an equal share of it."""

    def __init__(self, phases: Sequence[int], seconds: float | None, note: Any):
        self.phases, self.seconds, self.note = phases, seconds, note
        self.begun = self.done = 0
        self.start = time.monotonic()

    def begin(self) -> None:
        self.begun += 1

    def step(self, count: int = 1) -> None:
        self.done += count
        if self.note is not None and count:
            self.note(self.done, sum(self.phases))

    def end(self) -> None:
        self.step(sum(self.phases[: self.begun]) - self.done)

    def late(self) -> bool:
        passed = time.monotonic() - self.start
        share = self.begun / len(self.phases)
        return self.seconds is not None and passed > self.seconds * share


class Sweeps:
    """Checked arguments of an estimate, and the sweeps that it asks for."""

    def __init__(
        self,
        loss_fn: Loss,
        params: Tree,
        batches: Any,
        points: Iterable[Tree] = (),
        level: float = 0.95,
        iterations: int = 32,
        seed: int = 0,
        seconds: float | None = None,
        note: Callable[[int, int], None] | None = None,
        *,
        gradients: bool = False,
        products: bool = False,
        **unknown: Any,
    ):
        """Checks the arguments; see `Settings`, and `constants` for errors.

        Args:
            loss_fn: `(params, batch) -> loss`.
            params: float arrays.
            batches: a list, or a stacked tree.
            points: see `Settings`, like all that follow.
            level: of intervals.
            iterations: of Lanczos' method.
            seed: of its start.
            seconds: in all.
            note: told about progress.
            gradients: `moments` will be asked for.
            products: `ritz` will be asked for.
            **unknown: refused.
        """
        if unknown:
            known = ", ".join(Settings.__annotations__)
            raise TypeError(f"{', '.join(unknown)}: no such setting; pass {known}")
        if not callable(loss_fn):
            raise TypeError(f"loss_fn={loss_fn!r} is no function; pass (params, batch) -> loss")
        try:
            hash(loss_fn)  # a program is kept for each
        except TypeError as error:
            raise TypeError(
                f"loss_fn={loss_fn!r} cannot be hashed; pass a function, as lambda params, batch: "
                "loss_fn(params, batch)"
            ) from error
        self.loss_fn, self.points = loss_fn, [params, *points]
        for name, at in self._named():
            _check_params(name, at, params)
        self.count, self.batch = _batches(batches)
        if gradients and self.count < FEWEST:
            raise ValueError(
                f"batches holds {self.count}; pass {FEWEST} or more, the spread of fewer gradients "
                "has no interval"
            )
        self.iterations = _whole("iterations", iterations, 1)
        self.seed = _whole("seed", seed, 0)
        if not 0 < finite("level", level) < 1:
            raise ValueError(f"level={level!r} is out of range; pass a probability in (0, 1)")
        self.miss = (1 - level) / len(self.points)  # so that all points hold together
        if seconds is not None and not finite("seconds", seconds) > 0:
            raise ValueError(f"seconds={seconds!r} is out of range; pass a number > 0, or None")
        like: Any = jax.eval_shape(loss_fn, params, self.batch(0))
        if getattr(like, "shape", None) != () or not jnp.issubdtype(like.dtype, jnp.floating):
            raise ValueError(f"loss_fn returns {like}; return a float scalar, such as the mean")
        sizes = [self.count] * gradients + [self.count * self.iterations] * products
        self.work = _Work([size for size in sizes for _ in self.points], seconds, note)

    def moments(self) -> list["Moments"]:
        """Takes a gradient of every batch at every point."""
        return [self._moments(*point) for point in self._named()]

    def _named(self) -> list[tuple[str, Tree]]:
        names = ["params", *(f"points[{place}]" for place in range(len(self.points) - 1))]
        return list(zip(names, self.points, strict=True))

    def _moments(self, at: str, params: Tree) -> "Moments":
        work, found = self.work, Moments([], [], [])
        work.begin()
        mean = jax.tree.map(lambda x: jnp.zeros_like(wide(jnp.asarray(x))), params)
        for k in range(self.count):
            if k >= FEWEST and work.late():
                break
            mean, *scalars = _gradient(self.loss_fn, mean, params, self.batch(k), np.int32(k))
            loss, length, spread = map(float, scalars)
            for name, value in (("loss", loss), ("gradient's norm", length)):
                if not math.isfinite(value):
                    raise ValueError(
                        f"batch {k} at {at}: the {name} is {value}; leave this batch out, or pass "
                        "parameters at which it is finite"
                    )
            found.losses.append(loss)
            found.lengths.append(length)
            found.spreads.extend([spread] if k else [])
            work.step()
        work.end()
        return found

    def ritz(self) -> list[tuple[Ritz, float]]:
        """Runs Lanczos' method on the Hessian at every point; with the rounding unit of each."""
        return [self._ritz(*point) for point in self._named()]

    def _ritz(self, at: str, params: Tree) -> tuple[Ritz, float]:
        work = self.work
        work.begin()
        before = work.done
        dtypes = [jnp.asarray(x).dtype for x in jax.tree.leaves(params)]
        size = sum(np.size(x) for x in jax.tree.leaves(params))

        def product(vector: jax.Array) -> jax.Array | None:
            total = jnp.zeros_like(vector)
            for k in range(self.count):
                if work.done - before >= self.count and work.late():
                    return None
                total = _product(self.loss_fn, total, params, self.batch(k), vector)
                total.block_until_ready()  # so that the time is its own
                work.step()
            return total / self.count

        dtype = wide_dtype(functools.reduce(wider, dtypes))
        start = jax.random.normal(jax.random.key(self.seed), (size,), dtype)
        try:
            ritz = lanczos(product, start, self.iterations)
        except FloatingPointError as error:
            raise ValueError(
                f"the Hessian at {at} is not finite; pass batches and parameters at which the loss "
                "has finite second derivatives"
            ) from error
        work.end()
        return ritz, max(float(jnp.finfo(x).eps) for x in dtypes)


class Moments(NamedTuple):
    """Of the gradients g_k of batches k = 1 … n."""

    losses: list[float]
    lengths: list[float]  # ‖g_k‖
    spreads: list[float]  # √(1 − 1/k)·‖g_k − mean of those before‖, k ≥ 2


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _gradient(loss_fn: Loss, mean: Tree, params: Tree, batch: Any, k: jax.Array) -> tuple[Any, ...]:
    """Returns the mean of gradients 0 … k; of the last one the loss, ‖g‖ and its spread."""
    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
    grads = jax.tree.map(wide, grads)
    away = jax.tree.map(jnp.subtract, grads, mean)
    mean = jax.tree.map(lambda m, a: m + a / (k + 1).astype(a.dtype), mean, away)
    spread = _length(away)
    before = k.astype(spread.dtype)
    return mean, loss, _length(grads), spread * jnp.sqrt(before / (before + 1))


def _length(tree: Tree) -> jax.Array:
    leaves = jax.tree.leaves(tree)
    dtype = functools.reduce(wider, (x.dtype for x in leaves))
    return norm(jnp.stack([norm(x).astype(dtype) for x in leaves]))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _product(loss_fn: Loss, total: Any, params: Tree, batch: Any, vector: Any) -> jax.Array:
    """Adds the Hessian times a flat vector to a flat total."""
    leaves, treedef = jax.tree.flatten(params)
    cuts = np.cumsum([leaf.size for leaf in leaves])[:-1]
    pieces = zip(jnp.split(vector, cuts), leaves, strict=True)
    tangent = treedef.unflatten([v.reshape(x.shape).astype(x.dtype) for v, x in pieces])
    image = jax.jvp(lambda x: jax.grad(loss_fn)(x, batch), (params,), (tangent,))[1]
    flat = [x.ravel().astype(vector.dtype) for x in jax.tree.leaves(image)]
    return total + jnp.concatenate(flat)


# ---- bad input ----


def _check_params(name: str, params: Tree, like: Tree) -> None:
    flat, treedef = jax.tree_util.tree_flatten_with_path(params)
    if not flat:
        raise TypeError(f"{name} holds no array; pass a tree of float arrays")
    for path, leaf in flat:
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} is {type(leaf).__name__} {dtype or ''}; pass "
                "float arrays, and close over what is not to be differentiated"
            )
    shapes = [[(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (params, like)]
    if treedef != jax.tree.structure(like) or shapes[0] != shapes[1]:
        raise ValueError(f"{name} is not shaped like params; pass parameters of the same model")


def _batches(batches: Any) -> tuple[int, Callable[[int], Any]]:
    """Returns how many batches there are, and the k-th."""
    if isinstance(batches, list):
        count = len(batches)
    else:
        leaves = [] if isinstance(batches, Iterator) else jax.tree.leaves(batches)
        sizes = {np.shape(leaf)[0] if np.ndim(leaf) else None for leaf in leaves}
        if not leaves or len(sizes) != 1 or None in sizes:
            raise TypeError(
                f"batches={type(batches).__name__} is no list of batches and no tree of arrays "
                "stacked [n, …]; of a loader pass list(loader)"
            )
        count = sizes.pop() or 0

    def batch(k: int) -> Any:
        if isinstance(batches, list):
            return batches[k]
        return jax.tree.map(lambda x: x[k], batches)

    if not count:
        raise ValueError("batches holds none; pass one or more")
    return count, batch


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name}={value!r} is out of range; pass an int >= {least}")
    return int(value)


def finite(name: str, value: Any) -> float:
    """Refuses what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"{name}={value!r} is out of range; pass a finite number")
    return float(value)
