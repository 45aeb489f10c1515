"""What crosses the wire: the same mean as without one, and exactly the bytes that `wire` says."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import AXIS, COMPRESSORS
from jax.sharding import PartitionSpec
from steps import EPS, draws, mesh_of

import elastic_jax as ej
from elastic_jax import wire as wires
from elastic_jax.programs import collectives
from elastic_jax.wire import Wire, new_sender, send, wire

SHAPES = {"m": jnp.zeros((24, 16)), "b": jnp.zeros(40)}
D = 424
slow = pytest.mark.slow
SPEC = PartitionSpec(AXIS)
# These move numbers and change none; the others scale, and programs may round a product otherwise.
MOVES = [name for name in COMPRESSORS if "_k" in name and "unbiased" not in name] + [
    "threshold",
    "threshold, small",
    "natural",
    "identity",
]


def cast(dtype: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype), SHAPES)


# ---- bytes ----


def compiled(opt: Any, devices: int, on_each: int, like: Any) -> str:
    """The program of one update on several devices."""
    axis = AXIS if on_each == 1 else ("sim", AXIS)
    opt = opt(axis)

    def update(updates):
        return opt.update(updates, opt.init(like), like)[0]

    def block(stack):
        if on_each > 1:
            return jax.vmap(update, axis_name="sim")(stack)
        return jax.tree.map(lambda x: x[None], update(jax.tree.map(lambda x: x[0], stack)))

    run = jax.shard_map(
        block, mesh=mesh_of(devices), in_specs=SPEC, out_specs=SPEC, check_vma=False
    )
    stack = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((devices * on_each, *x.shape), x.dtype), like
    )
    # at level 0 the collectives are the same, and the rest compiles sooner
    quick = {"xla_backend_optimization_level": 0}
    return jax.jit(run).lower(stack).compile(compiler_options=quick).as_text()


def check_bytes(opt, compressor, devices, on_each, like):
    said = wire(compressor, like, devices * on_each, on_each=on_each)
    text = compiled(opt, devices, on_each, like)
    found: dict[str, int] = {}
    for one in collectives(text):
        found[one.kind] = found.get(one.kind, 0) + one.nbytes
    if said.kind == "scatter":  # all that is said, and a part of the mean
        part = found["all-gather"]
        assert found == {"all-to-all": devices * part, "all-gather": part}
        assert said.nbytes == (devices + 1) * part, said
    else:
        operation = "all-gather" if said.kind == "gather" else "all-reduce"
        assert found == {operation: said.nbytes}, said
    return said, text


@pytest.mark.parametrize("devices", [4, pytest.param(8, marks=slow)])
@pytest.mark.parametrize("name", COMPRESSORS)
def test_bytes(name, devices):
    compressor = COMPRESSORS[name]
    check_bytes(functools.partial(ej.compress, compressor), compressor, devices, 1, SHAPES)


@pytest.mark.slow
def test_bytes_where_several_are_simulated():
    """A device sends the payloads of all its workers, but dense and reduced ones only once."""
    for name in ("top_k(2)", "random_k, shared", "threshold"):
        compressor = COMPRESSORS[name]
        check_bytes(functools.partial(ej.compress, compressor), compressor, 2, 3, SHAPES)


@pytest.mark.parametrize("make", [ej.error_feedback, ej.ef21])
def test_bytes_of_bfloat16(make):
    """Two bytes a value and two an index: gathered as integers, since CPU would widen floats."""
    compressor = ej.top_k(5, scope="tree")
    like = cast(jnp.bfloat16)
    said, text = check_bytes(functools.partial(make, compressor), compressor, 4, 1, like)
    assert said == Wire("gather", 5 * (2 + 2), 3 * 5 * (2 + 2))
    assert re.search(r"u16\[.*\]\S* all-gather\(", text)


@pytest.mark.parametrize("name, kind", [("threshold", "dense"), ("random_k, shared", "reduce")])
def test_bytes_of_bfloat16_means(name, kind):
    """Means are summed in float32, and counted so."""
    compressor, like = COMPRESSORS[name], cast(jnp.bfloat16)
    opt = functools.partial(ej.compress, compressor)
    said, _ = check_bytes(opt, compressor, 4, 1, like)
    assert said[:2] == (kind, 4 * D if kind == "dense" else 4 * D // 2)


KINDS = {  # bytes by hand: values of 4 bytes (40 in b, 384 in m), indices of 2
    ("top_k(2)", 4): Wire("gather", 2 * 2 * 6, 3 * 24),
    ("top_k(0.25)", 4): Wire("gather", 106 * 6, 3 * 106 * 6),  # 1908, less than 2544
    ("top_k(0.25)", 8): Wire("dense", 4 * D, 7 * D),  # 2968, less than 4452
    ("random_k", 2): Wire("gather", 6 * D // 2, 6 * D // 2),
    ("random_k", 4): Wire("dense", 4 * D, 6 * D),
    ("random_k, shared", 8): Wire("reduce", 4 * D // 2, 2 * D * 7 // 4),
    ("sign", 8): Wire("gather", D // 8 + 2 * 4, 7 * (D // 8 + 8)),
    ("sign", 64): Wire("dense", 4 * D, 2 * 63 * 4 * D // 64),
    ("identity", 8): Wire("dense", 4 * D, 7 * D),
    ("identity, bfloat16", 8): Wire("scatter", 2 * (D + D // 8), 2 * 7 * 2 * D // 8),
    ("identity, bfloat16", 3): Wire("scatter", 2 * 4 * 142, 2 * 2 * 2 * 142),  # thirds of 426
    ("top_k(0.25), bfloat16", 4): Wire("gather", 106 * 4, 3 * 106 * 4),
    ("low_rank(1)", 8): Wire("reduce", 4 * (24 + 16 + 40), 7 * (24 + 16 + 40)),
    ("threshold", 1): Wire("dense", 4 * D, 0),
}


@pytest.mark.parametrize("name, workers", KINDS)
def test_wire_by_hand(name, workers):
    assert wire(COMPRESSORS[name], SHAPES, workers) == KINDS[name, workers]


def test_wire_of_several_on_each():
    assert wire(COMPRESSORS["top_k(2)"], SHAPES, 8, on_each=2) == Wire("gather", 48, 144)
    assert wire(COMPRESSORS["sign"], SHAPES, 8, on_each=8).sent == 0


def test_a_traced_amount_has_no_payload():
    said = []

    def update(k, y):
        compressor = ej.top_k(k)
        said.append(wire(compressor, SHAPES, 4).kind)
        return send(compressor, AXIS, new_sender(compressor, 0, y), y)[1]

    run = jax.shard_map(update, mesh=mesh_of(2), in_specs=(PartitionSpec(), SPEC), out_specs=SPEC)
    y = jnp.array([1.0, 3.0, 5.0, -1.0])
    np.testing.assert_allclose(jax.jit(run)(jnp.asarray(1), y), [2.5, 1.5, 2.5, 1.5])
    assert said == ["dense"]


@pytest.mark.parametrize(
    "workers, on_each, words",
    [(0, 1, "workers=0"), (2.0, 1, "workers=2.0"), (4, 0, "on_each=0"), (4, 3, "on_each=3")],
)
def test_refused(workers, on_each, words):
    with pytest.raises(ValueError, match=words):
        wire(ej.sign(), SHAPES, workers, on_each=on_each)


# ---- the same mean ----


ALL = tuple(COMPRESSORS)
ONE = {"m": SHAPES["m"]}  # an array is enough here, and compiles in half the time


@functools.cache
def messages(mode: str, workers: int = 4, forced: bool = False, names: tuple = ALL) -> Any:
    """(y, message, average, memory) of every compressor, at two steps; stacked [p, steps, …]."""
    axis = ("sim", AXIS) if mode == "hybrid" else AXIS

    def one(index, ys):
        def step(senders, y):
            done = {name: send(COMPRESSORS[name], axis, senders[name], y) for name in names}
            senders = {name: sender for name, (_, _, sender) in done.items()}
            return senders, {name: (y, *out[:2], out[2].state) for name, out in done.items()}

        start = {name: new_sender(COMPRESSORS[name], 7, ONE) for name in names}
        return jax.lax.scan(step, ej.fold_in_worker(start, index), ys)[1]

    def block(index, ys):
        if mode == "hybrid":
            return jax.vmap(one, axis_name="sim")(index, ys)
        return jax.tree.map(lambda x: x[None], one(index[0], jax.tree.map(lambda y: y[0], ys)))

    if mode == "vmap":
        run = jax.vmap(one, axis_name=AXIS)
    else:
        mesh = mesh_of(workers // 2 if mode == "hybrid" else workers)
        run = jax.shard_map(block, mesh=mesh, in_specs=SPEC, out_specs=SPEC, check_vma=False)
    with pytest.MonkeyPatch.context() as patch:
        if forced:  # payloads are gathered even where another way is cheaper
            patch.setattr(wires, "_cheapest", lambda *args: Wire("gather", 0, 0))
        out = jax.jit(run)(jnp.arange(workers), draws(ONE, workers, 2, seed=1))
    return jax.tree.map(np.asarray, out)


def apart(got: Any, want: Any) -> float:
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max(
        (float(np.max(np.abs(np.float64(a) - np.float64(b)), initial=0)) for a, b in pairs),
        default=0.0,
    )


def check_same(name, got, want, bits_of_mean, eps=EPS):
    """The message, its mean and the compressor's memory are as under vmap.

    Compressors that move numbers give the same bits, and so do means of two, in whatever order.
    Else a message is a few products (of norms: sums of D numbers, which errors enter as √D), and a
    mean is a sum of p.
    """
    (y, *parts), (_, *wanted) = got[name], want[name]
    size = max(float(np.max(np.abs(x))) for x in jax.tree.leaves((y, wanted[0])))
    errors = [apart(a, b) for a, b in zip(parts, wanted, strict=True)]
    exact = name in MOVES
    assert errors[0] <= (0 if exact else 4 * math.sqrt(D) * eps * size)
    assert errors[1] <= (0 if exact and bits_of_mean else 4 * math.sqrt(D) * eps * size)
    assert errors[2] <= 4 * D * eps * size  # low_rank's factor, as long as its matrix


WAYS = [
    ("shard_map", 4),
    *(pytest.param(*w, marks=slow) for w in (("shard_map", 2), ("hybrid", 4))),
]


@pytest.mark.slow  # compiles every compressor in every mode
@pytest.mark.parametrize("mode, workers", WAYS)
@pytest.mark.parametrize("name", COMPRESSORS)
def test_gathered_equals_dense(name, mode, workers):
    check_same(name, messages(mode, workers, True), messages("vmap", workers), workers == 2)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["shard_map", "hybrid"])
def test_the_cheapest_equals_dense(mode):
    """As `send` chooses: one that is gathered, one reduced, one dense."""
    names = ("top_k(2)", "random_k, shared", "threshold")
    assert [wire(COMPRESSORS[n], ONE, 4).kind for n in names] == ["gather", "reduce", "dense"]
    for name in names:
        check_same(name, messages(mode, names=names), messages("vmap"), False)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPRESSORS)
def test_every_device_computes_the_same_bits(name):
    """Each decodes the same payloads in the same order: views do not drift apart by rounding."""
    for leaf in jax.tree.leaves(messages("shard_map", 4, True)[name][2]):
        assert (leaf == leaf[:1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPRESSORS)
def test_linear_payloads_may_be_averaged(name):
    """Decoding the mean of payloads gives the mean of messages where that is declared."""
    compressor, y = COMPRESSORS[name], jnp.array([[3.0, -1.0, 2.0, 5.0], [1.0, -4.0, 0.5, 0.25]])
    state = compressor.init(jax.random.key(0), y[0])
    payloads, _ = jax.vmap(lambda k, y: compressor.encode(k, state, y))(
        jax.random.split(jax.random.key(1)), y
    )
    messages = jax.vmap(lambda payload: compressor.decode(payload, y[0]))(payloads)
    middle = jax.tree.map(
        lambda x: x.mean(0) if jnp.issubdtype(x.dtype, jnp.floating) else x[0], payloads
    )
    averaged = np.allclose(compressor.decode(middle, y[0]), messages.mean(0), rtol=1e-6)
    assert averaged or not compressor.linear


# ---- residuals, narrow numbers, packing ----


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_residual_is_exact(dtype):
    """h⁺ = y - m: what left each worker is k numbers of the dtype that travels, no bit more."""
    opt, like, p = ej.error_feedback(ej.top_k(5, scope="tree"), axis_name=AXIS), cast(dtype), 4
    assert wire(ej.top_k(5, scope="tree"), like, p).kind == "gather"
    us = draws(like, p, 2, seed=4)

    def block(us):
        def step(state, u):
            out, new = opt.update(u, state, like)
            return new, (out, state[0].residual, new[0].residual)

        us = jax.tree.map(lambda x: x[0], us)
        return jax.tree.map(lambda x: x[None], jax.lax.scan(step, opt.init(like), us)[1])

    run = jax.shard_map(block, mesh=mesh_of(p), in_specs=SPEC, out_specs=SPEC, check_vma=False)
    out, before, after = jax.tree.map(np.asarray, jax.jit(run)(us))
    sent = 0
    for name, u in us.items():
        y = np.asarray(u, np.float32) + before[name]
        message = np.float64(y) - after[name]
        np.testing.assert_array_equal(message, message.astype(out[name].dtype).astype(np.float64))
        sent = sent + np.count_nonzero(message, axis=tuple(range(2, message.ndim)))
        mean = functools.reduce(np.add, message.astype(np.float32)) / np.float32(p)
        for worker in range(p):
            np.testing.assert_array_equal(out[name][worker], mean.astype(out[name].dtype))
    np.testing.assert_array_equal(sent, np.full((p, 2), 5))


@pytest.mark.slow
def test_any_payload_can_be_packed():
    """Of every width and kind, scalars and empty arrays too; one array for each width."""
    kinds = ("float32", "uint8", "bool", "bfloat16", "int32", "uint16", "float16", "int8")
    payload = [
        jnp.asarray(np.arange(math.prod(shape)).reshape(shape) % 2, kind)
        for kind in kinds
        for shape in ((3, 2), (), (0,))
    ]
    packed, unpack = wires._pack(payload, (AXIS,))
    assert sorted(x.dtype.itemsize for x in packed) == [1, 2, 4]
    for got, want in zip(unpack(packed), payload, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
