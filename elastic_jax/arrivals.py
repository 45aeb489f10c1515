"""Models of arrival: when each leaf of each worker's gradient is where, in simulated seconds.

A model is a value. The schedulers (`elastic_jax.schedulers`) ask it at each step; every worker
draws the same times, so that all agree on who is late without asking. A model speaks of seconds
since a sender's step began; `Clock` says when that was.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.checks import number
from elastic_jax.exchange import gather, worker_index


class Timetable(NamedTuple):
    """When the leaves of one step's gradients are where; seconds since each sender's step began."""

    ready: Any  # tree of float32 [p]: at the worker that computes it
    arrives: Any  # tree of float32 [p], or [p receivers, p senders]: at the others
    free: chex.Array  # float32 [p]: the sender's link has sent all of it


class Arrivals(NamedTuple):
    """When gradients arrive.

    Attributes:
        name: what it is, with its settings.
        draw: `(key, step, like, workers, busy) -> Timetable`, with trees like `like`, the tree of
            one worker's updates. `step` counts from 0. `busy` (float32 [p], seconds since each
            sender's step began, maybe negative) is when its link has sent what came before.
    """

    name: str
    draw: Callable[[chex.PRNGKey, chex.Array, Any, int, chex.Array], Timetable]


def backward(
    compute: chex.Numeric,
    bandwidth: chex.Numeric,
    latency: chex.Numeric = 0.0,
    *,
    spread: chex.Numeric = 0.0,
    flops_by: Any = None,
) -> Arrivals:
    """Leaves are ready from the last to the first, and each worker's link sends them in that order.

        ready_l = c_i (weights of the leaves from the last to l) / (weights of all leaves)
        sent_l  = max(ready_l, sent_{l+1}) + bytes_l / bandwidth        arrives_l = sent_l + latency

    with `c_i = compute exp(spread N(0, 1))`, drawn for each worker and step. A leaf leaves a link
    once and arrives everywhere at the same time, as by multicast. The first leaf of a step waits
    until the link has sent the step before.

    Args:
        compute: median seconds of a gradient, > 0; may be traced, as all numbers here.
        bandwidth: of each worker's link, bytes per second, > 0 (inf: it takes no time).
        latency: seconds that each message needs besides, >= 0.
        spread: standard deviation of the logarithm of the compute time, >= 0.
        flops_by: the leaves' shares of the compute time, a tree of positive numbers shaped like
            the parameters; None takes their numbers of elements.

    Returns:
        The model.

    Raises:
        ValueError: for a number out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = backward(compute=1.0, bandwidth=4.0)  # the first leaf has 1/4 of all elements
        >>> like = {"a": jnp.zeros(1, jnp.float32), "b": jnp.zeros(3, jnp.float32)}
        >>> times = model.draw(jax.random.key(0), 0, like, 2, jnp.zeros(2))
        >>> print(times.ready, times.arrives)  # a waits for b: 12 bytes take 3 s
        {'a': Array([1., 1.], ...), 'b': Array([0.75, 0.75], ...)} {'a': Array([4.75, 4.75], ...),
         'b': Array([3.75, 3.75], ...)}
    """
    _check("compute", compute, above=0.0)
    _check("bandwidth", bandwidth, above=0.0, infinite=True)
    _check("latency", latency)
    _check("spread", spread)
    for weight in jax.tree.leaves(flops_by):
        _check("flops_by", weight, above=0.0)

    def draw(key, step, like, workers, busy):
        leaves, treedef = jax.tree.flatten(like)
        weights = [leaf.size for leaf in leaves]
        if flops_by is not None:
            if jax.tree.structure(flops_by) != treedef:
                raise ValueError(
                    f"flops_by is a tree {jax.tree.structure(flops_by)} but the parameters' is "
                    f"{treedef}; give one number for each leaf"
                )
            weights = jax.tree.leaves(flops_by)
        parts = jnp.asarray(weights, jnp.float32)
        shares = jnp.cumsum(parts[::-1])[::-1] / jnp.maximum(jnp.sum(parts), 1e-30)
        normal = jax.random.normal(key, (workers,), jnp.float32)
        seconds = _float(compute) * jnp.exp(_float(spread) * normal)
        ready, arrives, sent = [], [], _float(busy)
        for share, leaf in zip(reversed(list(shares)), reversed(leaves), strict=True):
            ready.append(seconds * share)
            nbytes = leaf.size * jnp.dtype(leaf.dtype).itemsize
            sent = jnp.maximum(ready[-1], sent) + jnp.float32(nbytes) / _float(bandwidth)
            arrives.append(sent + _float(latency))
        ready, arrives = (treedef.unflatten(found[::-1]) for found in (ready, arrives))
        return Timetable(ready, arrives, sent)

    name = f"backward({compute} s, {bandwidth} B/s, {latency} s, spread={spread})"
    return Arrivals(name, draw)


def fixed(times: Any) -> Arrivals:
    """Gradients arrive when they are said to, links are never busy.

    Args:
        times: seconds since the sender's step began, finite and >= 0: an array [receivers, senders]
            whose diagonal says when a worker's own gradient is ready; or [T, receivers, senders]
            for T steps, which then start over. One array for all leaves, or a tree of them shaped
            like the parameters.

    Returns:
        The model.

    Raises:
        ValueError: for times of another shape, or that are negative or not finite; when they are
            drawn, for another number of workers or tree of parameters.
    """

    def table(given):
        array = np.asarray(given)
        if array.ndim not in (2, 3) or array.shape[-1] != array.shape[-2] or not array.size:
            raise ValueError(
                f"times have shape {array.shape}; pass arrays [receivers, senders] or "
                "[T, receivers, senders], in seconds"
            )
        if array.dtype.kind not in "fiu" or not (np.isfinite(array) & (array >= 0)).all():
            raise ValueError(f"times={given!r} hold what is no time; pass finite numbers >= 0")
        return array.astype(np.float32).reshape(-1, *array.shape[-2:])

    alike = isinstance(times, (np.ndarray, jax.Array))
    tables = jax.tree.map(table, times)
    sizes = {array.shape[-1] for array in jax.tree.leaves(tables)}
    if len(sizes) != 1:
        raise ValueError(f"times are those of {sizes or 'no'} workers; pass one number of workers")
    (size,) = sizes

    def draw(key, step, like, workers, busy):
        if size != workers:
            raise ValueError(f"times are those of {size} workers but there are {workers}")
        if not alike and jax.tree.structure(tables) != jax.tree.structure(like):
            raise ValueError(
                f"times are a tree {jax.tree.structure(tables)} but the parameters' is "
                f"{jax.tree.structure(like)}; give one array for each leaf, or one for all"
            )

        def now(array):
            return jnp.asarray(array)[step % len(array)]

        arrives = jax.tree.map(lambda _: now(tables), like) if alike else jax.tree.map(now, tables)
        return Timetable(
            jax.tree.map(jnp.diagonal, arrives), arrives, jnp.zeros(workers, jnp.float32)
        )

    return Arrivals(f"fixed(p={size})", draw)


# ---- clocks ----


class Clock(NamedTuple):
    """A worker's simulated time, float32 seconds; small numbers, so that none are rounded away."""

    now: Any  # [], when its step begins, after `origin`
    free: Any  # [], when its link has sent everything, after `origin`
    origin: Any  # [], alike on all workers
    excess: Any  # [], by how much rounding has put the origin too far

    def moved(self, now: Any, free: Any, by: Any) -> "Clock":
        """Returns the clock with its origin moved on, in Kahan's way: a long run loses nothing."""
        step = by - self.excess
        origin = self.origin + step
        return Clock(now, free, origin, (origin - self.origin) - step)

    def time(self) -> chex.Array:
        """Returns the seconds since the start."""
        return self.origin + (self.now - self.excess)


