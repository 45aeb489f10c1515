"""One step on every machine: vmap = shard_map = pmap = several simulated workers on each device.

All cases run side by side in one program a mode, so that each mode is compiled once.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import AXIS, COMPRESSORS, LOCAL, exchanges, mixes
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from steps import draws, mesh_of

import elastic_jax as ej
from elastic_jax import devices
from elastic_jax.workers import WorkerStep

P, STEPS, ALPHA = 4, 6, 0.1
SIMULATED = ("sim", AXIS)  # two on each of two devices
MODES = ("shard_map", "pmap", "hybrid", "own")  # the last a shard_map of one's own, checked
SHAPES = {"m": jnp.zeros((6, 4)), "s": jnp.zeros(())}
D = 25


def loss(params, noise):
    """Quadratic of curvature 1/2: a step of SGD contracts, and amplifies no rounding."""
    square = jax.tree.map(lambda x, n: jnp.sum(x * x / 4 + n * x), params, noise)
    return sum(jax.tree.leaves(square))


def chains(axis: str | tuple[str, ...]) -> dict[str, list[optax.GradientTransformation]]:
    """Every case of the table in a legal place: local ones before a mean, and after exchanges."""
    mean = ej.all_mean(axis)
    table = {case.name: [case.make(SHAPES), mean] for case in LOCAL}
    table |= {case.name: [case.make(SHAPES)] for case in exchanges(axis) + mixes(axis)}
    late = ej.error_feedback(COMPRESSORS["top_k(0.25)"], axis_name=axis)
    table["delay after error_feedback"] = [late, ej.delay(2)]
    table["delay(uniform) after all_mean"] = [mean, ej.delay(ej.delays.uniform(1, 4))]
    table["delay, error_feedback(low_rank), delay"] = [
        ej.delay(1),
        ej.error_feedback(COMPRESSORS["low_rank(1)"], axis_name=axis),
        ej.delay(1),
    ]
    return table


CASES = tuple(chains(AXIS))
DOUBLE = (  # a few in float64, where a wrong order or seed cannot hide in rounding
    "delay(uniform)",
    "error_feedback(axis_name)",
    "compress(exchange)",
    "ef21(axis_name)",
)


def side_by_side(steps: list[WorkerStep]) -> WorkerStep:
    """Several worker steps on the same batches, as one."""

    def step(states, batch):
        done = [one.step(state, batch) for one, state in zip(steps, states, strict=True)]
        return tuple(state for state, _ in done), tuple(out for _, out in done)

    return WorkerStep(lambda params: tuple(s.init(params) for s in steps), step, steps[0].axis_name)


def build(mode: str, names: tuple[str, ...]) -> WorkerStep:
    axis = SIMULATED if mode == "hybrid" else AXIS
    table = chains(axis)
    steps = []
    for name in names:
        chain = optax.chain(optax.sgd(ALPHA), *table[name])
        steps.append(ej.worker_step(loss, ej.meter(chain, ALPHA, axis, every=1), axis))
    step = side_by_side(steps)
    if mode == "vmap":
        return ej.simulate(step, P)
    if mode == "pmap":
        return devices.pmap(step, P)
    if mode == "hybrid":
        return ej.distribute(step, mesh_of(2), workers=P)
    return own(step) if mode == "own" else ej.distribute(step, mesh_of(P))


def own(step: WorkerStep) -> WorkerStep:
    """One worker on each device, in a `jax.shard_map` whose `check_vma` is on, as it is unasked."""

    def block(*blocks):
        out = step.step(*jax.tree.map(lambda x: x[0], blocks))
        return jax.tree.map(lambda x: x[None], out)

    spec = PartitionSpec(AXIS)
    run = jax.shard_map(block, mesh=mesh_of(P), in_specs=spec, out_specs=spec)
    return WorkerStep(ej.simulate(step, P).init, run, AXIS)


def figures(state: Any) -> dict[str, Any]:
    """What must agree, of one case; squares as roots, whose errors do not depend on their size."""
    meter = state.opt_state
    mass = {
        "params": state.params,
        "held": jax.vmap(lambda s: ej.held(s.opt_state, s.params))(state),
        "lost": jax.vmap(lambda s: ej.lost(s.opt_state, s.params))(state),
    }
    squares = jax.tree.map(jnp.sqrt, (meter.gap, meter.lost_mass))
    bounds = (meter.elastic_constant, meter.second_moment)
    exact = (meter.step, meter.samples, meter.alarm)
    return {"mass": mass, "roots": squares, "bounds": bounds, "exact": exact}


TOGETHER = 16  # cases; with many more collectives at once XLA's CPU devices wait for ever


def results(mode: str, names: tuple[str, ...] = CASES, dtype: str = "float32") -> dict[str, Any]:
    """Figures of each case, after some steps from random parameters."""
    parts = (names[i : i + TOGETHER] for i in range(0, len(names), TOGETHER))
    return {name: one for part in parts for name, one in figures_of(mode, part, dtype).items()}


@functools.cache
def figures_of(mode: str, names: tuple[str, ...], dtype: str) -> dict[str, Any]:
    """The figures of some cases, in one program."""
    with jax.enable_x64(dtype == "float64"):
        like = jax.tree.map(lambda x: x.astype(dtype), SHAPES)
        run = build(mode, names)
        batches = draws(like, STEPS, P, seed=1)

        @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
        def go(params, batches):  # at level 0 they compile sooner
            states, losses = jax.lax.scan(run.step, run.init(params), batches)
            return [figures(state) for state in states], losses

        found, losses = jax.tree.map(np.asarray, go(draws(like, seed=2), batches))
    return {name: (one, loss) for name, one, loss in zip(names, found, losses, strict=True)}


def rounding(dtype: str, size: float) -> float:
    """By how much two programs may differ after all steps, in numbers of up to `size`.

    A step rounds each number fewer than P + 12 times: P in a mean, then gradient, proposal,
    addition of the residual, message, new residual, new view and the sums that report them; FMA
    leaves some out. SGD contracts; delays move numbers; a compressor's selection is the same, its
    scale (a norm, a mean, a factor) differs by no more than its input. So errors add, over steps.
    """
    return STEPS * (P + 12) * float(jnp.finfo(dtype).eps) * size


def largest(tree: Any) -> float:
    return max(float(np.max(np.abs(x), initial=0)) for x in jax.tree.leaves(tree))


def apart(got: Any, want: Any) -> float:
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max((largest(a - b) for a, b in pairs), default=0.0)


def check_equal(mode: str, name: str, names: tuple[str, ...], dtype: str) -> float:
    (got, got_loss), (want, want_loss) = (results(m, names, dtype)[name] for m in (mode, "vmap"))
    size = max(1.0, largest(want["mass"]))
    off, reported = rounding(dtype, size), rounding("float32", size)  # the meter is float32
    errors = {
        "mass": apart(got["mass"], want["mass"]) / off,
        # a norm of D numbers; in units of alpha
        "roots": apart(got["roots"], want["roots"]) / (math.sqrt(D) * reported),
        "bounds": apart(got["bounds"], want["bounds"]) / (math.sqrt(D) * reported / ALPHA),
        # a sum of D products of numbers of up to `size` and noise of up to 4
        "loss": apart(got_loss, want_loss) / (D * (size + 4) * off),
    }
    worst = max(errors.values())
    assert worst <= 1, errors
    assert jax.tree.all(jax.tree.map(np.array_equal, got["exact"], want["exact"]))
    assert got_loss.shape == (STEPS, P)
    return worst


slow = pytest.mark.slow
EVERY = [MODES[0], *(pytest.param(mode, marks=slow) for mode in MODES[1:])]
FEW = [*MODES[1:], pytest.param(MODES[0], marks=slow)]


@pytest.mark.slow  # compiles every case in every mode
@pytest.mark.parametrize("mode", EVERY)
@pytest.mark.parametrize("name", CASES)
def test_equals_simulate(mode, name):
    check_equal(mode, name, CASES, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("mode", FEW)
@pytest.mark.parametrize("name", DOUBLE)
def test_equals_simulate_float64(mode, name):
    check_equal(mode, name, DOUBLE, "float64")


def test_the_check_can_fail():
    """Another order of workers is far outside the tolerance."""
    want, _ = results("vmap", DOUBLE, "float64")["error_feedback(axis_name)"]
    held = jax.tree.map(lambda x: x[::-1], want["mass"]["held"])
    assert apart(held, want["mass"]["held"]) > 1e6 * rounding("float64", largest(want["mass"]))


# ---- which worker is where ----


def linear_loss(x, noise):
    return jnp.sum(x * noise), noise[0]


def small(axis: Any, *parts: optax.GradientTransformation) -> WorkerStep:
    chain = optax.chain(optax.sgd(1.0), *parts)
    return ej.worker_step(linear_loss, chain, axis, has_aux=True)


@pytest.mark.slow
def test_the_index_counts_the_innermost_axis_fastest():
    """Simulated workers on a mesh of two axes: states, keys, batches and losses stand in order."""
    axes = ("sim", "a", "b")

    def draw(axis):
        return small(axis, ej.compress(COMPRESSORS["random_k"], axis_name=axis))

    mesh = mesh_of(2, 2, 2, names=("b", "idle", "a"))
    run = ej.distribute(draw(axes), mesh, workers=8)
    want = ej.simulate(draw(AXIS), 8)
    batches = jnp.arange(40.0).reshape(8, 5)
    states, (losses, aux) = run.step(run.init(jnp.ones(5)), batches)
    simulated, (_, _) = want.step(want.init(jnp.ones(5)), batches)
    np.testing.assert_array_equal(losses, batches.sum(1))
    np.testing.assert_array_equal(aux, batches[:, 0])
    keys, same = (s.opt_state[1][0].sender.worker_key for s in (states, simulated))
    np.testing.assert_array_equal(keys, same)
    assert len({tuple(key) for key in np.asarray(keys).tolist()}) == 8
    dropped, same = (s.opt_state[1][0].dropped for s in (states, simulated))
    np.testing.assert_array_equal(dropped, same)
    assert states.params.sharding.spec == PartitionSpec(("b", "a"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_meshes_of_both_kinds(kind):
    """Axes that XLA manages, and explicit ones (what `jax.make_mesh` makes); inside and outside."""
    mesh = mesh_of(2, kind=kind)
    run = ej.distribute(small(AXIS, ej.all_mean(AXIS)), mesh)
    batches = jnp.arange(12.0).reshape(2, 2, 3)  # [steps, workers, …]
    want = -np.asarray(batches).mean(1).sum(0)
    placed = jax.device_put(batches, NamedSharding(mesh, PartitionSpec(None, AXIS)))
    for given in (batches, placed):
        states, _ = jax.lax.scan(run.step, run.init(jnp.zeros(3)), given)
        np.testing.assert_allclose(states.params, np.stack([want, want]))
        assert states.params[1, 0] == want[0]  # stacks can be indexed
    if kind == AxisType.Explicit:
        with jax.set_mesh(mesh):
            states, _ = run.step(run.init(jnp.zeros(3)), batches[0])
            np.testing.assert_allclose(np.asarray(states.params)[1], -batches[0].mean(0))


def test_a_loss_may_loop_from_constants():
    def looping(x, noise):
        return jax.lax.scan(lambda total, n: (total + n * x.sum(), None), 0.0, noise)[0]

    step = ej.worker_step(looping, optax.chain(optax.sgd(1.0), ej.all_mean(AXIS)), AXIS)
    run = ej.distribute(step, mesh_of(2))
    states, losses = run.step(run.init(jnp.ones(1)), jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    np.testing.assert_allclose(losses, [3.0, 7.0])
    np.testing.assert_allclose(states.params, [[-4.0], [-4.0]])


# ---- what is refused ----

ONE, TWO = small(AXIS, ej.all_mean(AXIS)), small(SIMULATED, ej.all_mean(SIMULATED))
make: Any = ej.distribute
REFUSED = {
    "no step": (TypeError, lambda m: make(loss, m), ("is no worker step", "worker_step(")),
    "no mesh": (TypeError, lambda m: make(ONE, 4), ("mesh=4", "jax.make_mesh")),
    "no axis": (
        ValueError,
        lambda m: make(small(None), m),
        ("axis_name=None", "axis of the mesh: ('workers',)"),
    ),
    "an axis that the mesh has not": (
        ValueError,
        lambda m: make(small("gpu", ej.all_mean("gpu")), m),
        ("axis_name='gpu'", "has axes ('workers',)", "at most one simulated axis"),
    ),
    "a simulated axis outside": (
        ValueError,
        lambda m: make(small((AXIS, "sim")), m, workers=4),
        ("axis_name=('workers', 'sim')", "innermost first"),
    ),
    "two simulated axes": (
        ValueError,
        lambda m: make(small(("a", "b", AXIS)), m, workers=4),
        ("axis_name=('a', 'b', 'workers')", "at most one simulated axis"),
    ),
    "an axis twice": (
        ValueError,
        lambda m: make(small((AXIS, AXIS)), m),
        ("axis_name=('workers', 'workers')", "once"),
    ),
    "how many simulated": (
        ValueError,
        lambda m: make(TWO, m),
        ("workers=None", "'sim' is not in the mesh", "a multiple of its 2 devices"),
    ),
    "not divisible": (
        ValueError,
        lambda m: make(TWO, m, workers=3),
        ("workers=3", "2 devices", "pass a multiple of 2"),
    ),
    "no number": (ValueError, lambda m: make(TWO, m, workers=0), ("workers=0", "an int >= 1")),
    "several without a simulated axis": (
        ValueError,
        lambda m: make(ONE, m, workers=4),
        ("workers=4", "2 devices", "axis_name=('simulated', 'workers')"),
    ),
    "batches": (
        ValueError,
        lambda m: make(ONE, m).step(make(ONE, m).init(jnp.ones(3)), jnp.ones((4, 3))),
        ("batches hold an array of shape (4, 3)", "2 workers", "stack one batch"),
    ),
    "pmap of too many": (
        ValueError,
        lambda m: devices.pmap(ONE, 9),
        ("workers=9", "8 devices", "distribute("),
    ),
    "pmap over two axes": (ValueError, lambda m: devices.pmap(TWO, 2), ("('sim',", "one name")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_message_that_helps(name):
    error, call, words = REFUSED[name]
    with pytest.raises(error) as caught:
        call(mesh_of(2))
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
