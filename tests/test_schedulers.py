"""Elastic schedulers: who waits for what, what is held meanwhile, how long it takes."""

import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import AXIS
from scheduler_runs import SHAPES, STEPS, P, norm, quick, run
from steps import EPS, at, double, draws, mesh_of

import elastic_jax as ej
import theory
from elastic_jax.arrivals import Arrivals, backward, fixed
from elastic_jax.schedulers import norm_bounded, variance_bounded

# ---- by hand ----


@pytest.mark.slow
def test_norm_bounded_by_hand():
    """Two workers, two leaves. Of leaf a, 3/4 comes from worker 1; of b, nearly all from 0."""
    times = {"a": [[1.0, 5.0], [2.0, 1.0]], "b": [[1.5, 3.0], [2.0, 1.0]]}
    arrivals = fixed(jax.tree.map(np.array, times, is_leaf=lambda x: isinstance(x, list)))
    u = {"a": jnp.array([[2.0], [6.0]]), "b": jnp.array([[8.0], [2.0]])}
    updates = jax.tree.map(lambda x: jnp.stack([x, 0 * x]), u)
    got = run(norm_bounded(AXIS, 0.25, arrivals), updates)
    # Worker 0 would miss 3 of 4 in a until 5 s; in b it misses 1 of 5, so b could go on at 1.5 s.
    # At 5 s it has b too. Worker 1 misses 1 of 4 in a: enough at once; in b it needs worker 0's.
    assert got["elapsed"][0].tolist() == [5.0, 2.0]
    assert got["out"]["a"][0].tolist() == [[4.0], [4.0]]
    assert got["out"]["b"][0].tolist() == [[5.0], [5.0]]
    got = run(norm_bounded(AXIS, 0.75, arrivals), updates)
    # Now worker 0 goes on at 1.5 s (b's own gradient), and worker 1 at 1 s without b: 4 of 5 miss?
    # 0.8 > 0.75, so it waits until 2 s, when both of worker 0's leaves are there.
    assert got["elapsed"][0].tolist() == [1.5, 2.0]
    assert got["out"]["a"][0].tolist() == [[1.0], [4.0]]
    assert got["held"]["a"][0].tolist() == [[3.0], [0.0]]
    assert got["held"]["b"][0].tolist() == [[1.0], [0.0]]
    # Next, nothing is proposed: any part of what is held is all of it, and is waited for. It came
    # with worker 1's gradients, after 5 s and 3 s. Worker 1 holds nothing: its own will do.
    assert got["elapsed"][1].tolist() == [5.0, 3.0]
    assert got["out"]["a"][1].tolist() == [[3.0], [0.0]]
    # Everybody waits for everything: 5 s; then worker 1, which started at 2 s, is there at 7 s.
    assert got["synchronous"].tolist() == [[5.0, 2.0], [7.0, 7.0]]


@pytest.mark.slow
def test_variance_bounded_by_hand():
    """Three workers; worker 2 is late, but not for itself."""
    late = np.array([[1.0, 1.0, 4.0], [1.0, 1.0, 4.0], [1.0, 1.0, 2.0]])
    u = jnp.array([[3.0], [6.0], [12.0]])
    updates = jnp.stack([u, 0 * u])
    for settings in ({"missing": 1}, {"deadline": 3.0}):
        got = run(variance_bounded(AXIS, fixed(late), **settings), updates)
        first = 1.0 if "missing" in settings else 3.0
        assert got["elapsed"][0].tolist() == [first, first, 2.0]
        # 3 + 6 and its own again; 7 is the mean of all
        assert got["out"][0].tolist() == [[4.0], [5.0], [7.0]]
        assert got["held"][0].tolist() == [[3.0], [2.0], [0.0]]
        # the correction is there at 4 s, and only then may they go on
        assert got["out"][1].tolist() == [[3.0], [2.0], [0.0]]
        assert (got["elapsed"][1][:2] >= 4.0).all() and not np.any(got["held"][1])


# ---- against a reference that goes from event to event ----


