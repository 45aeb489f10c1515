"""Do the devices that are here compute what simulated workers on a CPU do?

    python -m experiments.agreement [--only EXCHANGE …]

Runs one worker step, in float64, with the workers simulated on a CPU, simulated on an accelerator,
and spread over all of its devices, with four on each and with one. Says by how much views, held and
lost mass differ, in units of what rounding allows, and whether a program gives the same bits when
it runs again. The status is 1 where they differ.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.sharding import AxisType

import elastic_jax as ej
from elastic_jax.workers import WorkerStep
from experiments.train_config import make_compressor

AXIS, SIMULATED = "devices", "simulated"
ALPHA, STEPS = 0.1, 6
EACH = 4  # simulated workers on a device
SHAPES = {"matrix": (6, 4), "vector": (7,)}


@dataclasses.dataclass(frozen=True)
class Config:
    """Do the devices that are here compute what simulated workers on a CPU do?"""

    only: tuple[str, ...] = ()
    """Exchanges to compare; none takes all."""


def exchanges(axis: Any) -> dict[str, optax.GradientTransformation]:
    """Names relaxations that average in every way there is: dense, gathered, reduced, shifted."""
    feedback = functools.partial(ej.error_feedback, axis_name=axis)
    found = {
        name: feedback(make_compressor(name, amount))
        for name, amount in (("top_k", 0.25), ("random_k", 0.25), ("sign", None), ("quantize", 4))
    }
    found["low_rank"] = feedback(make_compressor("low_rank", 1))
    late = optax.chain(ej.all_mean(axis), ej.delay(ej.delays.uniform(1, 4)))
    ring = ej.gossip.mix(axis, ej.graphs.ring())
    return {"dense": ej.all_mean(axis), "delay": late, **found, "gossip": ring}


def loss(params: Any, noise: Any) -> jax.Array:
    """A quadratic of curvature 1/2: a step of SGD contracts, and amplifies no rounding."""
    square = jax.tree.map(lambda x, n: jnp.sum(x * x / 4 + n * x), params, noise)
    return sum(jax.tree.leaves(square), jnp.zeros(()))


def worker_steps(axis: Any, names: Sequence[str]) -> WorkerStep:
    """Several exchanges on the same batches, as one worker step: compiled once."""
    steps = [
        ej.worker_step(loss, optax.chain(optax.sgd(ALPHA), exchanges(axis)[name]), axis)
        for name in names
    ]

    def init(params: Any) -> Any:
        return [one.init(params) for one in steps]

    def step(states: Any, batch: Any) -> Any:
        done = [one.step(state, batch) for one, state in zip(steps, states, strict=True)]
        return [state for state, _ in done], [out for _, out in done]

    return WorkerStep(init, step, axis)


def training(run: Any, workers: int) -> Callable[[], list[Any]]:
    """Compiles some steps of training; returns views, held and lost mass by exchange, [p, ...]."""
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    batches = {name: rng.standard_normal((STEPS, workers, *s)) for name, s in SHAPES.items()}

    @jax.jit
    def go(params, batches):
        states, _ = jax.lax.scan(run.step, run.init(params), batches)
        reports = jax.vmap(lambda s: [f(s.opt_state, s.params) for f in (ej.held, ej.lost)])
        return [(state.params, reports(state)) for state in states]

    given = jax.tree.map(jnp.asarray, (params, batches))
    return lambda: jax.tree.map(np.asarray, go(*given))


def rounding(workers: int, size: float) -> float:
    """By how much two programs may differ, in float64 and numbers of up to `size`.

    A step rounds each number fewer than p + 12 times: p in a mean, then gradient, proposal, added
    residual, message, new residual and new view. Delays move numbers; a compressor's scale differs
    by no more than its input does. SGD contracts, so errors add, over steps.
    """
    return STEPS * (workers + 12) * float(np.finfo(np.float64).eps) * size


def excess(got: Any, want: Any, workers: int) -> float:
    """The largest difference between two trees, in units of what rounding allows."""
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))
    size = max(1.0, *(float(np.max(np.abs(b))) for _, b in pairs))
    return max(float(np.max(np.abs(a - b))) for a, b in pairs) / rounding(workers, size)


def compare(names: Sequence[str], devices: Sequence[Any]) -> tuple[list[str], bool]:
    """Runs exchanges on devices; returns a line for each way to run, and whether all agree."""
    n, kind = len(devices), devices[0].device_kind
    mesh = jax.make_mesh((n,), (AXIS,), (AxisType.Auto,), devices=devices)
    ways: dict[str, tuple[int, Any]] = {}
    ways[f"{EACH} on each of {n} {kind}"] = EACH * n, (SIMULATED, AXIS)
    if n > 1:
        ways[f"one on each of {n} {kind}"] = n, AXIS
    if devices[0].platform != "cpu":
        ways[f"{EACH * n} simulated on {kind}"] = EACH * n, None
    said, fine = [], True
    with jax.enable_x64(True):
        for way, (p, axis) in ways.items():
            simulated = ej.simulate(worker_steps(AXIS, names), p)
            spread = axis and ej.distribute(worker_steps(axis, names), mesh, workers=p)
            with jax.default_device(jax.devices("cpu")[0]):
                want = training(simulated, p)()
            go = training(spread or simulated, p)
            got, again = go(), go()
            off = {name: excess(a, b, p) for name, a, b in zip(names, got, want, strict=True)}
            worst = max(off, key=lambda name: off[name])
            same = all(map(np.array_equal, jax.tree.leaves(got), jax.tree.leaves(again)))
            agree = all(ratio <= 1 for ratio in off.values())  # not of a NaN
            said.append(
                f"{way}: {'agrees' if agree else 'does NOT agree'} with {p} simulated on a CPU, at "
                f"most {off[worst]:.2g} of what rounding allows ({worst}); run again, the bits are "
                f"{'the same' if same else 'NOT the same'}."
            )
            fine = fine and agree and same
    return said, fine


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the comparison; the status is 1 where results differ, 2 for bad arguments."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.agreement")
    known = list(exchanges(AXIS))
    unknown = [name for name in config.only if name not in known]
    if unknown:
        print(f"error: --only {unknown[0]}: give some of {', '.join(known)}", file=sys.stderr)
        return 2
    said, fine = compare(config.only or known, jax.devices())
    print("\n".join(said))
    return int(not fine)


if __name__ == "__main__":
    sys.exit(main())
