"""Sharded parameters: the same mathematics wherever XLA shards, and shard by shard.

Two workers, each with its parameters on two devices, against two workers that have them whole. All
cases of the table run side by side, in one program a mode.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import AXIS, LOCAL, exchanges, mixes
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from steps import draws, mesh_of
from test_devices import apart, largest, rounding, side_by_side

import elastic_jax as ej
from elastic_jax import shards

ALPHA, STEPS, WORKERS = 0.1, 6, 2
LIKE = {"m": jnp.zeros((6, 4)), "r": jnp.zeros((3,))}  # sharded, and on every device
SPECS = {"m": P(None, "model"), "r": P()}
QUICK = {"xla_backend_optimization_level": 0}  # programs compile sooner
MEAN = ej.all_mean(AXIS)
TABLE = {case.name: (case, True) for case in LOCAL}
TABLE |= {case.name: (case, False) for case in exchanges(AXIS) + mixes(AXIS)}
REFUSED = [
    name for name in TABLE if "_bounded" in name or "tree" in name
]  # by_shard refuses: clocks, and selection among leaves


def shard_local(name: str) -> bool:
    """Whether a shard by itself is another function of it, or draws otherwise, than the whole."""
    if name == "error_feedback(identity, bfloat16, axis_name)":
        return True  # which worker holds what rounding drops goes by an entry's place
    alike = "identity" in name or name.endswith("(threshold)")  # coordinate by coordinate
    compresses = name.startswith(("error_feedback", "compress", "ef21", "choco"))
    return name == "delay(per_coordinate)" or (compresses and not alike)


def mesh_2x2() -> Any:
    return mesh_of(WORKERS, 2, names=(AXIS, "model"))


def loss(params, noise):
    """Linear, so that the updates are known: -ALPHA noise."""
    return sum(jax.tree.leaves(jax.tree.map(lambda x, n: jnp.sum(n * x), params, noise)))


def build(mode: str, names: tuple[str, ...]) -> Any:
    steps = []
    for name in names:
        case, is_local = TABLE[name]
        parts = [case.make(LIKE), *[MEAN] * is_local]
        if mode == "by_shard":
            parts = [shards.by_shard(optax.chain(*parts), mesh_2x2(), SPECS)]
        chain = ej.meter(optax.chain(optax.sgd(ALPHA), *parts), ALPHA, AXIS, every=1)
        steps.append(ej.worker_step(loss, chain, AXIS))
    step = side_by_side(steps)
    if mode == "whole":
        return ej.simulate(step, WORKERS)
    return ej.distribute(step, mesh_2x2(), specs=SPECS)


def figures(state: Any) -> dict[str, Any]:
    of_one = {
        "params": lambda s: s.params,
        "held": lambda s: ej.held(s.opt_state, s.params),
        "lost": lambda s: ej.lost(s.opt_state, s.params),
    }
    mass = {name: jax.vmap(report)(state) for name, report in of_one.items()}
    meter = state.opt_state
    return {"mass": mass, "meter": (meter.elastic_constant, meter.second_moment)}


def inputs() -> tuple[Any, Any]:
    return draws(LIKE, seed=2), draws(LIKE, STEPS, WORKERS, seed=1)


@functools.cache
def results(mode: str, names: tuple[str, ...]) -> dict[str, Any]:
    """The states' figures after some steps: of whole leaves, or (`shards`) of each shard alone."""
    run = build("whole" if mode == "shards" else mode, names)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def go(params, batches):
        if mode == "shards":
            halves = jax.tree.map(lambda x: jnp.stack(_halves(x)), (params, batches))
            states = jax.vmap(lambda p, b: jax.lax.scan(run.step, run.init(p), b)[0])(*halves)
            return [jax.vmap(figures)(state) for state in states]
        states, _ = jax.lax.scan(run.step, run.init(params), batches)
        return [figures(state) for state in states]

    return dict(zip(names, go(*inputs()), strict=True))


