"""Another number of workers: law 1 across the move, and what cannot be moved."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import ARRIVALS, AXIS, COMPRESSORS
from steps import at, draws, mesh_of

import elastic_jax as ej
from elastic_jax import absent, links, schedulers
from elastic_jax.resize import resize
from elastic_jax.workers import WorkerState

LIKE = {"m": jnp.zeros((6, 4)), "s": jnp.zeros(())}
top = ej.top_k(0.25)


def feedback(compressor: Any = top) -> optax.GradientTransformation:
    return ej.error_feedback(compressor, axis_name=AXIS)


MEAN = ej.all_mean(AXIS)
CHAINS = {
    "error feedback": [feedback()],
    "delay": [MEAN, ej.delay(3)],
    "delay before the mean": [ej.delay(2), MEAN],
    "both": [feedback(), ej.delay(2)],
    "delay, feedback, delay": [ej.delay(1), feedback(), ej.delay(2)],
    "random delays": [ej.delay(ej.delays.uniform(0, 3)), MEAN],
    "random delays of the mean": [MEAN, ej.delay(ej.delays.uniform(0, 3))],  # views differ
    "delays by coordinate": [feedback(), ej.delay(ej.delays.per_leaf({"m": 2, "s": 0}))],
    "random-k": [feedback(COMPRESSORS["random_k"])],
    "low rank": [feedback(COMPRESSORS["low_rank(1)"])],
    "without feedback": [ej.compress(top, axis_name=AXIS), ej.delay(1)],
    "decay": [ej.error_feedback(top, axis_name=AXIS, decay=0.9)],
    "ef21": [ej.ef21(top, axis_name=AXIS)],
    "absorb": [feedback(), ej.absorb()],
    "lost on links": [links.lossy(AXIS, 0.5), ej.delay(1)],
    "lost by senders": [links.lossy(AXIS, 0.5, fate="sender")],
    "absent": [absent.partial(AXIS, 1, keep=True)],
    "a scheduler": [schedulers.norm_bounded(AXIS, 0.8, ARRIVALS)],
}


def loss(params, noise):
    square = jax.tree.map(lambda x, n: jnp.sum(x * x / 4 + n * x), params, noise)
    return sum(jax.tree.leaves(square))


def make(parts: Any, p: int, base: Any = optax.sgd) -> Any:
    chain = ej.meter(optax.chain(base(0.1), *parts), 0.1, AXIS, every=1)
    return ej.simulate(ej.worker_step(loss, chain, axis_name=AXIS), p)


def trained(parts: Any, p: int, base: Any = optax.sgd, like: Any = LIKE) -> WorkerState:
    run = make(parts, p, base)
    states = run.init(draws(like, seed=3))
    batches = draws(like, 7, p, seed=p)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def go(states, batches):
        return jax.lax.scan(run.step, states, batches)[0]

    with jax.numpy_dtype_promotion("standard"):  # optax.adam divides by its counter's power
        return go(states, batches)


def masses(states: WorkerState) -> Any:
    """The global iterate and the lost mass, summed over workers in float64."""

    def mean(tree):
        return jax.tree.map(lambda x: np.asarray(x, np.float64).mean(0), tree)

    params = jax.tree.map(jnp.asarray, states.params)
    state = jax.tree.map(jnp.asarray, states.opt_state)
    held, lost = (jax.vmap(report)(state, params) for report in (ej.held, ej.lost))
    x = jax.tree.map(np.add, mean(params), mean(held))
    return x, mean(held), mean(lost)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
def test_law_1_across_the_move(name):
    """x, held and lost mass stay: for fewer workers, more, and numbers that do not divide."""
    with jax.enable_x64(True):
        states = trained(CHAINS[name], 3, like=jax.tree.map(lambda x: x.astype("float64"), LIKE))
        before = masses(states)
        for workers in (2, 6, 5, 1):
            # one rounding of each mean, and of each of up to four sums over workers
            off = 8 * np.finfo(np.float64).eps * max(1, largest(states))
            assert apart(before, masses(resize(states, workers))) <= off, workers
    assert largest(before[2 if name in ("without feedback", "ef21") else 1]) > 0.01, "no mass"


def largest(tree: Any) -> float:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return max(float(np.max(np.abs(x), initial=0)) for x in floats)


def apart(a: Any, b: Any) -> float:
    return largest(jax.tree.map(np.subtract, a, b))


GOES_ON = [(name, 6) for name in ("both", "random-k", "absorb", "lost on links")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "p"), [*GOES_ON, ("lost by senders", 1)])
def test_law_1_goes_on_after_the_move(name, p):
    """Trained on, the moved workers move x by the mean of their proposals, float32."""
    moved = resize(trained(CHAINS[name], 4), p)
    run = make(CHAINS[name], p)
    batches = draws(LIKE, p, seed=8)
    states, _ = run.step(jax.tree.map(jnp.asarray, moved), batches)
    gradients = jax.vmap(jax.grad(loss))(jax.tree.map(jnp.asarray, moved.params), batches)
    mean = jax.tree.map(lambda g: np.asarray(g, np.float64).mean(0), gradients)
    want = jax.tree.map(lambda x, g: x - 0.1 * g, masses(moved)[0], mean)
    assert apart(masses(states)[0], want) <= 64 * np.finfo(np.float32).eps * largest(moved)
    keys = [leaf for leaf in jax.tree.leaves(moved.opt_state) if leaf.dtype == np.uint32]
    keys = [key for key in keys if not name.startswith("lost")]  # theirs are shared
    assert all(len({tuple(row) for row in key}) == p for key in keys if key.ndim == 2)


@pytest.mark.parametrize(
    "base", [lambda a: optax.sgd(a, momentum=0.9), optax.adam], ids=["momentum", "adam"]
)
def test_averages_of_the_base_are_averaged(base):
    states = trained(CHAINS["both"], 4, base)
    moved = resize(states, 3)
    inner, new = states.opt_state.inner[0], moved.opt_state.inner[0]
    for x, y in zip(jax.tree.leaves(inner), jax.tree.leaves(new), strict=True):
        np.testing.assert_allclose(y, np.stack([np.asarray(x).mean(0)] * 3), rtol=1e-5, atol=1e-7)
        assert x.dtype == y.dtype
    assert jax.tree.structure(states) == jax.tree.structure(moved)


@pytest.mark.slow
def test_what_is_alike_is_copied_bit_by_bit_and_bounds_hold_on():
    states = trained(CHAINS["both"], 3)
    moved = resize(states, 7)
    for x, y in zip(jax.tree.leaves(states.params), jax.tree.leaves(moved.params), strict=True):
        assert all(row.tobytes() == np.asarray(x)[0].tobytes() for row in y)

    def longest(s):
        residual = s.opt_state.inner[1][0].residual
        return max(float(optax.tree.norm(at(residual, i))) for i in range(len(s.params["s"])))

    assert 0 < longest(moved) <= longest(states) * (1 + 1e-6)
    meter, same = states.opt_state, moved.opt_state
    np.testing.assert_array_equal(same.second_moment.max, [meter.second_moment.max.max()] * 7)
    rms = np.sqrt(np.square(np.asarray(meter.second_moment.mean, np.float64)).mean())
    np.testing.assert_allclose(same.second_moment.mean, [rms] * 7, rtol=1e-6)
    np.testing.assert_array_equal(same.step, [7] * 7)
    assert same.alarm.dtype == bool


@pytest.mark.slow
def test_as_many_workers_stay_as_they_are_also_on_devices():
    states = trained(CHAINS["random-k"], 4)
    same = resize(states, 4)
    assert jax.tree.all(jax.tree.map(np.array_equal, states, same))
    step = ej.worker_step(loss, optax.chain(optax.sgd(0.1), feedback()), axis_name=AXIS)
    run = ej.distribute(step, mesh_of(2))
    states, _ = run.step(run.init(LIKE), draws(LIKE, 2))
    moved = resize(states, 4)
    assert apart(masses(states)[0], masses(moved)[0]) <= 1e-6
    ej.distribute(step, mesh_of(4)).step(moved, draws(LIKE, 4))


# ---- what is refused ----


class Mixed(NamedTuple):
    """What a mix would keep."""

    averages: Any
    role = "mix"


def test_refused_with_a_message_that_helps():
    states = trained(CHAINS["error feedback"], 2)
    half = states._replace(params=jax.tree.map(lambda x: x.astype("bfloat16"), states.params))
    other = half._replace(params={**half.params, "s": jnp.arange(2, dtype=jnp.bfloat16)})
    cases = {
        "is no WorkerState": lambda: resize(states.params, 3),
        "workers=0": lambda: resize(states, 0),
        "params['s'] (bfloat16) differs": lambda: resize(other, 3),
        ".opt_state (int32) differs": lambda: resize(
            WorkerState(states.params, jnp.arange(2, dtype=jnp.int32)), 3
        ),
        "a Mixed, a mix": lambda: resize(WorkerState(states.params, Mixed(jnp.ones(2))), 3),
        "stack all of them": lambda: resize(WorkerState(states.params, jnp.zeros(3)), 4),
    }
    assert resize(half, 3).params["s"].dtype == jnp.bfloat16
    for words, call in cases.items():
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        assert words in str(caught.value), str(caught.value)
