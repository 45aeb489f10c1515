"""Chance in exchanges: what happens is drawn from a key that all workers share, and counted.

Also the sums over those messages that arrive, and what narrow parameters round away.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from elastic_jax.checks import number
from elastic_jax.precision import narrow_as, wide
from elastic_jax.views import with_remainder


def check_probability(name: str, value: Any, *, most: str) -> bool:
    """Refuses what is no probability; returns whether it is traced (or a JAX array).

    Args:
        name: of the argument.
        value: a number, or a JAX scalar.
        most: the interval it must lie in: "[0, 1)", "[0, 1]" or "(0, 1]".
    """
    ends = {0.0: most[0] == "[", 1.0: most[-1] == "]"}
    return number(name, value, lambda q: ends.get(q, 0 < q < 1), f"a number in {most}")


def none() -> jax.Array:
    """Returns a counter at 0; an array of its own, so that a state can be donated."""
    return jnp.zeros((), jnp.int32)


def new_key(seed: int) -> jax.Array:
    """Returns the data of a key that all workers share."""
    return jax.random.key_data(jax.random.key(seed))


def next_key(shared_key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the data to keep, and the key of this step."""
    carry, key = jax.random.split(jax.random.wrap_key_data(shared_key))
    return jax.random.key_data(carry), key


def happens(key: jax.Array, probability: chex.Numeric, *shape: int) -> jax.Array:
    """Draws booleans that are true with a probability."""
    drawn = jax.random.uniform(key, shape, jnp.float32)
    return drawn < jnp.asarray(probability).astype(jnp.float32)


def count(total: jax.Array, events: jax.Array) -> jax.Array:
    """Adds to an int32 counter, which stops at its largest value."""
    more = jnp.sum(events, dtype=jnp.int32)
    return total + jnp.minimum(more, jnp.iinfo(jnp.int32).max - total)


def shares(tree: Any, p: int) -> Any:
    """Returns 1/p of a tree, in float32 or wider."""
    return jax.tree.map(lambda x: wide(x) / p, tree)


def where(condition: jax.Array, tree: Any, other: Any = None) -> Any:
    """Selects a tree, or rows of stacks [p, ...]; elsewhere another tree, zeros if None."""

    def choose(x, y):
        test = condition.reshape(condition.shape + (1,) * (x.ndim - condition.ndim))
        return jnp.where(test, x, y)

    other = jax.tree.map(jnp.zeros_like, tree) if other is None else other
    return jax.tree.map(choose, tree, other)


def sum_where(condition: jax.Array, stacks: Any) -> Any:
    """Sums those rows of stacks [p, ...] where a condition [p] holds."""
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), where(condition, stacks))


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def rounded(total: Any, rest: Any, updates: Any) -> tuple[Any, Any]:
    """Rounds a sum, and what earlier rounding kept back, to the dtypes of the updates.

    Returns:
        What is applied, and what rounding keeps back now.
    """
    total = with_remainder(total, rest)
    out = narrow_as(total, updates)

    def left(r, y, o):
        if not _is_masked(r):
            return y - wide(o).astype(y.dtype)
        if not _is_masked(o) and o.dtype != y.dtype:
            raise ValueError(
                f"updates are {o.dtype} but the state was made for parameters of {y.dtype}; cast "
                "the updates, or the parameters given to init"
            )
        return r

    return out, jax.tree.map(left, rest, total, out, is_leaf=_is_masked)
