"""What local steps refuse, with messages that help."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from local_runs import LIKE

from elastic_jax import local


def refused(call, error, *words):
    return call, error, words


BAD = (
    {
        f"every={every!r}": refused(
            lambda make=make, every=every: make("w", every), error, f"every={every!r}", "int >= 1"
        )
        for make in (local.average, local.diloco)
        for every, error in (
            (0, ValueError),
            (True, TypeError),
            (2.5, TypeError),
            (None, TypeError),
        )
    }
    | {
        "a traced H of floats": refused(
            lambda: local.average("w", jnp.ones(())), ValueError, "float32", "integer scalar"
        ),
        "several H": refused(
            lambda: local.average("w", jnp.arange(3)), ValueError, "shape (3,)", "integer scalar"
        ),
        "an H of JAX": refused(
            lambda: local.average("w", jnp.int32(0)), ValueError, "every=Array(0", "int >= 1"
        ),
        "step sizes": refused(
            lambda: local.diloco("w", 3, jnp.ones(2)), ValueError, "shape (2,)", "float scalar"
        ),
        "a momentum of JAX": refused(
            lambda: local.diloco("w", 3, 0.5, jnp.float32(1)),
            ValueError,
            "momentum=Array(1",
            "[0, 1)",
        ),
        "axis": refused(lambda: local.average("", 3), ValueError, "axis_name=''", "'workers'"),
        "outer axis": refused(lambda: local.diloco((), 3), ValueError, "axis_name=()", "'workers'"),
        "delay": refused(lambda: local.diloco("w", 3, delay=4), ValueError, "delay=4", "in 0…3"),
        "a negative delay": refused(
            lambda: local.diloco("w", 3, delay=-1), ValueError, "delay=-1", "int >= 0"
        ),
        "a delay that is no int": refused(
            lambda: local.diloco("w", 3, delay=1.0), TypeError, "delay=1.0", "int >= 0"
        ),
        "nesterov": refused(
            lambda: local.diloco("w", 3, nesterov=1), TypeError, "nesterov=1", "True or False"
        ),
        "no fragments": refused(
            lambda: local.diloco("w", 3, fragments=0), ValueError, "fragments=0", "int >= 1"
        ),
        "fragments of floats": refused(
            lambda: local.diloco("w", 3, fragments=[0, 0.5]), TypeError, "holds 0.5", "tree of ints"
        ),
        "negative fragments": refused(
            lambda: local.diloco("w", 3, fragments=[0, -1]), ValueError, "[0, -1]", "ints >= 0"
        ),
        "an empty tree of fragments": refused(
            lambda: local.diloco("w", 3, fragments=[]), TypeError, "fragments=[]", "tree of ints"
        ),
        "another tree of fragments": refused(
            lambda: local.diloco("w", 3, fragments=[0, 1]).init(LIKE),
            ValueError,
            "[0, 1]",
            "prefix",
        ),
    }
    | {
        f"{name}={value!r}": refused(
            lambda name=name, value=value: local.diloco("w", 3, **{name: value}),
            ValueError,
            f"{name}={value!r}",
            "pass a",
        )
        for name, values in {
            "learning_rate": (0, -0.7, float("inf"), float("nan"), "a", None, True),
            "momentum": (1, 1.0, -0.1, float("nan"), None, True),
        }.items()
        for value in values
    }
    | {
        f"{make.__name__} without params": refused(
            lambda make=make: make("w", 3).update(LIKE, make("w", 3).init(LIKE)),
            ValueError,
            "params is None",
            make.__name__,
            "pass params",
        )
        for make in (local.average, local.diloco)
    }
)


@pytest.mark.parametrize("name", BAD)
def test_refused_with_a_message_that_helps(name):
    call, error, words = BAD[name]
    with pytest.raises(error) as caught:
        call()
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_numpy_integers_are_ints():
    for opt in (
        local.average("w", np.int64(3)),
        local.diloco("w", np.int64(3), delay=np.int64(1), fragments=np.int64(2)),
        local.diloco("w", np.int32(3), fragments=np.int64(1)),
    ):
        with jax.enable_x64(True):  # where they would widen counters

            def step(_, opt=opt):
                state = opt.init(LIKE)
                return state, opt.update(LIKE, state, LIKE)[1]

            before, after = jax.eval_shape(jax.vmap(step, axis_name="w"), jnp.arange(2))
        chex.assert_trees_all_equal_shapes_and_dtypes(before, after)
