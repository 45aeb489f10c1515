"""Workers and servers on Ray's own local cluster: recorded, replayed, killed, joined and left."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from hogwild_tasks import ALPHA, assert_accounted_for, task
from test_hogwild_kills import _runs

from elastic_jax import cluster, hogwild
from elastic_jax.recording import Recording

# Ray starts a node by a fork that only starts another program, which harms no thread of JAX.
pytestmark = pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")
NO_RAY = "Ray has no wheel for this Python or machine"
TESTS = str(Path(__file__).parent)
EPS = float(np.finfo(np.float32).eps)
again = functools.partial(hogwild.replay, start="forkserver")


@pytest.fixture(scope="module")
def head():
    """One machine that plays several."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        ray = pytest.importorskip("ray", reason=NO_RAY)
        from ray.cluster_utils import Cluster

        nodes = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 8,
                "resources": {"head": 100},
                "include_dashboard": False,
                "object_store_memory": 80 << 20,
                "_system_config": {"health_check_period_ms": 500},
            },
        )
        ray.init(address=nodes.address, log_to_driver=False, logging_level="WARNING")
        yield nodes
        ray.shutdown()
        nodes.shutdown()


SETTINGS = {
    "PYTHONPATH": TESTS,  # where actors find the tasks
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # it would write a token to the home directory
    "RAY_enable_worker_prestart": "0",  # of processes that have no use
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}
AT_HEAD = {"resources": {"head": 1}}


def run(make, **settings) -> Recording:
    settings = {"workers": 2, "updates": 60, "seconds": 300.0} | settings
    return cluster.train(make, **settings)


def assert_same_bits(recording, make):
    replay = again(recording, make)
    flat = jax.flatten_util.ravel_pytree(replay.params)[0]
    np.testing.assert_array_equal(flat, recording.params)
    for name in ("loss", "norm", "moment", "gap"):
        np.testing.assert_array_equal(getattr(replay, name), getattr(recording, name))
    return replay


def assert_a_run(recording):
    """Everyone's steps are there once, in order; times and parts too."""
    for worker in range(recording.workers):
        steps = recording.step[recording.worker == worker]
        np.testing.assert_array_equal(steps, np.arange(len(steps)))
    for b, trace in enumerate(recording.traces):
        assert trace.one_view and trace.workers == recording.workers
        assert np.isfinite(trace.time).all() and trace.time[-1] <= recording.seconds
        ticks = recording.tick[b][recording.tick[b] >= 0]
        np.testing.assert_array_equal(trace.version, recording.read[ticks, b])


@pytest.mark.slow
def test_blocks_on_several_servers_within_a_bound(head, tmp_path):
    """Feedback's sparse messages to three servers; nobody misses more than one update."""
    make = functools.partial(task, optimizer="feedback", pause=1e-3)
    recording = run(make, servers=3, max_staleness=1)
    assert recording.end == "done" and recording.mode == "cluster"
    assert not recording.exits.any() and len(recording.worker) == 60
    assert_a_run(recording)
    assert set(recording.worker.tolist()) == {0, 1} and recording.delay.max() == 1
    assert np.isfinite(recording.gap).all() and (recording.tick == np.arange(60)).all()
    without = functools.partial(task, optimizer="feedback")
    assert_same_bits(recording, without)
    scan = hogwild.replay(recording, without, how="scan")
    rounding = 60 * EPS * max(np.abs(recording.params).max(), np.abs(recording.start).max())
    np.testing.assert_allclose(scan.params["x"], recording.params, rtol=0, atol=rounding)
    recording.save(tmp_path / "run.npz")
    loaded = Recording.load(tmp_path / "run.npz")
    assert loaded.about == recording.about and loaded.end == "done"
    np.testing.assert_array_equal(loaded.tick, recording.tick)


@pytest.mark.slow
def test_a_network_with_a_chain_at_the_server(head):
    """Three workers, no bound; a worker that fails, and gradients that are refused, are told."""
    made = {"model": "network", "optimizer": "momentum", "server": "feedback", "poison": 5}
    made |= {"dtype": "bfloat16"}
    make = functools.partial(task, **made, fails=True, pause=1e-3)
    with pytest.warns(RuntimeWarning, match=r"done\. (?s:.*)data are gone"):
        recording = run(make, workers=3)
    assert recording.exits.tolist() == [0, 1, 0] and recording.refused.sum() > 0
    assert not (recording.step % 5 == 4).any() and recording.trace.delay.max() > 0
    measured = recording.constants(ALPHA)
    assert 0 < measured.B and measured.tau == recording.delay.max()
    assert_same_bits(recording, functools.partial(task, **made))


@pytest.mark.slow
def test_workers_are_killed_replaced_join_and_leave(head):
    """Worker 1 dies when one server of two has its update; 2 replaces it, 3 joins, 0 leaves."""
    made = {"model": "linear", "optimizer": "feedback"}
    make = functools.partial(task, **made, dies="one server of two", pause=2e-3)
    joined = left = 0

    def watch(going):
        nonlocal joined, left
        updates, pids = going.progress.updates, going.progress.pids
        if len(pids) == 3 and pids[2] and not joined:
            assert going.workers == (0, 2)
            assert going.add_worker() == 3
            joined = updates
        if len(pids) == 4 and pids[3] and not left:
            with pytest.raises(ValueError, match="worker=1 is not there: pass one of those"):
                going.remove_worker(1)
            going.remove_worker(0)
            left = updates
        if left and 0 not in going.workers and updates > left + 40:
            raise KeyboardInterrupt

    recording = run(make, updates=10**6, servers=2, restarts=1, watch=watch)
    assert recording.end == "interrupted" and recording.workers == 4
    assert recording.exits.tolist() == [-signal.SIGTERM, -signal.SIGKILL, 0, 0]
    steps = recording.step[recording.worker == 1].tolist()
    (cut,) = np.flatnonzero(recording.worker == 1)[3:]
    assert steps == [0, 1, 2, 3] and set(recording.worker.tolist()) == {0, 1, 2, 3}
    assert cut not in recording.tick[1] and np.isnan(recording.gap).nonzero()[0].tolist() == [cut]
    replay = again(recording, functools.partial(task, **made))
    np.testing.assert_array_equal(replay.params["x"], recording.params)
    assert_accounted_for(recording, replay)  # who left took along what it held, as who died
    assert np.abs(replay.lost["x"]).max() > 0


