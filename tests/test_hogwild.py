"""Processes that race on shared memory: what they record, and that a replay is the run."""

import functools
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hogwild_tasks import (
    ALPHA,
    EIGENVALUES,
    RECORDED,
    D,
    assert_accounted_for,
    not_a_task,
    shrinking,
    swapped,
    task,
)

import elastic_jax as ej
from elastic_jax import hogwild
from elastic_jax.hogwild import Recording

MODES = ("lock-free", "block", "leashed", "locked")
EPS = float(np.finfo(np.float32).eps)
run = functools.partial(hogwild.train, start="forkserver", seconds=120.0)
again = functools.partial(hogwild.replay, start="forkserver")
pytestmark = pytest.mark.usefixtures("quick_compiles")


def raced(mode, **settings) -> Recording:
    """Tests that ask for the same race look at the same one."""
    return _raced(mode, tuple(sorted(settings.items())))


@functools.cache
def _raced(mode, settings):
    settings = {"workers": 2, "updates": 80, "pause": 1e-3} | dict(settings)
    names = "workers", "updates", "blocks", "gap_every"
    of_run = {name: settings.pop(name) for name in names if name in settings}
    return run(functools.partial(task, **settings), mode=mode, **of_run)


def assert_same_bits(recording, replay):
    flat = jax.flatten_util.ravel_pytree(replay.params)[0]
    np.testing.assert_array_equal(flat, recording.params)
    for name in ("loss", "norm", "moment", "gap"):
        np.testing.assert_array_equal(getattr(replay, name), getattr(recording, name))


@pytest.mark.parametrize("mode", MODES)
def test_everything_is_recorded(mode):
    recording = raced(mode)
    assert recording.end == "done" and not recording.exits.any() and not recording.refused.any()
    updates = len(recording.worker)
    assert 80 <= updates <= (81 if mode == "lock-free" else 80)
    for b, trace in enumerate(recording.traces):
        assert trace.one_view and trace.workers == 2 and len(trace.worker) == updates
        assert set(trace.worker.tolist()) == {0, 1}
        assert np.isfinite(trace.time).all() and trace.time[-1] <= recording.seconds
        np.testing.assert_array_equal(trace.version, recording.read[recording.tick[b], b])
    for worker in range(2):  # each applied all of its steps, in order
        mine = recording.step[recording.worker == worker]
        np.testing.assert_array_equal(mine, np.arange(len(mine)))
    assert recording.delay.max() > 0 and np.isfinite(recording.gap).all()
    # sgd: what is applied is what is proposed, a step along the gradient
    np.testing.assert_allclose(recording.norm**2, recording.moment, rtol=4 * EPS)
    assert recording.tree(task)["x"].shape == (D,)
    said = repr(recording)
    assert said.startswith(f"Recording({mode}, 2 workers, {updates} updates, mean delay ")
    assert said.endswith(", done)") and len(said) < 80


@pytest.mark.parametrize("mode", MODES)
def test_the_window_lemma_holds_of_the_real_run(mode):
    """‖x − view‖ ≤ Σ‖u‖ over the updates missed ≤ τ max‖u‖; chains that hold nothing."""
    recording = raced(mode)
    measured = recording.constants(ALPHA)
    rounding = 80 * EPS * np.abs(recording.start).max() * np.sqrt(D) / ALPHA
    assert 0 < measured.B <= measured.window + rounding
    assert measured.tau == recording.delay.max()
    if mode in ("leashed", "locked"):
        np.testing.assert_array_equal(recording.delay, recording.trace.delay)
        total = np.append(0, np.cumsum(recording.norm.astype(np.float64)))
        missed = total[:-1] - total[recording.trace.version]
        assert (np.sqrt(recording.gap) <= missed + rounding * ALPHA).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "feedback", "blocks": 3},
        {"blocks": 1, "optimizer": "delayed", "server": "feedback", "model": "linear"},
        {"mode": "leashed", "optimizer": "momentum", "server": "feedback", "dtype": "bfloat16"},
        {"mode": "locked", "optimizer": "feedback", "server": "momentum", "gap_every": 0},
        {"mode": "leashed", "optimizer": "gradients", "server": "adam", "model": "linen"},
        {"mode": "locked", "server": "staler", "model": "linear"},
    ],
    ids=str,
)
@jax.numpy_dtype_promotion("standard")  # optax.adam divides by its counter's power
def test_a_replay_has_the_bits_of_the_run(settings):
    settings = {"mode": "block"} | settings
    of_task = {k: v for k, v in settings.items() if k not in ("mode", "blocks", "gap_every")}
    recording = raced(**settings)
    replay = again(recording, functools.partial(task, **of_task))
    assert_same_bits(recording, replay)
    assert (replay.lost is None) == (of_task.get("server") == "momentum")
    if of_task.get("optimizer") == "delayed":  # nobody died, and nothing is lost
        assert_accounted_for(recording, replay)
        assert not replay.lost["x"].any() and np.abs(replay.held["x"]).max() > ALPHA
    if of_task.get("server") == "adam":  # views miss updates of the server's base optimizer
        found, n = recording.constants(ALPHA), len(recording.params)
        assert 0 < found.B <= found.window + 80 * EPS * np.sqrt(n) / ALPHA
    if of_task.get("server") == "staler":  # which is told how many updates each view missed
        steps = zip(recording.worker, recording.step, strict=True)
        sent = ALPHA * np.array([np.linalg.norm(task("linear").batch(*step)) for step in steps])
        np.testing.assert_allclose(recording.norm, sent / (1 + recording.delay), rtol=1e-5)
        assert recording.delay.max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "feedback"])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("model", ["quadratic", "logistic", "network"])
