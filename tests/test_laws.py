"""The two laws of held mass, for every row of the table and for random legal chains of them."""

import functools
import importlib
import pkgutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import AXIS, EVERYDAY, EXCHANGES, LOCAL, MIXES, TREES, Case, every
from hypothesis import given, settings
from hypothesis import strategies as st

import elastic_jax as ej
from elastic_jax.order import check_order
from elastic_jax.precision import add

STEPS = 12
ALPHA = 0.5
CROSSING = EXCHANGES + MIXES
LOCAL_BY_NAME = {case.name: case for case in LOCAL}
BY_NAME = LOCAL_BY_NAME | {case.name: case for case in CROSSING}


def with_gap(params: Any, opt_state: Any, axis_name: str | None) -> dict[str, Any]:
    """What the laws speak of, for one worker."""
    x = ej.virtual_params(params, opt_state, axis_name)
    gone = ej.lost(opt_state, params)
    if axis_name is not None:
        gone = jax.tree.map(lambda leaf: jax.lax.pmean(leaf, axis_name), gone)
    return {
        "x": jax.tree.map(add, x, gone),
        "gap": ej.elastic_gap(params, opt_state, axis_name),
        "lost": gone,
    }


def run(chain: Any, base: Any, params: Any, grads: Any, workers: int, axis_name: str | None) -> Any:
    """Runs p workers on gradients [steps, p, ...]; returns histories [p, steps, ...].

    `x`, `gap` and `lost` are of before each step, `u` is what the base proposes in it.
    """

    def one(worker_grads, worker):
        state = ej.fold_in_worker(chain.init(params), worker)
        base_state = base.init(params)
        check_order(state, workers if axis_name else 1)

        def step(carry, g):
            view, state, base_state = carry
            u, base_state = base.update(g, base_state, view)
            updates, new_state = chain.update(g, state, view)
            out = with_gap(view, state, axis_name) | {"u": u}
            return (optax.apply_updates(view, updates), new_state, base_state), out

        return jax.lax.scan(step, (params, state, base_state), worker_grads)[1]

    mapped = jax.vmap(one, in_axes=(1, 0), axis_name=AXIS)
    return jax.jit(mapped)(grads, jnp.arange(workers))


def gradients(params: Any, seed: int, steps: int, workers: int, norm: float | None = None) -> Any:
    """Gradients [steps, p, ...]. Of a given norm they lean to one side, each worker's its own."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), max(1, len(leaves)))
    drawn = [
        jax.random.normal(k, (steps, workers, *x.shape), x.dtype)
        for k, x in zip(keys, leaves, strict=False)
    ]
    if norm is not None:
        drawn = [g + g[:1] for g in drawn]
        square = sum(jnp.sum(g.reshape(steps, workers, -1) ** 2, axis=-1) for g in drawn)
        scale = norm / jnp.sqrt(square)
        drawn = [g * scale.reshape(steps, workers, *[1] * (g.ndim - 2)) for g in drawn]
    return treedef.unflatten(drawn)


def law_1_error(history: Any, gain: float = 1.0) -> float:
    """Largest |x_t + l_t - x_0 - gain sum mean u|, over steps, in units of the largest update."""
    worst, scale = 0.0, 0.0
    for x, u in zip(*map(jax.tree.leaves, (history["x"], history["u"])), strict=True):
        path = np.asarray(x[0, : STEPS + 1], np.float64)  # the global iterate, as worker 0 sees it
        u = np.asarray(u[:, :STEPS], np.float64)
        moves = gain * np.cumsum(u.mean(0), axis=0)
        want = path[0] + np.concatenate([np.zeros_like(path[:1]), moves])
        worst = max(worst, float(np.max(np.abs(path - want), initial=0)))
        scale = max(scale, float(np.max(np.abs(u), initial=0)))
    return worst / max(scale, 1e-30)


def tolerance(dtype: Any, steps: int) -> float:
    """Each step rounds a sum of at most `steps` updates a few times."""
    return 8 * steps**2 * float(jnp.finfo(dtype).eps)


def chain_of(
    params: Any, before: list[Case], exchange: Case | None = None, after: tuple[Case, ...] = ()
) -> tuple[Any, Any]:
    base = optax.sgd(ALPHA, momentum=0.5)
    middle = [] if exchange is None else [exchange.make(params)]
    parts = [case.make(params) for case in before], middle, [case.make(params) for case in after]
    return optax.chain(base, *parts[0], *parts[1], *parts[2]), base


def check_law_1(params, before, exchange, after, workers, dtype, seed=0):
    chain, base = chain_of(params, before, exchange, after)
    grads = gradients(params, seed, STEPS + 1, workers)
    history = run(chain, base, params, grads, workers, AXIS if exchange else None)
    gain = 1.0 if exchange is None else exchange.gain
    assert law_1_error(history, gain) <= tolerance(dtype, STEPS) * max(1.0, gain)
    if not any(case.loses for case in (*before, *after, *([exchange] if exchange else []))):
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(history["lost"]))


class Alone(NamedTuple):
    """What the laws speak of, of a case behind plain SGD whose updates are all of norm alpha."""

    error: float  # of law 1, over the first steps
    loses: bool
    b: np.ndarray  # B̂/M [workers, steps]
    bound: float  # of B/M, inf where none is declared


@functools.cache
def alone(name: str, workers: int = 1, steps: int = 1000) -> Alone:
    """Runs a case as no other one's part: one compiled program for both laws."""
    case = BY_NAME[name]
    crosses = case.name not in LOCAL_BY_NAME
    params = TREES["scalar and matrix" if crosses else "network"](jnp.float32)
    base = optax.sgd(ALPHA)
    grads = gradients(params, 3, steps, workers, norm=1.0)
    chain = optax.chain(base, case.make(params))
    history = run(chain, base, params, grads, workers, AXIS if crosses else None)
    loses = any(np.any(leaf) for leaf in jax.tree.leaves(history["lost"]))
    bound = case.bound(params) if case.bound else np.inf
    b = np.sqrt(np.asarray(history["gap"])) / ALPHA
    return Alone(law_1_error(history, case.gain), loses, b, bound)