def reference(rule: str, value: float, times: Any, updates: Any) -> dict[str, Any]:
    """The schedulers in float64 with absolute clocks; times [T, receivers, senders] a leaf."""
    names = list(updates)
    steps, p = updates[names[0]].shape[:2]
    clock, waiting = np.zeros(p), np.zeros(p)
    held = {n: [np.zeros_like(updates[n][0, 0]) for _ in range(p)] for n in names}
    due = {n: [0.0] * p for n in names}
    history: dict[str, Any] = {key: [] for key in ("out", "held", "elapsed", "synchronous")}
    for t in range(steps):
        after, after_waiting, outs = clock.copy(), waiting.copy(), {n: [] for n in names}
        for j in range(p):
            events = {}  # of each leaf: (when, what), own gradient first
            for n in names:
                own = clock[j] + times[n][t][j][j]
                there = [
                    (max(own, clock[i] + times[n][t][j][i]), updates[n][t, i] / p) for i in range(p)
                ]
                events[n] = [*there, (max(own, due[n][j]), held[n][j])]
                after_waiting[j] = max(
                    after_waiting[j],
                    *(waiting[i] + times[n][t][j][i] for i in range(p)),
                )
            pending = {n: sum(what for _, what in events[n]) for n in names}

            def missing(n, when, events=events):
                return sum((what for at, what in events[n] if at > when), 0 * held[n][0])

            moments = {n: sorted({at for at, _ in events[n]}) for n in names}
            if rule == "norm":
                fits = {
                    n: [s for s in moments[n] if norm(missing(n, s)) <= value * norm(pending[n])]
                    for n in names
                }
                go = max(min(fits[n]) for n in names)
                taken = {n: max(s for s in fits[n] if s <= go) for n in names}
                rest = {n: missing(n, taken[n]) for n in names}
            else:
                go = 0.0
                for n in names:
                    arrived = sorted(at for at, _ in events[n][:-1])
                    soon = min(clock[j] + value, arrived[-1])
                    if rule == "missing":
                        soon = arrived[p - 1 - int(value)]
                    go = max(go, soon, clock[j] + times[n][t][j][j], events[n][-1][0])
                taken = {n: go for n in names}
                rest = {
                    n: missing(n, go) - sum(at > go for at, _ in events[n]) * events[n][j][1]
                    for n in names
                }
            for n in names:
                outs[n].append(pending[n] - rest[n])
                due[n][j] = max([go, *(at for at, _ in events[n] if at > taken[n])])
                held[n][j] = rest[n]
            after[j] = go
        clock, waiting = after, after_waiting
        history["out"].append({n: np.stack(outs[n]) for n in names})
        history["held"].append({n: np.stack(held[n]) for n in names})
        history["elapsed"].append(clock)
        history["synchronous"].append(waiting)
    return {
        "out": jax.tree.map(lambda *x: np.stack(x), *history["out"]),
        "held": jax.tree.map(lambda *x: np.stack(x), *history["held"]),
        "elapsed": np.stack(history["elapsed"]),
        "synchronous": np.stack(history["synchronous"]),
    }


def random_times(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.lognormal(0, 0.8, (STEPS, P, P)).astype(np.float32) for n in SHAPES}


def make(rule: str, value: Any, arrivals: Arrivals) -> Any:
    if rule == "norm":
        return norm_bounded(AXIS, value, arrivals)
    return variance_bounded(AXIS, arrivals, **{rule: value})


RULES = [("norm", 0.2), ("norm", 0.6), ("missing", 1), ("missing", 2), ("deadline", 1.0)]


@functools.cache
def compared(rule: str, value: float) -> list[tuple[Any, Any]]:
    found = []
    for seed in range(3):
        times, updates = random_times(seed), draws(SHAPES, STEPS, P, seed=seed)
        want = reference(rule, value, jax.tree.map(double, times), jax.tree.map(double, updates))
        found.append((run(make(rule, value, fixed(times)), updates), want))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "value"), RULES)
def test_equals_a_reference_that_goes_from_event_to_event(rule, value):
    deferred = 0.0
    for got, want in compared(rule, value):
        for name in ("elapsed", "synchronous"):
            np.testing.assert_allclose(got[name], want[name], rtol=8 * STEPS * EPS)
        chex.assert_trees_all_close(
            jax.tree.map(double, {k: got[k] for k in ("out", "held")}),
            {k: want[k] for k in ("out", "held")},
            rtol=0,
            atol=STEPS * (P + 4) * EPS * 4,
        )
        deferred += norm(want["held"])
    assert deferred > 0.1


