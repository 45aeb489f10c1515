"""The meter at its default `every` costs at most 5% of a small CNN's step.

The floor of the ratio is 1: the same chain without a meter.
"""

from collections.abc import Iterator

import jax
import numpy as np
import optax

import elastic_jax as ej
from benchmarks.harness import Row, compare, donated, in_turns
from benchmarks.problems import Problem, cnn

STEPS = 128  # a multiple of the default interval, so that each program takes its share of samples


def rows(quick: bool) -> Iterator[Row]:
    problem = cnn((28, 28, 1), STEPS)
    chain = optax.chain(optax.sgd(0.01), ej.error_feedback(ej.top_k(0.01)), ej.delay(16))
    programs = {
        "bare": _training(problem, chain),
        "default": _training(problem, ej.meter(chain, 0.01)),
        "every step": _training(problem, ej.meter(chain, 0.01, every=1)),
    }
    times = {name: t / STEPS for name, t in in_turns(programs, 9 if quick else 41, 0).items()}
    floor = f"1, a step of {1e3 * np.median(times['bare']):.3f} ms"
    for name, target in (("default", "<= 1.05"), ("every step", "")):
        label = f"meter, {name} / none"
        yield compare(label, times[name], times["bare"], target, step=times[name], floor=floor)


def _training(problem: Problem, optimizer):
    gradient = jax.grad(problem.loss)

    def step(state, batch):
        params, opt_state = state
        updates, opt_state = optimizer.update(gradient(params, batch), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    def run(state, batches):
        return jax.lax.scan(step, state, batches)[0]

    state = problem.params, optimizer.init(problem.params)
    return donated(run, state, problem.batches)