@every(LOCAL + CROSSING)
def test_law_1(case):
    found = alone(case.name, 3 if case in CROSSING else 1)
    assert found.error <= tolerance(jnp.float32, STEPS) * max(1.0, case.gain)
    assert case.loses or not found.loses


@every(CROSSING)
def test_law_1_of_two_workers(case):
    params = TREES["scalar and matrix"](jnp.float32)
    check_law_1(params, [], case, (), 2, jnp.float32)


@st.composite
def legal_chains(draw):
    """Up to four relaxations in a legal order, p, a tree, a dtype."""
    names = st.sampled_from(sorted(LOCAL_BY_NAME))
    before = [LOCAL_BY_NAME[name] for name in draw(st.lists(names, max_size=2))]
    workers = draw(st.integers(1, 3))
    exchange = draw(st.sampled_from(CROSSING)) if workers > 1 else None
    after = [LOCAL_BY_NAME[name] for name in draw(st.lists(names, max_size=1))]
    after = after if exchange not in MIXES else []
    after = [case for case in after if not (case.loses and exchange)]  # some drift: see test_order
    tree = draw(st.sampled_from(sorted(TREES)))
    return before, exchange, tuple(after), workers, tree, draw(st.integers(0, 2**16))


def check_chain(drawn, dtype):
    before, exchange, after, workers, tree, seed = drawn
    check_law_1(TREES[tree](dtype), before, exchange, after, workers, dtype, seed)


@pytest.mark.slow
@settings(max_examples=3)
@given(legal_chains())
def test_law_1_a_few_random_chains(drawn):
    check_chain(drawn, jnp.float32)


@pytest.mark.slow
@settings(max_examples=16)
@given(legal_chains())
def test_law_1_random_chains(drawn):
    check_chain(drawn, jnp.float32)


@pytest.mark.slow
@settings(max_examples=25)
@given(legal_chains())
def test_law_1_random_chains_float64(drawn):
    with jax.enable_x64(True):
        check_chain(drawn, jnp.float64)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["error_feedback(top_k(0.25))", "delay(uniform)", "delay(5)"])
def test_law_1_bfloat16(name):
    """With `absorb` last, bfloat16 parameters lose nothing: the mass is float32's."""
    params = TREES["network"](jnp.bfloat16)
    absorb = Case("absorb", lambda params: ej.absorb())
    base = optax.sgd(ALPHA)
    chain = optax.chain(base, LOCAL_BY_NAME[name].make(params), absorb.make(params))
    grads = gradients(params, 1, STEPS + 1, 1)
    history = run(chain, base, params, grads, 1, None)
    assert law_1_error(history) <= tolerance(jnp.float32, STEPS)
    without = optax.chain(base, LOCAL_BY_NAME[name].make(params))
    history = run(without, base, params, grads, 1, None)
    assert law_1_error(history) > tolerance(jnp.float32, STEPS)


@pytest.mark.slow
def test_law_1_bfloat16_means():
    """What bfloat16 rounds off the mean of several workers' messages is held too."""
    params = TREES["network"](jnp.bfloat16)
    feedback = ej.error_feedback(ej.top_k(0.25), axis_name=AXIS)
    base = optax.sgd(ALPHA)
    grads = gradients(params, 1, STEPS + 1, 3)
    chain = optax.chain(base, feedback, ej.absorb())
    history = run(chain, base, params, grads, 3, AXIS)
    assert law_1_error(history) <= tolerance(jnp.float32, STEPS)


