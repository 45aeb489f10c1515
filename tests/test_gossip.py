"""Gossip: graphs, exact steps by hand, spread against its bounds, what crosses the wire."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import AXIS
from jax.sharding import PartitionSpec
from steps import EPS, double, draws, mesh_of

import elastic_jax as ej
from elastic_jax import gossip, graphs, neighbours
from elastic_jax.order import check_order
from elastic_jax.workers import WorkerStep
from theory.claims import averaging

P, STEPS, D = 8, 6, 7
QUICK = {"xla_backend_optimization_level": 0}


def spread_out(p: int, seed: int = 3) -> np.ndarray:
    """A doubly stochastic matrix without zeros: a mean of permutations."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(3 * p))
    return sum(w * np.eye(p)[rng.permutation(p)] for w in weights)


# ---- graphs ----

STATIC = {
    "ring": graphs.ring(),
    "torus": graphs.torus(),
    "exponential": graphs.exponential(),
    "complete": graphs.complete(),
    "fast": graphs.fast(graphs.torus(), 3),
}
EVERY = STATIC | {"one_peer": graphs.one_peer()}


@pytest.mark.parametrize("name", EVERY)
def test_graphs_are_doubly_stochastic_and_link_all(name):
    for p in range(1, 17):
        rounds = EVERY[name].matrices(p)
        assert rounds.dtype == np.float64 and rounds.shape[1:] == (p, p)
        for axis in (1, 2):
            np.testing.assert_allclose(rounds.sum(axis), 1, atol=1e-13)
        assert graphs.rho(EVERY[name], p) < 1 - 1 / (2 * p * p)


def test_graphs_by_hand():
    third, fifth = 1 / 3, 1 / 5
    ring, torus = graphs.ring().matrices(5)[0], graphs.torus(2).matrices(8)[0]
    np.testing.assert_allclose(ring[0], [third, third, 0, 0, third])
    np.testing.assert_allclose(graphs.ring().matrices(2)[0], np.full((2, 2), 0.5))
    # worker 1 of [[0 1 2 3] [4 5 6 7]]: left 0, right 2, up = down 5
    np.testing.assert_allclose(torus[1], [0.25, 0.25, 0.25, 0, 0, 0.25, 0, 0])
    np.testing.assert_allclose(torus, torus.T)
    np.testing.assert_allclose(
        graphs.torus().matrices(9)[0][4],
        fifth * np.eye(9)[4] + sum(fifth * np.eye(9)[j] for j in (1, 3, 5, 7)),
    )
    np.testing.assert_allclose(graphs.torus().matrices(7), graphs.ring().matrices(7))
    np.testing.assert_allclose(
        graphs.exponential().matrices(6)[0][5], [0.25, 0.25, 0, 0.25, 0, 0.25]
    )


@pytest.mark.parametrize("p", [1, 2, 4, 8, 16])
def test_one_peer_is_exact_after_log2_p_rounds(p):
    rounds = graphs.one_peer().matrices(p)
    assert len(rounds) == max(1, p.bit_length() - 1)
    np.testing.assert_array_equal(functools.reduce(np.matmul, rounds), np.full((p, p), 1 / p))
    assert graphs.rho(graphs.one_peer(), p) == 0
    assert all((w > 0).sum(1).max() <= 2 for w in rounds)


def test_rho_of_known_graphs():
    """Eigenvalues of circulant matrices; a ring's ρ; Chebyshev's 1/T_k(1/ρ)."""
    for p in (4, 5, 12):
        rho = graphs.rho(graphs.ring(), p)
        np.testing.assert_allclose(rho, (1 + 2 * np.cos(2 * np.pi / p)) / 3)
        for k in (1, 2, 5):
            best = 1 / np.cosh(k * np.arccosh(1 / rho))
            found = graphs.rho(graphs.fast(graphs.ring(), k), p)
            assert found <= best * (1 + 1e-9)
            assert k > 1 or found == pytest.approx(rho)
    np.testing.assert_allclose(graphs.rho(graphs.fast(graphs.ring(), 3), 4), 0, atol=0.04)
    two = graphs.graph(np.stack([graphs.ring().matrices(6)[0]] * 2))
    np.testing.assert_allclose(graphs.rho(two, 6), graphs.rho(graphs.ring(), 6))


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
TOP, RANDOM = ej.top_k(0.25), ej.random_k(0.5)
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