def _halves(x: jax.Array) -> list[jax.Array]:
    """What each of two devices has of an array: half of the columns, or all of a vector."""
    return jnp.split(x, 2, axis=-1) if x.shape[-1] == 4 else [x, x]


def joined(tree: Any) -> Any:
    """Puts halves [2, ...] together again."""
    return jax.tree.map(
        lambda x: np.concatenate(x, axis=-1) if x.shape[-1] == 2 else x[0],
        jax.tree.map(np.asarray, tree),
    )


def in_groups(mode: str, name: str) -> Any:
    """Some cases at once: with many more, XLA's CPU devices wait for ever."""
    names = [name for name in TABLE if mode != "by_shard" or name not in REFUSED]
    at = names.index(name) // 16 * 16
    return results(mode, tuple(names[at : at + 16]))[name]


def close(got: Any, want: Any) -> bool:
    """Whether they agree to the rounding of `STEPS` steps."""
    return apart(got, want) <= rounding("float32", max(1.0, largest(want)))


def check_xla(name: str, get: Any) -> None:
    """What XLA shards is what it would be whole, the meter's sums over shards too."""
    got, want = get("distribute", name), get("whole", name)
    assert close(got["mass"], want["mass"])
    assert close(jax.tree.map(lambda x: x * ALPHA, got["meter"]), _scaled(want["meter"]))


def _scaled(meter: Any) -> Any:
    return jax.tree.map(lambda x: x * ALPHA, meter)


def check_by_shard(name: str, get: Any) -> None:
    """Each shard does what it would do alone, which is the same or not; no mass is lost."""
    got, alone, whole = (get(mode, name)["mass"] for mode in ("by_shard", "shards", "whole"))
    check_copies(got)
    got = jax.tree.map(np.asarray, got)
    assert close(got, joined(alone))
    assert close(got, whole) != shard_local(name)
    params, batches = inputs()
    gain = TABLE[name][0].gain
    total = jax.tree.map(lambda v, h, m: (v + h + m).mean(0), *got.values())
    want = jax.tree.map(lambda x, u: x - gain * ALPHA * u.mean(1).sum(0), params, batches)
    assert apart(total, want) <= gain * rounding("float32", max(1.0, largest(got)))


def check_copies(tree: Any) -> None:
    """What several devices have, all of them have alike, bit by bit."""
    for x in jax.tree.leaves(tree):
        copies: dict[str, list[np.ndarray]] = {}
        for shard in x.addressable_shards:
            copies.setdefault(str(shard.index), []).append(np.asarray(shard.data))
        for first, *others in copies.values():
            assert all(np.array_equal(first, other) for other in others)


FEW = (
    "delay(uniform)",
    "error_feedback(axis_name)",
    "lossy(link)",
    "compress(low_rank(1))",
    "mix(ring)",
)


def of_few(mode: str, name: str) -> Any:
    return results(mode, FEW)[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_xla_shards_the_same_mathematics(name):
    check_xla(name, of_few)


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_by_shard_is_each_shard_alone(name):
    check_by_shard(name, of_few)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_xla_shards_every_case(name):
    check_xla(name, in_groups)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TABLE if name not in REFUSED])
def test_by_shard_in_every_case(name):
    check_by_shard(name, in_groups)


@pytest.mark.parametrize("name", REFUSED)
def test_by_shard_refuses_what_devices_would_disagree_on(name):
    case, _ = TABLE[name]
    inner = shards.by_shard(case.make(LIKE), mesh_of(2, names=("model",)), SPECS)
    with pytest.raises(ValueError, match="by_shard away"):
        jax.eval_shape(inner.init, LIKE)