@pytest.mark.parametrize(("rule", "value"), RULES)
def test_nobody_takes_longer_than_if_all_waited(rule, value):
    saved = 0.0
    for got, _ in compared(rule, value):
        assert (got["elapsed"] <= got["synchronous"] * (1 + 8 * STEPS * EPS)).all()
        saved += float(np.sum(got["synchronous"] - got["elapsed"]))
    assert saved > 0.1


# ---- limits ----


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_who_waits_for_everything_is_all_mean(dtype):
    like = jax.tree.map(lambda x: x.astype(dtype), SHAPES)
    updates = draws(like, STEPS, P, seed=4)
    arrivals = backward(1.0, 50.0, 0.1, spread=1.0)
    mean = jax.tree.map(lambda u: double(u).mean(1, keepdims=True), updates)
    for rule, value in (
        ("norm", 0.0),
        ("norm", jnp.float32(0)),
        ("missing", 0),
        ("deadline", math.inf),
    ):
        got = run(make(rule, value, arrivals), updates)
        np.testing.assert_allclose(got["elapsed"], got["synchronous"], rtol=4 * STEPS * EPS)
        whole = jax.tree.map(lambda x: np.cumsum(double(x), axis=0), (got["out"], mean))
        for out, want, held in zip(*map(jax.tree.leaves, (*whole, got["held"])), strict=True):
            if dtype == jnp.float32:
                assert np.abs(double(held)).max() == 0
            else:  # what bfloat16 cannot express is held, and comes later
                assert 0 < np.abs(double(held)).max() < 4 * float(jnp.finfo(dtype).eps)
            np.testing.assert_allclose(
                out + double(held),
                np.broadcast_to(want, out.shape),
                rtol=0,
                atol=STEPS * (P + 4) * EPS * 4,
            )


def test_bfloat16_loses_nothing():
    like = jax.tree.map(lambda x: x.astype(jnp.bfloat16), SHAPES)
    updates = draws(like, STEPS, P, seed=5)
    got = run(norm_bounded(AXIS, 0.6, fixed(random_times(5))), updates)
    for u, out, held in zip(*map(jax.tree.leaves, (updates, got["out"], got["held"])), strict=True):
        assert out.dtype == jnp.bfloat16 and held.dtype == jnp.float32
        want = np.cumsum(double(u).mean(1, keepdims=True), axis=0)
        have = np.cumsum(double(out), axis=0) + double(held)
        np.testing.assert_allclose(have, np.broadcast_to(want, have.shape), atol=1e-5)


def test_one_worker_waits_for_itself_alone():
    updates = draws(SHAPES, STEPS, 1)
    got = run(norm_bounded(AXIS, 0.5, backward(2.0, math.inf)), updates)
    chex.assert_trees_all_close(got["out"], updates, rtol=EPS)
    np.testing.assert_allclose(got["elapsed"][:, 0], 2.0 * np.arange(1, STEPS + 1))


@pytest.mark.slow
def test_beta_sweeps_in_one_vmap():
    updates, arrivals = draws(SHAPES, STEPS, P), fixed(random_times(0))

    def of(beta):
        return run(norm_bounded(AXIS, beta, arrivals), updates)

    together = jax.vmap(of)(jnp.array([0.2, 0.6]))
    for i, beta in enumerate((0.2, 0.6)):
        chex.assert_trees_all_close(at(together, i), of(beta), rtol=1e-5, atol=1e-6)


# ---- the elastic constant ----