# ---- law 2 ----


def grows(b: np.ndarray) -> bool:
    """Whether the last quarter of the steps has drifted further than the second eighth."""
    quarter = len(b) // 4
    return bool(b[-quarter:].mean() > 1.5 * b[quarter // 2 : quarter].mean() + 1e-3)


@every(LOCAL + CROSSING)
def test_law_2(case):
    found = alone(case.name, 3 if case in CROSSING else 1)
    assert np.isfinite(found.b).all()
    assert grows(found.b.max(0)) == case.drifts
    assert found.b.max() <= found.bound * (1 + 1e-5) + 1e-5


def test_law_2_can_fail():
    """Two workers that never exchange conserve mass, and drift apart: the law must see it."""
    params = jnp.zeros(5)
    grads = gradients(params, 4, 1000, 2, norm=1.0)

    def one(worker_grads):
        def step(view, g):
            gap = ej.elastic_gap(view, (), AXIS)
            return view - ALPHA * g, gap

        return jax.lax.scan(step, params, worker_grads)[1]

    gap = jax.vmap(one, in_axes=1, axis_name=AXIS)(grads)
    assert grows(np.sqrt(np.asarray(gap)[0]) / ALPHA)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_law_2_workers(workers):
    """Feedback, mean, delay: B <= M (β + τ); each worker's own residual counts."""
    params = TREES["vector"](jnp.float32)
    compressor = ej.top_k(0.3)
    base = optax.sgd(ALPHA)
    chain = optax.chain(base, ej.error_feedback(compressor, axis_name=AXIS), ej.delay(2))
    grads = gradients(params, 5, 500, workers, norm=1.0)
    history = run(chain, base, params, grads, workers, AXIS)
    b = np.sqrt(np.asarray(history["gap"])) / ALPHA
    beta = compressor.gamma(params) ** 0.5 / (1 - compressor.gamma(params) ** 0.5)
    assert b.max() <= beta + 2
    assert not grows(b.max(0))


def test_tight_windows():
    """A constant gradient attains the window lemma: B̂ = τ M."""
    chain = optax.chain(optax.sgd(ALPHA), ej.delay(4))
    params = jnp.zeros(3)
    grads = jnp.broadcast_to(jnp.array([0.6, 0.0, 0.8]), (20, 1, 3))
    history = run(chain, optax.sgd(ALPHA), params, grads, 1, None)
    b = np.sqrt(np.asarray(history["gap"])[0]) / ALPHA
    np.testing.assert_allclose(b, np.minimum(np.arange(20), 4), rtol=1e-5)


def test_one_row_is_one_law():
    """A relaxation that forgets a little mass is caught."""

    class Leak:
        def make(self, params):
            def init(params):
                return ej.delay(1).init(params)

            def update(updates, state, params=None, **extra):
                out, state = ej.delay(1).update(updates, state, params)
                return jax.tree.map(lambda u: u * 0.999, out), state

            return ej.relaxation(init, update)

        loses = False

    params = TREES["vector"](jnp.float32)
    with pytest.raises(AssertionError):
        check_law_1(params, [Leak()], None, (), 1, jnp.float32)


# ---- the table is complete ----


def kinds_in(tree: Any) -> set[type]:
    inside = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, tuple) else ()
    return {type(tree)}.union(*map(kinds_in, inside))


def test_every_relaxation_stands_in_the_table():
    """Whatever holds or loses mass has a state that some row makes.

    But for the meter, which only looks on, and absorb, which is for narrow parameters (above).
    """
    names = [found.name for found in pkgutil.iter_modules(ej.__path__)]
    defined = {
        kind
        for name in names
        for kind in vars(importlib.import_module(f"elastic_jax.{name}")).values()
        if isinstance(kind, type) and issubclass(kind, tuple) and kind.__name__.endswith("State")
        if any(hasattr(kind, says) for says in ("held", "lost", "role"))
    }
    params, others = jnp.zeros(7), [ej.meter(ej.delay(1), 0.1), ej.absorb()]
    seen = set().union(*(kinds_in(jax.eval_shape(opt.init, params)) for opt in others))
    for case in BY_NAME.values():
        init = jax.vmap(lambda _, case=case: case.make(params).init(params), axis_name=AXIS)
        seen |= kinds_in(jax.eval_shape(init, jnp.arange(2)))
    assert defined - seen == set() and len(defined) > 20
    assert EVERYDAY <= BY_NAME.keys() | {"absorb", "meter"}
