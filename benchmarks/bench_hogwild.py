"""Workers that really race: two do 1.9 times the work of one, and recording them costs 3%.

Throughput, and nothing else here, is timed by the clock on the wall: run it on an idle machine. A
worker's start is the processor's time of its whole life with one update, next to that of a process
that only imports jax.
"""

import functools
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import jax
import jax.flatten_util
import numpy as np
import optax

import elastic_jax as ej
from benchmarks.harness import Row, compare, in_turns
from benchmarks.problems import cnn
from elastic_jax import racer
from elastic_jax.hogwild import Task
from elastic_jax.shared import Blocks, Layout, LockFree, Memory, Update, add, sparse
from experiments import hogwild_soak

D = 10**6


def task() -> Task:
    """The small CNN, with 8 batches."""
    problem = cnn((28, 28, 1), 8)
    images, labels = (np.asarray(part) for part in problem.batches)

    def batch(worker, step):
        return images[(worker + step) % 8], labels[(worker + step) % 8]

    return Task(problem.params, problem.loss, batch, optax.sgd(0.01))


def rows(quick: bool) -> Iterator[Row]:
    yield _scaling(*((3, 200) if quick else (9, 2000)))
    yield from _recording(5 if quick else 21)
    yield from _writes(5 if quick else 21)
    yield _start(1 if quick else 5)


def _scaling(rounds: int, updates: int) -> Row:
    seconds = {workers: np.empty(rounds) for workers in (1, 2)}
    for turn in range(rounds):
        for workers, times in seconds.items():
            run = ej.hogwild.train(
                task, workers=workers, updates=updates, mode="lock-free", start="forkserver"
            )
            times[turn] = np.ptp(run.trace.time) / (len(run.worker) - 1)
    floor = f"one alone, {1e3 * np.median(seconds[1]):.3f} ms an update"
    note = f"{os.cpu_count()} cores"
    return compare(
        "CNN, lock-free: updates/s of 2 processes / of 1",
        seconds[1],
        seconds[2],
        ">= 1.9",
        step=seconds[2],
        floor=floor,
        note=note,
    )


class Unrecorded(Blocks):
    """Publishes versions, and writes down nothing else."""

    def _log(self, block, version, row, *_):
        self.memory.row[block, version + 1] = row
        self.memory.version[block] = version + 1


def _memory(mode: str, n: int, updates: int) -> Memory:
    f32 = np.dtype(np.float32)
    memory = Memory(Layout(mode, 1, updates, (0, n), f32, f32, True, False, 0))
    memory.params[:] = 1
    return memory


def _recording(rounds: int) -> Iterator[Row]:
    """A worker's whole step: gradient, view, addition; with and without what is written down."""
    made = task()
    start = np.array(jax.flatten_util.ravel_pytree(made.params)[0])
    program = racer.compiled(made, start, True)
    state, batch = [program.init(0)], made.batch(0, 0)
    n, capacity = len(start), 100_000
    message, state[0], numbers, _ = program.step(start, state[0], batch)
    message, numbers = np.asarray(message), np.asarray(numbers).tolist()

    def gradient():
        message, state[0], numbers, _ = program.step(start, state[0], batch)
        return np.asarray(message), np.asarray(numbers)

    live, view = start.copy(), start.copy()

    def bare():
        np.copyto(view, live)
        add(live, *sparse(message))

    def turn(side: LockFree | Blocks, measured: bool) -> Callable[[], None]:
        update = Update(message, message[:0], 0, *numbers, measured=measured)

        def program():
            side.read()
            done = side.apply(update)
            assert done, "more turns than there is room for"

        return program

    memories = {
        name: _memory(name.split()[0], n, capacity) for name in ("lock-free", "block", "block bare")
    }
    sides = {"lock-free": LockFree(memories["lock-free"], 0), "block": Blocks(memories["block"], 0)}
    programs = {"gradient": gradient, "lock-free bare": bare}
    programs["block bare"] = turn(Unrecorded(memories["block bare"], 0), False)
    for mode, side in sides.items():
        programs |= {mode: turn(side, False), f"{mode}, gap": turn(side, True)}
    times = in_turns(programs, rounds, 0.005)
    for name in list(programs)[3:]:
        plain = times["gradient"] + times[f"{name.removesuffix(', gap')} bare"]
        yield compare(
            f"CNN, {name}: recorded update / unrecorded",
            times["gradient"] + times[name],
            plain,
            "<= 1.03",
            step=times["gradient"] + times[name],
            floor=f"gradient, read and write, {1e3 * np.median(plain):.3f} ms",
        )


def _writes(rounds: int) -> Iterator[Row]:
    memory = _memory("block", D, 1)
    live, other = memory.params
    message = np.ones(D, np.float32)
    few = np.where(np.random.default_rng(0).random(D) < 0.01, message, 0)
    where, values = sparse(few)
    programs = {
        "copy": functools.partial(np.copyto, other, live),
        "dense": functools.partial(add, live, None, message),
        "spare": functools.partial(np.add, live, message, out=other),
        "sparse": functools.partial(add, live, where, values),
        "find": functools.partial(sparse, few),
    }
    times = in_turns(programs, rounds)
    floor = f"copy, {1e3 * np.median(times['copy']):.3f} ms"
    found = f"finding them takes {1e3 * np.median(times['find']):.3f} ms, before the write"
    for name, over, under, target, note in (
        ("added in place / copied", "dense", "copy", "<= 2.0", ""),
        ("added into a spare row / copied", "spare", "copy", "<= 2.0", ""),
        ("1% added / all", "sparse", "dense", "<= 0.1", found),
    ):
        label = f"1e6 shared floats: {name}"
        yield compare(
            label, times[over], times[under], target, step=times[over], floor=floor, note=note
        )


def _start(rounds: int) -> Row:
    make = functools.partial(hogwild_soak.task, False)  # which imports nothing but elastic_jax
    alone, worker, clock = (np.empty(rounds) for _ in range(3))
    for turn in range(rounds):
        with _processor_time() as used:
            subprocess.run([sys.executable, "-c", "import jax"], check=True)
        alone[turn] = used[0]
        begin = time.perf_counter()
        with _processor_time() as used:
            ej.hogwild.train(make, workers=1, updates=1, mode="lock-free")
        worker[turn], clock[turn] = used[0], time.perf_counter() - begin
    return compare(
        "a worker's life with one update / import jax",
        worker,
        alone,
        "<= 1.5",
        step=clock,
        floor=f"import jax, {1e3 * np.median(alone):.0f} ms of processor time",
    )


class _processor_time:
    """Measures the processor's time of the processes that begin and end inside."""

    def __enter__(self) -> list[float]:
        self.used = [-self._now()]
        return self.used

    def __exit__(self, *_) -> None:
        self.used[0] += self._now()

    @staticmethod
    def _now() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime
