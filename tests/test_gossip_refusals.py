"""What gossip refuses, with messages that help."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import AXIS
from mixing import TOP, D, run

import elastic_jax as ej
from elastic_jax import gossip, graphs

make: Any = gossip


any_graph: Any = graphs


RING = graphs.ring()


def trace(opt: Any, p: int = 3) -> Any:
    return run(opt, jnp.zeros((1, p, D)), jnp.zeros(D), p)


REFUSED = {
    "a factory": (
        TypeError,
        lambda: make.mix("w", graphs.ring),
        ("graph=<function ring", "ring()"),
    ),
    "an array": (TypeError, lambda: make.tracking("w", np.eye(2)), ("is no Graph",)),
    "no axis": (ValueError, lambda: make.mix("", RING), ("axis_name=''", "'workers'")),
    "no compressor": (TypeError, lambda: make.choco("w", RING, "top"), ("compressor='top'",)),
    "a step too large": (
        ValueError,
        lambda: make.choco("w", RING, TOP, 1.5),
        ("step=1.5", "(0, 1]"),
    ),
    "no step": (ValueError, lambda: make.choco("w", RING, TOP, 0), ("step=0", "stable_step")),
    "steps": (
        ValueError,
        lambda: make.choco("w", RING, TOP, jnp.ones(2)),
        ("step has shape (2,)", "stable_step"),
    ),
    "a step that is a flag": (ValueError, lambda: make.choco("w", RING, TOP, True), ("step=True",)),
    "a seed": (TypeError, lambda: make.choco("w", RING, TOP, 0.1, seed="a"), ("seed='a'",)),
    "copies of a varying graph": (
        ValueError,
        lambda: make.choco("w", graphs.one_peer(), TOP),
        ("one_peer() varies", "graphs.ring()"),
    ),
    "no contraction": (
        ValueError,
        lambda: trace(make.choco(AXIS, RING, ej.random_k(0.1, unbiased=True))),
        ("is no contraction", "gamma < 1"),
    ),
    "no view": (
        ValueError,
        lambda: make.mix("w", RING).update(jnp.ones(2), make.mix("w", RING).init(jnp.ones(2))),
        ("params is None", "mix needs the view", "pass params"),
    ),
    "columns": (
        ValueError,
        lambda: any_graph.graph([[0.5, 0.5], [0.4, 0.6]]),
        ("matrix[0]", "row sums [1. 1.]", "column sums [0.9 1.1]"),
    ),
    "no square": (ValueError, lambda: any_graph.graph([[0.5, 0.5]]), ("shape (1, 1, 2)", "[p, p]")),
    "NaN": (ValueError, lambda: any_graph.graph([[np.nan]]), ("finite: False",)),
    "no matrix": (ValueError, lambda: any_graph.graph("ring"), ("matrix='ring'", "[p, p]")),
    "apart": (
        ValueError,
        lambda: any_graph.graph(np.eye(3)),
        ("leaves workers apart", "link all workers"),
    ),
    "another p": (
        ValueError,
        lambda: trace(make.mix(AXIS, graphs.graph(np.full((2, 2), 0.5)))),
        ("matrix is for 2 workers", "there are 3"),
    ),
    "rows": (ValueError, lambda: any_graph.torus(0), ("rows=0", "an int >= 1")),
    "rows that do not divide": (
        ValueError,
        lambda: trace(make.mix(AXIS, graphs.torus(2))),
        ("rows=2", "p=3", "a divisor"),
    ),
    "fast of none": (TypeError, lambda: any_graph.fast(graphs.ring, 2), ("is no Graph",)),
    "fast rounds": (ValueError, lambda: any_graph.fast(RING, 0), ("rounds=0", "an int >= 1")),
    "fast of varying": (
        ValueError,
        lambda: any_graph.fast(graphs.one_peer(), 2),
        ("one_peer() varies", "static graph"),
    ),
    "fast of directed": (
        ValueError,
        lambda: graphs.rho(graphs.fast(graphs.exponential(), 2), 8),
        ("exponential() is not symmetric for p=8", "torus()"),
    ),
    "rho of no number": (ValueError, lambda: graphs.rho(RING, 0), ("p=0", "an int >= 1")),
    "stable_step of varying": (
        ValueError,
        lambda: make.stable_step(graphs.one_peer(), 4, 0.5),
        ("one_peer() varies",),
    ),
    "stable_step of directed": (
        ValueError,
        lambda: make.stable_step(graphs.exponential(), 8, 0.5),
        ("exponential() is not symmetric for p=8", "choose step yourself"),
    ),
    "a made-up graph": (
        ValueError,
        lambda: trace(make.mix(AXIS, graphs.Graph("mine", lambda p: np.ones((1, p, p))))),
        ("graph=mine", "not doubly stochastic"),
    ),
    "a made-up graph of a wrong shape": (
        ValueError,
        lambda: trace(make.mix(AXIS, graphs.Graph("mine", lambda p: np.eye(p)))),
        ("graph=mine", "shape (3, 3)", "[rounds, 3, 3]"),
    ),
    "a made-up graph that varies unsaid": (
        ValueError,
        lambda: trace(make.mix(AXIS, graphs.Graph("mine", graphs.one_peer().matrices))),
        ("graph=mine has 2 rounds", "varies=True"),
    ),
    "a relaxation after": (
        ValueError,
        lambda: trace(optax.chain(make.mix(AXIS, RING), ej.delay(1))),
        ("after mix",),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_message_that_helps(name):
    error, call, words = REFUSED[name]
    with pytest.raises(error) as caught:
        call()
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
