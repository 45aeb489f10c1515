"""Gossip: graphs, exact steps by hand, spread against its bounds, what crosses the wire."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import AXIS
from mixing import EVERY, QUICK, RANDOM, STEPS, TOP, D, P, run, spread_out
from steps import EPS, double, draws, mesh_of

import elastic_jax as ej
from elastic_jax import gossip, graphs, neighbours
from elastic_jax.workers import WorkerStep

# ---- one program of many mixes, on every machine ----

MIXED = {
    "ring": (graphs.ring(), "shift"),
    "torus": (graphs.torus(), "gather"),
    "exponential": (graphs.exponential(), "shift"),
    "one_peer": (graphs.one_peer(), "shift"),
    "complete": (graphs.complete(), "mean"),
    "spread out": (graphs.graph(spread_out(P)), "gather"),
    "a worker like no other": (  # on few diagonals, but no circulant
        graphs.graph(
            np.kron(np.diag([1, 0]), np.full((4, 4), 0.25)) * 0.5
            + np.kron(np.diag([0, 1]), np.eye(4)) * 0.5
            + 0.5 * graphs.ring().matrices(P)[0]
        ),
        "gather",
    ),
    "varying": (graphs.graph([spread_out(P), graphs.ring().matrices(P)[0]]), "gather"),
}
GAMMA = 0.2


def mixes(axis: Any) -> dict[str, optax.GradientTransformation]:
    made = {name: gossip.mix(axis, graph) for name, (graph, _) in MIXED.items()}
    for name in ("ring", "spread out", "complete"):
        made[f"choco, {name}"] = gossip.choco(axis, MIXED[name][0], TOP, GAMMA)
    made["choco, random_k"] = gossip.choco(axis, graphs.exponential(), RANDOM, GAMMA)
    made["choco, identity"] = gossip.choco(axis, graphs.ring(), ej.identity(), 1.0)
    made["choco, safe"] = gossip.choco(axis, graphs.ring(), TOP)
    for name in ("ring", "one_peer"):
        made[f"tracking, {name}"] = gossip.tracking(axis, MIXED[name][0])
    return made


def loss(params, noise):
    """A step of SGD with step size 1 adds the noise."""
    return -sum(jax.tree.leaves(jax.tree.map(lambda x, n: jnp.sum(x * n), params, noise)))


def side_by_side(steps: list[WorkerStep]) -> WorkerStep:
    def step(states, batch):
        done = [one.step(state, batch) for one, state in zip(steps, states, strict=True)]
        return tuple(state for state, _ in done), tuple(out for _, out in done)

    return WorkerStep(lambda params: tuple(s.init(params) for s in steps), step, steps[0].axis_name)


LIKE = {"a": np.zeros(4), "b": np.zeros((3, 1))}


def views(mode: str) -> dict[str, np.ndarray]:
    """Views [steps, p, d] of all mixes in float64, on the same updates.

    Graphs that vary have programs of their own: on CPU a program that is loaded from JAX's
    compilation cache, and not compiled, does not keep exchanges inside a branch apart from others.
    """
    names = list(mixes(AXIS))
    vary = [name for name in names if "one_peer" in name or name == "varying"]
    groups = [tuple(name for name in names if name not in vary), *((name,) for name in vary)]
    return {name: found for group in groups for name, found in _views(mode, group).items()}


@functools.cache
def _views(mode: str, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    axis: Any = ("sim", AXIS) if mode == "hybrid" else AXIS
    with jax.enable_x64(True):
        made = [mixes(axis)[name] for name in names]
        steps = [ej.worker_step(loss, optax.chain(optax.sgd(1.0), m), axis) for m in made]
        step = side_by_side(steps)
        if mode == "vmap":
            run = ej.simulate(step, P)
        else:
            mesh = mesh_of(P if mode == "shard_map" else P // 2)
            run = ej.distribute(step, mesh, workers=P)

        @functools.partial(jax.jit, compiler_options=QUICK)
        def go(start, u):
            def turn(states, u):
                states, _ = run.step(states, u)
                return states, [flat(state.params) for state in states]

            return jax.lax.scan(turn, run.init(start), u)[1]

        start, u = trees(beginning()), trees(updates())
        found = jax.tree.map(np.asarray, go(start, u))
    return dict(zip(names, found, strict=True))


def trees(x: np.ndarray) -> Any:
    return {"a": jnp.asarray(x[..., :4]), "b": jnp.asarray(x[..., 4:, None])}


def flat(tree: Any) -> jax.Array:
    return jnp.concatenate([tree["a"], tree["b"][..., 0]], -1)


def beginning() -> np.ndarray:
    return np.random.default_rng(0).normal(size=D)


def updates() -> np.ndarray:
    """[steps, p, d]."""
    return np.random.default_rng(1).normal(size=(STEPS, P, D))


CLOSE: Any = dict(rtol=0, atol=200 * STEPS * np.finfo(np.float64).eps)


@pytest.mark.parametrize("name", MIXED)
def test_mix_by_hand(name):
    graph, way = MIXED[name]
    rounds = graph.matrices(P)
    assert {neighbours._way(w) for w in rounds} & {way}
    v = np.tile(beginning(), (P, 1))
    for t, u in enumerate(updates()):
        v = rounds[t % len(rounds)] @ (v + u)
        np.testing.assert_allclose(views("vmap")[name][t], v, **CLOSE)


@pytest.mark.parametrize("name", ["ring", "spread out", "complete"])
def test_choco_by_hand(name):
    """The published algorithm, with public copies spelled out."""

    def top(x):
        """A quarter of a, of 4 numbers, and of b, of 3: one of each."""
        out = np.zeros_like(x)
        for part in (slice(0, 4), slice(4, 7)):
            i = np.abs(x[:, part]).argmax(1) + part.start
            out[np.arange(P), i] = x[np.arange(P), i]
        return out

    (w,) = MIXED[name][0].matrices(P)
    v = np.tile(beginning(), (P, 1))
    public = v.copy()
    for t, u in enumerate(updates()):
        v = v + u
        public = public + top(v - public)
        v = v + GAMMA * (w - np.eye(P)) @ public
        np.testing.assert_allclose(views("vmap")[f"choco, {name}"][t], v, **CLOSE)


@pytest.mark.parametrize("name", ["ring", "one_peer"])
def test_tracking_by_hand(name):
    """The published algorithm: y follows the mean update."""
    rounds = MIXED[name][0].matrices(P)
    v = np.tile(beginning(), (P, 1))
    y = before = np.zeros((P, D))
    for t, u in enumerate(updates()):
        y, before = rounds[(t - 1) % len(rounds)] @ y + u - before, u
        np.testing.assert_allclose(y.mean(0), u.mean(0), atol=1e-13)
        v = rounds[t % len(rounds)] @ (v + y)
        np.testing.assert_allclose(views("vmap")[f"tracking, {name}"][t], v, **CLOSE)


def test_choco_with_identity_and_step_1_is_mix():
    np.testing.assert_allclose(views("vmap")["choco, identity"], views("vmap")["ring"], **CLOSE)


def test_the_mean_moves_by_the_mean_update():
    moved = beginning() + np.cumsum(updates().mean(1), 0)
    for name, found in views("vmap").items():
        np.testing.assert_allclose(found.mean(1), moved, **CLOSE, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["shard_map", "hybrid"])
def test_same_views_on_devices(mode):
    """In float64; random_k has the same keys; hybrid: two workers simulated on each of four."""
    for name, want in views("vmap").items():
        np.testing.assert_allclose(views(mode)[name], want, **CLOSE, err_msg=name)
    apart = views("vmap")["ring"] - views("vmap")["choco, ring"]
    assert np.abs(apart).max() > 0.1  # the check could fail


# ---- limits ----


def test_complete_is_the_mean_of_updates():
    """With common views, mixing on the complete graph is synchronous SGD, to ulps."""
    u, start = draws(jnp.zeros(D), 3, P), jnp.ones(D)
    mixed, _, _ = run(gossip.mix(AXIS, graphs.complete()), u, start)
    plain, _, _ = run(ej.all_mean(AXIS), u, start)
    np.testing.assert_allclose(mixed, plain, rtol=0, atol=8 * EPS * np.abs(plain).max())


@pytest.mark.parametrize("name", ["mix", "choco", "tracking"])
def test_one_worker_does_nothing(name):
    opt = {
        "mix": gossip.mix(AXIS, graphs.one_peer()),
        "choco": gossip.choco(AXIS, graphs.ring(), TOP),
        "tracking": gossip.tracking(AXIS, graphs.torus()),
    }[name]
    u = draws(jnp.zeros(D), 3, 1)
    _, _, out = run(opt, u, jnp.ones(D), 1)
    np.testing.assert_array_equal(out, u)


def test_a_varying_graph_computes_one_round_only():
    """The round is alike on all workers and `vmap` knows: one branch is taken, not all of them."""
    opt = gossip.mix(AXIS, graphs.one_peer())

    def update(u, state):
        return opt.update(u, state, u)

    state = opt.init(jnp.zeros((P, D)))._replace(round=jnp.zeros(P, jnp.int32))
    text = str(jax.make_jaxpr(jax.vmap(update, axis_name=AXIS))(jnp.zeros((P, D)), state))
    assert text.count("cond[") == 1  # all branches and a selection, if the round could differ


# ---- narrow parameters ----


@pytest.mark.parametrize("name", ["ring", "one_peer", "torus", "choco", "tracking"])
def test_bfloat16_loses_nothing(name):
    """x = mean (v + h) moves by the mean update in float32; held is at most half an ulp of v."""
    opt = {
        "choco": gossip.choco(AXIS, graphs.ring(), TOP, GAMMA),
        "tracking": gossip.tracking(AXIS, graphs.ring()),
    }.get(name) or gossip.mix(AXIS, EVERY[name])
    steps = 64
    u = draws(jnp.zeros(D, jnp.bfloat16), steps, 4)
    start = jnp.ones(D, jnp.bfloat16)
    view, x, _ = run(opt, u / 128, start, 4)
    moved = 1 + np.cumsum(double(u / 128).mean(1), 0)
    largest = np.abs(double(view)).max()
    np.testing.assert_allclose(x[:, 0], moved, rtol=0, atol=8 * steps * EPS * largest)
    assert np.abs(x - double(view).mean(1, keepdims=True)).max() > 100 * EPS  # something is held
    assert np.abs(x - double(view).mean(1, keepdims=True)).max() <= 2.0**-8 * largest