@pytest.mark.slow
def test_a_node_is_killed_and_another_joins(head):
    """Two nodes with a worker each: one is lost, and its worker replaced on a third."""
    place = {"num_cpus": 1, "resources": {"away": 1}, "object_store_memory": 80 << 20}
    nodes = [head.add_node(**place) for _ in range(2)]
    killed = joined = 0

    def watch(going):
        nonlocal killed, joined
        updates, pids = going.progress.updates, going.progress.pids
        if not killed and updates > 20:
            head.remove_node(nodes.pop(), allow_graceful=False)
            killed = updates
        if len(pids) > 2 and len(nodes) == 1:  # the loss was seen; there is no room for another
            nodes.append(head.add_node(**place))
        if any(pids[2:]):
            joined = joined or updates
            if updates > joined + 40:
                raise KeyboardInterrupt

    at = {"worker_options": {"resources": {"away": 1}}, "server_options": AT_HEAD}
    try:
        make = functools.partial(task, pause=2e-3)
        recording = run(make, updates=10**6, restarts=9, max_staleness=2, watch=watch, **at)
    finally:
        for node in nodes:
            head.remove_node(node)
    assert recording.end == "interrupted"
    first, others = sorted(recording.exits[:2].tolist()), recording.exits[2:].tolist()
    assert first == [-signal.SIGKILL, 0] and others.pop() == 0
    assert set(others) <= {-signal.SIGKILL}  # sent to a node before Ray knew that it was lost
    assert_a_run(recording)
    assert {0, 1, recording.workers - 1} == set(recording.worker.tolist())
    assert recording.delay.max() <= 2
    assert_same_bits(recording, task)


@pytest.mark.slow
def test_a_server_that_is_lost_ends_the_run(head):
    """With the last copy that all servers have sent, and a recording up to there."""

    import ray

    def watch(going):
        if going.progress.updates > 250:
            ray.kill(going._servers[1])

    make = functools.partial(task, pause=1e-3, dtype="float64")
    with jax.enable_x64(True):
        with pytest.warns(RuntimeWarning, match="server lost"):
            recording = run(make, workers=1, updates=1000, servers=2, gap_every=0, watch=watch)
        assert recording.end == "server lost" and np.isnan(recording.gap).all()
        assert len(recording.worker) in range(200, 1000, 100)  # one of ten copies on the way
        assert_a_run(recording)
        assert_same_bits(recording, functools.partial(task, dtype="float64"))


SCRIPT = """
import signal
from hogwild_tasks import quadratic, task
from elastic_jax import cluster

def mine():
    return task(pause=1e-3)._replace(loss=lambda *arguments: quadratic(*arguments))

def watch(run):
    if run.progress.updates:
        print(*run.progress.pids, flush=True)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what runs in background
    recording = cluster.train(mine, workers=1, updates=10**6, watch=watch)
    print(recording.end, len(recording.worker) > 0, recording.exits.tolist())
    import ray
    print(ray.is_initialized())
"""


@pytest.mark.slow
def test_a_script_without_a_cluster_is_interrupted(tmp_path):
    """It has a Ray of its own, to which functions of the script itself are sent; nothing stays."""
    pytest.importorskip("ray", reason=NO_RAY)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env=os.environ | SETTINGS,
    ) as process:
        assert process.stdout is not None
        (worker,) = map(int, process.stdout.readline().split())
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert said.splitlines()[-2:] == ["interrupted True [0]", "False"]
    for _ in range(600):
        if not _runs(worker):
            return
        time.sleep(0.1)
    raise AssertionError("a worker outlived its run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "workers=0 is no number of workers"),
        ({"updates": 0}, "updates=0 is no number of updates"),
        ({"servers": 13}, "servers=13 is no number of servers; pass an int from 1 to 12"),
        ({"max_staleness": -1}, "max_staleness=-1 is out of range"),
        ({"restarts": True}, "restarts=True is no number of restarts"),
        ({"seconds": 0}, "seconds=0 is out of range"),
        ({"gap_every": 0.5}, "gap_every=0.5 is no number of steps"),
        ({"worker_options": {"max_restarts": 1}}, "worker_options has max_restarts.* leave it out"),
        ({"task": lambda: task()}, "cannot be made in another process"),
        ({"task": functools.partial(task, server="feedback"), "servers": 2}, "servers=2 leaves"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    pytest.importorskip("ray", reason=NO_RAY)
    arguments = {"task": task, "workers": 2, "updates": 5} | arguments
    with pytest.raises((ValueError, TypeError), match=message):
        cluster.train(arguments.pop("task"), **arguments)


@pytest.mark.slow
def test_without_ray_it_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'elastic-jax\[ray\]'"):
        cluster.train(task, workers=1, updates=1)
