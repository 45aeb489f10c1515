"""Compressors: what each declares of itself is checked, and attacked.

A check is a function of a compressor, so that those which declare something wrong (the mutants, at
the end) go through the same ones. One compiled program per compressor and dtype serves them all.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import COMPRESSORS
from chex import assert_trees_all_equal

import elastic_jax as ej

KEY = jax.random.key(7)
BATCH = 1024  # rows that the compiled program takes
SHAPE, D = (3, 4), 12
Z = 6.5  # standard errors: see `noise`
ALL = pytest.mark.parametrize("name", COMPRESSORS)
SAME_CODE = ("top_k(2)", "top_k(0.25, tree)", "threshold", "random_k", "quantize(2)", "quantize(8)")
# one row of each compressor for the other dtypes
OTHERS = [
    pytest.param(name, other, marks=pytest.mark.slow)
    for other in ("bfloat16", "float16", "float64")
    for name in COMPRESSORS
    if name not in SAME_CODE
]
CASES = [*((name, "float32") for name in COMPRESSORS), *OTHERS]
ALL_DTYPES = pytest.mark.parametrize("name, dtype", CASES, indirect=["dtype"])
SELECTORS = [name for name in COMPRESSORS if "top_k" in name or "threshold" in name]
ONES, ONE_HOT = np.ones(SHAPE), np.eye(1, D, 5).reshape(SHAPE)
Y = jnp.ones(SHAPE, "float32")
ATTAINED = {  # an input at which gamma is attained
    **{name: ONES for name in COMPRESSORS if "_k" in name or name == "identity"},
    **{name: 0.009 * ONES for name in COMPRESSORS if "threshold" in name},
    "sign": ONE_HOT,
    "natural": 4 / 3 * ONES,  # x in [1, 2]: (x - 1)(2 - x)/x² has its maximum, 1/8, at 4/3
}


@pytest.fixture
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def draw(seed, dtype, shape=SHAPE):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape) * 10.0 ** rng.integers(-2, 2, shape), dtype)


def rows(*values, dtype="float32"):
    return jnp.stack([jnp.asarray(np.asarray(v), dtype) for v in values])


def double(x):
    return np.asarray(x, np.float64)


@functools.cache
def program(compressor, loop):
    """Compiles a loop of dense, encode and decode; or dense under vmap."""

    def one(args):
        key, state, y = args
        payload, encoded_state = compressor.encode(key, state, y)
        decoded = compressor.decode(payload, y)
        return *compressor.dense(key, state, y), decoded, encoded_state

    if loop:
        return jax.jit(functools.partial(jax.lax.map, one))
    return jax.jit(lambda args: jax.vmap(compressor.dense)(*args))


def repeat(x):
    return jax.tree.map(lambda x: x[jnp.arange(BATCH) % len(x)], x)


def run(compressor, ys, keys=None, states=None, loop=True):
    """Compresses the rows of `ys`, which are repeated to fill a batch."""
    keys = jax.random.split(KEY, BATCH) if keys is None else keys
    if states is None:
        first = compressor.init(KEY, jax.tree.map(lambda y: y[0], ys))
        states = repeat(jax.tree.map(lambda s: s[None], first))
    return program(compressor, loop)((keys, states, repeat(ys)))


def sample(compressor, y, batches=8, seed=0):
    """C(y) under many keys; and at many steps, where a draw depends on the step alone."""
    found = []
    for i in range(1 if compressor.deterministic else batches):
        keys = jax.random.split(jax.random.key(100 * seed + i + 1), BATCH)
        states = repeat(jax.tree.map(lambda s: s[None], compressor.init(KEY, y)))
        if "shared" in compressor.name:
            states = (states[0] + jnp.arange(BATCH, dtype=states[0].dtype) + i * BATCH,)
        found.append(double(run(compressor, y[None], keys, states)[0]))
    return np.concatenate(found)


def ratios(c, y):  # ||C(y) - y||² / ||y||², one for each row
    return np.sum((c - y) ** 2, axis=(-2, -1)) / np.sum(y**2, axis=(-2, -1))


def noise(samples, width):
    """By how much a mean of samples in an interval of this width may be off: empirical Bernstein.

    Maurer, Pontil, 2009, at probability 2e-9."""
    return Z * samples.std(0) / math.sqrt(len(samples)) + 1.5 * Z**2 * width / len(samples)


def check_dense(compressor, *trees):
    """The dense path is decode∘encode, with the same states, step after step."""
    states = None
    for step, tree in enumerate(trees):
        keys = jax.random.split(jax.random.fold_in(KEY, step), BATCH)
        out, states, *encoded = run(compressor, tree, keys, states)
        assert_trees_all_equal([out, states], encoded)


def check_bytes(compressor, like):
    payload, _ = jax.eval_shape(compressor.encode, KEY, compressor.init(KEY, like), like)
    leaves = jax.tree.leaves(payload)
    assert compressor.nbytes(like) == sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


def check_constants(compressor, y, seed=0, batches=8):
    """Gamma, omega and no bias, at y; returns the mean of ||C(y) - y||² / ||y||² and its error."""
    c, y64, eps = sample(compressor, y, batches, seed), double(y), float(jnp.finfo(y.dtype).eps)
    found = ratios(c, y64)
    error = noise(found, np.ptp(found))
    for constant in (compressor.gamma, compressor.omega or compressor.gamma):
        declared = constant(y)
        rounded = (math.sqrt(declared) + 4 * eps * (1 + math.sqrt(declared))) ** 2
        assert found.mean() <= rounded + error, f"{found.mean()} > {declared}"
    if compressor.omega is not None:
        norm = np.linalg.norm(y64)
        rounding = 4 * eps * np.abs(y64) + 4 * np.finfo(np.float32).eps * norm
        bias = np.abs(c.mean(0) - y64) - noise(c, np.abs(c).max() + np.abs(y64).max())
        assert (bias <= rounding).all(), f"biased by {bias.max()}"
    return found.mean(), error


def check_key(compressor, y):
    """Deterministic ones ignore the key, the others do not."""
    different = np.unique(sample(compressor, y, 1).reshape(BATCH, -1), axis=0)
    assert (len(different) == 1) == compressor.deterministic


def attack(compressor, seed=0, generations=60):
    """Evolves an input of large ||C(y) - y||² / ||y||²; each generation has fresh keys."""
    rng = np.random.default_rng(seed)
    repeats = 1 if compressor.deterministic else 16
    size = BATCH // repeats // 2
    y = rng.normal(size=(size, D)) * 10.0 ** rng.integers(-3, 2, (size, 1))
    for generation in range(generations):
        child = y * 2.0 ** rng.choice([0, 0, -1, 1], (size, 1))
        step = rng.normal(size=(size, D)) * np.abs(child).max(1, keepdims=True)
        child += step * 10.0 ** -rng.uniform(0, 4, (size, 1)) * (rng.random((size, D)) < 0.3)
        some, other = rng.integers(D, size=(2, size))
        move, row = rng.integers(3, size=size), np.arange(size)  # none, zero one, copy one
        child[row, some] *= move != 1
        child[row, some] = np.where(move == 2, child[row, other], child[row, some])
        child[~child.any(axis=1)] = 1
        both = np.concatenate([y, child]).reshape(-1, *SHAPE)
        keys = jax.random.split(jax.random.fold_in(KEY, generation), BATCH)
        c = double(run(compressor, jnp.asarray(both, "float32"), keys, loop=False)[0])
        found = ratios(c, np.tile(both.astype(np.float32).astype(float), (repeats, 1, 1)))
        best = np.argsort(-found.reshape(repeats, -1).mean(0), kind="stable")[:size]
        y = both.reshape(-1, D)[best]
    return jnp.asarray(y[0].reshape(SHAPE), "float32")


def check_vmap(compressor, y):
    ys = jnp.stack([y * draw(i, y.dtype) for i in range(9)])
    loop, vmapped = run(compressor, ys)[:2], run(compressor, ys, loop=False)
    atol = 1e-5 * float(jnp.max(jnp.abs(ys)))  # sums may be taken in another order
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=atol), loop, vmapped)


def check_attack(compressor, _):
    return check_constants(compressor, attack(compressor), seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["top_k(0.25, tree)", "random_k, shared", "low_rank(1)"])
def test_dense_path_of_trees(name):
    draws = [(draw(s, "float32", (5,)), draw(s, "float32", (5, 6, 2, 2))) for s in range(3)]
    trees = [{"s": s, "m": [m, None]} for s, m in draws]
    check_dense(COMPRESSORS[name], *trees)
    check_bytes(COMPRESSORS[name], jax.tree.map(lambda x: x[0], trees[0]))


@ALL_DTYPES
def test_what_is_declared(name, dtype):
    compressor, y = COMPRESSORS[name], draw(1, dtype)
    steps = (jnp.stack([draw(9 * s + i, dtype) for i in range(9)]) for s in range(3))
    check_dense(compressor, *steps)
    check_key(compressor, y)
    for seed, x in enumerate([y, jnp.ones(SHAPE, dtype), jnp.asarray(ONE_HOT, dtype)]):
        check_constants(compressor, x, seed, batches=4)
    for shape in ((), (7,), SHAPE, (0,)):
        check_bytes(compressor, jax.ShapeDtypeStruct(shape, dtype))


@ALL
def test_gamma_withstands_attacks(name):
    compressor = COMPRESSORS[name]
    check_vmap(compressor, Y)
    found, error = check_attack(compressor, Y)
    if name in ATTAINED:  # and the attack does find the worst case
        gamma = compressor.gamma(Y)
        assert found >= gamma - 0.01 - error
        exact, error = check_constants(compressor, jnp.asarray(ATTAINED[name], "float32"))
        assert abs(exact - gamma) <= 1e-3 + error


@pytest.mark.parametrize(
    "name", [name for name in COMPRESSORS if "_k" in name or name in SELECTORS]
)
def test_indices_take_two_bytes_where_they_can(name):
    for d in (2**16 - 1, 2**16, 2**16 + 1):
        compressor, like = COMPRESSORS[name], jax.ShapeDtypeStruct((d,), "float32")
        check_bytes(compressor, like)
        payload, _ = jax.eval_shape(compressor.encode, KEY, compressor.init(KEY, like), like)
        if "shared" not in name:  # which sends none
            two = d + ("block" in name or "threshold" in name) <= 2**16  # which index nothing, too
            assert payload[0].indices.dtype == (jnp.uint16 if two else jnp.int32)


@ALL_DTYPES
def test_finite_odd_inputs(name, dtype):
    compressor, info = COMPRESSORS[name], jnp.finfo(dtype)
    assert not run(compressor, rows(0 * ONES, -0.0 * ONES, dtype=dtype))[0].any()
    largest, smallest = float(info.max), float(info.smallest_normal)
    huge, small = rows(0.45 * largest * ONE_HOT, smallest / 4 * ONES, dtype=dtype)
    assert np.isfinite(np.asarray(run(compressor, huge[None])[0])).all()
    assert np.abs(double(run(compressor, small[None])[0])).max() <= 4 * smallest
    if name == "sign" or "quantize" in name:  # neither a sum of all nor 1/largest is out of range
        y = rows(0.45 * largest * (ONES if name == "sign" else ONE_HOT), dtype=dtype)
        np.testing.assert_allclose(double(run(compressor, y)[0][:1]), double(y), rtol=0.01)


@ALL_DTYPES
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_surfaces(name, odd, dtype):
    y = np.insert(np.full(D - 1, 0.001), 5, odd)
    out = double(run(COMPRESSORS[name], rows(y.reshape(SHAPE), dtype=dtype))[0]).reshape(BATCH, D)
    here, rest = out[:, 5], np.delete(out, 5, axis=1)
    if name in ("sign", "low_rank(1)") or name.startswith("quantize"):  # scale by a norm
        assert not np.isfinite(out).any()
        return
    assert np.isfinite(rest).all()
    if name in (*SELECTORS, "identity"):
        np.testing.assert_array_equal(here, odd)
    elif name == "natural":  # has exponents alone to send
        assert np.isinf(here).all()
    else:  # chooses blindly: sends it when its turn comes
        assert not np.isfinite(here[here != 0]).any() and (here != 0).any()


def test_ties_go_to_the_lowest_index():
    sent = {name: run(COMPRESSORS[name], -Y[None])[0][0] for name in SELECTORS}
    tied = {name: np.flatnonzero(out).tolist() for name, out in sent.items()}
    assert tied["top_k(0.25)"] == tied["top_k(0.25, tree)"] == [0, 1, 2]
    assert tied["top_k(2)"] == [0, 1]
    assert tied["block_top_k(2, 3)"] == [0, 1, 3, 4, 6, 7, 9, 10]
    assert tied["threshold, small"] == [0, 1, 2, 3, 4]


@ALL
def test_arrays_of_one_entry_and_of_none(name):
    compressor, one, empty = COMPRESSORS[name], jnp.asarray([-1.5]), jnp.zeros((2, 0))
    out, _ = jax.jit(compressor.dense)(KEY, compressor.init(KEY, one), one)
    assert float(out[0]) in ((-1.0, -2.0) if name == "natural" else (-1.5,))
    payload, state = compressor.encode(KEY, compressor.init(KEY, empty), empty)
    assert_trees_all_equal(compressor.decode(payload, empty), empty)
    dense = compressor.dense(KEY, compressor.init(KEY, empty), empty)
    assert_trees_all_equal(dense, (empty, state))
    assert compressor.gamma(empty) == 0.0


@pytest.mark.slow
def test_room_for_all_sends_all():
    y = draw(0, "float32", (7,))[None]
    for compressor in (
        *(ej.top_k(99), ej.top_k(1.0), ej.top_k(99, scope="tree"), ej.block_top_k(99, 5)),
        *(ej.random_k(99), ej.random_k(99, unbiased=True), ej.threshold(1e-9), ej.low_rank(99)),
    ):
        out, _, decoded, _ = run(compressor, y)
        assert_trees_all_equal([out[:1], decoded[:1]], [y, y])


def test_a_shared_seed_shares_the_draw():
    shared, keys = COMPRESSORS["random_k, shared"], jax.random.split(KEY, BATCH)
    first, states, *_ = run(shared, Y[None], keys)
    second = run(shared, Y[None], keys, states)[0]
    assert len(np.unique(first, axis=0)) == len(np.unique(second, axis=0)) == 1
    assert (first[0] != second[0]).any()
    assert len(np.unique(run(COMPRESSORS["random_k"], Y[None])[0], axis=0)) > 500  # of 924


@pytest.mark.parametrize("rank", [1, 2])
def test_low_rank_finds_the_best_approximation(rank):
    compressor, step = ej.low_rank(rank), jax.jit(ej.low_rank(rank).dense)
    left, right = np.linalg.qr(np.random.default_rng(3).normal(size=(2, 8, 8)))[0]
    singular = np.array([4.0, 3.0, 1.0, 0.5, 0.2, 0.1, 0.0, 0.0])
    for values, steps in ((singular, 30), (singular * (np.arange(8) < rank), 2)):
        y = jnp.asarray(left * values @ right.T, "float32")
        state, best, before = compressor.init(KEY, y), np.linalg.norm(values[rank:]), np.inf
        for _ in range(steps):
            out, state = step(KEY, state, y)
            assert np.linalg.matrix_rank(out, tol=1e-4) <= rank
            error = np.linalg.norm(double(out) - double(y))
            assert error <= before * (1 + 1e-5) + 1e-5
            before = error
        np.testing.assert_allclose(before, best, rtol=1e-4, atol=1e-5)
    # a step of zeros, then rows of zeros: the warm start must survive them
    state = step(KEY, compressor.init(KEY, y), jnp.zeros_like(y))[1]
    assert step(KEY, state, y.at[: rank + 1].set(0))[0].any()
    for whole in (draw(0, "float32", (9,)), draw(0, "float32", (2, 2))):
        out, _ = compressor.dense(KEY, compressor.init(KEY, whole), whole)
        assert_trees_all_equal(out, whole)


@pytest.mark.parametrize("bits", range(2, 9))
def test_quantize_has_its_levels_and_bits(bits):
    compressor, side, y = ej.quantize(bits), 2 ** (bits - 1) - 1, jnp.linspace(-1.0, 1.0, 61)
    check_dense(compressor, y[None])
    assert compressor.nbytes(y) == math.ceil(61 * bits / 8) + 4
    levels = double(run(compressor, y[None])[0]) * side / np.linalg.norm(y)
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
    assert 0 < np.abs(levels).max() <= side


@pytest.mark.slow
def test_traced_amounts_are_those_of_python():
    d = 26  # float32(7/26) * 26 exceeds 7
    y, counts = draw(d, "float32", (d,)), np.arange(1, d + 1)
    sweep = jax.jit(jax.vmap(lambda amount: ej.top_k(amount).dense(KEY, ((),), y)[0]))
    rank = np.argsort(np.argsort(-np.abs(y)))
    expected = np.where(rank < counts[:, None], y, 0)
    np.testing.assert_array_equal(sweep(jnp.asarray(counts / d, "float32")), expected)
    np.testing.assert_array_equal(sweep(jnp.asarray(counts)), expected)
    assert [round(d * (1 - ej.top_k(n / d).gamma(y))) for n in counts] == counts.tolist()
    values = np.asarray([0.1, 1.0, 10.0], "float32")
    kept = jax.vmap(lambda v: ej.threshold(v).dense(KEY, ((),), y)[0])(jnp.asarray(values))
    np.testing.assert_array_equal(kept, np.where(np.abs(y) >= values[:, None], y, 0))
    for what in (lambda c: c.encode(KEY, ((),), y), lambda c: c.nbytes(y), lambda c: c.gamma(y)):
        with pytest.raises(ValueError, match=r"traced .* used densely .* need a Python number"):
            what(ej.top_k(jnp.asarray(0.5)))


TOP, RANDOM, SAME = (COMPRESSORS[n] for n in ("top_k(2)", "random_k, unbiased", "random_k, shared"))
SIGN, NATURAL, BLIND = (COMPRESSORS[name] for name in ("sign", "natural", "random_k"))
MUTANTS = {
    "gamma 1% small": (check_constants, TOP, {"gamma": lambda y: 0.99 * TOP.gamma(y)}),
    "omega 1% small": (check_constants, RANDOM, {"omega": lambda y: 0.99}),
    "gamma small, rarely": (check_attack, SIGN, {"gamma": lambda y: 0.9}),
    "biased": (check_constants, NATURAL, {"dense": lambda *a: (1.03 * NATURAL.dense(*a)[0], a[1])}),
    "unscaled": (check_constants, BLIND, {"omega": lambda y: 1.0}),
    "a byte too many": (check_bytes, TOP, {"nbytes": lambda y: TOP.nbytes(y) + 1}),
    "a key that counts": (check_key, RANDOM, {"deterministic": True}),
    "a key that does not": (check_key, TOP, {"deterministic": False}),
    "another sign": (check_dense, TOP, {"dense": lambda k, s, y: (TOP.dense(k, s, -y)[0], s)}),
    "an old state": (check_dense, SAME, {"dense": lambda *a: (SAME.dense(*a)[0], a[1])}),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_the_checks_refuse_mutants(name):
    check, compressor, wrong = MUTANTS[name]
    check(compressor, Y)
    with pytest.raises(AssertionError):
        check(compressor._replace(**wrong), Y)
