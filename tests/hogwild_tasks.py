"""Small tasks for workers that really race; every process makes them anew.

`python tests/hogwild_tasks.py` records `traces/`: 2, 4 and 8 workers, whatever there are of cores.
"""

import functools
import os
import signal
import time
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax

import elastic_jax as ej
from elastic_jax import shared
from elastic_jax.hogwild import Task

ALPHA = 0.05
RECORDED = {"model": "network", "optimizer": "momentum", "alpha": 0.02}
D = 12
EIGENVALUES = np.linspace(0.1, 1.0, D).astype(np.float32)


def quadratic(params, noise):
    x = params["x"]
    return jnp.sum(jnp.asarray(EIGENVALUES / 2, x.dtype) * x * x) + jnp.sum(noise * x)


def logistic(params, rows):
    return jnp.mean(jnp.logaddexp(0.0, rows @ params["x"])) + 0.01 * jnp.sum(params["x"] ** 2)


def network(params, rows):
    hidden = jnp.tanh(rows @ params["a"])
    return jnp.mean((hidden @ params["b"] - jnp.sum(rows, axis=1)) ** 2)


def linear(params, noise):
    """Has gradients that depend on worker and step alone, not on the view."""
    return jnp.sum(noise * params["x"])


def linen(params, rows):
    import flax.linen as nn  # which few tasks should wait for

    hidden = jnp.tanh(nn.Dense(5, use_bias=False).apply({"params": {"kernel": params["a"]}}, rows))
    return jnp.mean((hidden @ params["b"] - jnp.sum(rows, axis=1)) ** 2)


LOSSES = {
    "quadratic": quadratic,
    "logistic": logistic,
    "network": network,
    "linear": linear,
    "linen": linen,
}


def chain(name: str, alpha: float) -> optax.GradientTransformation:
    """A chain of a worker."""
    base = {
        "sgd": optax.sgd(alpha),
        "momentum": optax.sgd(alpha, momentum=0.5),
        "adam": optax.adam(alpha),
        "gradients": optax.identity(),
        "staler": optax.chain(ej.correct.by_staleness(ej.correct.inverse()), optax.sgd(alpha)),
    }
    held = {
        "feedback": ej.error_feedback(ej.top_k(3)),
        "delayed": optax.chain(ej.delay(2), ej.error_feedback(ej.top_k(2))),
    }
    return optax.chain(optax.sgd(alpha), held[name]) if name in held else base[name]


def task(
    model="quadratic",
    optimizer="sgd",
    alpha=ALPHA,
    seed=0,
    pause=0.0,
    poison=0,
    server=None,
    dtype="float32",
    dies=None,
    fails=False,
) -> Task:
    """Makes a task.

    `pause` is a mean time that batches take, `poison` how often a batch has a NaN, `dies` in which
    part of its fourth step worker 1 is killed or stopped, `fails` whether it has an error there.
    """
    rng = np.random.default_rng(seed)
    x = {"x": rng.normal(size=D)}
    if model in ("network", "linen"):
        x = {"a": rng.normal(size=(6, 5)) / 3, "b": rng.normal(size=5)}
    shape = {"quadratic": (D,), "linear": (D,), "logistic": (8, D)}.get(model, (8, 6))

    def batch(worker, step):
        rng = np.random.default_rng((seed, worker, step))
        values = rng.normal(size=shape).astype(np.float32)
        if pause:
            time.sleep(rng.exponential(pause))
        if poison and step % poison == poison - 1:
            values[0] = np.nan
        if worker == 1 and step == 3:
            if fails:
                raise OSError("this worker's data are gone")
            if dies is not None:
                die(dies)
        return values.astype(dtype)

    at_server = {
        None: None,
        "feedback": ej.error_feedback(ej.top_k(4)),
        "momentum": optax.trace(0.5),
        "adam": optax.adam(alpha),
        "staler": ej.correct.by_staleness(ej.correct.inverse()),
    }
    return Task(
        {name: jnp.asarray(value, dtype) for name, value in x.items()},
        LOSSES[model],
        batch,
        chain(optimizer, alpha),
        at_server[server],
    )


def die(where: str) -> None:
    """Has this process killed, or stopped, at once or in the middle of its next write."""

    def now(*_):
        os.kill(os.getpid(), signal.SIGSTOP if "stopped" in where else signal.SIGKILL)

    def half(live, where, values):
        there = np.flatnonzero(values)
        there = there[: len(there) // 2]
        live[there if where is None else where[there]] += values[there]
        now()

    if where in ("computing", "stopped computing"):
        now()
    elif where in ("written, not logged", "stopped writing"):
        shared.Blocks._log = now
    elif where == "logged, not published":
        shared.time = types.SimpleNamespace(perf_counter=now)
    elif where == "one block of three":
        write = shared.Blocks._write
        shared.Blocks._write = lambda self, block, *rest: (
            now() if block == 1 else write(self, block, *rest)
        )
    elif where == "half added":
        shared.add = half
    elif where == "one server of two":  # of a cluster: the first has said which tick it is
        import ray

        get = ray.get
        ray.get = lambda refs: now() if isinstance(found := get(refs), tuple) else found


def assert_accounted_for(recording, replay):
    """Law 1: what was proposed is applied, held, or lost; for `linear` and SGD, which know u."""
    batch, updates = task("linear").batch, len(recording.worker)
    steps = zip(recording.worker.tolist(), recording.step.tolist(), strict=True)
    proposed = -ALPHA * np.sum([batch(*step) for step in steps], axis=0, dtype=np.float64)
    found = sum(np.asarray(tree["x"], np.float64) for tree in replay[-2:]) + replay.params["x"]
    size = max(np.abs(recording.start).max(), np.abs(recording.params).max())
    rounding = 4 * updates * np.finfo(np.float32).eps * size  # four sums for each update
    np.testing.assert_allclose(found, recording.start + proposed, rtol=0, atol=rounding)


def not_a_task():
    return os.sep


def swapped():
    return Task(linear, {"x": np.zeros(3, np.float32)}, np.ones, optax.sgd(ALPHA))


def shrinking():
    """Its sixth batch has a row less than the others."""

    def batch(worker, step):
        return np.ones((4 if step < 5 else 3, 2), np.float32)

    return Task({"x": np.ones(2, np.float32)}, logistic, batch, optax.sgd(ALPHA))


def record(folder: Path) -> None:
    """Runs the small network with momentum, in batches that take 4 ms or so."""
    folder.mkdir(exist_ok=True)
    make = functools.partial(task, **RECORDED, pause=4e-3)
    for workers in (2, 4, 8):
        blocks = {"mode": "leashed"} if workers == 4 else {"blocks": 1 if workers == 2 else 3}
        recording = ej.hogwild.train(
            make, workers=workers, updates=300, start="forkserver", **blocks
        )
        recording.save(folder / f"{workers}_workers.npz")


if __name__ == "__main__":
    record(Path(__file__).parent / "traces")