@jax.numpy_dtype_promotion("standard")
def test_a_block_run_replays_to_the_same_bits(model, seed, optimizer):
    settings = {"model": model, "seed": seed, "optimizer": optimizer}
    recording = raced("block", blocks=4, **settings)
    assert_same_bits(recording, again(recording, functools.partial(task, **settings)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("blocks", "chains"),
    [
        (1, {"optimizer": "feedback"}),
        (3, {"optimizer": "feedback"}),
        (1, {"optimizer": "delayed", "server": "feedback", "model": "linear"}),
    ],
)
def test_a_scan_replays_to_rounding(blocks, chains):
    """One `lax.scan` over the events; every sum of the run rounds by at most EPS/2."""
    recording = raced("block", blocks=blocks, **chains)
    scan = hogwild.replay(recording, functools.partial(task, **chains), how="scan")
    size = max(np.abs(recording.params).max(), np.abs(recording.start).max())
    rounding = 80 * EPS * size
    np.testing.assert_allclose(scan.params["x"], recording.params, rtol=0, atol=rounding)
    np.testing.assert_allclose(
        np.sqrt(scan.gap), np.sqrt(recording.gap), rtol=1e-5, atol=rounding * np.sqrt(D)
    )
    if blocks == 1:  # then it is what `asynchronous` makes of the trace
        made = task(**chains)
        executor = ej.asynchronous(made.loss, made.optimizer, made.server)
        schedule = recording.trace.schedule()
        steps = zip(recording.worker.tolist(), recording.step.tolist(), strict=True)
        batches = jnp.stack([made.batch(*step) for step in steps])
        state = executor.init(made.params, 2, schedule.slots)
        state, ticks = executor.run(state, schedule, batches)
        np.testing.assert_allclose(state.params["x"], recording.params, rtol=0, atol=rounding)
        np.testing.assert_allclose(
            np.sqrt(ticks.gap), np.sqrt(recording.gap), rtol=1e-5, atol=rounding * np.sqrt(D)
        )
        np.testing.assert_allclose(ticks.moment, recording.moment, rtol=1e-3)


def test_the_same_trace_with_another_chain():
    """Feedback off, and another α: the views are still those that the trace tells."""
    recording = raced("block", optimizer="feedback", blocks=1)
    for alpha in (ALPHA, 0.2):
        other = hogwild.replay(recording, functools.partial(task, alpha=alpha), how="scan")
        versions = [recording.start.astype(np.float64)]
        batch = task().batch
        for t, (worker, step) in enumerate(zip(recording.worker, recording.step, strict=True)):
            view = versions[recording.read[t, 0]]
            versions.append(versions[-1] - alpha * (EIGENVALUES * view + batch(worker, step)))
        np.testing.assert_allclose(other.params["x"], versions[-1], atol=1e-5)


def test_a_lock_free_replay_is_as_near_as_races_allow():
    recording = raced("lock-free", workers=3, updates=200, pause=2e-4)
    replay = again(recording, task)
    bound = recording.race_bound(ALPHA * EIGENVALUES.max())
    size = max(np.abs(recording.params).max(), np.abs(recording.start).max())
    rounding = 200 * EPS * size * np.sqrt(D)
    assert np.linalg.norm(replay.params["x"] - recording.params) <= bound + rounding


def racing_writes(rng, workers, updates):
    """Plain SGD on D numbers whose elements are read and stored in any order; numpy, exact."""
    batch = task().batch
    live, log, clock = rng.normal(size=D), [], 0
    start = live.copy()

    def one(worker):
        for step in range(updates):
            begun, view = clock, np.empty(D)
            for j in range(D):
                view[j] = live[j]
                yield
            ended = clock
            for _ in range(rng.integers(3 * D)):
                yield
            update = -ALPHA * (EIGENVALUES * view + batch(worker, step))
            write = clock
            for j in range(D):
                read = live[j]
                yield
                live[j] = read + update[j]
            log.append((clock, worker, step, np.linalg.norm(update), begun, ended, write))
            yield

    going = [one(worker) for worker in range(workers)]
    while going:
        clock += 1
        turn = rng.integers(len(going))
        if next(going[turn], going) is going:
            del going[turn]
    log.sort()
    end, worker, step, norm, begun, ended, write = map(np.array, zip(*log, strict=True))
    read = np.searchsorted(end, begun, "left")  # a tick of this clock is 1 second
    window = np.stack([begun, ended, write, end], 1).astype(np.float64)
    return start, live, worker, step, norm, read, window


@pytest.mark.parametrize("seed", range(6))
def test_the_bound_on_unrecorded_races(seed):
    """Against simulated races, element by element; with one worker nothing is left to explain."""
    rng = np.random.default_rng(seed)
    workers, updates = (1, 2, 4)[seed % 3], 12
    start, live, worker, step, norm, read, window = racing_writes(rng, workers, updates)
    recording = raced("lock-free")._replace(
        worker=worker, step=step, norm=norm, read=read[:, None], window=window
    )
    versions = [start]
    for t in range(len(worker)):
        view = versions[read[t]]
        update = -ALPHA * (EIGENVALUES * view + task().batch(worker[t], step[t]))
        versions.append(versions[-1] + update)
    apart, bound = np.linalg.norm(versions[-1] - live), recording.race_bound(ALPHA)
    assert apart <= bound + 1e-12
    assert (apart > 1e-6) == (workers > 1) == (bound > 1e-6)


def test_a_lost_write_attains_the_bound_but_for_the_other():
    """Two writes of ‖u‖ at once: one may be lost; the bound cannot know which, and counts both."""
    ones = np.ones(2)
    window = np.array([[0.0, 1.0, 2.0, 4.0], [0.0, 1.0, 3.0, 5.0]])
    recording = raced("lock-free")._replace(
        worker=np.array([0, 1]), norm=ones, read=np.zeros((2, 1), int), window=window
    )
    assert recording.race_bound(1e-9) == pytest.approx(2.0)
    apart = window + np.array([[0.0], [5.0]])  # one after the other
    after = recording._replace(window=apart, read=np.array([[0], [1]]))
    assert after.race_bound(1e-9) == 0.0
    np.testing.assert_array_equal(after.delay, [0, 0])
    np.testing.assert_array_equal(recording.delay, [0, 1])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4, 8])
