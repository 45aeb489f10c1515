"""Event simulation: at least 0.9 times the gradients a second of plain SGD, whatever p is.

Plain SGD is a `lax.scan` of gradient, sgd and `apply_updates` on the same batches. Its time is the
floor of a tick. Memory is that of p + 1 views, p worker states and O(d), as XLA accounts for it.
"""

from collections.abc import Iterator

import jax
import numpy as np
import optax

import elastic_jax as ej
from benchmarks.harness import Row, compare, donated, in_turns
from benchmarks.problems import Problem, cnn, quadratic, size
from elastic_jax.events import Ticks

SGD = optax.sgd(0.01)
FEEDBACK = optax.chain(SGD, ej.error_feedback(ej.top_k(0.01)))
TICKS = 100


def rows(quick: bool) -> Iterator[Row]:
    shapes = [(28, 28, 1)] if quick else [(28, 28, 1), (32, 32, 3)]
    for problem in (*(cnn(shape, TICKS) for shape in shapes), quadratic(10**5, TICKS)):
        programs = {"plain": _plain(problem, SGD)}
        programs |= {f"p = {p}": _events(problem, SGD, p) for p in (2, 8, 32)}
        if not quick:
            programs["unmeasured"] = _events(problem, SGD, 8, measure=False)
            programs["feedback"] = _events(problem, FEEDBACK, 8)
            programs["plain feedback"] = _plain(problem, FEEDBACK)
        times = {name: t / TICKS for name, t in in_turns(programs, 9 if quick else 21, 0).items()}
        floor = f"plain SGD, {1e3 * np.median(times['plain']):.3f} ms a gradient"
        target = ">= 0.9" if problem.name.startswith("CNN") else ""
        for name, over, under, limit in (
            ("p = 8 gradients/s / plain", "plain", "p = 8", target),
            ("p = 8 unmeasured / plain", "plain", "unmeasured", target),
            ("p = 8 top-k + feedback / plain same", "plain feedback", "feedback", ""),
            ("p = 8 top-k + feedback / plain", "plain", "feedback", ""),
        ):
            if over in times and under in times:
                label = f"{problem.name}: {name}"
                yield compare(
                    label, times[over], times[under], limit, step=times[under], floor=floor
                )
        yield compare(
            f"{problem.name}: tick p = 32 / p = 2",
            times["p = 32"],
            times["p = 2"],
            "<= 1.2",
            step=times["p = 32"],
            floor=floor,
        )
    yield from _memory()


def _plain(problem: Problem, optimizer):
    gradient = jax.value_and_grad(problem.loss)

    def step(state, batch):
        params, opt_state = state
        loss, grads = gradient(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    def run(carry, batches):
        return jax.lax.scan(step, carry[0], batches)

    state = (problem.params, optimizer.init(problem.params)), np.zeros(TICKS, np.float32)
    return donated(run, state, problem.batches)


def _asynchronous(problem: Problem, optimizer, workers: int, measure: bool = True):
    trace = ej.draw_trace([ej.speeds.exponential()] * workers, ticks=TICKS, seed=1)
    schedule = trace.schedule()
    executor = ej.asynchronous(problem.loss, optimizer, measure=measure)

    def run(carry, batches):
        return executor.run(carry[0], schedule, batches)

    state = executor.init(problem.params, workers, workers)
    carry = state, Ticks(*(np.zeros(TICKS, np.float32),) * 3)
    return run, carry


def _events(problem: Problem, optimizer, workers: int, measure: bool = True):
    run, carry = _asynchronous(problem, optimizer, workers, measure)
    return donated(run, carry, problem.batches)


def _memory() -> Iterator[Row]:
    """Arguments + outputs + temporaries − what is shared, as p grows and beyond p."""
    problem = quadratic(10**5, TICKS)
    total = {}
    for workers in (2, 32):
        run, carry = _asynchronous(problem, FEEDBACK, workers)
        jitted = jax.jit(run, donate_argnums=0)
        found = jitted.lower(carry, problem.batches).compile().memory_analysis()
        assert found is not None, "this backend does not account for memory"
        total[workers] = (
            found.argument_size_in_bytes
            + found.output_size_in_bytes
            + found.temp_size_in_bytes
            - found.alias_size_in_bytes
        )
    one = size(problem.params)
    each = one + size(FEEDBACK.init(problem.params))
    growth = (total[32] - total[2]) / 30 / each
    beyond = (total[32] - 32 * each) / one
    note = f"{total[32] / 1e6:.1f} MB for p = 32: p (d + worker state) + {beyond:.1f} d"
    name = "memory of a worker / (d + worker state)"
    yield Row(name, growth, growth, growth, "<= 1.01", float("nan"), "1", note)
