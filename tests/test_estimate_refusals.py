"""What estimates refuse, with messages that help."""

import dataclasses
import math

import jax.numpy as jnp
import pytest

from elastic_jax import estimate


@dataclasses.dataclass
class Unhashable:
    """As dataclasses that are compared."""

    def __call__(self, params, batch):
        return jnp.sum(params * batch)


GOOD = {"params": jnp.ones(2), "batches": jnp.ones((4, 2))}
REFUSED = [
    ({"batches": []}, ValueError, "batches holds none"),
    ({"sekonds": 3}, TypeError, "sekonds: no such setting; pass points, level, iterations"),
    ({"batches": jnp.ones((0, 2))}, ValueError, "batches holds none"),
    ({"batches": jnp.ones((2, 2))}, ValueError, "batches holds 2; pass 3 or more"),
    ({"batches": iter([jnp.ones(2)])}, TypeError, r"pass list\(loader\)"),
    ({"batches": (jnp.ones((4, 2)), jnp.ones((3, 2)))}, TypeError, "no tree of arrays stacked"),
    ({"batches": 3.0}, TypeError, "batches=float"),
    ({"params": {"a": jnp.ones(2, jnp.int32)}}, TypeError, r"params\['a'\] is .* int32"),
    ({"params": [1.0]}, TypeError, r"params\[0\] is float"),
    ({"params": {}}, TypeError, "params holds no array"),
    ({"params": jnp.ones(2, jnp.complex64)}, TypeError, "params is .* complex64"),
    ({"points": [jnp.ones(3)]}, ValueError, r"points\[0\] is not shaped like params"),
    ({"points": [{"a": jnp.ones(2)}]}, ValueError, r"points\[0\] is not shaped like params"),
    ({"level": 1.0}, ValueError, r"level=1\.0 is out of range; pass a probability in"),
    ({"level": True}, ValueError, "level=True"),
    ({"iterations": 0}, ValueError, "iterations=0 is out of range; pass an int >= 1"),
    ({"iterations": True}, ValueError, "iterations=True"),
    ({"seed": -1}, ValueError, "seed=-1"),
    ({"seconds": 0.0}, ValueError, r"seconds=0\.0"),
    ({"seconds": math.nan}, ValueError, "seconds=nan"),
    ({"lower_bound": -math.inf}, ValueError, "lower_bound=-inf is out of range"),
    ({"loss_fn": "loss"}, TypeError, "loss_fn='loss' is no function"),
    ({"loss_fn": Unhashable()}, TypeError, "cannot be hashed; pass a function"),
    ({"loss_fn": lambda x, b: x * b}, ValueError, "return a float scalar"),
    ({"loss_fn": lambda x, b: (x * b).sum() > 0}, ValueError, "return a float scalar"),
    ({"loss_fn": lambda x, b: (x.sum(), b)}, ValueError, "return a float scalar"),
    (
        {"loss_fn": lambda x, b: jnp.log(-jnp.sum(x**2))},
        ValueError,
        "batch 0 at params: the loss is nan",
    ),
    ({"loss_fn": lambda x, b: jnp.sqrt(jnp.sum(x - 1))}, ValueError, "the gradient's norm is"),
    ({"wrong": 1}, TypeError, "wrong"),
]


@pytest.mark.parametrize(("change", "error", "message"), REFUSED, ids=[r[2] for r in REFUSED])
def test_bad_input(change, error, message):
    given = {"loss_fn": lambda x, b: jnp.sum(x * b), **GOOD, **change}
    with pytest.raises(error, match=message):
        estimate.constants(**given)


def test_hessian_that_is_not_finite():
    with pytest.raises(ValueError, match="Hessian at params is not finite"):
        estimate.smoothness(lambda x, b: jnp.sum(jnp.abs(x) ** 1.5), jnp.zeros(2), jnp.ones((1, 1)))


def test_it_is_said_at_which_point():
    points = [jnp.ones(2), jnp.zeros(2)]
    with pytest.raises(ValueError, match=r"Hessian at points\[1\] is not finite"):
        estimate.smoothness(
            lambda x, b: jnp.sum(x**1.5), jnp.ones(2), jnp.ones((1, 1)), points=points
        )


def test_an_error_of_the_callers_own_passes():
    def note(done, total):
        raise ValueError("of the caller")

    with pytest.raises(ValueError, match=r"^of the caller"):
        estimate.smoothness(lambda x, b: jnp.sum(x**2), jnp.ones(2), jnp.ones((1, 1)), note=note)
