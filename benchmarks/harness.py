"""One way to measure: programs in turns (A B A B …), medians of the ratios of neighbours.

Time is the processor's time of this process: one thread computes, and what other processes do
meanwhile does not count (though they still share caches and memory).
"""

import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Program = Callable[[], Any]  # runs once and returns what to wait for


class Row(NamedTuple):
    """One line of the table. Without a target it is there for comparison."""

    name: str
    ratio: float  # median over the rounds
    low: float  # lower quartile
    high: float  # upper quartile
    target: str  # "<= 1.5", ">= 0.9", or ""
    milliseconds: float  # a step of the program measured, median
    floor: str  # the least it could take, and why
    note: str = ""

    @property
    def met(self) -> str:
        """Whether the median keeps the target: yes, no, or nothing where there is none."""
        if not self.target:
            return ""
        relation, limit = self.target.split()
        kept = {"<=": self.ratio <= float(limit), ">=": self.ratio >= float(limit)}
        return "yes" if kept[relation] else "no"


def donated(step: Callable[..., Any], state: Any, *inputs: Any) -> Program:
    """Compiles `step(state, *inputs) -> state` with the state's buffers reused, and warms it up."""
    compiled = jax.jit(step, donate_argnums=0).lower(state, *inputs).compile()
    box = [jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)]

    def run() -> Any:
        box[0] = compiled(box[0], *inputs)
        return box[0]

    jax.block_until_ready(run())
    return run


def scanned(step: Callable[..., Any], steps: int) -> Callable[..., Any]:
    """Takes `steps` steps in one program."""

    def many(state, *inputs):
        return jax.lax.scan(lambda s, _: (step(s, *inputs), None), state, None, steps)[0]

    return many


def in_turns(
    programs: Mapping[str, Program], rounds: int, seconds: float = 0.01
) -> dict[str, np.ndarray]:
    """Times programs in turns.

    Args:
        programs: by name.
        rounds: turns that each of them has, after one that does not count.
        seconds: a turn repeats its program until about this long.

    Returns:
        Seconds of processor time a run of each program, [rounds].
    """
    repeats = {}
    for name, program in programs.items():
        jax.block_until_ready(program())
        start = time.process_time()
        jax.block_until_ready(program())
        repeats[name] = max(1, int(seconds / max(1e-6, time.process_time() - start)))
    times = {name: np.empty(rounds) for name in programs}
    for turn, (name, program) in itertools.product(range(-1, rounds), programs.items()):
        start = time.process_time()
        for _ in range(repeats[name]):
            jax.block_until_ready(program())
        if turn >= 0:
            times[name][turn] = (time.process_time() - start) / repeats[name]
    return times


def compare(
    name: str,
    over: np.ndarray,
    under: np.ndarray,
    target: str = "",
    *,
    step: np.ndarray,
    floor: str = "",
    note: str = "",
) -> Row:
    """Makes a row of the ratios of two programs, round by round; `step` are the seconds to tell."""
    low, middle, high = np.quantile(over / under, [0.25, 0.5, 0.75])
    milliseconds = float(np.median(step)) * 1e3
    return Row(name, float(middle), float(low), float(high), target, milliseconds, floor, note)


def memory_pass(rows: int, d: int, steps: int) -> Program:
    """Goes through a matrix of float32 in place, a row a step: 8 d bytes read and written each."""

    def step(state):
        at, ring = state
        row = jax.lax.dynamic_index_in_dim(ring, at, keepdims=False)
        ring = jax.lax.dynamic_update_index_in_dim(ring, row * 0.999, at, 0)
        return (at + 1) % rows, ring

    return donated(scanned(step, steps), (jnp.int32(0), jnp.ones((rows, d), jnp.float32)))


def copy_pass(rows: int, d: int, steps: int) -> Program:
    """Copies a row of float32 to another, as STREAM does: 8 d bytes read and written a step.

    The rows read and those written come to `rows` in all, and are gone through in turn. This is
    slower than a pass in place: a cache line is fetched before it is written over.
    """

    def step(state, source):
        at, copy = state
        row = jax.lax.dynamic_index_in_dim(source, at % len(source), keepdims=False)
        copy = jax.lax.dynamic_update_index_in_dim(copy, row * 0.999, at % len(copy), 0)
        return at + 1, copy

    source, copy = (jnp.ones((n, d), jnp.float32) for n in (rows // 2, rows - rows // 2))
    return donated(scanned(step, steps), (jnp.int32(0), copy), source)
