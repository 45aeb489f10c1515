"""`experiments.error_feedback`: what it refuses, and one tiny run; its figure is of its rows."""

import collections
import csv
import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from verdict_rows import SETTINGS, carried_rows, is_picture

from experiments import error_feedback, runs, simulation
from experiments.constants import Constants
from experiments.derived_lines import compare
from experiments.derived_verdict import sentences
from experiments.phase import phase
from experiments.progress import Progress
from experiments.rows import FEEDBACK, PLAIN, Row, Run
from experiments.verdict import HELPS, HURTS, count, verdict

NAN = math.nan


@pytest.mark.slow
def test_tasks_share_a_program_and_hold_every_run_once():
    config = error_feedback.Config()
    grid = error_feedback.grid(config)
    tasks = runs.tasks_of(grid)
    assert sorted(map(hash, (run for task in tasks for run in task))) == sorted(map(hash, grid))
    assert all(len({(run.program, run.fraction) for run in task}) == 1 for task in tasks)
    assert len(set(grid)) == len(grid)
    assert {run.workers for run in grid if run.mode == "sequential"} == {1}
    error_feedback.check(config)
    error_feedback.check(error_feedback.QUICK)


def test_progress_prints_lines_where_there_is_no_terminal(capsys):
    progress = Progress(total=20, done=5, every=0.0)
    for _ in range(15):
        progress.step()
    progress.note("a word")
    progress.stop()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "6/20 runs, starting" and lines[-1] == "a word"
    assert lines[-2] == "20/20 runs, about 0 s left"


# ---- what a run is made of ----


def test_batches_are_epochs_and_depend_on_the_seed_alone():
    batches = simulation.draw_batches(3, 500, SETTINGS)
    assert batches.shape == (256, 8) and batches.dtype == np.int32
    assert np.array_equal(np.sort(batches.ravel()[:500]), np.arange(500))
    assert np.array_equal(batches, simulation.draw_batches(3, 500, SETTINGS))
    assert not np.array_equal(batches, simulation.draw_batches(4, 500, SETTINGS))
    traces = [
        simulation.draw_trace(Run("asynchronous", 4, method, 0.1, 0.1, 3), SETTINGS)
        for method in (PLAIN, FEEDBACK)
    ]
    assert np.array_equal(traces[0].version, traces[1].version)