def test_the_recordings_that_ship(workers):
    """Real races of 2, 4 and 8 workers, replayed wherever this runs, to rounding."""
    recording = Recording.load(Path(__file__).parent / "traces" / f"{workers}_workers.npz")
    assert recording.workers == workers and len(recording.worker) == 300
    assert all(trace.one_view for trace in recording.traces)
    scan = hogwild.replay(recording, functools.partial(task, **RECORDED), how="scan")
    flat = np.asarray(jax.flatten_util.ravel_pytree(scan.params)[0])
    size = max(np.abs(recording.params).max(), np.abs(recording.start).max())
    np.testing.assert_allclose(flat, recording.params, rtol=0, atol=300 * EPS * size)
    assert recording.delay.max() >= workers - 1 and recording.constants(ALPHA).B > 0


def test_saved_and_loaded_it_is_the_same(tmp_path):
    settings = {"optimizer": "momentum", "server": "feedback", "dtype": "bfloat16"}
    for recording in (raced("leashed", **settings), raced("lock-free")):
        recording.save(tmp_path / "run.npz")
        loaded = Recording.load(tmp_path / "run.npz")
        for name, value, other in zip(Recording._fields, recording, loaded, strict=True):
            assert type(value) is type(other), name
            np.testing.assert_array_equal(value, other)
            assert np.asarray(value).dtype == np.asarray(other).dtype
    with pytest.raises(ValueError, match=r"use \.npz"):
        recording.save(tmp_path / "run.csv")
    (tmp_path / "other.npz").write_bytes(b"no")
    with pytest.raises(ValueError, match="no readable recording"):
        Recording.load(tmp_path / "other.npz")


