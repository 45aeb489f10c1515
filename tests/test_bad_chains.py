"""Chains out of order, and runs of them, are refused with messages that help."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from refusals import SGD, TOP, VIEW, assert_refused, late, loss, refused

import elastic_jax

ej: Any = elastic_jax  # arguments of the wrong type are the point here


def build(*parts):
    """Builds a worker step of one worker from a chain, as training does."""
    return ej.worker_step(loss, optax.chain(*parts)).init(VIEW)


def build_two(*parts):
    """Builds two workers."""
    step = ej.worker_step(loss, optax.chain(*parts), axis_name="w")
    return ej.simulate(step, workers=2).init(VIEW)


class MixState(NamedTuple):
    """Of something that sets the parameters."""

    role = "mix"


def run_events(optimizer: Any = SGD, server=None, ticks=4, batches=4, slots=None, measure=True):
    trace = ej.draw_trace([ej.speeds.constant()] * 3, ticks=ticks)
    run = ej.asynchronous(loss, optimizer, server, measure=measure)
    return run.run(run.init(VIEW, 3, slots), trace.schedule(), np.ones((batches, 3), np.float32))


MEAN = ej.all_mean("w")
ORDER = {
    "no exchange": refused(
        lambda: build_two(SGD, ej.delay(1)),
        "the chain has no exchange",
        "2 workers",
        "all_mean(axis_name)",
    ),
    "two exchanges": refused(
        lambda: build_two(SGD, MEAN, ej.error_feedback(TOP, "w")),
        "the chain has 2 steps that cross workers",
        "keep one exchange",
    ),
    "after absorb": refused(
        lambda: build(SGD, ej.absorb(), ej.delay(1)),
        "the chain has a relaxation after absorb",
        "put it last",
    ),
    "after a mix": refused(
        lambda: build(
            SGD,
            ej.relaxation(lambda params: MixState(), lambda u, s, params=None: (u, s)),
            ej.delay(1),
        ),
        "the chain has a relaxation after mix",
        "put relaxations before it",
    ),
} | {
    f"exchange inside {name}": refused(
        lambda wrapped=wrapped: build_two(SGD, wrapped),
        f"exchanges between workers inside {name}",
        "exchange outside",
    )
    for name, wrapped in {
        "Masked": optax.masked(MEAN, True),
        "Partition": optax.partition({"x": MEAN}, "x"),
        "ApplyIfFinite": optax.apply_if_finite(MEAN, 1),
        "ConditionallyTransform": optax.conditionally_transform(MEAN, late),
        "ConditionallyMask": optax.conditionally_mask(MEAN, late),
        "MultiSteps": optax.MultiSteps(
            MEAN, 1, should_skip_update_fn=optax.skip_not_finite
        ).gradient_transformation(),
    }.items()
}

STEP = ej.worker_step(loss, optax.chain(SGD, MEAN), axis_name="w")
WORKERS = {
    f"workers={workers}": refused(
        lambda workers=workers: ej.simulate(STEP, workers),
        f"workers={workers!r}",
        "pass an int >= 1",
    )
    for workers in (0, -1, True, 2.0, None)
} | {
    "step without axis": refused(
        lambda: ej.simulate(ej.worker_step(loss, SGD), 2),
        "axis_name=None",
        "worker_step(..., axis_name=...)",
    ),
    "step with two axes": refused(
        lambda: ej.simulate(ej.worker_step(loss, SGD, axis_name=("a", "b")), 2),
        "axis_name=('a', 'b')",
        "one name",
    ),
    "axis_name of a step": refused(
        lambda: ej.worker_step(loss, SGD, axis_name=5).init(VIEW), "axis_name=5"
    ),
    "batches of three for two": refused(
        lambda: ej.simulate(STEP, 2).step(ej.simulate(STEP, 2).init(VIEW), jnp.ones((3, 3))),
        "batches hold an array of shape (3, 3)",
        "2 workers",
        "stack one batch",
    ),
    "one batch for all": refused(
        lambda: ej.simulate(STEP, 2).step(ej.simulate(STEP, 2).init(VIEW), jnp.ones(())),
        "shape ()",
        "stack one batch",
    ),
}

EVENTS = {
    f"workers={workers}": refused(
        lambda workers=workers: ej.asynchronous(loss, SGD).init(VIEW, workers),
        f"workers={workers!r}",
        "pass an int >= 1",
    )
    for workers in (0, True, 1.5)
} | {
    "batches": refused(
        lambda: run_events(batches=3),
        "batches hold an array of shape (3, 3)",
        "4 ticks",
        "stack one batch",
    ),
    "slots": refused(lambda: run_events(slots=1), "slots=2", "room for 1", "slots=schedule.slots"),
    "exchange at a worker": refused(
        lambda: run_events(optax.chain(SGD, MEAN)),
        "optimizer holds a step of role 'exchange'",
        "take axis_name out",
    ),
    "exchange at the server": refused(
        lambda: run_events(server=MEAN), "server holds a step of role 'exchange'"
    ),
    "absorb at a worker": refused(
        lambda: run_events(optax.chain(SGD, ej.absorb())),
        "optimizer holds a step of role 'absorb'",
        "last in the server's",
    ),
    "absorb first at the server": refused(
        lambda: run_events(server=optax.chain(ej.absorb(), ej.delay(1))),
        "a relaxation after absorb",
        "put it last",
    ),
    "a base at the server": refused(
        lambda: run_events(optax.identity(), SGD),
        "optimizer or server changes updates",
        "measure=False",
    ),
    "a relaxation before the base": refused(
        lambda: run_events(optax.chain(ej.delay(1), SGD)),
        "before the worker's base",
        "measure=False",
    ),
}

TABLE = {
    f"{part}: {name}": case
    for part, cases in {"order": ORDER, "workers": WORKERS, "events": EVENTS}.items()
    for name, case in cases.items()
}


@pytest.mark.parametrize("name", TABLE)
def test_refused_with_a_message_that_helps(name: str):
    assert_refused(TABLE[name])


def test_a_legal_chain_is_accepted_every_time():
    for _ in range(2):
        build_two(SGD, ej.delay(1), MEAN, ej.delay(1), ej.absorb())
