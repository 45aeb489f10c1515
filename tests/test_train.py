"""`experiments.train`: what it refuses, two processes as one, killed and resumed, other workers."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from test_resize import apart, largest, masses

import elastic_jax as ej
from experiments import checkpoints, data, train, train_config, train_soak
from experiments.train_config import Config
from experiments.train_soak import RUN, Lives, differences, end, rows, state

ROOT = Path(__file__).parent.parent
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def lives():
    return Lives()


@pytest.fixture(scope="module")
def whole(lives, tmp_path_factory):
    """A run that nobody disturbs, in one process."""
    folder = tmp_path_factory.mktemp("train") / "whole"
    assert end(lives.start(folder, 1, resume=False), 300) == [0], log(folder)
    return folder


def log(folder: Path, process: int = 0) -> str:
    return folder.with_name(f"{folder.name}.{process}.log").read_text()


def until(condition: Any, seconds: float = 120.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it does not happen"
        time.sleep(0.005)


def lines(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


# ---- what a run leaves ----


@pytest.mark.slow
def test_a_run_leaves_metrics_checkpoints_and_a_result(whole):
    found = rows(whole)
    assert [row["step"] for row in found] == list(range(0, 40, 4))
    assert [row["step"] for row in found if "accuracy" in row] == [0, 16, 32]
    names = {"loss", "B_hat", "B_hat_max", "M_hat", "M_hat_max", "held", "lost", "workers"}
    assert all(names <= set(row) for row in found)
    assert found[-1]["held"] > 0 == found[-1]["lost"]
    assert sorted(os.listdir(whole / "checkpoints")) == ["35", "40"]
    result = json.loads((whole / "result.json").read_text())
    assert result["steps"] == 40 and found[0]["accuracy"] < result["accuracy"] <= 1
    assert "--out" in result["command"] and "jax" in result["versions"]


@pytest.mark.slow
def test_batches_depend_on_seed_worker_and_step_alone():
    sharding = NamedSharding(jax.make_mesh((1,), ("workers",)), P())
    dataset = data.load("digits")

    def draw(workers=2, step=3, seed=0):
        config = Config(workers=workers, batch=4, seed=seed)
        return np.asarray(train.batch_of(config, dataset, step, sharding)[0])

    np.testing.assert_array_equal(draw(), draw(workers=4)[:2])
    for other in (draw(step=4), draw(seed=1), draw()[::-1]):
        assert (draw() != other).any()


# ---- stopped, killed, resumed ----


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=slow)])
def test_resumed_with_the_same_bits(sign, lives, whole, tmp_path):
    folder = tmp_path / "run"
    (process,) = lives.start(folder, 1, resume=False)
    until(lambda: lines(folder) >= 3)
    os.kill(process.pid, sign)
    clean = sign == signal.SIGTERM
    assert end([process], 60) == [143 if clean else -9], log(folder)
    assert not (folder / "result.json").exists()
    if clean:
        assert "stopped, and kept; to go on: python -m experiments.train" in log(folder)
        step = max(int(name) for name in os.listdir(folder / "checkpoints") if name.isdigit())
        assert step > rows(folder)[-1]["step"]  # nothing is left out
    assert end(lives.start(folder, 1, resume=True), 120) == [0], log(folder)
    assert differences(whole, folder) == []
    assert end(lives.start(folder, 1, resume=True), 120) == [0]  # nothing is left to do
    assert differences(whole, folder) == []


def test_lines_after_the_checkpoint_and_torn_ones_are_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    text = "".join(json.dumps({"step": s, "seconds": s / 2}) + "\n" for s in (0, 4, 8, 12))
    path.write_text(text + '{"step": 16, "sec')
    metrics = checkpoints.Metrics(path, done=9)
    metrics.append({"step": 12, "loss": float("nan")})
    metrics.sync()
    metrics.file.close()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in found] == [0, 4, 8, 12]
    assert found[-1]["loss"] is None and found[-1]["seconds"] >= 4


def test_a_folder_belongs_to_one_process(tmp_path):
    held = checkpoints.lock(tmp_path)
    with pytest.raises(ValueError, match="another process trains there"):
        checkpoints.lock(tmp_path, patience=0.2)
    held.close()
    checkpoints.lock(tmp_path).close()


@slow
@pytest.mark.parametrize("count", [1, 2])
def test_soak(count, tmp_path):
    times = os.environ.get("TRAIN_SOAK_TIMES", "2")
    arguments = ["--times", times, "--processes", str(count), "--out", str(tmp_path / "soak")]
    assert train_soak.main(arguments) == 0


# ---- several processes ----


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "experiments.train", *RUN, "--out", str(folder), *more]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


ENVIRONMENT = {**os.environ, "NPROC": "1", "XLA_FLAGS": "--xla_backend_optimization_level=0"}


@slow
def test_two_processes_equal_one(tmp_path):
    """2 processes of 4 devices = 1 of 8: the same workers, batches and mass."""
    whole, folder = tmp_path / "one", tmp_path / "two"
    for out, processes, devices in ((whole, "1", "8"), (folder, "2", "4")):
        more = ("--workers", "8", "--processes", processes, "--devices", devices)
        full = command(out, *more)
        done = subprocess.run(full, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for got, want in zip(rows(folder), rows(whole), strict=True):
        assert got["step"] == want["step"] and got.get("accuracy") == want.get("accuracy")
        for name in ("loss", "held", "M_hat"):
            np.testing.assert_allclose(got[name], want[name], rtol=1e-4)
    a, b = state(folder), state(whole)
    assert sorted(a) == sorted(b)
    for name in a:
        close(a[name], b[name], name)


def close(got: np.ndarray, want: np.ndarray, name: str) -> None:
    if got.dtype != np.float32:
        np.testing.assert_array_equal(got, want, name)
    else:  # sums over workers in another order, 40 steps of them
        scale = max(1.0, float(np.nanmax(np.abs(want), initial=0)))
        np.testing.assert_allclose(got, want, rtol=0, atol=40 * 16 * 1.2e-7 * scale, err_msg=name)


@slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_is_killed(victim, lives, tmp_path):
    """The other ends by itself, says why, and both go on."""
    folder = tmp_path / "lost"
    processes = lives.start(folder, 2, resume=False)
    until(lambda: lines(folder) >= 3)
    processes[victim].kill()
    begun = time.monotonic()
    codes = end(processes, 150)
    assert codes[victim] == -9 and time.monotonic() - begun < 120
    # the collective fails, or JAX notices first and aborts
    words = {3: "probably lost another process", -6: "most likely indicates that another task died"}
    assert words[codes[1 - victim]] in log(folder, 1 - victim)
    assert end(lives.start(folder, 2, resume=True), 240) == [0, 0]
    assert [row["step"] for row in rows(folder)] == list(range(0, 40, 4))


@slow
def test_who_waits_for_the_other_in_vain_ends(tmp_path):
    """One that is killed before it has met the others is not waited for for ever."""
    place = ["--coordinator", f"127.0.0.1:{free_port()}", "--process-count", "2"]
    arguments = [*RUN, "--out", str(tmp_path / "x"), *place, "--process-id", "0"]
    code = f"from experiments import hosts, train; hosts.MEET = 2; train.main({arguments})"
    full = [sys.executable, "-c", code]
    done = subprocess.run(full, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGABRT
    assert "most likely indicates that another task died" in done.stderr


@slow
def test_a_rehearsal_is_stopped_as_one(tmp_path):
    folder = tmp_path / "run"
    full = command(folder, "--processes", "2", "--devices", "2")
    parent = subprocess.Popen(full, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    until(lambda: lines(folder) >= 2)
    parent.terminate()
    _, said = parent.communicate(timeout=120)
    assert parent.returncode == 143 and "to go on: python -m experiments.train" in said, said


@slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_rehearsal_says_who_was_lost(tmp_path):
    folder = tmp_path / "run"
    full = command(folder, "--processes", "2", "--devices", "2")
    parent = subprocess.Popen(full, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    until(lambda: lines(folder) >= 2)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    _, said = parent.communicate(timeout=120)
    assert parent.returncode == 3, said
    assert "process 1 of 2 was killed by signal 9, so the others were stopped" in said
    assert "--resume" in said


# ---- another number of workers ----


CONFIG = Config(
    workers=8,
    compressor="random_k",
    optimizer="momentum",
    learning_rate=0.05,
    delay=2,
    log_every=4,
)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [8, 16])
def test_law_1_across_a_restore(workers, whole, tmp_path):
    """From 4 workers, saved by another process, to 8 devices, one or two on each."""
    folder = tmp_path / "moved"
    shutil.copytree(whole, folder)
    config = dataclasses.replace(CONFIG, workers=workers)
    program = train.build(config, data.load("digits"))
    kept = checkpoints.Checkpoints(folder / "checkpoints")
    moved = kept.restore(kept.latest() or 0, program.like, 4, program.places)
    kept.close()
    saved = state(whole)
    paths = jax.tree_util.tree_flatten_with_path(program.like)[0]
    names = [jax.tree_util.keystr(path) for path, _ in paths]
    before = jax.tree.unflatten(jax.tree.structure(program.like), [saved[name] for name in names])
    x, held, lost = masses(before)
    after, still_held, still_lost = masses(moved)
    assert optax.tree.norm(held) > 0.01 and optax.tree.norm(lost) == 0
    off = 2 * float(jnp.finfo(jnp.float32).eps) * largest(x)  # a rounding of a mean, a sum
    assert apart((x, held, lost), (after, still_held, still_lost)) <= off
    states, losses, _ = program.advance(
        moved,
        train.batch_of(config, data.load("digits"), 40, program.batches),
        jnp.zeros(workers, jnp.int32),
    )
    assert np.isfinite(losses).all() and losses.shape == (workers,)
    assert jax.tree.leaves(states)[0].sharding.num_devices == 8


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, pytest.param(6, marks=slow)])
def test_resumed_on_another_number_of_workers(workers, lives, whole, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(whole, folder)
    more = [*RUN, "--workers", str(workers), "--steps", "48"]
    assert end(lives.start(folder, 1, resume=True, run=more, devices=2), 200) == [0], log(folder)
    assert f"resumed after step 40, moved from 4 to {workers} workers" in log(folder)
    found = rows(folder)
    assert [row["workers"] for row in found] == [4] * 10 + [workers] * 2
    assert found[10]["held"] > 0 and np.isfinite(found[-1]["loss"])


# ---- sharded parameters ----


def test_arrays_are_spread_along_their_longest_dimension_that_fits():
    params = {"w": jnp.zeros((3, 4, 8)), "b": jnp.zeros(6), "odd": jnp.zeros(5), "s": jnp.zeros(())}
    specs = {"w": P(None, None, "shard"), "b": P("shard"), "odd": P(None), "s": P()}
    assert train.spread(params, 2) == specs
    assert not any(map(any, jax.tree.leaves(train.spread(params, 1))))


@slow
def test_sharded_from_a_checkpoint_that_is_not(lives, whole, tmp_path):
    """All workers on two processes, half of each on either: it goes on as it would, and back."""
    program = train.build(dataclasses.replace(CONFIG, workers=4, shard=2), data.load("digits"))
    kernel = max(jax.tree.leaves(program.init().params), key=lambda x: x.size)
    assert kernel.addressable_shards[0].data.size == kernel.size // 8
    folders = [tmp_path / name for name in ("alone", "halves")]
    for folder in folders:
        shutil.copytree(whole, folder)

    def go_on(folder, steps, shard, processes, devices):
        run = [*RUN, "--steps", str(steps), "--shard", str(shard)]
        done = end(lives.start(folder, processes, resume=True, run=run, devices=devices), 300)
        assert done == [0] * processes, log(folder)

    go_on(folders[0], 48, shard=1, processes=1, devices=4)
    go_on(folders[1], 48, shard=2, processes=2, devices=2)
    for steps in (48, 52):
        if steps == 52:
            for folder in folders:
                go_on(folder, 52, shard=1, processes=1, devices=4)
        for got, want in zip(*map(rows, folders), strict=True):
            np.testing.assert_allclose(got["loss"], want["loss"], rtol=1e-4)
        a, b = map(state, folders)
        assert sorted(a) == sorted(b)
        for name in a:
            close(a[name], b[name], name)


# ---- what is refused ----

REFUSED = {
    "workers": (["--workers", "0"], "--workers 0: give a whole number"),
    "rate": (["--learning-rate", "nan"], "--learning-rate nan: give a finite"),
    "delay": (["--delay", "-1"], "--delay -1"),
    "amount": (["--amount", "3.5"], "--amount 3.5"),
    "no amount": (["--compressor", "sign", "--amount", "1"], "takes none; leave it out"),
    "eval": (["--eval-every", "15"], "--eval-every 15: give a multiple of --log-every, 10"),
    "place": (["--coordinator", "a:1"], "give --coordinator, --process-id and --process-count"),
    "ways": (["--cluster", "--processes", "2"], "give one of --processes"),
    "devices": (["--devices", "0"], "--devices 0"),
    "data": (["--data", "cifar10"], "data_dir=None"),
    "divide": (["--workers", "7"], "--workers 7: cannot be divided among 8 devices"),
    "shards": (["--shard", "3", "--batch", "3"], "--shard 3: does not divide 8 devices"),
    "parts": (["--shard", "2", "--batch", "3"], "--batch 3: give a multiple of --shard, 2"),
    "groups": (["--shard", "2", "--workers", "6"], "--workers 6: cannot be divided among 4"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_message_that_helps(name, tmp_path, capsys):
    arguments, words = REFUSED[name]
    assert train.main([*arguments, "--out", str(tmp_path / "x")]) == 2
    assert words in capsys.readouterr().err


def test_another_run_in_the_folder_is_refused(whole, capsys):
    assert train.main([*RUN, "--out", str(whole)]) == 2
    assert "a run is there already; add --resume" in capsys.readouterr().err
    other = [*RUN, "--out", str(whole), "--resume", "--learning-rate", "0.1"]
    assert train.main(other) == 2
    assert "--learning-rate 0.1: the run in" in capsys.readouterr().err


@pytest.mark.parametrize("compressor", train_config.COMPRESSORS)
@pytest.mark.parametrize("feedback", [True, False])
def test_every_chain_is_legal(compressor, feedback):
    config = Config(compressor=compressor, feedback=feedback, delay=1)
    params = {"m": jnp.ones((6, 4)), "b": jnp.ones(4)}
    ej.check_order(train_config.chain(config, "workers").init(params), workers=4)