def new_clock() -> Clock:
    """Returns a clock at 0."""
    return Clock(*(jnp.zeros((), jnp.float32) for _ in Clock._fields))


def meet(
    arrivals: Arrivals, names: tuple[str, ...], key: Any, step: Any, updates: Any, clock: Clock
) -> tuple[Any, Any, list[tuple[Any, Any]], Any]:
    """Draws a step's times as one worker sees them, after the step's earliest start.

    Args:
        arrivals: when gradients arrive, after each sender's start.
        names: the workers' axes, innermost first.
        key: of the draw, alike on all workers.
        step: its number.
        updates: this worker's, for shapes and dtypes.
        clock: this worker's.

    Returns:
        The earliest start after the clock's origin; this worker's own; for each leaf when each
        worker's gradient is there [p], none before its own, and when its own is ready; and when its
        link will be free.
    """
    now, free = gather((clock.now, clock.free), names)
    p, me, base = len(now), worker_index(names), jnp.min(now)
    table = arrivals.draw(key, step, updates, p, free - now)
    start, own = jnp.asarray(now - base), jnp.arange(p, dtype=jnp.int32) == me
    rows = []
    for ready, arrives in zip(*map(jax.tree.leaves, (table.ready, table.arrives)), strict=True):
        there = arrives if arrives.ndim == 1 else arrives[me]
        at = jnp.asarray(start + jnp.where(own, ready, there))
        rows.append((jnp.maximum(at, at[me]), at[me]))
    return base, start[me], rows, start[me] + jnp.asarray(table.free)[me]


def _float(value: chex.Numeric) -> jax.Array:
    return jnp.asarray(value).astype(jnp.float32)


def _check(
    name: str, value: Any, above: float | None = None, least: float = 0.0, infinite: bool = False
) -> None:
    """Refuses a number out of range; a JAX scalar may be traced."""
    side = f">= {least:g}" if above is None else f"> {above:g}"

    def fits(value):
        low = value >= least if above is None else value > above
        return low and (infinite or value < math.inf)

    number(name, value, fits, f"a {'' if infinite else 'finite '}number {side}")
