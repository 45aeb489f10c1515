"""Workers that are killed, fail, or meet NaN: the run goes on, says so, and leaves nothing."""

import contextlib
import functools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hogwild_tasks import ALPHA, D, assert_accounted_for, task

from elastic_jax import hogwild, processes
from experiments import hogwild_soak

run = functools.partial(hogwild.train, start="forkserver", seconds=120.0)
again = functools.partial(hogwild.replay, start="forkserver")
pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "blocks", "where"),
    [
        ("block", 3, "written, not logged"),
        ("block", 3, "logged, not published"),
        ("block", 3, "one block of three"),
        ("leashed", None, "logged, not published"),
        ("lock-free", None, "computing"),
        ("lock-free", None, "half added"),
    ],
)
def test_a_worker_killed_inside_a_write(mode, blocks, where):
    """Worker 1 is killed at its fourth step, and what it held is lost; worker 0 does the rest."""
    same = functools.partial(task, model="linear", optimizer="delayed")
    make = functools.partial(same, dies=where, pause=1e-3)
    recording = run(make, workers=2, updates=40, mode=mode, blocks=blocks)
    cut = where == "half added"
    assert recording.end == "done"
    assert recording.exits.tolist() == [0, -signal.SIGKILL]
    assert len(recording.worker) == 40 - cut
    steps = recording.step[recording.worker == 1].tolist()
    partly = where == "one block of three"
    assert steps == [0, 1, 2] + [3] * partly
    last = recording.traces[0].statistics().last_tick[1]  # a crash is a worker seen no more
    assert last == np.flatnonzero(recording.worker == 1)[-1] < 39 - cut
    assert repr(recording).endswith("1 gone, done)")
    replay = again(recording, same)
    assert_accounted_for(recording, replay)
    assert np.abs(replay.held["x"]).max() > ALPHA and np.abs(replay.lost["x"]).max() > ALPHA
    if mode == "lock-free":
        assert len(recording.unfinished) == cut
        bound = recording.race_bound(1e-12)  # no update depends on a view
        apart = np.linalg.norm(replay.params["x"] - recording.params)
        assert apart <= bound + 40 * np.finfo(np.float32).eps * np.sqrt(D) * 3
        assert apart > 1e-4 or not cut  # half an update that no replay has
        return
    lengths = (recording.tick >= 0).sum(1).tolist()
    assert lengths == ([40, 39, 39] if partly else [40] * len(lengths))
    assert np.isnan(recording.gap).sum() == partly
    np.testing.assert_array_equal(replay.params["x"], recording.params)
    if partly:  # the rest of its last update is lost too, and `scan` says the same
        scan = hogwild.replay(recording, same, how="scan")
        for found, other in zip(scan[-2:], replay[-2:], strict=True):
            np.testing.assert_allclose(found["x"], other["x"], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="Linux says who is stopped")
@pytest.mark.parametrize("mode", ["lock-free", "block", "leashed"])
def test_a_worker_that_is_stopped_is_late(mode):
    """Worker 1 stops (SIGSTOP) in its fourth step; worker 0 goes on, and at last both do."""
    stopped, woken = [], []

    def watch(progress):
        pid = progress.pids[1]
        if not stopped and pid is not None and _state(pid) == "T":
            stopped.append(progress.updates)
        if stopped and not woken and progress.updates >= stopped[0] + 50:
            os.kill(pid, signal.SIGCONT)
            woken.append(progress.seconds)
        if woken and progress.seconds > woken[0] + 1:
            raise KeyboardInterrupt  # as Ctrl-C does

    make = functools.partial(task, dies="stopped computing", pause=2e-3)
    recording = run(make, workers=2, updates=10**5, mode=mode, watch=watch)
    assert recording.end == "interrupted" and not recording.exits.any()
    mine = np.flatnonzero(recording.worker == 1)
    assert mine[3] - mine[2] > 50  # all of worker 0
    assert recording.delay[mine[3]] >= 50


