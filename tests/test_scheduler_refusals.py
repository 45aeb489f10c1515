"""What schedulers and models of arrival refuse, with messages that help."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import AXIS
from scheduler_runs import SHAPES

from elastic_jax.arrivals import backward, fixed
from elastic_jax.schedulers import norm_bounded, variance_bounded

model: Any = backward(1.0, 1.0)


loose_norm: Any = norm_bounded


loose_variance: Any = variance_bounded


loose_backward: Any = backward


loose_fixed: Any = fixed


def drawn(model, workers=3):
    return model.draw(jax.random.key(0), 0, SHAPES, workers, jnp.zeros(workers))


REFUSED = {
    **{
        f"beta={beta}": (
            lambda beta=beta: loose_norm(AXIS, beta, model),
            (f"beta={beta!r}", "a number in [0, 1)"),
        )
        for beta in (1.0, -0.1, 2, math.nan, True, None, "half")
    },
    "betas": (lambda: loose_norm(AXIS, jnp.ones(2), model), ("beta has shape (2,)", "a number in")),
    "a JAX beta": (lambda: loose_norm(AXIS, jnp.float32(1), model), ("beta=Array(1.", "in [0, 1)")),
    "arrivals": (lambda: loose_norm(AXIS, 0.5, 3.0), ("arrivals=3.0", "backward(")),
    "axis": (lambda: loose_norm("", 0.5, model), ("axis_name=''", "the name given to vmap")),
    "seed": (lambda: loose_norm(AXIS, 0.5, model, seed=0.5), ("seed=0.5", "pass an int")),
    "seeds": (
        lambda: loose_norm(AXIS, 0.5, model, seed=jnp.arange(2)),
        ("seed has shape (2,)", "an integer scalar, an int"),
    ),
    "neither": (lambda: loose_variance(AXIS, model), ("deadline=None, missing=None", "one of")),
    "both": (
        lambda: loose_variance(AXIS, model, deadline=1, missing=1),
        ("deadline=1, missing=1", "one of"),
    ),
    **{
        f"deadline={value}": (
            lambda value=value: loose_variance(AXIS, model, deadline=value),
            (f"deadline={value!r}", "seconds >= 0"),
        )
        for value in (-1.0, math.nan, True, "soon")
    },
    **{
        f"an array for {name}": (
            lambda name=name, array=array: loose_variance(AXIS, model, **{name: array}),
            words,
        )
        for name, array, words in (
            ("deadline", jnp.ones(2), ("deadline has shape (2,)", "a float scalar, seconds >= 0")),
            ("deadline", jnp.float32(-1), ("deadline=Array(-1.", "seconds >= 0")),
            ("deadline", jnp.asarray(True), ("dtype bool", "a float scalar")),
            ("missing", jnp.arange(2), ("missing has shape (2,)", "an integer scalar, an int >=")),
            ("missing", jnp.float32(1), ("dtype float32", "an integer scalar")),
            ("missing", jnp.int32(-1), ("missing=Array(-1", "an int >= 0")),
        )
    },
    **{
        f"missing={value}": (
            lambda value=value: loose_variance(AXIS, model, missing=value),
            (f"missing={value!r}", "an int >= 0"),
        )
        for value in (-1, 1.5, True)
    },
    **{
        f"{name}={value}": (
            lambda name=name, value=value: loose_backward(
                **{"compute": 1.0, "bandwidth": 1.0, name: value}
            ),
            (f"{name}={value!r}", right),
        )
        for name, values, right in (
            ("compute", (0, -1.0, math.inf, None, jnp.float32(0)), "a finite number > 0"),
            ("bandwidth", (0.0, math.nan, True), "a number > 0"),
            ("latency", (-1, math.inf), "a finite number >= 0"),
            ("spread", (-0.5, "wide"), "a finite number >= 0"),
            ("flops_by", (0.0,), "a finite number > 0"),
        )
        for value in values
    },
    "latencies": (
        lambda: loose_backward(1.0, 1.0, jnp.ones(3)),
        ("latency has shape (3,)", "a float scalar"),
    ),
    "weights of another tree": (
        lambda: drawn(backward(1.0, 1.0, flops_by=[1.0, 2.0])),
        ("flops_by is a tree", "one number for each leaf"),
    ),
    "times, no square": (lambda: fixed(np.ones((2, 3))), ("shape (2, 3)", "[receivers, senders]")),
    "times, a list": (lambda: fixed([[1.0, 2.0]]), ("shape ()", "pass arrays")),
    "times, none": (lambda: fixed({}), ("of no workers",)),
    "times, negative": (lambda: fixed(-np.ones((2, 2))), ("finite numbers >= 0",)),
    "times, infinite": (lambda: fixed(np.full((2, 2), np.inf)), ("finite numbers >= 0",)),
    "times of other workers": (
        lambda: drawn(fixed(np.ones((2, 2)))),
        ("times are those of 2 workers but there are 3",),
    ),
    "times of another tree": (
        lambda: drawn(fixed({"a": np.ones((3, 3))})),
        ("times are a tree", "one array for each leaf, or one for all"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_message_that_helps(name):
    call, words = REFUSED[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
