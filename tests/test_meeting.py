"""Workers that compress together: means in narrow dtypes, and one basis for all (PowerSGD)."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import AXIS
from jax.sharding import PartitionSpec
from steps import EPS, double, draws, mesh_of

import elastic_jax as ej
from elastic_jax.exchange import means
from elastic_jax.programs import collectives
from elastic_jax.wire import Wire, new_sender, send, wire

P = 4
LAYOUTS = {  # axes, innermost first; the mesh's sizes, outermost first
    "vmap": (AXIS, ()),
    "shard_map": (AXIS, (4,)),
    "hybrid": (("sim", AXIS), (2,)),
    "two axes": (("b", "a"), (2, 2)),
}


def laid_out(layout: str, function: Any) -> Any:
    """Maps `function(axes, x)` over four workers' x, stacked."""
    axis, sizes = LAYOUTS[layout]
    one = functools.partial(function, axis)
    if not sizes:
        return jax.jit(jax.vmap(one, axis_name=axis))
    names = (AXIS,) if len(sizes) == 1 else ("a", "b")

    def block(xs):
        if layout == "hybrid":
            return jax.vmap(one, axis_name="sim")(xs)
        return jax.tree.map(lambda x: x[None], one(jax.tree.map(lambda x: x[0], xs)))

    spec = PartitionSpec(names)
    mesh = mesh_of(*sizes, names=names)
    return jax.jit(jax.shard_map(block, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))


# ---- narrow means ----

NUMBERS = {"bfloat16": (7, 3), "float16": (5,), "float32": (2, 2)}  # 21 and 5 are no multiples of 4


@functools.cache
def averaged(layout: str) -> Any:
    arrays = [
        *draws([jnp.zeros(shape, dtype) for dtype, shape in NUMBERS.items()], P, seed=5),
        *draws([jnp.zeros(2, "bfloat16"), jnp.zeros((0, 3), "bfloat16")], P, seed=6),
    ]
    own, mean = laid_out(layout, lambda axis, xs: means(xs, axis))(arrays)
    return arrays, jax.tree.map(np.asarray, own), jax.tree.map(np.asarray, mean)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_narrow_mean_is_rounded_and_nothing_lost(layout):
    """What rounding drops is kept by the worker whose part of the mean it is, p times."""
    arrays, own, mean = averaged(layout)
    for x, mine, middle in zip(arrays, own, mean, strict=True):
        assert mine.dtype == middle.dtype == np.float32
        exact = double(x).mean(0)
        want = exact if x.dtype == np.float32 else double(exact.astype(x.dtype))
        for worker in range(P):
            np.testing.assert_allclose(middle[worker], want, rtol=2 * EPS, atol=EPS)
        # mean_i own_i = mean: sums of p numbers of up to 4, and p of what rounding drops
        np.testing.assert_allclose(double(mine).mean(0), middle[0], rtol=0, atol=4 * P * EPS)
    joined, counted = (
        np.concatenate([double(xs[i]).reshape(P, -1) for i in (0, 3)], axis=1)
        for xs in (arrays, own)
    )  # the bfloat16 ones, as one array of 23 numbers, of which each worker rounds six
    away = joined != counted
    assert away.any(1).all()
    for worker in range(P):
        assert not np.delete(away[worker], np.arange(23)[6 * worker : 6 * worker + 6]).any()


@pytest.mark.parametrize("layout", ["shard_map", "hybrid", "two axes"])
def test_narrow_means_are_the_same_in_every_layout(layout):
    """Sums of four bfloat16 numbers are exact in float32, and so is what their mean drops."""
    _, *got = averaged(layout)
    _, *want = averaged("vmap")
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[3], b[3])


