"""What every transformation promises to optax and to JAX: state, wrappers, identities, bits."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from cases import AXIS, COMPRESSORS, EXCHANGES, LOCAL, MIXES, TREES, Case, every
from steps import EPS, at, draws, signature, stepper

import elastic_jax as ej


def metered(params: Any) -> optax.GradientTransformation:
    inner = optax.chain(optax.sgd(0.1), ej.error_feedback(ej.top_k(1)), ej.delay(2))
    return ej.meter(inner, 0.1, every=2, per_leaf=True, alarm=0.5)


ALONE = [*LOCAL, Case("absorb", lambda params: ej.absorb()), Case("meter", metered)]
CROSSING = EXCHANGES + MIXES
BY_NAME = {case.name: case for case in ALONE + CROSSING}

every_case, every_lone = every(BY_NAME.values()), every(ALONE)


@functools.cache
def jitted(name: str):
    """A case's parameters, start, and one compiled, donated step that several tests share."""
    deep = "low_rank" in name or "per_leaf" in name  # on a vector they would do nothing
    params = TREES["scalar and matrix" if deep else "vector"](jnp.float32)
    opt, crosses = BY_NAME[name].make(params), BY_NAME[name] in CROSSING
    init = opt.init
    if crosses:
        params = jax.tree.map(lambda x: jnp.stack([x] * 3), params)
        init = jax.vmap(opt.init, axis_name=AXIS)
    step, traces = stepper(opt, AXIS if crosses else None)
    return params, init, opt, jax.jit(step, donate_argnums=(0, 1)), traces


# ---- state, shapes, traces ----


@every_case
def test_state_is_arrays_and_an_update_keeps_its_signature(case: Case):
    crosses = AXIS if case in CROSSING else None
    for name, make_tree in TREES.items():
        for dtype in (jnp.float32, jnp.bfloat16):
            params = make_tree(dtype)
            check_signature(case.make(params), params, crosses)
            if name == "network" and dtype == jnp.float32:
                leaves, treedef = jax.tree.flatten(params)
                half = treedef.unflatten(i % 2 == 0 for i in range(len(leaves)))
                check_signature(optax.masked(case.make(params), half), params, crosses)


def check_signature(opt, params, crosses) -> None:
    if crosses:  # init may ask how many workers there are
        pair = jax.vmap(lambda _: opt.init(params), axis_name=crosses)(jnp.arange(2))
        state = at(pair, 0)
    else:
        state = opt.init(params)
    for leaf in jax.tree.leaves(state):
        assert isinstance(leaf, jax.Array), type(leaf)
        assert not jnp.issubdtype(leaf.dtype, jax.dtypes.extended), "a typed key"
        assert not leaf.weak_type and leaf.size, "orbax refuses empty arrays"
    chex.assert_trees_all_equal_structs(ej.held(state, params), ej.lost(state, params), params)
    if crosses:
        params, state = jax.tree.map(lambda x: jnp.stack([x, x]), (params, state))
    step, _ = stepper(opt, crosses)

    view, after, out = jax.eval_shape(step, params, state, params)  # that it scans, too
    assert signature(after) == signature(state)
    assert signature(out) == signature(view) == signature(params)


@every_case
def test_a_fresh_state_can_be_donated(case: Case):
    """No two of its arrays are one buffer, though constants are easily shared."""
    params = TREES["scalar and matrix"](jnp.float32)
    state = case.make(params).init(params)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers)


@every_case
def test_donated_and_traced_once(case: Case):
    params, init, _, step, traces = jitted(case.name)
    state = init(params)
    for leaf, kept in [(x, p) for x in jax.tree.leaves(state) for p in jax.tree.leaves(params)]:
        assert leaf is not kept and leaf.unsafe_buffer_pointer() != kept.unsafe_buffer_pointer()
    view = jax.tree.map(jnp.copy, params)
    for t in range(3):
        view, state, updates = step(view, state, draws(params, seed=t))
        if case in EXCHANGES and case.alike:
            chex.assert_trees_all_equal(*(at(updates, i) for i in range(3)))
    assert len(traces) == 1


@every_lone
def test_vmap_equals_a_loop(case: Case):
    params, _, opt, step, _ = jitted(case.name)
    views = draws(params, 2, seed=9)
    states = jax.vmap(ej.fold_in_worker)(jax.vmap(opt.init)(views), jnp.arange(2))
    grads = draws(params, 3, 2)
    together = jax.jit(jax.vmap(stepper(opt)[0]))
    alone = [jax.tree.map(jnp.copy, (at(views, i), at(states, i))) for i in range(2)]
    for t in range(3):
        views, states, _ = together(views, states, at(grads, t))
        alone = [step(*alone[i], at(at(grads, t), i))[:2] for i in range(2)]
    for i in range(2):
        chex.assert_trees_all_close((at(views, i), at(states, i)), alone[i], rtol=1e-5, atol=2e-6)


# ---- hyper-parameters ----