def test_norm_bounded_attains_its_bound_up_to_one_message():
    """Equal updates, as many late as may be, and late for good: |h| -> M beta/(1 - beta)."""
    p, beta, forever = 8, 0.5, 1e6
    held, times = 0.0, []
    for _ in range(12):
        late = min(p - 1, math.floor(p * (beta * (held + 1) - held) + 1e-9))
        table = np.full((p, p), 0.5)
        table[0, p - late :] = forever
        times.append(table)
        held += late / p
    got = run(norm_bounded(AXIS, beta, fixed(np.stack(times))), jnp.ones((12, p, 1)))
    lemma = theory.bounds()["scheduler.norm"]
    for b in (0.1, 0.8):  # as the table of cases and the experiment have it
        assert lemma.at(b=b, M=3) == pytest.approx(3 * b / (1 - b))
    bound = lemma.at(b=beta, M=1)
    largest = float(got["held"].max())
    assert bound == 1 and bound - 1 / p <= largest <= bound


@pytest.mark.slow
@pytest.mark.parametrize("m", [1, 2])
def test_measured_drift_of_a_stand_in_is_the_theorys(m):
    """Noise alone, at the minimum of a quadratic: B̂ is B, to the spread of its estimate."""
    p, d, steps, alpha, curvature = 4, 64, 300, 0.05, 1.0
    times = np.ones((p, p))
    times[:, p - m :] = 1.5  # these come late, to all but themselves
    np.fill_diagonal(times, 1.0)
    chain = optax.chain(optax.sgd(alpha), variance_bounded(AXIS, fixed(times), missing=m))

    def loss(x, noise):
        return jnp.sum(curvature * x * x / 2 + noise * x)

    metered = ej.meter(chain, alpha, AXIS, every=1)
    run = ej.simulate(ej.worker_step(loss, metered, AXIS), p)
    noise = draws(jnp.zeros(d), steps, p, seed=m) / math.sqrt(d)  # E ||noise||² = 1
    states, _ = jax.jit(lambda noise: jax.lax.scan(run.step, run.init(jnp.zeros(d)), noise))(noise)
    measured = double(states.opt_state.elastic_constant.mean)
    bound = theory.bounds()["scheduler.variance"].at(
        **{"m": m, "sigma": 1, "p": p, "L": curvature, "alpha": alpha}
    )
    spread = 5 / math.sqrt(2 * d * steps)
    assert (measured <= bound * (1 + spread)).all()
    assert (measured[: p - m] >= bound * (1 - spread) * 0.95).all()  # those who miss m
    assert (measured[p - m :] < measured[0]).all()


# ---- on devices ----


@pytest.mark.slow
def test_on_devices_as_simulated():
    """Views, held mass and clocks, under vmap, shard_map, and two simulated on each of two."""
    arrivals, p = backward(1.0, 60.0, 0.1, spread=0.5), 4

    def loss(x, noise):
        parts = jax.tree.map(lambda a, n: jnp.sum(a * a / 4 + n * a), x, noise)
        return sum(jax.tree.leaves(parts))

    def go(axis, make):
        chain = optax.chain(optax.sgd(0.1), norm_bounded(axis, 0.8, arrivals))
        run = make(ej.worker_step(loss, chain, axis))
        states, _ = quick(lambda b: jax.lax.scan(run.step, run.init(SHAPES), b))(batches)
        scheduler = states.opt_state[1]
        return states.params, scheduler.held(), scheduler.elapsed, scheduler.synchronous

    batches = draws(SHAPES, STEPS, p)
    want = go(AXIS, lambda step: ej.simulate(step, p))
    assert norm(want[1]) > 0.01
    sharded = go(AXIS, lambda step: ej.distribute(step, mesh_of(p)))
    hybrid = go(("sim", AXIS), lambda step: ej.distribute(step, mesh_of(2), workers=p))
    for got in (sharded, hybrid):
        chex.assert_trees_all_close(got, want, rtol=STEPS * 16 * EPS, atol=STEPS * 16 * EPS)


@pytest.mark.slow
@pytest.mark.parametrize("m", [0, 9])
@pytest.mark.parametrize("tree", [(), {"one": jnp.zeros(())}], ids=["no leaves", "a scalar"])
def test_any_number_of_leaves_is_taken_and_more_missing_than_there_are(tree, m):
    opt = variance_bounded(AXIS, backward(1.0, math.inf), missing=m)

    def one(_):
        return opt.update(tree, opt.init(tree))[1].elapsed

    elapsed = jax.vmap(one, axis_name=AXIS)(jnp.arange(2))
    assert elapsed.tolist() == [float(bool(tree))] * 2
