"""The programs that `experiments.scaling` times, and how it times them."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import elastic_jax as ej
from elastic_jax.precision import wide
from elastic_jax.types import Compressor
from elastic_jax.wire import wire

AXIS, SIMULATED = "devices", "simulated"
ALPHA = 0.1  # no time depends on it
Program = Callable[[], Any]  # runs once and returns what to wait for


def matrix(d: int) -> jax.Array:
    """Returns zeros, float32, of d numbers as square as can be."""
    rows = next(rows for rows in range(math.isqrt(d), 0, -1) if d % rows == 0)
    return jnp.zeros((rows, d // rows), jnp.float32)


def normal(*shape: int) -> jax.Array:
    """Draws given gradients; what they are changes no time."""
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


def linear(x: jax.Array, batch: jax.Array) -> jax.Array:
    """A loss whose gradient is its batch; `vdot` would be slow under vmap on a CPU."""
    return jnp.sum(x * batch)


def donated(step: Callable[..., Any], state: Any, *inputs: Any) -> tuple[Program, str]:
    """Compiles `step(state, *inputs) -> state, …` with the state's buffers reused.

    Returns:
        A program that takes one more step whenever it is called, and its text.
    """
    compiled = jax.jit(step, donate_argnums=0).lower(state, *inputs).compile()
    box = [state]

    def run() -> Any:
        box[0], *rest = compiled(box[0], *inputs)
        return box[0], rest

    return run, compiled.as_text() or ""


def training(
    compressor: Compressor | None, d: int, workers: int, devices: int
) -> tuple[Program, str]:
    """Makes steps of p workers on n devices, whose gradients are their batches.

    Args:
        compressor: of the exchange, with error feedback; None for the dense mean.
        d: numbers in an update.
        workers: p.
        devices: n, a divisor of p.

    Returns:
        As `donated`.
    """
    mesh = jax.make_mesh((devices,), (AXIS,), (AxisType.Auto,), devices=jax.devices()[:devices])
    axis = AXIS if workers == devices else (SIMULATED, AXIS)
    exchange = ej.all_mean(axis)
    if compressor is not None:
        exchange = ej.error_feedback(compressor, axis_name=axis)
    chain = optax.chain(optax.sgd(ALPHA), exchange)
    run = ej.distribute(ej.worker_step(linear, chain, axis), mesh, workers=workers)
    like = matrix(d)
    stacked = NamedSharding(mesh, PartitionSpec(AXIS))
    batches = jax.device_put(normal(workers, *like.shape), stacked)
    return donated(run.step, run.init(like), batches)


def coding(compressor: Compressor, d: int, workers: int) -> Program:
    """Makes what compression adds to a machine's step, apart from the wire.

    It adds the residual, encodes, decodes its own message for the next residual, and decodes what
    arrives: p payloads one after the other, as every machine does, or the mean of them. Where
    workers meet to compress, it takes its own numbers for their means.
    """
    like = matrix(d)
    kind = wire(compressor, like, workers).kind
    count = {"gather": workers, "reduce": 1}.get(kind, 0)  # payloads that arrive
    key = jax.random.key(0)
    state = compressor.init(key, like)

    def alone(arrays):
        return (jax.tree.map(wide, arrays),) * 2

    def step(carry, update, arrived):
        state, residual, _ = carry
        y = update + residual
        if compressor.meet is not None:
            message, mean, state = compressor.meet(key, state, y, alone)
            return (state, y - message, mean), ()
        if kind == "dense":  # the messages are averaged as they are
            message, state = compressor.dense(key, state, y)
            return (state, y - message, message), ()
        payload, state = compressor.encode(key, state, y)
        message = compressor.decode(payload, y)

        def add_next(total, payload):
            return total + compressor.decode(payload, y), None

        total, _ = jax.lax.scan(add_next, jnp.zeros_like(y), arrived)
        return (state, y - message, total / count), payload

    update = normal(*like.shape)
    payload, _ = jax.jit(compressor.encode)(key, state, update)
    arrived = jax.tree.map(lambda x: jnp.repeat(x[None], count, axis=0), payload)
    carry = jax.tree.map(lambda x: jnp.array(x, copy=True), (state, like, like))
    return donated(step, carry, update, arrived)[0]


class Times(NamedTuple):
    """Seconds that a program takes, round by round."""

    wall: np.ndarray  # [rounds]
    processor: np.ndarray  # [rounds], of all threads of this process together


def in_turns(
    programs: Mapping[str, Program], rounds: int, seconds: float = 0.02
) -> dict[str, Times]:
    """Times programs in turns: A B A B.

    Args:
        programs: by name.
        rounds: turns that each of them has, after one that does not count.
        seconds: a turn repeats its program until about this long.

    Returns:
        Seconds that a run of each program takes.
    """

    def timed(name: str, repeats: int) -> tuple[float, float]:
        start = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            jax.block_until_ready(programs[name]())
        ends = time.perf_counter(), time.process_time()
        return (ends[0] - start[0]) / repeats, (ends[1] - start[1]) / repeats

    for name in programs:
        timed(name, 1)
    repeats = {name: max(1, int(seconds / timed(name, 1)[0])) for name in programs}
    turns = [{name: timed(name, repeats[name]) for name in programs} for _ in range(rounds)]
    return {name: Times(*np.array([turn[name] for turn in turns]).T) for name in programs}