@pytest.mark.slow
def test_hyperparameters_sweep_in_one_vmap_and_one_trace():
    sweep = {
        "rate": [0.1, 0.2],
        "fraction": [0.25, 0.5],
        "value": [0.01, 0.1],
        "decay": [0.9, 1.0],
        "steps": [0, 3],
    }
    grads = draws(jnp.zeros(12), 8)
    traces = []

    def run(h, longest=None):
        traces.append(1)
        chain = optax.chain(
            optax.sgd(h["rate"]),
            ej.error_feedback(ej.top_k(h["fraction"]), decay=h["decay"]),
            ej.error_feedback(ej.threshold(h["value"])),
            ej.delay(h["steps"], longest=longest),
        )
        opt: Any = ej.meter(chain, h["rate"], every=1)

        def step(carry, grad):
            view, state = carry
            updates, state = opt.update(grad, state, view)
            view = optax.apply_updates(view, updates)
            return (view, state), (view, ej.virtual_params(view, state))

        start = jnp.zeros(12), opt.init(jnp.zeros(12))
        (_, state), curve = jax.lax.scan(step, start, grads)
        return *curve, state.elastic_constant, state.lost_mass.last

    traced = jax.tree.map(jnp.asarray, sweep, is_leaf=lambda x: isinstance(x, list))
    swept = jax.jit(jax.vmap(functools.partial(run, longest=4)))
    together = swept(traced)
    swept(jax.tree.map(lambda x: x[::-1], traced))
    assert len(traces) == 1
    for i in range(2):  # Python numbers: other code paths, the same values
        alone = run({name: values[i] for name, values in sweep.items()})
        chex.assert_trees_all_close(at(together, i), alone, rtol=1e-5, atol=1e-6)


def test_inject_hyperparams_drives_decay_and_delay():
    params, top = jnp.zeros(6), COMPRESSORS["top_k(2)"]
    feedback = optax.inject_hyperparams(ej.error_feedback)(top, decay=0.5)
    late = optax.inject_hyperparams(ej.delay, static_args=("longest", "seed"))(2, longest=4)
    opt: Any = optax.chain(optax.inject_hyperparams(optax.sgd)(0.1), feedback, late)
    plain = optax.chain(optax.sgd(0.1), ej.error_feedback(top, decay=0.5), ej.delay(2))
    step, traces = stepper(opt)
    step, same = jax.jit(step), jax.jit(stepper(plain)[0])
    one, two = (params, opt.init(params)), (params, plain.init(params))
    for t in range(4):
        one, two = (f(*run, draws(params, seed=t))[:2] for f, run in ((step, one), (same, two)))
        chex.assert_trees_all_close(one[0], two[0], rtol=1e-6)
        for report in (ej.held, ej.lost):
            chex.assert_trees_all_close(report(one[1], params), report(two[1], params), rtol=1e-5)
    one[1][2].hyperparams["model"] = jnp.asarray(0)  # from now on nothing is late
    assert bool(jnp.any(step(*one, params + 1)[2] != 0)) and len(traces) == 1


# ---- inside optax's wrappers ----


def relaxed() -> optax.GradientTransformation:
    return optax.chain(
        ej.error_feedback(COMPRESSORS["sign"], decay=0.9),
        ej.delay(2),
        ej.delay(ej.delays.uniform(1, 3)),
        ej.compress(COMPRESSORS["top_k(0.25)"]),
    )


def odd(step: Any, **extra: Any) -> Any:
    return step % 2 == 1


SGD = optax.sgd(0.5)
WRAPPED = {
    "masked": lambda: optax.chain(SGD, optax.masked(relaxed(), {"a": True, "b": False})),
    "partition": lambda: optax.chain(
        SGD, optax.partition({"x": relaxed(), "y": ej.delay(1)}, {"a": "x", "b": "y"})
    ),
    "named_chain": lambda: optax.named_chain(("base", SGD), ("late", relaxed())),
    "conditionally_transform": lambda: optax.chain(
        SGD, optax.conditionally_transform(relaxed(), odd)
    ),
    "inject_hyperparams": lambda: optax.chain(
        SGD, optax.inject_hyperparams(ej.error_feedback)(COMPRESSORS["sign"], decay=0.8)
    ),
    "apply_if_finite": lambda: optax.chain(optax.apply_if_finite(SGD, 3), relaxed()),
    "MultiSteps": lambda: optax.chain(
        optax.MultiSteps(SGD, 2).gradient_transformation(), relaxed()
    ),
    "around MultiSteps": lambda: optax.MultiSteps(
        optax.chain(SGD, relaxed()), 2
    ).gradient_transformation(),
    "jitted": lambda: optax.chain(
        SGD, optax.GradientTransformation(relaxed().init, jax.jit(relaxed().update))
    ),
}


# optax.MultiSteps divides a float by its int32 counter
promoting = functools.partial(jax.numpy_dtype_promotion, "standard")


@pytest.mark.slow
@promoting()
@pytest.mark.parametrize("name", WRAPPED)
def test_law_1_inside_wrappers(name: str):
    """x plus what is lost moves by exactly u, in one trace."""
    opt, view = WRAPPED[name](), {"a": jnp.zeros(8), "b": jnp.zeros((2, 3))}
    state, (step, traces) = opt.init(view), stepper(opt)
    step, before, seen = jax.jit(step), signature(state), 0.0
    expected, in_two_steps = view, -0.5 if "MultiSteps" in name else -1.0
    for t in range(6):
        grads = draws(view, seed=t // 2)  # each twice, for MultiSteps applies their mean
        view, state, _ = step(view, state, grads)
        seen += sum(float(jnp.abs(h).sum()) for h in jax.tree.leaves(ej.held(state, view)))
        if t % 2:
            expected = jax.tree.map(lambda x, g: x + in_two_steps * g, expected, grads)
            total = jax.tree.map(jnp.add, ej.virtual_params(view, state), ej.lost(state, view))
            chex.assert_trees_all_close(total, expected, rtol=0, atol=60 * EPS)
    assert seen > 0.1  # the mass was found
    assert len(traces) == 1 and signature(state) == before
