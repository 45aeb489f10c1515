"""Law 2 of gossip: how far views spread, beside what is derived."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import AXIS
from mixing import EVERY, D, P, run
from steps import double

import elastic_jax as ej
import theory
from elastic_jax import gossip, graphs


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
    bound = theory.bounds()["gossip"].at(rho=graphs.rho(graph, p), M=1.0)
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


@pytest.mark.slow
@pytest.mark.parametrize("p", [2, 8])
def test_choco_with_the_stable_step_is_bounded(p):
    d, graph, compressor = 8, graphs.ring(), ej.top_k(2)
    gamma = compressor.gamma(jnp.zeros(d))
    step = gossip.stable_step(graph, p, gamma)
    modes = step * np.linalg.eigvalsh(np.eye(p) - graph.matrices(p)[0])
    slow = min(modes[1], modes[-1] * (1 - 1e-12))  # a bound of them: it must be less than the last
    bound = theory.bounds()["choco"].at(M=1, gamma=gamma, slow=slow, fast=modes[-1])
    u = np.random.default_rng(2).normal(size=(1000, p, d)) / d**0.5
    u += u[:1]  # leans to one side
    found = spreads(gossip.choco(AXIS, graph, compressor), u)
    assert 0.1 * bound < found.max() <= bound
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
    apart = float(np.linalg.norm(np.eye(p) - w, 2))
    of_any = theory.bounds()["tracking"].at(M=1, rho=rho, apart=apart)
    assert np.linalg.eigvalsh(w)[0] >= -rho / 2
    bound = theory.bounds()["tracking.symmetric"].at(M=1, rho=rho)
    assert bound < of_any
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