@pytest.mark.parametrize("mode", ["shard_map", "hybrid"])
def test_same_views_on_devices(mode):
    """In float64; random_k has the same keys; hybrid: two workers simulated on each of four."""
    for name, want in views("vmap").items():
        np.testing.assert_allclose(views(mode)[name], want, **CLOSE, err_msg=name)
    apart = views("vmap")["ring"] - views("vmap")["choco, ring"]
    assert np.abs(apart).max() > 0.1  # the check could fail


# ---- limits ----


def run(opt: Any, u: Any, start: Any, workers: int = P) -> tuple[Any, Any]:
    """Views and optimizer states after each step on given updates [steps, p, ...], stacked."""

    def one(index, us):
        state = ej.fold_in_worker(opt.init(start), index)
        check_order(state, workers)

        def step(carry, u):
            view, state = carry
            out, state = opt.update(u, state, view)
            view = optax.apply_updates(view, out)
            x = ej.virtual_params(view, state, AXIS)
            return (view, state), (view, x, out)

        return jax.lax.scan(step, (start, state), us)[1]

    mapped = jax.vmap(one, in_axes=(0, 1), out_axes=1, axis_name=AXIS)
    return jax.tree.map(np.asarray, jax.jit(mapped)(jnp.arange(workers), u))


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


# ---- law 2, by the theory ----


def spreads(opt: Any, u: np.ndarray) -> np.ndarray:
    """The root mean square over workers of ‖x − v_i‖ at each step, in units of the updates' own."""
    size = np.sqrt((u**2).sum(-1).mean(-1).max())
    view, x, _ = run(opt, jnp.asarray(u, jnp.float32), jnp.zeros(u.shape[-1]), u.shape[1])
    return np.sqrt(((double(view) - double(x)) ** 2).sum(-1).mean(-1)) / size


def along(mode: np.ndarray, steps: int, signs: Any = 1.0) -> np.ndarray:
    """Updates along a mode of the graph [steps, p, 2], root mean square 1."""
    mode = mode * np.sqrt(len(mode)) / np.linalg.norm(mode)
    u = np.zeros((steps, len(mode), 2))
    u[..., 0] = np.broadcast_to(signs, (steps,))[:, None] * mode
    return u


