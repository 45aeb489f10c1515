"""Asynchrony across machines: Ray runs workers and servers; recorded and replayed as `hogwild` is.

    from elastic_jax import cluster

The parameters are divided among server actors; worker actors take views, compute gradients on their
own batches, run their own chains, and send what those return, as indices and values where that is
shorter. Where actors run, and who is lost, is for Ray to say: `pip install 'elastic-jax[ray]'`.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from elastic_jax.actors import Plan
from elastic_jax.checks import positive, steps, whole
from elastic_jax.driver import Run
from elastic_jax.hogwild import laid_out, prepared
from elastic_jax.processes import THREADS
from elastic_jax.recording import Recording, Task

__all__ = ["Run", "train"]

COPIES = 10  # of the parameters, that a run sends to its driver on the way


def train(
    task: Callable[[], Task],
    *,
    workers: int,
    updates: int,
    servers: int = 1,
    max_staleness: int | None = None,
    gap_every: int = 1,
    seconds: float | None = None,
    threads: int = 1,
    restarts: int = 0,
    watch: Callable[["Run"], object] | None = None,
    worker_options: Mapping[str, Any] | None = None,
    server_options: Mapping[str, Any] | None = None,
) -> Recording:
    """Trains with worker actors and parameter servers on a Ray cluster, and records the run.

    It runs on the cluster that `ray.init` has connected this process to, or that the environment
    names (RAY_ADDRESS); else on a Ray of its own on this machine, which ends with the run. The
    package and the task's module must be importable on every node (`runtime_env` of `ray.init`).

    A worker that is lost, alone or with its node, leaves the others going; no update counts twice,
    and one that reached some servers only is in the recording as it is in the parameters. What its
    chain held is lost, as is that of a worker that leaves. If a server is lost, so are its
    parameters: the run ends with "server lost" and the last of ten copies taken on the way.
    Ctrl-C ends the run with what there is.

    `hogwild.replay` follows the recording: how="loop" to the same bits, if the nodes are machines
    like this one, with the same versions.

    Args:
        task: makes the `Task`, anew in each actor: a function of a module, or `functools.partial`
            of one. One with a chain at the server needs servers=1.
        workers: p, at the start.
        updates: in all.
        servers: how many; each owns a block of the parameters, of equal size.
        max_staleness: no update is applied that misses more than so many others, so that the
            recording's delay, τ of the bounds, is at most this. Views wait for their turn
            while more would be under way than can be applied in time, and updates while older
            views must be applied first; nothing is thrown away. The fast then wait for the slow.
            None lets nobody wait.
        gap_every: each worker samples `‖x − view‖²` at every so many of its updates; 0 never. With
            chains that hold, what they hold is then sent too, dense.
        seconds: end the run after this long; counted, as `Recording.time` (by the first server's
            clock), from when the first workers have compiled.
        threads: of each actor's XLA.
        restarts: how many lost workers are replaced, by new ones with numbers of their own. Allow a
            few for each loss: Ray may send one to a node before it knows that the node is lost.
        watch: called about ten times a second, in this process, with the `Run`: its `progress` and
            `workers`, `add_worker()`, `remove_worker(number)`. To end the run, it may raise
            KeyboardInterrupt.
        worker_options: of Ray's `options` for each worker: where it runs, what it reserves; usually
            `threads` CPUs. Environment variables in its `runtime_env` go before ours, which are
            JAX_PLATFORMS=cpu, XLA_FLAGS of this process, and the number of threads.
        server_options: the same for each server; usually no CPU.

    Returns:
        The recording, of mode "cluster". It has a block for each server. `exits` has −9 for a
        worker that was lost, −15 for one that was asked to leave, 1 for one that failed.

    Raises:
        ImportError: without Ray.
        ValueError: for bad arguments, or a task that no other process could make.
        TypeError: if it makes no `Task`.
        RuntimeError: if the run ended before there was anything to return.
        KeyboardInterrupt: after Ctrl-C before the first update.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "elastic_jax.cluster runs on Ray, which is not there: pip install 'elastic-jax[ray]'"
        ) from error
    workers = whole("workers", workers, "number of workers")
    updates = whole("updates", updates, "number of updates", most=2**31 - 2)
    threads = whole("threads", threads, "number of threads")
    restarts = whole("restarts", restarts, "number of restarts", least=0)
    gap_every = steps("gap_every", gap_every)
    most = None if max_staleness is None else steps("max_staleness", max_staleness)
    limit = float("inf") if seconds is None else positive("seconds", seconds)
    usual = {"num_cpus": threads, "scheduling_strategy": "SPREAD"}
    options = (
        _options("worker_options", worker_options, usual, threads),
        _options("server_options", server_options, usual | {"num_cpus": 0}, threads),
    )
    _, made, start = prepared(task)
    n, servers = len(start), whole("servers", servers, "number of servers", most=len(start))
    if made.server is not None and servers > 1:
        raise ValueError(
            f"servers={servers} leaves none with whole messages for task.server: pass 1"
        )
    bounds = tuple(n * b // servers for b in range(servers + 1))
    layout, state = laid_out(made, start, ("cluster", workers, updates, bounds), gap_every > 0)
    x64 = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
    plan = Plan(layout, most, gap_every, -(-updates // COPIES), x64)
    with _session(ray, workers * threads):
        run = Run(ray, task, plan, (start, None if made.server is None else state), options)
        try:
            return run.recording(run.wait(limit, restarts, watch), threads)
        finally:
            run.kill()


def _options(
    name: str, given: Mapping[str, Any] | None, usual: Mapping[str, Any], threads: int
) -> dict[str, Any]:
    options = {**usual, **(given or {})}
    for owned in ("max_restarts", "max_task_retries", "max_concurrency"):
        if owned in options:
            raise ValueError(
                f"{name} has {owned}, which would do an actor's work twice: leave it out, and pass "
                "restarts to replace workers that are lost"
            )
    environment = options.get("runtime_env") or {}
    ours = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}
    ours |= {variable: str(threads) for variable in THREADS}
    variables = ours | dict(environment.get("env_vars") or {})
    return options | {"runtime_env": {**environment, "env_vars": variables}}


@contextlib.contextmanager
def _session(ray: Any, cpus: int) -> Iterator[None]:
    """Connects to Ray, unless that is done already."""
    if ray.is_initialized():
        yield
        return
    settings: dict[str, Any] = {"logging_level": logging.WARNING}
    if "RAY_ADDRESS" not in os.environ:
        cpus = max(cpus, os.cpu_count() or 1)  # more workers than cores share them
        settings |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    with warnings.catch_warnings():  # a fork that only starts another program harms no thread
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        ray.init(**settings)
    try:
        yield
    finally:
        ray.shutdown()
