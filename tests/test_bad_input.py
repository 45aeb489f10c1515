"""Bad input is refused, and the message names the argument, its value and what would be right."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
import pytest
from refusals import NAN, SGD, TOP, VIEW, assert_refused, late, loss, no_type, refused

import elastic_jax

ej: Any = elastic_jax  # arguments of the wrong type are the point here


def update(opt, params: Any = VIEW):
    return opt.update(VIEW, opt.init(VIEW), params)


def metered(inner, **settings):
    return update(ej.meter(inner, 0.1, **settings))


FEEDBACK = {
    f"{make.__name__}: {name}": case
    for make in (ej.error_feedback, ej.compress, ej.ef21)
    for name, case in {
        "compressor is a string": no_type(
            lambda make=make: make("top_k"), "compressor='top_k'", "top_k(0.01)"
        ),
        "compressor is a factory": no_type(
            lambda make=make: make(ej.top_k), "compressor=<function", "no Compressor"
        ),
        "axis_name and exchange": refused(
            lambda make=make: make(TOP, "w", ej.all_mean("w")),
            "axis_name='w'",
            "exchange=all_mean('w')",
            "pass one of",
        ),
        "exchange is a name": no_type(
            lambda make=make: make(TOP, exchange="w"), "exchange='w'", "all_mean"
        ),
        "axis_name is empty": refused(lambda make=make: make(TOP, ""), "axis_name=''", "'workers'"),
        "axis_name is a number": refused(
            lambda make=make: make(TOP, 0), "axis_name=0", "'workers'"
        ),
    }.items()
} | {
    f"decay={decay}": refused(
        lambda decay=decay: ej.error_feedback(TOP, decay=decay), f"decay={decay!r}", "in (0, 1]"
    )
    for decay in (0, 0.0, -0.5, 1.5, NAN)
}
FEEDBACK["absorb without params"] = refused(
    lambda: update(ej.absorb(), None), "params is None", "absorb", "pass params"
)

DELAY = {
    "delay('4')": no_type(lambda: ej.delay("4"), "steps='4'", "pass an int >= 0"),
    "delay(1.5)": no_type(lambda: ej.delay(1.5), "steps=1.5", "pass an int >= 0"),
    "delay(True)": no_type(lambda: ej.delay(True), "steps=True", "pass an int >= 0"),
    "delay(None)": no_type(lambda: ej.delay(None), "steps=None", "pass an int >= 0"),
    "delay(-1)": refused(lambda: ej.delay(-1), "steps=-1", "pass an int >= 0"),
    "traced without room": refused(
        lambda: ej.delay(jnp.asarray(2)), "steps is a JAX array", "pass longest"
    ),
    "a room too small": refused(
        lambda: ej.delay(5, longest=2), "longest=2 is less than steps=5", "leave it out"
    ),
    "a room for a model": refused(
        lambda: ej.delay(ej.delays.uniform(1, 4), longest=2),
        "longest=2",
        "uniform(1, 4) has its own",
    ),
    "a traced delay of floats": refused(
        lambda: ej.delay(jnp.asarray(2.7), longest=4), "float32", "pass an integer scalar"
    ),
    "traced delays": refused(
        lambda: ej.delay(jnp.asarray([1, 2]), longest=4), "shape (2,)", "pass an integer scalar"
    ),
    "a seed of delay": no_type(lambda: ej.delay(2, seed="a"), "seed='a'", "pass an int"),
    "a seed of feedback": no_type(
        lambda: ej.error_feedback(TOP, seed=0.5), "seed=0.5", "pass an int"
    ),
    "a decay that is no number": refused(
        lambda: ej.error_feedback(TOP, decay="a"), "decay='a'", "pass a number in (0, 1]"
    ),
    "an infinite mean": refused(
        lambda: ej.delays.geometric(float("inf"), 3), "mean=inf", "pass a finite number > 0"
    ),
    "another tree of delays": refused(
        lambda: ej.delay(ej.delays.per_leaf([1, 2, 3])).init([VIEW]), "steps=[1, 2, 3]", "prefix"
    ),
    "wider updates than the queue": refused(
        lambda: ej.delay(1).update(VIEW, ej.delay(1).init(VIEW.astype(jnp.bfloat16))),
        "updates are float32",
        "bfloat16",
        "cast the updates",
    ),
    "swapped arguments": refused(
        lambda: ej.elastic_gap(ej.delay(2).init(VIEW), VIEW), "params holds a DelayState", "held("
    ),
    "a meter around nothing": refused(
        lambda: ej.meter(optax.identity(), 0.1).update(VIEW, ej.meter(SGD, 0.1).init(VIEW), VIEW),
        "inner does nothing",
        "wrap the whole chain",
    ),
    "a trace for a model": no_type(
        lambda: ej.delay(ej.make_trace([0], delay=[0])), "model is a Trace", "replay(trace)"
    ),
    "a loss for a step": no_type(lambda: ej.simulate(loss, 2), "is no worker step", "worker_step("),
    "a loss that is no scalar": no_type(
        lambda: ej.asynchronous(lambda x, b: x, SGD).run(
            ej.asynchronous(loss, SGD).init(VIEW, 1),
            ej.make_trace([0], delay=[0]).schedule(),
            jnp.zeros(1),
        ),
        "loss_fn returned shape (3,)",
        "return a scalar",
    ),
    "a trace for a schedule": no_type(
        lambda: ej.asynchronous(loss, SGD).run(None, ej.make_trace([0], delay=[0]), None),
        "schedule is a Trace",
        "trace.schedule()",
    ),
    "an exchange that is none": refused(
        lambda: ej.error_feedback(TOP, exchange=SGD), "exchange does not average", "all_mean"
    ),
    "a meter without its axis": refused(
        lambda: ej.meter(optax.chain(SGD, ej.all_mean("w")), 0.1).init(VIEW),
        "axis_name=None",
        "pass the exchange's axis_name",
    ),
    "another tree of parameters": refused(
        lambda: ej.held(ej.delay(2).init(VIEW), {"a": VIEW}), "DelayState", "pass the params"
    ),
    "a rate of 0": refused(lambda: ej.meter(SGD, 0.0), "learning_rate=0.0", "number > 0"),
    "no rate": refused(lambda: ej.meter(SGD, None), "learning_rate=None", "number > 0"),
    "an alarm below 0": refused(
        lambda: ej.meter(SGD, 0.1, alarm=-1), "alarm=-1", "pass a finite number > 0"
    ),
    "integer parameters": no_type(
        lambda: ej.error_feedback(ej.top_k(1)).init({"x": VIEW, "n": jnp.arange(2)}),
        "an array of int32",
        "optax.masked",
    ),
    "complex parameters": no_type(
        lambda: ej.absorb().init(VIEW.astype("complex64")), "an array of complex64", "real floats"
    ),
    "keys among the parameters": no_type(
        lambda: ej.elastic_gap({"x": VIEW, "k": jax.random.key(0)}, ()),
        "key<fry>",
        "only real floats",
    ),
    "slots below 1": refused(
        lambda: ej.asynchronous(loss, SGD).init(VIEW, 2, slots=-1), "slots=-1", "int >= 1"
    ),
    "room below 0": refused(lambda: ej.delay(jnp.asarray(2), longest=-1), "longest=-1", "int >= 0"),
    "room is a float": no_type(
        lambda: ej.delay(jnp.asarray(2), longest=4.0), "longest=4.0", "int >= 0"
    ),
    "per_leaf([1, -2])": refused(
        lambda: ej.delays.per_leaf([1, -2]), "steps=-2", "pass an int >= 0"
    ),
    "per_leaf({'a': 0.5})": no_type(
        lambda: ej.delays.per_leaf({"a": 0.5}), "steps=0.5", "pass an int >= 0"
    ),
    "uniform(-1, 2)": refused(lambda: ej.delays.uniform(-1, 2), "shortest=-1", "pass an int >= 0"),
    "uniform(4, 1)": refused(
        lambda: ej.delays.uniform(4, 1), "longest=1", "shortest=4", "swap them"
    ),
    "uniform(1, 2.5)": no_type(lambda: ej.delays.uniform(1, 2.5), "longest=2.5", "int >= 0"),
    "geometric(0, 3)": refused(lambda: ej.delays.geometric(0, 3), "mean=0", "> 0", "delay(0)"),
    "geometric(nan, 3)": refused(lambda: ej.delays.geometric(NAN, 3), "mean=nan", "> 0"),
    "geometric(1, -1)": refused(
        lambda: ej.delays.geometric(1, -1), "longest=-1", "pass an int >= 0"
    ),
    "per_coordinate(-1)": refused(
        lambda: ej.delays.per_coordinate(-1), "longest=-1", "pass an int >= 0"
    ),
    "replay of nothing": refused(lambda: ej.delays.replay([]), "delays=[]", "ints of shape [T]"),
    "replay of floats": refused(
        lambda: ej.delays.replay([1.5]), "delays=[1.5]", "Trace", "ints of shape [T]"
    ),
    "replay of a table": refused(
        lambda: ej.delays.replay([[1]]), "delays=[[1]]", "ints of shape [T]"
    ),
    "replay of the future": refused(
        lambda: ej.delays.replay([0, -1]), "delays hold -1", "an int >= 0"
    ),
} | {
    f"pmf({p})": refused(
        lambda p=p: ej.delays.pmf(p), f"probabilities={p!r}", "non-negative", "sum to 1"
    )
    for p in ([], [0.5, 0.6], [-0.5, 1.5], [NAN, 1.0], [[1.0]], 1.0)
}

EXCHANGE = {
    f"all_mean({name!r})": refused(
        lambda name=name: ej.all_mean(name),
        f"axis_name={name!r}",
        "the name given to vmap or to the mesh",
    )
    for name in ("", (), ("a", 3), ("a", ""), None, 7)
}

METER = {
    f"every={every}": refused(
        lambda every=every: ej.meter(SGD, 0.1, every=every), f"every={every!r}", "int >= 1"
    )
    for every in (0, -3, True, 2.5, None)
} | {
    "axis_name": refused(lambda: ej.meter(SGD, 0.1, 3), "axis_name=3", "'workers'"),
    "params": refused(lambda: update(ej.meter(SGD, 0.1), None), "params is None", "pass params"),
    "a relaxation before the base": refused(
        lambda: metered(optax.chain(ej.delay(1), SGD)),
        "inner changes updates after a relaxation",
        "put relaxations after the base optimizer",
    ),
    "a relaxation in a conditional": refused(
        lambda: metered(optax.chain(SGD, optax.conditionally_transform(ej.delay(1), late))),
        "inner",
        "conditional wrapper",
        "outside such wrappers",
    ),
    "a relaxation in a jit": refused(
        lambda: metered(
            optax.chain(
                SGD, optax.GradientTransformation(ej.delay(1).init, jax.jit(ej.delay(1).update))
            )
        ),
        "inner",
        "jitted update",
        "outside such wrappers",
    ),
}

MASS = {
    f"{function.__name__} under {name}": refused(
        lambda function=function, make=make: function(*make()), name, *words
    )
    for function in (ej.virtual_params, ej.elastic_gap)
    for name, make, words in (
        (
            "ScheduleFreeState",
            lambda: (VIEW, optax.contrib.schedule_free_sgd(0.1).init(VIEW)),
            ("opt_state holds", "not the view", "without that wrapper"),
        ),
        (
            "LookaheadState",
            lambda: (
                VIEW,
                optax.lookahead(SGD, 5, 0.5).init(optax.LookaheadParams.init_synced(VIEW)),
            ),
            ("opt_state holds", "not the view", "without that wrapper"),
        ),
    )
}

TABLE = {
    f"{part}: {name}": case
    for part, cases in {
        "feedback": FEEDBACK,
        "delay": DELAY,
        "exchange": EXCHANGE,
        "meter": METER,
        "mass": MASS,
    }.items()
    for name, case in cases.items()
}


@pytest.mark.parametrize("name", TABLE)
def test_refused_with_a_message_that_helps(name: str):
    assert_refused(TABLE[name])