@pytest.mark.slow
def test_who_is_stopped_inside_the_lock_holds_up_all(monkeypatch):
    """The baseline's nature: the others wait, to the end of the time that the run has."""
    monkeypatch.setattr(processes, "GRACE", 0.2)
    make = functools.partial(task, dies="stopped writing", pause=1e-3)
    recording = hogwild.train(
        make, workers=2, updates=10**5, mode="locked", seconds=0.5, start="forkserver"
    )
    assert recording.end == "out of time"
    assert (recording.worker == 1).sum() == 3 and recording.time.max() < 0.5
    np.testing.assert_array_equal(again(recording, task).params["x"], recording.params)


@pytest.mark.slow
def test_gradients_that_are_not_finite_are_refused_and_counted():
    make = functools.partial(task, optimizer="feedback", poison=4)
    recording = run(make, workers=2, updates=30)
    assert np.isfinite(recording.params).all() and np.isfinite(recording.loss).all()
    assert recording.end == "done" and recording.refused.sum() > 0
    assert not (recording.step % 4 == 3).any()
    for worker in range(2):  # as many as there are gaps in its steps, and perhaps one at the end
        steps = recording.step[recording.worker == worker]
        between = int(steps[-1]) + 1 - len(steps) if len(steps) else 0
        assert between <= recording.refused[worker]
    np.testing.assert_array_equal(again(recording, make).params["x"], recording.params)


def test_when_all_refuse_the_run_says_so():
    with pytest.raises(
        RuntimeError, match=r"was made.\nworker 0: exit 1, 100 refused(?s:.*)100 gradients in a row"
    ):
        run(functools.partial(task, poison=1), workers=1, updates=5)


def test_an_error_in_a_worker_is_told():
    with pytest.warns(RuntimeWarning, match=r"done\. (?s:.*)data are gone"):
        recording = run(functools.partial(task, fails=True, pause=1e-3), workers=2, updates=30)
    assert recording.end == "done" and recording.exits.tolist() == [0, 1]
    assert len(recording.worker) == 30 and (recording.worker == 1).sum() == 3


def test_when_all_die_the_run_says_so():
    killed = []

    def watch(progress):
        if progress.updates > 20:
            for pid in progress.pids:
                if pid is not None and pid not in killed:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    with pytest.warns(RuntimeWarning, match="no worker left"):
        recording = run(functools.partial(task, pause=1e-3), workers=2, updates=10**6, watch=watch)
    assert recording.end == "no worker left" and len(recording.worker) > 20
    assert recording.exits.tolist() == [-signal.SIGKILL] * 2
    np.testing.assert_array_equal(again(recording, task).params["x"], recording.params)


def test_out_of_time():
    make = functools.partial(task, pause=1e-3)
    recording = hogwild.train(make, workers=2, updates=10**6, seconds=0.3, start="forkserver")
    assert recording.end == "out of time" and not recording.exits.any()
    assert 0 < len(recording.worker) < 10**6


SCRIPT = """
import functools, signal, sys
sys.path.insert(0, {tests!r})
from hogwild_tasks import task
from elastic_jax import hogwild, processes

def watch(progress):
    if progress.updates:
        print(*progress.pids, flush=True)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what runs in background
    make = functools.partial(task, pause=1e-3)
    recording = hogwild.train(make, workers=2, updates=10**6, watch=watch)
    print(recording.end, len(recording.worker) > 0, recording.exits.tolist())
"""


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_the_parent_is_interrupted_or_killed(sign, tmp_path):
    """Ctrl-C, sent to all processes as a terminal does, ends with results; no process stays."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    try:
        if sign == signal.SIGINT:
            os.killpg(process.pid, sign)
        else:
            process.kill()
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    if sign == signal.SIGINT:
        assert process.returncode == 0 and said.splitlines()[-1] == "interrupted True [0, 0]"
    for _ in range(1200):
        if not any(map(_runs, pids)):
            return
        time.sleep(0.1)
    raise AssertionError("workers outlived their parent")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return _state(pid) != "Z"  # an orphan that has ended may wait for init to take note


def _state(pid: int) -> str:
    """The letter that Linux has for what a process does."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return ""


@pytest.mark.slow
def test_random_kills_leave_nothing_behind():
    """The first of the runs of `python -m experiments.hogwild_soak --times 100`."""
    hogwild_soak.once(random.Random("0 0"))