@pytest.fixture(scope="module")
def trainer():
    return simulation.Trainer(SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize("method", [PLAIN, FEEDBACK])
def test_one_synchronous_worker_is_one_asynchronous_worker(trainer, method):
    """Two programs, two ways to measure: the meter inside, and the executor's own."""
    parallel, single = (
        trainer.run(Run(mode, 1, method, 0.05, 0.05, 0)) for mode in ("synchronous", "sequential")
    )
    assert not parallel.diverged
    end = collections.deque(trainer.path(Run("sequential", 1, method, 0.05, 0.05, 0)), 1).pop()
    assert trainer._train_loss(end) == pytest.approx(single.curve[-1], rel=1e-5)
    for name in ("curve", "moment_rms", "moment_max", "test_accuracy", "bound"):
        np.testing.assert_allclose(getattr(parallel, name), getattr(single, name), rtol=0.02)
    if method == FEEDBACK:
        np.testing.assert_allclose(parallel.drift_rms, single.drift_rms, rtol=0.02)
        np.testing.assert_allclose(parallel.drift_max, single.drift_max, rtol=0.02)
        assert parallel.lost_norm == single.lost_norm == 0
    else:
        np.testing.assert_allclose(parallel.lost_norm, single.lost_norm, rtol=0.02)
        assert max(parallel.drift_max, single.drift_max) < 1e-3 * single.moment_max


# ---- the command ----


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--gradients 1000", "--gradients 1000: every p of --workers must divide gradients/points"),
        ("--gradients 1000", "multiple of 512, for example 1024"),
        ("--gradients 0", "--gradients 0: give a whole number of at least 1"),
        ("--workers 0 4", "--workers 0 4: give whole numbers from 1"),
        ("--workers 4 4", "--workers 4 4: give each value once"),
        ("--workers", "--workers : give at least one"),
        ("--seeds -1", "--seeds -1: give whole numbers from 0"),
        ("--fractions 1.5", "--fractions 1.5: give numbers in (0, 1]"),
        ("--fractions 0", "--fractions 0.0: give numbers in (0, 1]"),
        ("--alphas 0.1 nan", "--alphas 0.1 nan: give finite numbers above 0"),
        ("--synchronous-alphas -1", "--synchronous-alphas -1.0: give finite numbers above 0"),
        ("--slower 0.1 1", "--slower 0.1 1.0: give numbers above 0, below 1, or none"),
        ("--points 2", "--points 2: give at least 3"),
        ("--diverged 1", "--diverged 1.0: give a finite number above 1"),
        ("--eval-images 10", "--eval-images 10: give a multiple of 250"),
        ("--processes 0", "--processes 0: give a whole number of at least 1"),
        ("--quick --batch 5000", "--batch 5000: give at most 1442"),
        ("--data cifar10", "data_dir=None, but name='cifar10' reads its files from it"),
        ("--data fashion --data-dir /nowhere", "no folder holds train-images"),
        ("--out pyproject.toml", "--out pyproject.toml: that is a file; name a folder"),
    ],
)
def test_bad_arguments_are_refused_at_once(capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(Path(__file__).parents[1])
    assert error_feedback.main(arguments.split()) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("arguments", ["--data imagenet", "--alphas fast", "--step 3"])
def test_arguments_of_the_wrong_kind_are_refused(capsys, arguments):
    with pytest.raises(SystemExit) as error:
        error_feedback.main(arguments.split())
    assert error.value.code == 2
    assert arguments.split()[0] in capsys.readouterr().err


ARGUMENTS = (
    "--data digits --workers 4 --fractions 1 0.01 --alphas 0.05 0.1 --synchronous-alphas 0.2 0.5 "
    "--slower 0.1 --seeds 0 1 --gradients 256 --points 4 --eval-images 500"
).split()


def start(folder, *more):
    return subprocess.Popen(
        [sys.executable, "-m", error_feedback.MODULE, "--out", str(folder), *ARGUMENTS, *more],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ
        | {
            "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        },
    )


def lines_of(folder):
    path = folder / "rows.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def results(folder):
    rows = {}
    for line in lines_of(folder):
        content = json.loads(line)
        content.pop("seconds")
        key = content.pop("key")
        assert key not in rows, "a run was repeated"
        rows[key] = content
    return rows


@pytest.mark.slow
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    process = start(straight, "--processes", "2")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "On the claim" in out
    total = 2 * (3 * 2 + 1) * 2  # modes, methods and step sizes, seeds

    process = start(broken, "--processes", "1")
    deadline = time.monotonic() + 120
    while len(lines_of(broken)) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    kept = lines_of(broken)
    assert process.returncode == 128 + signal.SIGINT
    assert 5 <= len(kept) < total
    assert f"{len(kept)} of {total} runs are kept" in err and "--resume" in err
    assert "Traceback" not in err
    assert len(list(csv.DictReader((broken / "rows.csv").read_text().splitlines()))) == len(kept)

    known = (straight / "constants.jsonl").read_text()
    (broken / "constants.jsonl").write_text(known)  # as if they were estimated before it broke
    process = start(broken, "--processes", "1", "--resume")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"{len(kept)} of {total} runs are done already" in out
    assert lines_of(broken)[: len(kept)] == kept
    assert results(broken) == results(straight)
    assert len(results(straight)) == total

    pictures = ["curves.png", "drift.png", "phase.png"]
    names = ["constants.jsonl", *pictures, "report.md", "rows.csv", "rows.json", "rows.jsonl"]
    assert sorted(path.name for path in straight.iterdir()) == names
    content = json.loads((straight / "rows.json").read_text())
    check_rows(content)
    check_constants(content["constants"])
    assert (broken / "constants.jsonl").read_text() == known and "places" not in err
    assert json.loads((broken / "rows.json").read_text())["constants"] == content["constants"]
    rows, _, _, drawn = redrawn(straight / "phase.png")
    assert len(rows) == total and is_picture(straight / "phase.png", drawn, tmp_path)


def check_rows(content):
    assert {"jax", "optax", "flax", "numpy", "python"} <= content["versions"].keys()
    assert "experiments.error_feedback" in content["command"] and content["seeds"] == [0, 1]
    for found in content["rows"]:
        assert list(found) == runs.COLUMNS
        missing = {name for name, value in found.items() if value is None}
        if not found["diverged"]:
            assert missing <= {"drift_to_bound"}, found
        slack = 1e-4 * found["moment_max"]  # rounding
        assert 0 <= found["drift_rms"] <= found["drift_max"] <= found["bound"] + slack, found
        assert found["moment_rms"] <= found["moment_max"]
        assert (found["delay_max"] > 0) == (found["mode"] == "asynchronous")
        assert (found["lost_norm"] > 0) == (found["method"] == PLAIN)
    assert any(not found["diverged"] for found in content["rows"])


def check_constants(found):
    """They are of three places on the best run of both modes."""
    assert [point["gradients"] for point in found] == [0, 64, 256] * 2
    for point in found:
        assert 0 < point["L"] <= point["L_high"]
        assert 0 < point["sigma"] < 1.01 * point["M"]  # without bias both, so not in every sample


# ---- the figure of the README ----


def redrawn(path):
    """The rows that a phase diagram carries, what else it carries, and the figure, drawn anew."""
    rows, held = carried_rows(path, Row)
    compared = compare(rows, [Constants(**point) for point in held["constants"]])
    return rows, held, compared, phase(rows, verdict(rows), compared)


def test_the_phase_diagram_of_the_readme_is_what_its_rows_make(tmp_path):
    root = Path(__file__).parents[1]
    rows, held, compared, drawn = redrawn(root / "docs/phase.png")
    command = "python -m experiments.error_feedback"  # no option: the whole grid
    assert held["command"].removesuffix(" --resume") == command
    keys = [(r.mode, r.workers, r.method, r.fraction, r.alpha, r.seed) for r in rows]
    grid = error_feedback.grid(error_feedback.Config())
    assert keys == [dataclasses.astuple(run) for run in grid]
    assert is_picture(root / "docs/phase.png", drawn, tmp_path)
    found, text = verdict(rows), " ".join((root / "README.md").read_text().split())
    for mode in ("asynchronous", "synchronous"):
        cells = [cell for cell in found.best if cell.mode == mode]
        counts = count(cells)
        assert counts[HURTS] == 0 and f"{counts[HELPS]} of {len(cells)}" in text
    assert held["constants"] and f"{len(rows):,} runs" in text
    said = " ".join(sentences(compared, found.equal))
    told = {
        r"agrees in (\d+), lies below in (\d+) of (\d+) modes": (
            "there in {0} of {2} modes and p, later in {1}"
        ),
        r"below it feedback helps in (\d+) and hurts in 0 of (\d+)": (
            "Below it feedback helps in {0} of {1}"
        ),
        r"within it feedback helps in (\d+) and hurts in 0 of (\d+)": (
            "within its band in {0} of {1}"
        ),
        r"above it feedback helps in (\d+) and hurts in (\d+) of (\d+)": (
            "above it still in {0} of {2}, and hurts in {1}"
        ),
        r"step is ×([\d.]+) to ([\d,]+) of it": "at steps {0} to {1} times shorter",
        r"cells \(×([\d.]+) to (\d+)\): there": "are {0} to {1} times smaller",
    }
    for pattern, sentence in told.items():
        numbers = re.findall(pattern, said)[0]
        assert sentence.format(*numbers) in text, numbers