def test_no_relaxation_no_shard():
    """What is no relaxation may be another function of a shard; the base stays outside."""
    inner = optax.chain(optax.clip_by_global_norm(1.0), ej.delay(1))
    opt = shards.by_shard(inner, mesh_of(2, names=("model",)), SPECS)
    with pytest.raises(ValueError, match="holds a transformation that is no relaxation"):
        jax.eval_shape(lambda u: opt.update(u, opt.init(u), u), LIKE)


@pytest.mark.slow
def test_one_worker_has_all_the_shards():
    """XLA fails at a sum over one device beside sharded arrays; there is nothing to add up."""
    chain = optax.chain(optax.sgd(ALPHA), ej.error_feedback(ej.top_k(2), AXIS), ej.delay(1))
    step = ej.worker_step(loss, ej.meter(chain, ALPHA, AXIS, every=1), AXIS)
    mesh = mesh_of(1, 2, names=(AXIS, "model"))
    params, batches = inputs()
    batch = jax.tree.map(lambda x: x[0, :1], batches)
    found = []
    for run in (ej.distribute(step, mesh, specs=SPECS), ej.simulate(step, 1)):
        go = jax.jit(run.step, compiler_options=QUICK)
        state, _ = go(go(run.init(params), batch)[0], batch)
        found.append(figures(state))
    assert close(*(one["mass"] for one in found))
    assert close(*(_scaled(one["meter"]) for one in found))


# ---- what is refused ----

REFUSALS: dict[str, Any] = {
    "no spec": (TypeError, {"m": "model", "r": P()}, ("specs hold 'model'", "PartitionSpec()")),
    "None": (TypeError, {"m": None, "r": P()}, ("specs hold None", "on every device")),
    "another tree": (ValueError, {"m": P("model")}, ("is no tree (or prefix) of",)),
    "another axis": (ValueError, P("gpu"), ("axes ('gpu',)", "over ('model',)")),
    "the workers'": (ValueError, P(AXIS), (f"axes ('{AXIS}',)", "over ('model',)")),
    "no divisor": (ValueError, P("model"), ("shape (3,)", "'model': 2", "another dimension")),
}


def refused_by_shard(specs: Any) -> None:
    opt = shards.by_shard(ej.delay(1), mesh_of(2, names=("model",)), specs)
    jax.eval_shape(opt.init, LIKE)


def refused_by_distribute(specs: Any) -> None:
    step = ej.worker_step(loss, optax.chain(optax.sgd(ALPHA), MEAN), AXIS)
    ej.distribute(step, mesh_2x2(), specs=specs).init(LIKE)


WHOSE = [(refused_by_shard, name) for name in REFUSALS]
WHOSE += [(refused_by_distribute, name) for name in REFUSALS if name != "no divisor"]  # XLA pads


@pytest.mark.parametrize(("call", "name"), WHOSE)
def test_specs_that_are_none(call, name):
    error, specs, words = REFUSALS[name]
    with pytest.raises(error) as caught:
        call(specs)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_specs_of_shards_that_are_not_there():
    """Sums over shards are for a shard_map that splits them; elsewhere XLA adds them up."""
    meter = ej.meter(optax.chain(optax.sgd(ALPHA), ej.delay(1)), ALPHA, every=1, specs=SPECS)
    with pytest.raises(ValueError, match="no shard_map splits here"):
        meter.update(LIKE, meter.init(LIKE), LIKE)
    run = ej.distribute(ej.worker_step(loss, MEAN, AXIS), mesh_2x2(), specs=SPECS)
    explicit = mesh_of(WORKERS, 2, names=(AXIS, "model"), kind=AxisType.Explicit)
    with jax.set_mesh(explicit), pytest.raises(ValueError, match="mesh in force has explicit"):
        run.init(LIKE)
    with pytest.raises(TypeError, match="inner=4 is no transformation"):
        shards.by_shard(4, mesh_2x2(), SPECS)
    with pytest.raises(TypeError, match="mesh=4 is no mesh"):
        shards.by_shard(ej.delay(1), 4, SPECS)
