"""Schedulers of updates of any size, and of updates that are no numbers."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import AXIS
from scheduler_runs import SHAPES, STEPS, P, norm, run
from steps import at, draws

from elastic_jax.arrivals import fixed
from elastic_jax.schedulers import norm_bounded, variance_bounded

LATE = fixed(np.random.default_rng(0).lognormal(0, 0.8, (STEPS, P, P)))
RULES: dict[str, Any] = {
    "norm": norm_bounded(AXIS, 0.6, LATE),
    "missing": variance_bounded(AXIS, LATE, missing=1),
}


@pytest.mark.slow
def test_the_rule_is_the_same_for_updates_of_any_size():
    """Times a power of two, out to where float32 has no squares, all is the same times it."""
    updates, units = draws(SHAPES, STEPS, P), jnp.asarray([1.0, 2.0**-84, 2.0**66])

    def of(unit):
        return run(RULES["norm"], jax.tree.map(lambda u: u * unit, updates))

    found = jax.vmap(of)(units)
    plain = at(found, 0)
    assert norm(plain["held"]) > 0.1
    for i, unit in enumerate(units.tolist()):
        mass = {name: plain[name] for name in ("out", "held")}
        want = {**plain, **jax.tree.map(lambda x, unit=unit: x * np.float32(unit), mass)}
        chex.assert_trees_all_equal(at(found, i), want)


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_what_is_not_finite_is_applied_by_all_at_once_and_never_held(name):
    updates, values = draws(SHAPES, STEPS, P, seed=1), jnp.asarray([0.0, jnp.nan, -jnp.inf])
    where = 2, 1, 0, 0  # step, worker, element

    def of(value):
        return run(RULES[name], {**updates, "a": updates["a"].at[where].set(value)})

    found = jax.vmap(of)(values)
    plain = at(found, 0)
    assert norm(plain["held"]) > 0.1
    for i in (1, 2):
        got = at(found, i)
        out = np.array(got["out"]["a"])
        np.testing.assert_array_equal(out[2, :, 0, 0], np.full(P, values[i]))
        out[2, :, 0, 0] = plain["out"]["a"][2, :, 0, 0]
        chex.assert_trees_all_equal({**got, "out": {**got["out"], "a": out}}, plain)