def test_no_sum_is_taken_in_a_narrow_dtype():
    """Before XLA optimizes: integers of two bytes travel both ways, and nothing is reduced."""
    opt = ej.error_feedback(ej.identity("bfloat16"), axis_name=AXIS)
    like = jnp.zeros(64)
    run = laid_out("shard_map", lambda _, u: opt.update(u, opt.init(like), like)[0])
    lowered = run.lower(jax.ShapeDtypeStruct((P, 64), jnp.float32))
    crossing = re.findall(r'"stablehlo\.(all_\w+)".*?tensor<[\dx]*x(\w+)>\) ->', lowered.as_text())
    assert crossing == [("all_to_all", "ui16"), ("all_gather", "ui16")]
    found = [one[:2] for one in collectives(lowered.compile().as_text() or "")]
    assert found == [("all-to-all", 2 * 64), ("all-gather", 2 * 64 // P)]
    assert wire(ej.identity("bfloat16"), like, P) == Wire("scatter", 160, 2 * 128 * 3 // 4)


def test_shared_entries_travel_in_two_bytes():
    compressor = ej.random_k(0.5, shared_seed=3, dtype="bfloat16")
    y = draws(jnp.zeros(40), P, seed=2)

    def said(axis, y):
        return send(compressor, axis, new_sender(compressor, 0, y), y)[:2]

    run = laid_out("shard_map", said)
    found = [one[:2] for one in collectives(run.lower(y).compile().as_text() or "")]
    assert found == [("all-to-all", 2 * 20), ("all-gather", 2 * 5)]
    message, mean = map(double, run(y))
    kept = mean[0] != 0
    assert kept.sum() == 20
    want, unit = np.where(kept, double(y).mean(0), 0), 2**-8  # twice: of messages, of their mean
    np.testing.assert_allclose(mean[0], want, rtol=unit, atol=1.01 * unit * np.abs(y).max())
    np.testing.assert_allclose(message.mean(0), mean[0], rtol=0, atol=4 * P * EPS)


SHARED = ej.random_k(0.5, shared_seed=3, dtype="bfloat16")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("compressor", [ej.identity("bfloat16"), SHARED, ej.low_rank(1)])
def test_no_mass_is_lost(compressor, dtype):
    """What is applied and what is held sum up to what was said; for narrow updates too."""
    opt: Any = ej.error_feedback(compressor, axis_name=AXIS)
    like = {"m": jnp.zeros((9, 6), dtype), "b": jnp.zeros(3, dtype)}
    us = draws(like, P, seed=4)
    step = jax.vmap(lambda u: opt.update(u, opt.init(like), like), axis_name=AXIS)
    sent, state = jax.jit(step)(us)
    for name, u in us.items():
        assert sent[name].dtype == u.dtype
        total = double(sent[name])[0] + double(state[0].residual[name]).mean(0)
        np.testing.assert_allclose(total, double(u).mean(0), rtol=0, atol=40 * EPS)


# ---- values in two bytes ----


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_feedback_holds_what_rounding_drops(dtype):
    """Entries of float32 less what left: to the bit, and beyond the largest number too."""
    y = jnp.array([3.14159, -1e5, 1e-3, 0.25, 7.0])
    opt = ej.error_feedback(ej.top_k(3, dtype=dtype))
    sent, state = jax.jit(opt.update)(y, opt.init(y))
    largest = float(jnp.finfo(dtype).max)
    narrow = double(np.clip(np.asarray(y), -largest, largest).astype(jnp.dtype(dtype)))
    want = np.where([True, True, False, False, True], narrow, 0)
    np.testing.assert_array_equal(sent, want)
    np.testing.assert_array_equal(state.residual, np.asarray(y) - np.float32(want))
    assert ej.top_k(3, dtype=dtype).nbytes(y) == 3 * (2 + 2)


def test_narrow_entries_stay_as_they_are():
    y = jnp.asarray([3.0, 1.0], "float16")
    compressor = ej.identity("bfloat16")
    np.testing.assert_array_equal(compressor.dense(jax.random.key(0), ((),), y)[0], y)
    assert compressor.gamma(y) == 0 and compressor.gamma(jnp.zeros(2)) == 2**-16
    assert ej.identity("float16").gamma(jnp.zeros(2)) == 1  # small ones vanish


@pytest.mark.parametrize("dtype", ["float32", "int8", "narrow", 3, jnp.float32])
def test_other_dtypes_are_refused(dtype):
    for make in (ej.identity, functools.partial(ej.top_k, 1), functools.partial(ej.random_k, 1)):
        with pytest.raises(ValueError, match=r"dtype=.* no narrow float; pass 'bfloat16'"):
            make(dtype=dtype)


def test_rounding_to_the_nearest_is_not_unbiased():
    with pytest.raises(ValueError, match=r"dtype='bfloat16' .* unbiased=True"):
        ej.random_k(1, unbiased=True, dtype="bfloat16")


# ---- one basis ----

M = {"m": jnp.zeros((9, 6)), "b": jnp.zeros(3)}


def power_sgd(ys: Any, right: np.ndarray, rank: int) -> tuple[Any, np.ndarray]:
    """The paper's algorithm 1 in float64, on the workers' matrices [p, n, m]."""
    left, _ = np.linalg.qr(np.mean([y @ right for y in ys], axis=0))
    right = np.mean([y.T @ left for y in ys], axis=0)
    return left @ right.T, right


@pytest.mark.parametrize("rank", [1, 2])
def test_low_rank_is_power_sgd(rank):
    """With feedback: its update, its mean residual; each worker's own is its own projection's."""
    opt: Any = ej.error_feedback(ej.low_rank(rank), axis_name=AXIS)
    start = opt.init(M)
    right = double(start[0].sender.state[1])  # of m, which comes after b
    us = draws(M, 5, P, seed=8)

    def steps(us):
        def step(state, u):
            out, state = opt.update(u, state, M)
            return state, (out, state[0].residual)

        return jax.lax.scan(step, start, us)[1]

    run = jax.jit(jax.vmap(steps, axis_name=AXIS, in_axes=1))
    out, residual = jax.tree.map(double, run(us))
    held = np.zeros((P, 9, 6))
    for t in range(5):
        y = double(us["m"][t]) + held
        want, right = power_sgd(y, right, rank)
        tolerance = 40 * (t + 1) * EPS * np.abs(y).max()  # products of nine, in float32
        for worker in range(P):
            np.testing.assert_allclose(out["m"][worker, t], want, rtol=0, atol=tolerance)
        held = y - want  # the paper's, worker by worker: the same mean
        np.testing.assert_allclose(
            residual["m"][:, t].mean(0), held.mean(0), rtol=0, atol=tolerance
        )
        norms = np.linalg.norm(residual["m"][:, t], axis=(1, 2))
        before = residual["m"][:, t - 1] if t else np.zeros_like(held)
        assert (norms <= np.linalg.norm(double(us["m"][t]) + before, axis=(1, 2)) * 1.00001).all()
        np.testing.assert_allclose(
            out["b"][0, t], double(us["b"][t]).mean(0), rtol=0, atol=4 * P * EPS
        )


def test_low_rank_finds_the_best_approximation_of_the_mean():
    """As each worker's own would not: a mean of messages of rank 1 is of any rank."""
    compressor = ej.low_rank(1)
    shared = np.outer(np.arange(1.0, 10.0), [1.0, -1.0, 2.0, 0.5, 0.0, 3.0]) / 10
    ys = jnp.asarray(shared + 2 * np.random.default_rng(0).normal(size=(P, 9, 6)), jnp.float32)

    def repeated(y):
        def step(sender, _):
            _, mean, sender = send(compressor, AXIS, sender, y)
            return sender, mean

        return jax.lax.scan(step, new_sender(compressor, 0, y), None, length=60)[1][-1]

    mean = double(jax.jit(jax.vmap(repeated, axis_name=AXIS))(ys))
    left, values, right = np.linalg.svd(double(ys).mean(0))
    best = values[0] * np.outer(left[:, 0], right[0])
    assert (values[1] / values[0]) ** 120 < 1e-6  # how near sixty iterations come
    for worker in range(P):
        np.testing.assert_allclose(mean[worker], best, rtol=0, atol=1e-5 * values[0])


def test_low_rank_takes_two_reductions():
    """Of r (n + m) numbers in all, and those sent whole along with the first."""
    like, rank = {"m": jnp.zeros((24, 16)), "k": jnp.zeros((4, 3, 5)), "b": jnp.zeros(40)}, 2
    opt = ej.error_feedback(ej.low_rank(rank), axis_name=AXIS)
    run = laid_out("shard_map", lambda _, u: opt.update(u, opt.init(like), like)[0])
    stack = jax.tree.map(lambda x: jax.ShapeDtypeStruct((P, *x.shape), x.dtype), like)
    found = [one[:2] for one in collectives(run.lower(stack).compile().as_text() or "")]
    first, second = 4 * (rank * (24 + 4) + 40), 4 * rank * (16 + 15)
    assert found == [("all-reduce", first), ("all-reduce", second)]
    nbytes = ej.low_rank(rank).nbytes(like)
    assert wire(ej.low_rank(rank), like, P) == Wire("reduce", nbytes, 2 * 3 * nbytes // 4)
    assert nbytes == first + second
