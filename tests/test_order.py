"""Legal and illegal orders: what `worker_step` refuses, and what the meter will not measure."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from cases import AXIS
from optax import contrib

import elastic_jax as ej
from elastic_jax.order import proposals, record_passages

sgd = optax.sgd(0.1)
momentum = optax.sgd(0.1, momentum=0.9)
mean = ej.all_mean(AXIS)
feedback = ej.error_feedback(ej.top_k(1))
late = ej.delay(2)
mask = {"w": True, "b": False}
PARAMS = {"w": jnp.zeros(3), "b": jnp.zeros(2)}


class MixState(NamedTuple):
    role = "mix"


def mix():
    """A transformation that averages parameters, as gossip does."""

    def update(updates, state, params=None, **extra):
        def to_mean(v, u):
            return jax.lax.pmean(v + u, AXIS) - v

        return jax.tree.map(to_mean, params, updates), state

    return ej.relaxation(lambda params: MixState(), update)


def build(optimizer, workers):
    """Builds the worker step and starts it."""

    def loss(params, batch):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)) * batch

    step = ej.worker_step(loss, optimizer, AXIS)
    with jax.numpy_dtype_promotion("standard"):  # optax.MultiSteps mixes int32 and float32
        return ej.simulate(step, workers).init(PARAMS)


LEGAL = {
    "exchange": [sgd, mean],
    "relaxations around the exchange": [sgd, feedback, late, mean, late, feedback],
    "two delays": [sgd, late, mean, late, late],
    "absorb last": [sgd, mean, ej.absorb()],
    "a mix last": [sgd, feedback, mix()],
    "identities anywhere": [sgd, mean, ej.delay(0), optax.identity()],
    "guards in the base": [optax.apply_if_finite(sgd, 3), feedback, mean],
    "accumulation outside, not skipping": [
        optax.MultiSteps(optax.chain(sgd, feedback, mean), 2).gradient_transformation()
    ],
    "a relaxation of some leaves": [sgd, optax.masked(feedback, mask), mean],
    "gradients held before the base": [feedback, mean, sgd],
    "named, in an order that is not the alphabet's": [
        optax.named_chain(("z", sgd), ("m", feedback), ("k", mean), ("a", ej.absorb()))
    ],
    "masked with its base": [
        optax.transforms.conditionally_mask(optax.chain(sgd, late), lambda step: step > 1),
        mean,
    ],
    "metered": [ej.meter(optax.chain(sgd, feedback, mean, late), 0.1, AXIS)],
}

ILLEGAL = {
    "loss that is drawn after the exchange": (
        [sgd, mean, ej.compress(ej.random_k(1, unbiased=True))],
        "views would drift apart",
    ),
    "a relaxation whose mass is masked": (
        [sgd, feedback, mean, optax.transforms.conditionally_mask(late, lambda step: step > 1)],
        "that mass would be lost",
    ),
    "no exchange": ([sgd, feedback], "no exchange"),
    "two exchanges": ([sgd, mean, late, mean], "keep one exchange"),
    "an exchange and a mix": ([sgd, mean, mix()], "keep one exchange"),
    "a relaxation after a mix": ([sgd, mix(), late], "relaxation after mix"),
    "absorb before the exchange": ([sgd, ej.absorb(), mean], "put it last"),
    "absorb before a delay": ([sgd, mean, ej.absorb(), late], "put it last"),
    "two absorbs": ([sgd, mean, ej.absorb(), ej.absorb()], "put it last"),
    "masked exchange": ([sgd, optax.masked(mean, mask)], "inside Masked"),
    "partitioned exchange": (
        [sgd, optax.partition({"a": mean, "b": late}, {"w": "a", "b": "b"})],
        "inside Partition",
    ),
    "guarded exchange": (
        [optax.apply_if_finite(optax.chain(sgd, mean), 3)],
        "inside ApplyIfFinite",
    ),
    "guarded feedback with its exchange": (
        [optax.apply_if_finite(optax.chain(sgd, ej.error_feedback(ej.sign(), AXIS)), 3)],
        "inside ApplyIfFinite",
    ),
    "conditional exchange": (
        [sgd, optax.transforms.conditionally_transform(mean, lambda step: step > 1)],
        "inside ConditionallyTransform",
    ),
    "conditionally masked exchange": (
        [sgd, optax.transforms.conditionally_mask(mean, lambda step: step > 1)],
        "inside ConditionallyMask",
    ),
    "skipping accumulation": (
        [
            optax.MultiSteps(
                optax.chain(sgd, mean), 2, should_skip_update_fn=optax.skip_not_finite
            ).gradient_transformation()
        ],
        "inside MultiSteps",
    ),
}


@pytest.mark.parametrize("name", LEGAL)
def test_legal(name):
    build(optax.chain(*LEGAL[name]), 2)


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal(name):
    parts, words = ILLEGAL[name]
    with pytest.raises(ValueError, match=words):
        build(optax.chain(*parts), 2)


def test_one_worker_needs_no_exchange():
    build(optax.chain(sgd, feedback), 1)


NO_GAP = {
    "a relaxation before the base": optax.chain(feedback, sgd),
    "a relaxation before a scale": optax.chain(sgd, late, optax.scale(0.5)),
    "one in a conditional wrapper": optax.chain(
        sgd, optax.transforms.conditionally_transform(late, lambda step: step > 1)
    ),
    "an exchange before the base": optax.chain(mean, sgd),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NO_GAP)
def test_meter_refuses_what_is_no_gap(name):
    step = ej.worker_step(lambda x, b: jnp.sum(x * b), ej.meter(NO_GAP[name], 0.1, AXIS), AXIS)
    run = ej.simulate(step, 1)
    with pytest.raises(ValueError, match="no gap to measure"):
        run.step(run.init(jnp.zeros(2)), jnp.ones((1, 2)))


NO_DISTANCE = {
    "before the base": [feedback, sgd],
    "before the learning rate": [optax.scale_by_adam(), feedback, optax.scale(-0.1)],
    "before a schedule": [optax.scale_by_adam(), late, optax.scale_by_learning_rate(abs)],
    "before a clip, in a chain": [sgd, optax.chain(late, optax.clip(1.0))],
    "before weight decay of some": [sgd, late, optax.add_decayed_weights(0.1, mask)],
    "before what is injected": [late, optax.inject_hyperparams(optax.sgd)(0.1)],
    "all inside a mask": [optax.masked(optax.chain(sgd, late, optax.scale(0.5)), mask), momentum],
    "in a meter": [ej.meter(optax.chain(sgd, late), 0.1), optax.scale(0.5)],
    "named": [optax.named_chain(("z", late), ("a", optax.scale(0.5)))],
}
DISTANCE = {
    **{
        name: parts
        for name, parts in LEGAL.items()
        if name
        not in ("gradients held before the base", "identities anywhere", "masked with its base")
    },
    "settings that are the identity": [sgd, late, ej.delay(0), ej.error_feedback(ej.identity())],
    "masks of their own": [
        optax.masked(optax.chain(sgd, late), mask),
        optax.masked(momentum, {"w": False, "b": True}),
    ],
    "parts of their own": [
        optax.partition({"a": optax.chain(sgd, late), "b": momentum}, {"w": "a", "b": "b"})
    ],
    "no relaxation": [momentum, optax.identity()],
}


@pytest.mark.parametrize("name", NO_DISTANCE)
def test_a_gap_that_is_no_distance_is_refused_at_once(name):
    state = optax.chain(*NO_DISTANCE[name]).init(PARAMS)
    for report in (ej.elastic_gap, ej.virtual_params):
        with pytest.raises(ValueError, match="put relaxations after the base optimizer"):
            report(PARAMS, state)
    ej.held(state, PARAMS)


@pytest.mark.parametrize("name", DISTANCE)
def test_a_gap_that_is_a_distance_is_not(name):
    with jax.numpy_dtype_promotion("standard"):
        state = optax.chain(*DISTANCE[name]).init(PARAMS)
    assert float(ej.elastic_gap(PARAMS, state)) == 0


def test_a_server_that_changes_what_its_workers_hold_is_refused():
    worker = jax.tree.map(lambda x: x[None], late.init(PARAMS))
    ej.virtual_params(PARAMS, late.init(PARAMS), worker_states=worker)
    with pytest.raises(ValueError, match="no gap to measure"):
        ej.virtual_params(PARAMS, sgd.init(PARAMS), worker_states=worker)


def test_events_refuse_what_is_no_gap():
    for worker, server in [(optax.chain(feedback, sgd), None), (feedback, momentum)]:
        run = ej.asynchronous(lambda x, b: jnp.sum(x * b), worker, server)
        schedule = ej.make_trace([0, 0], version=[0, 1]).schedule()
        with pytest.raises(ValueError, match="measure=False"):
            run.run(run.init(jnp.zeros(2), 1), schedule, jnp.ones((2, 2)))
        run = ej.asynchronous(lambda x, b: jnp.sum(x * b), worker, server, measure=False)
        state, ticks = run.run(run.init(jnp.zeros(2), 1), schedule, jnp.ones((2, 2)))
        assert bool(jnp.isnan(ticks.gap).all()) and bool(jnp.isfinite(state.params).all())


@pytest.mark.parametrize(
    "worker",
    [mean, optax.chain(sgd, mean), optax.chain(sgd, ej.absorb()), ej.meter(sgd, 0.1)],
)
def test_events_refuse_exchange(worker):
    run = ej.asynchronous(lambda x, b: jnp.sum(x * b), worker)
    with pytest.raises(ValueError, match="no place where workers meet"):
        jax.vmap(lambda _: run.init(jnp.zeros(2), 2), axis_name=AXIS)(jnp.arange(2))


@pytest.mark.parametrize(
    "optimizer", [contrib.schedule_free_sgd(0.1), optax.lookahead(sgd, 3, 0.5)]
)
def test_moved_views_are_refused(optimizer):
    params = jnp.ones(2)
    if isinstance(optimizer, optax.GradientTransformationExtraArgs) is False:
        params = optax.LookaheadParams.init_synced(params)
    state = optimizer.init(params)
    with pytest.raises(ValueError, match="not the view"):
        ej.virtual_params(params, state)
    with pytest.raises(ValueError, match="not the view"):
        ej.elastic_gap(params, state)


def test_proposals_are_the_base_optimizers():
    """Whatever relaxations do, the very arrays that the base proposed are found again."""
    params = {"w": jnp.zeros(3), "b": jnp.zeros(2)}
    grads = jax.tree.map(jnp.ones_like, params)
    chain = optax.chain(momentum, optax.masked(feedback, mask), late, optax.identity(), ej.delay(0))
    with record_passages() as passages:
        updates, _ = chain.update(grads, chain.init(params), params)
    want, _ = momentum.update(grads, momentum.init(params), params)
    got = proposals(passages, updates)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), got, want))
