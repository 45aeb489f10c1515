"""Models of delay: when an update arrives, as a value for `delay`."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax import checks
from elastic_jax.traces import Trace


class DelayModel(NamedTuple):
    """When updates arrive.

    Attributes:
        name: what it is, with its settings.
        longest: the longest delay in steps; a queue of `longest + 1` updates is kept. For
            `per_leaf` a tree of them.
        draw: `(key, step, like) -> delays`, a tree like `like` of int32 arrays, scalar or of the
            leaf's shape, in 0…longest; None for delays that never change.
    """

    name: str
    longest: Any
    draw: Callable[[chex.PRNGKey, chex.Array, Any], Any] | None = None


def constant(steps: Any, longest: int | None = None) -> DelayModel:
    """Every update arrives `steps` steps late, in order.

    Args:
        steps: the delay; an int >= 0, or a JAX scalar, which may be traced and needs `longest`.
            A traced delay is held to 0…longest.
        longest: room for a traced delay.

    Returns:
        The model. `delay(4)` is short for `delay(delays.constant(4))`.
    """
    if isinstance(steps, jax.Array):
        if longest is None:
            raise ValueError("steps is a JAX array: pass longest too, the room its queue needs")
        if steps.ndim or not jnp.issubdtype(steps.dtype, jnp.integer):
            raise ValueError(
                f"steps has shape {steps.shape} and dtype {steps.dtype}; pass an integer scalar"
            )
        room = checks.steps("longest", longest)
        late = jnp.clip(steps.astype(jnp.int32), 0, room)
        return DelayModel(f"constant(≤{room})", room, _same_for_all(lambda key, step: late))
    fixed = checks.steps("steps", steps)
    if longest is not None and checks.steps("longest", longest) < fixed:
        raise ValueError(f"longest={longest} is less than steps={fixed}; leave it out")
    return DelayModel(f"constant({fixed})", fixed)


def per_leaf(steps: Any) -> DelayModel:
    """Each leaf has a constant delay of its own, as layers of a pipeline do.

    Args:
        steps: a tree of ints shaped like the parameters (or a prefix of it).
    """
    jax.tree.map(lambda value: checks.steps("steps", value), steps)
    return DelayModel(f"per_leaf({steps})", steps)


def uniform(shortest: int, longest: int) -> DelayModel:
    """Each update's delay is drawn from shortest…longest, all alike, independent of its content."""
    low = checks.steps("shortest", shortest)
    high = checks.steps("longest", longest)
    if high < low:
        raise ValueError(f"longest={high} is less than shortest={low}; swap them")

    def draw(key, step):
        return jax.random.randint(key, (), low, high + 1, jnp.int32)

    return DelayModel(f"uniform({low}, {high})", high, _same_for_all(draw))


def pmf(probabilities: Sequence[float]) -> DelayModel:
    """Each update's delay is drawn afresh: P(D = s) = probabilities[s].

    Args:
        probabilities: non-negative, summing to 1 (to 1e-6); the last one's index is the longest.
    """
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 1 or not p.size or (p < 0).any() or not abs(p.sum() - 1) <= 1e-6:
        raise ValueError(
            f"probabilities={probabilities!r} is no distribution; pass non-negative numbers that "
            f"sum to 1 (they sum to {p.sum():g})"
        )
    upto = np.cumsum(p / p.sum())[:-1]

    def draw(key, step):
        u = jax.random.uniform(key, dtype=jnp.float32)
        return jnp.sum(u >= jnp.asarray(upto, jnp.float32), dtype=jnp.int32)

    return DelayModel(f"pmf({p.tolist()})", p.size - 1, _same_for_all(draw))


def geometric(mean: float, longest: int) -> DelayModel:
    """Delays are geometric, P(D = s) ∝ q^s with q = mean/(1+mean), cut off at `longest`.

    Args:
        mean: of the delay without the cut, in steps, > 0.
        longest: the longest delay; the distribution is renormalised over 0…longest.
    """
    room = checks.steps("longest", longest)
    if not 0 < mean < math.inf:
        raise ValueError(
            f"mean={mean!r} is out of range; pass a finite number > 0, or use delay(0)"
        )
    weights = (mean / (1 + mean)) ** np.arange(room + 1)
    return pmf((weights / weights.sum()).tolist())._replace(name=f"geometric({mean}, {room})")


def per_coordinate(longest: int) -> DelayModel:
    """Each coordinate of each update has its own uniform delay in 0…longest.

    The inconsistent reads of lock-free shared memory: a view may hold one coordinate of an update
    and lack the next.
    """
    room = checks.steps("longest", longest)

    def draw(key, step, like):
        leaves, treedef = jax.tree.flatten(like)
        keys = jax.random.split(key, max(1, len(leaves)))
        late = [
            jax.random.randint(k, x.shape, 0, room + 1, jnp.int32)
            for k, x in zip(keys, leaves, strict=False)
        ]
        return jax.tree.unflatten(treedef, late)

    return DelayModel(f"per_coordinate({room})", room, draw)


def replay(delays: Any) -> DelayModel:
    """Step t's update is as late as the trace says; past its end the trace starts over.

    Args:
        delays: a `Trace`, or ints [T] >= 0.
    """
    steps = np.asarray(delays.delay if isinstance(delays, Trace) else delays)
    if steps.ndim != 1 or not steps.size or not np.issubdtype(steps.dtype, np.integer):
        raise ValueError(f"delays={delays!r} is no sequence; pass a Trace, or ints of shape [T]")
    if steps.min() < 0:
        raise ValueError(f"delays hold {steps.min()}; a delay is an int >= 0")
    table = steps.astype(np.int32)

    def draw(key, step):
        return jnp.asarray(table)[step % len(table)]

    return DelayModel(f"replay(T={len(table)})", int(table.max()), _same_for_all(draw))


def _same_for_all(draw: Callable[[chex.PRNGKey, chex.Array], chex.Array]):
    """Makes one drawn delay that of every leaf: an update travels whole."""

    def draw_tree(key, step, like):
        late = draw(key, step)
        return jax.tree.map(lambda _: late, like)

    return draw_tree