def modes(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The slowest mode of a symmetric W, but for the mean, and the fastest."""
    values, vectors = np.linalg.eigh(matrix - 1 / len(matrix))
    return vectors[:, np.abs(values).argmax()], vectors[:, values.argmin()]


@pytest.mark.parametrize("name", ["ring", "torus", "fast"])
def test_mix_attains_the_bound(name):
    """Random updates stay within B = Mρ/(1 − ρ), constant ones along the slowest mode attain it."""
    graph, p = EVERY[name], 9
    opt = gossip.mix(AXIS, graph)
    proved = next(bound for bound in averaging.bounds() if bound.name == "gossip")
    bound = proved.at(rho=graphs.rho(graph, p), M=1.0)
    slowest, _ = modes(graph.matrices(p)[0])
    value = slowest @ (graph.matrices(p)[0] - 1 / p) @ slowest / (slowest @ slowest)
    signs = np.sign(value) ** np.arange(100)
    worst = spreads(opt, along(slowest, 100, signs))
    assert worst.max() <= bound * (1 + 1e-5)
    assert worst[-1] >= bound * (1 - 1e-4)
    drawn = np.random.default_rng(5).normal(size=(100, p, 2))
    assert spreads(opt, drawn).max() <= bound


@pytest.mark.parametrize("name", ["one_peer", "exponential"])
def test_mix_over_directed_and_varying_graphs_is_bounded(name):
    """Sum over a step's updates of what remains of them: `Σ_s ‖W_t ⋯ W_{t−s} − J‖`, worst t."""
    rounds = EVERY[name].matrices(P)
    bound = 0.0
    for t in range(len(rounds)):
        product, total = np.eye(P), 0.0
        for s in range(60):
            product = product @ rounds[(t - s) % len(rounds)]
            total += np.linalg.norm(product - 1 / P, 2)
        bound = max(bound, total)
    opt = gossip.mix(AXIS, EVERY[name])
    slow = np.cos(2 * np.pi * np.arange(P) / P)
    found = max(
        spreads(opt, along(slow, 60)).max(),
        spreads(opt, np.random.default_rng(5).normal(size=(60, P, 2))).max(),
    )
    assert found <= bound * (1 + 1e-5)
    assert found >= 0.5 * bound


def choco_bound(graph: Any, p: int, gamma: float, step: float) -> float:
    """B/M by small gain, with weights r^(T − t) on the past, for the best r; see `stable_step`."""
    (w,) = graph.matrices(p)
    a = step * np.linalg.eigvalsh(np.eye(p) - w)[1:, None]
    c, best = gamma**0.5, np.inf
    for r in 1 - a.min() * np.linspace(0.02, 0.98, 49):
        z = r * np.exp(1j * np.linspace(0, np.pi, 2001))
        pole = z - 1 + a
        gain = max(np.abs(((1 + a) * z - 1) / (z * pole)).max(), 1 / r)
        if c * gain < 1:
            residual = max(1.0, np.abs((z - 1) / pole).max()) / (1 - c * gain) / (1 - r * r) ** 0.5
            best = min(best, np.abs(a / pole).max() * c * residual)
    return float((1 - a.min()) / a.min() + best)


@pytest.mark.parametrize("p", [2, 8])
def test_choco_with_the_stable_step_is_bounded(p):
    d, graph, compressor = 8, graphs.ring(), ej.top_k(2)
    gamma = compressor.gamma(jnp.zeros(d))
    step = gossip.stable_step(graph, p, gamma)
    bound = choco_bound(graph, p, gamma, step)
    u = np.random.default_rng(2).normal(size=(1000, p, d)) / d**0.5
    u += u[:1]  # leans to one side
    found = spreads(gossip.choco(AXIS, graph, compressor), u)
    assert 0.02 * bound < found.max() <= bound
    assert found[750:].max() < 1.2 * found[250:500].max()  # no growth
    more = spreads(gossip.choco(AXIS, graph, compressor, 5 * step), u)
    assert more.max() < found.max()  # there is room, as documented


def test_the_stable_step_is_half_of_what_the_worst_compressor_can_stand():
    """C(y) = (1 + c) y overshoots: stable up to twice `stable_step`, and no further."""
    c = 0.5

    def dense(key, state, tree):
        return jax.tree.map(lambda y: (1 + c) * y, tree), state

    worst = ej.identity()._replace(name="worst", dense=dense, gamma=lambda like: c**2)
    step = gossip.stable_step(graphs.ring(), P, c**2)
    assert step == pytest.approx(0.25)
    u = np.random.default_rng(2).normal(size=(400, P, 2))
    for times, explodes in ((1.9, False), (2.1, True)):
        found = spreads(gossip.choco(AXIS, graphs.ring(), worst, times * step), u)
        assert found[-1] > 1e4 if explodes else found.max() < 20


def test_tracking_is_bounded():
    p, graph = 8, graphs.ring()
    rho = graphs.rho(graph, p)
    (w,) = graph.matrices(p)
    gap = 1 - rho
    bound = rho / gap * (1 + np.linalg.norm(np.eye(p) - w, 2) / gap)
    opt = gossip.tracking(AXIS, graph)
    slow, fast = modes(w)
    signs = (-1.0) ** np.arange(100)
    flip = np.sign(np.sin(np.arange(100) * 2 * np.pi / 50))
    for u in (along(slow, 100, flip), along(fast, 100, signs)):
        assert spreads(opt, u).max() <= bound
    # what is always the same is forgotten: unlike with mix, where it stands at B
    assert spreads(opt, along(slow, 100))[-1] < 1e-3


def test_tracking_ends_at_the_minimum_where_mix_does_not():
    """Quadratics of other curvatures and minima on each worker; exact gradients, constant α."""
    rng = np.random.default_rng(4)
    curvature, centre = rng.uniform(0.5, 2.0, (P, D)), 3 * rng.normal(size=(P, D))
    best = (curvature * centre).sum(0) / curvature.sum(0)

    def off(opt, alpha, steps=400):
        def loss(v, batch):
            return 0.5 * jnp.sum(batch[0] * (v - batch[1]) ** 2)

        step = ej.worker_step(loss, optax.chain(optax.sgd(alpha), opt), AXIS)
        simulated = ej.simulate(step, P)
        batch = (jnp.asarray(curvature, jnp.float32), jnp.asarray(centre, jnp.float32))

        def turn(states, _):
            return simulated.step(states, batch)[0], None

        states, _ = jax.lax.scan(turn, simulated.init(jnp.zeros(D)), None, length=steps)
        return np.abs(np.asarray(states.params) - best).max()

    mixed = [off(gossip.mix(AXIS, graphs.ring()), alpha) for alpha in (0.1, 0.05)]
    assert mixed[0] > 0.1 and 1.5 < mixed[0] / mixed[1] < 2.5  # O(α)
    assert off(gossip.tracking(AXIS, graphs.ring()), 0.1) < 1e-4
    assert off(gossip.tracking(AXIS, graphs.fast(graphs.ring(), 2)), 0.1, 200) < 1e-4


# ---- what crosses the wire ----

BIG = {"m": jnp.zeros((24, 16), jnp.bfloat16), "b": jnp.zeros(40, jnp.float32)}


def crossing(make: Any, devices: int = 8) -> dict[str, list[int]]:
    """Bytes that each collective of one update gets from each device."""
    opt = make(AXIS)

    def block(stack):
        tree = jax.tree.map(lambda x: x[0], stack)
        return jax.tree.map(lambda x: x[None], opt.update(tree, opt.init(BIG), tree))

    spec = PartitionSpec(AXIS)
    run = jax.shard_map(
        block, mesh=mesh_of(devices), in_specs=spec, out_specs=spec, check_vma=False
    )
    stack = jax.tree.map(lambda x: jax.ShapeDtypeStruct((devices, *x.shape), x.dtype), BIG)
    text = jax.jit(run).lower(stack).as_text()
    found: dict[str, list[int]] = {}
    pattern = r'"?stablehlo\.(collective_permute|all_gather|all_reduce)"?\(.*?\) ?(?:<|\(\{)'
    for match in re.finditer(pattern, text):
        tail = text[match.start() :]
        types = re.search(r": \(tensor<([\dx]*?)x?(bf16|f32|ui?\d+|i\d+)>\) ->", tail)
        assert types, tail[:200]
        numbers = int(np.prod([int(n) for n in types[1].split("x") if n]))
        width = int(re.sub(r"\D", "", types[2])) // 8
        found.setdefault(match[1], []).append(numbers * width)
    return found


def test_bytes_of_mixing():
    """Two neighbours: two messages, in the parameters' own dtypes."""
    one = 384 * 2 + 40 * 4
    ring = crossing(lambda axis: gossip.mix(axis, graphs.ring()))
    assert set(ring) == {"collective_permute"} and sum(ring["collective_permute"]) == 2 * one
    track = crossing(lambda axis: gossip.tracking(axis, graphs.ring()))
    assert sum(track["collective_permute"]) == 4 * one
    peer = crossing(lambda axis: gossip.mix(axis, graphs.one_peer()))
    assert sum(peer["collective_permute"]) == 3 * one  # one in each of three branches
    whole = crossing(lambda axis: gossip.mix(axis, graphs.complete()))
    assert whole == {"all_reduce": [40 * 4, 384 * 4]}
    torus = crossing(lambda axis: gossip.mix(axis, graphs.torus()))
    assert set(torus) == {"all_gather"} and sum(torus["all_gather"]) == one


@pytest.mark.parametrize(
    "compressor", [ej.top_k(0.1), ej.sign(), ej.random_k(0.1)], ids=lambda c: c.name
)
def test_bytes_of_choco(compressor):
    """Payloads travel: twice on a ring, and once to all where every worker mixes with every one."""
    ring = crossing(lambda axis: gossip.choco(axis, graphs.ring(), compressor, 0.1))
    assert set(ring) == {"collective_permute"}
    assert sum(ring["collective_permute"]) == 2 * compressor.nbytes(BIG)
    graph = graphs.graph(spread_out(8))
    dense = crossing(lambda axis: gossip.choco(axis, graph, compressor, 0.1))
    assert set(dense) == {"all_gather"}
    assert sum(dense["all_gather"]) == compressor.nbytes(BIG)


def test_choco_sends_messages_where_payloads_are_no_smaller():
    ring = crossing(lambda axis: gossip.choco(axis, graphs.ring(), ej.top_k(0.9), 0.1))
    assert sum(ring["collective_permute"]) == 2 * (384 * 2 + 40 * 4)


# ---- what is refused ----

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
