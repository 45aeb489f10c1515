"""Kills racing workers at random moments, and looks for anything that they leave behind.

    python -m experiments.hogwild_soak [--minutes 10 | --times 100] [--seed 0]

Each time a run in a random mode, with a random chain, loses some of its workers, or all, to SIGKILL
at random moments: while they start, compute, or (mostly) write. The run must end, and say who
died; block, leashed and locked runs must replay to the same bits, whatever was cut off; a lock-free
one as near as its unfinished writes allow. What the dead held back must be told as lost. No
process, no file descriptor and no memory may stay.
"""

import contextlib
import dataclasses
import functools
import gc
import multiprocessing
import os
import random
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax

import elastic_jax as ej
from elastic_jax.hogwild import Progress, Recording, Task

MODES = ("lock-free", "block", "leashed", "locked")
ALPHA = 0.01
N = 50_000  # so many parameters that most of the time is spent in writing them
WARM = 20  # runs after which this process has compiled and kept all that it ever will


@dataclasses.dataclass(frozen=True)
class Config:
    """Kills racing workers at random moments, and looks for anything that they leave behind."""

    minutes: float = 10.0
    """When to stop, unless `--times` is given."""
    times: int | None = None
    """Runs that are disturbed; as many as fit in the minutes if not given."""
    seed: int = 0
    """Seed of modes, chains, and moments."""


def task(feedback: bool) -> Task:
    """A quadratic with λ = 1, whose gradient costs less than writing it."""
    chain = [optax.sgd(ALPHA)] + ([ej.error_feedback(ej.top_k(50))] if feedback else [])

    def loss(x, target):
        return 0.5 * jnp.sum((x - target) ** 2)

    def batch(worker, step):
        return np.float32(worker + 0.1 * (step % 10))

    return Task(jnp.zeros(N), loss, batch, optax.chain(*chain))


class Killer:
    """Kills some workers, each once, after so many updates or so many seconds."""

    def __init__(self, rng: random.Random, workers: int, updates: int):
        """Draws who, and when; a quarter of all runs lose everyone."""
        count = workers if rng.random() < 0.25 else rng.randint(1, workers - 1)
        victims = rng.sample(range(workers), count)
        self.plan = {i: (rng.random() ** 2 * updates / 2, rng.random() * 0.05) for i in victims}
        self.killed: dict[int, int] = {}  # and after how many updates

    def __call__(self, now: Progress) -> None:
        """Is what `train` calls."""
        for worker, (after, pause) in list(self.plan.items()):
            pid = now.pids[worker]
            if pid is not None and now.updates >= after:
                time.sleep(pause)
                with contextlib.suppress(ProcessLookupError):  # it may just have finished
                    os.kill(pid, signal.SIGKILL)
                self.killed[worker] = now.updates
                del self.plan[worker]


def once(rng: random.Random, start: str = "forkserver") -> tuple[str, str]:
    """Disturbs one run and looks at everything; returns its mode and how it ended.

    Raises:
        AssertionError: saying what is wrong.
    """
    mode, workers, feedback = rng.choice(MODES), rng.randint(2, 4), rng.random() < 0.5
    updates = rng.choice((1000, 3000))
    killer = Killer(rng, workers, updates)
    make = functools.partial(task, feedback)
    files, shared = _open_files(), _memory("RssShmem")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            recording = ej.hogwild.train(
                make,
                workers=workers,
                updates=updates,
                mode=mode,
                seconds=120.0,
                start=start,
                watch=killer,
            )
        except RuntimeError as error:
            assert len(killer.killed) == workers and "no update was made" in str(error), error
            recording = None
    # the server that forks, and the tracker of resources, stay with this process
    assert _open_files() <= files + 3, f"{_open_files() - files} files stay open"
    assert not multiprocessing.active_children(), "workers stay"
    gc.collect()
    grown = _memory("RssShmem") - shared
    assert grown <= 0, f"{grown} kB of shared memory stay"
    if recording is None:
        return mode, "killed before the first update"
    assert recording.end != "out of time", "it hung"
    died = set(np.flatnonzero(recording.exits == -signal.SIGKILL).tolist())
    assert died <= set(killer.killed), f"{died} died, but {killer.killed} were killed"
    if recording.end == "no worker left":
        assert len(died) == workers, f"nobody is left, but only {died} died"
        assert any("no worker left" in str(one.message) for one in said)
    else:
        missing = len(recording.unfinished)
        assert len(recording.worker) >= updates - missing, "updates are missing"
    _assert_replays(recording, make, feedback, start)
    return mode, recording.end + (", some died" if died else ", killed too late")


def _assert_replays(recording: Recording, make, feedback: bool, start: str) -> None:
    replay = ej.hogwild.replay(recording, make, start=start)
    params, lost = np.asarray(replay.params), np.asarray(replay.lost)
    dead = np.isin(recording.worker, np.flatnonzero(recording.exits))
    cut = (recording.tick < 0).any()  # inside a write of several blocks
    assert lost.any() == ((feedback and dead.any()) or cut), "what the dead held is not told"
    if recording.mode != "lock-free":
        assert np.array_equal(params, recording.params), "a replay has other bits"
    elif not feedback:
        size = max(1.0, float(np.abs(recording.params).max()))
        rounding = len(recording.worker) * np.finfo(np.float32).eps * size * N**0.5
        apart = float(np.linalg.norm(params - recording.params))
        bound = recording.race_bound(ALPHA) + rounding
        assert apart <= bound, f"a replay is {apart:.3g} away, and may be {bound:.3g}"


def _open_files() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def _memory(what: str) -> int:
    """In kB, resident in this process."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith(what))


def main(arguments: Sequence[str] | None = None) -> int:
    """Disturbs runs one after the other; 0 if all of them were as they should be."""
    import tyro  # which the workers, who import this module too, would wait for

    config = tyro.cli(Config, args=arguments, prog="python -m experiments.hogwild_soak")
    if config.times is not None and config.times < 1:
        print(f"error: --times {config.times}: give at least 1", file=sys.stderr)
        return 2
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    end = time.monotonic() + 60 * config.minutes
    counts: Counter[tuple[str, str]] = Counter()
    files, memory, number, status, said = 0, 0, 0, 0, time.monotonic()
    while time.monotonic() < end if config.times is None else number < config.times:
        if time.monotonic() > said + 15:
            said = time.monotonic()
            print(f"{number} runs, {sum(counts.values())} as they should be", file=sys.stderr)
        try:  # each with a seed of its own, to find it again
            counts[once(random.Random(f"{config.seed} {number}"))] += 1
        except AssertionError as error:
            print(f"run {number} of seed {config.seed}: {error}", file=sys.stderr, flush=True)
            status = 1
        except KeyboardInterrupt:
            status = 130
            break
        number += 1
        files = files or _open_files()
        memory = _memory("RssAnon") if number == WARM else memory
    grown = _open_files() - files
    if grown > 0:
        print(f"{grown} more files are open than after the first run", file=sys.stderr)
        status = status or 1
    if number > WARM:
        each = (_memory("RssAnon") - memory) / (number - WARM)
        print(f"memory grew by {each:.0f} kB a run after the first {WARM}")
        if number >= 4 * WARM and each > 4 * N / 1024:
            print("that is more than a copy of the parameters", file=sys.stderr)
            status = status or 1
    for (mode, how), count in sorted(counts.items()):
        print(f"{count:5}  {mode:10} {how}")
    print(f"{number} runs, {sum(counts.values())} as they should be")
    return status


if __name__ == "__main__":
    sys.exit(main())
