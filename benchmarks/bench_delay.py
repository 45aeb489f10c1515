"""`delay(τ)` after sgd: at most 1.5 times its byte floor, and as fast for τ = 64 as for τ = 1.

The floor of a step on d float32: sgd reads parameters and gradients and writes parameters, 12 d
bytes; the queue is written in one row and read in another, 8 d bytes. Bytes are turned into
seconds in the same turns, sgd's by passes in place, the queue's by copies from row to row, each
over as many bytes as the step touches before it comes back to the same ones: four rows for
parameters and gradients (they themselves and two slots), all rows for the queue.
"""

from collections.abc import Iterator

import jax.numpy as jnp
import optax

import elastic_jax as ej
from benchmarks.harness import Row, compare, copy_pass, donated, in_turns, memory_pass, scanned

STEPS = 16  # of one program


def rows(quick: bool) -> Iterator[Row]:
    for d in (10**5,) if quick else (10**5, 10**6):
        delays = (1, 64) if quick else (1, 4, 16, 64)
        programs = {"four rows": memory_pass(4, d, STEPS)}
        for tau in delays:
            programs[f"ring {tau}"] = copy_pass(tau + 3, d, STEPS)
            programs[f"delay {tau}"] = _training(tau, d)
        times = {name: t / STEPS for name, t in in_turns(programs, 15).items()}
        floors = {tau: 1.5 * times["four rows"] + times[f"ring {tau}"] for tau in delays}
        for tau in delays:
            floor = floors[tau]
            yield compare(
                f"delay({tau}) / floor, d = {d:.0e}",
                times[f"delay {tau}"],
                floor,
                "<= 1.5",
                step=times[f"delay {tau}"],
                floor=f"{20 * d / 1e6:.3g} MB in {1e3 * sorted(floor)[len(floor) // 2]:.3f} ms",
            )
        longest = delays[-1]
        yield compare(
            f"delay({longest}) / delay(1), each over its floor, d = {d:.0e}",
            times[f"delay {longest}"] / floors[longest],
            times["delay 1"] / floors[1],
            "<= 1.1",
            step=times[f"delay {longest}"],
        )
        yield compare(
            f"delay({longest}) / delay(1), d = {d:.0e}",
            times[f"delay {longest}"],
            times["delay 1"],
            "<= 1.1",
            step=times[f"delay {longest}"],
            floor=f"floors: {sorted(floors[longest] / floors[1])[len(floor) // 2]:.2f}",
            note=f"queue of {(longest + 1) * d * 4 / 1e6:.0f} MB against {8 * d / 1e6:.1f} MB",
        )


def _training(tau: int, d: int):
    optimizer = optax.chain(optax.sgd(0.1), ej.delay(tau))

    def step(state, grads):
        params, opt_state = state
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params = jnp.ones(d, jnp.float32)
    state = params, optimizer.init(params)
    return donated(scanned(step, STEPS), state, jnp.full(d, 1e-3, jnp.float32))