@pytest.mark.slow
def test_by_spawn_and_with_doubles():
    """The default way to start; the parent's x64 is the workers'; one core of XLA each."""
    with jax.enable_x64(True):
        make = functools.partial(task, dtype="float64", optimizer="feedback")
        recording = hogwild.train(make, workers=2, updates=20, seconds=120.0)
        assert recording.params.dtype == np.float64 and recording.threads == 1
        assert_same_bits(recording, again(recording, make))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "workers=0 is no number of workers"),
        ({"updates": 1.5}, "updates=1.5 is no number of updates"),
        ({"mode": "free"}, "mode='free' is none: pass one of lock-free, block"),
        ({"blocks": 13}, "blocks=13 is no number of blocks; pass an int from 1 to 12"),
        ({"mode": "leashed", "blocks": 2}, "blocks=2 in mode 'leashed', which has one"),
        ({"seconds": 0}, "seconds=0 is out of range"),
        ({"gap_every": -1}, "gap_every=-1 is out of range"),
        ({"start": "fork"}, "start='fork' is none"),
        ({"task": lambda: task()}, "cannot be made in another process"),
        ({"task": threading.Lock}, "task.. returned a lock"),
        ({"task": swapped}, "params holds <function linear"),
        ({"task": not_a_task}, "task.. returned a str: return an ej.hogwild.Task"),
        ({"task": task()}, "task is a Task: pass the function"),
        (
            {"task": functools.partial(task, optimizer="feedback", server="momentum")},
            "pass gap_every=0",
        ),
        ({"task": functools.partial(task, optimizer="staler")}, "Let task.server scale it"),
        (
            {"task": functools.partial(task, server="feedback"), "mode": "lock-free"},
            "nobody to run task.server",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    arguments = {"task": task, "workers": 2, "updates": 5} | arguments
    make = arguments.pop("task")
    with pytest.raises((ValueError, TypeError), match=message):
        hogwild.train(make, **arguments)


def test_a_batch_of_another_shape_is_named():
    with pytest.warns(
        RuntimeWarning, match=r"task.batch\(0, 5\) has arrays \[\(\(3, 2\), 'float32'"
    ):
        recording = run(shrinking, workers=1, updates=20)
    assert recording.end == "no worker left" and len(recording.worker) == 5


def test_a_task_of_this_session_alone_is_refused(monkeypatch):
    """As in a notebook: functions of `__main__`, which has no file."""
    monkeypatch.setattr(task, "__module__", "__main__")
    monkeypatch.delattr("__main__.__file__", raising=False)
    monkeypatch.setattr("__main__.task", task, raising=False)
    with pytest.raises(ValueError, match="%%writefile"):
        hogwild.train(functools.partial(task, seed=1), workers=2, updates=5)


def test_params_and_chains_that_cannot_be_are_refused():
    recording = raced("block")
    with pytest.raises(ValueError, match="task has 35 parameters of float32, but recording has 12"):
        hogwild.replay(recording, functools.partial(task, model="network"))
    with pytest.raises(ValueError, match="task has a server, but the updates of the 8 blocks"):
        hogwild.replay(recording, functools.partial(task, server="feedback"))
    with pytest.raises(ValueError, match="how='twice'"):
        hogwild.replay(recording, task, how="twice")
    with pytest.raises(ValueError, match="has 8 blocks: take one of its traces"):
        _ = recording.trace
    with pytest.raises(ValueError, match="leaves no race unrecorded"):
        recording.race_bound(1.0)
    with pytest.raises(ValueError, match="no order of events"):
        recording._replace(read=recording.read[::-1]).events()
    with pytest.raises(ValueError, match="learning_rate=0"):
        recording.constants(0)
