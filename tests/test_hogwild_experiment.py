"""`experiments.hogwild`: its verdict, its replays, and one tiny run that is interrupted."""

import csv
import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hogwild_tasks import ALPHA, EIGENVALUES
from hogwild_tasks import task as quadratic
from verdict_rows import carried_rows, is_picture

import elastic_jax as ej
from experiments import hogwild, hogwild_config
from experiments.figures import plt
from experiments.hogwild_figures import curves, draw
from experiments.hogwild_task import compiled_step, follow, kept_of, task
from experiments.hogwild_verdict import (
    SIMULATED,
    Row,
    above,
    compared,
    races_of,
    speeds,
    verdict,
)
from experiments.rows import DENSE, FEEDBACK, PLAIN, Run, elastic_bound

ROOT = Path(__file__).parents[1]
EPS = float(np.finfo(np.float32).eps)
pytestmark = pytest.mark.usefixtures("quick_compiles")


def row(method, seed, loss, fed_loss=None, mode="block", workers=4, **more):
    """A race; `fed_loss` is that of its trace with feedback."""
    fraction = 1.0 if method == DENSE else 0.01
    values = dict(data="mnist", model="cnn", d=10_042, mode=mode, workers=workers, method=method)
    values |= dict(fraction=fraction, kept=101, alpha=0.1, seed=seed, gradients=40)
    values |= dict(train_loss=loss, test_accuracy=0.9, diverged=loss is None, drift_rms=1.0)
    values |= dict(drift_max=2.0, moment_rms=3.0, moment_max=4.0, delay_mean=3.0, delay_max=8)
    values |= dict(bound=32.0, drift_to_bound=2 / 32, lost_norm=None, seconds=2.0)
    values |= dict(curve=(2.0, 1.0), sleep=0.0, end="done", window=32.0, updates_per_second=20.0)
    values |= dict(retries=0.0, load=1.0, delays=(10, 20, 10), clock=(1.0, 2.0))
    values |= dict(accuracies=(0.5, 0.9) if seed == 0 else (), apart=0.0 if seed == 0 else None)
    values |= dict(fed_alpha=0.1, fed_loss=fed_loss, fed_accuracy=0.9, own_loss=loss)
    values |= dict(fed_curve=(2.0, 1.0) if method == PLAIN else ())
    return Row(**{**values, **more})


def rows_of(without, with_, same, **more):
    pairs = enumerate(zip(without, same, strict=True))
    plain = [row(PLAIN, seed, *losses, **more) for seed, losses in pairs]
    return plain + [row(FEEDBACK, seed, loss, **more) for seed, loss in enumerate(with_)]


def test_races_and_replays_are_compared_by_seed():
    (found,) = compared(rows_of((1.0, 2.0, 0.5), (0.5, 1.0, 0.4), (0.5, 1.0, 0.25)))
    assert (found.mode, found.workers, found.sleep, found.delay_max) == ("block", 4, 0.0, 8)
    logs = [math.log(0.5), math.log(0.5), math.log(0.8)]
    mean = sum(logs) / 3
    half = 4.302652729911275 * math.sqrt(sum((x - mean) ** 2 for x in logs) / 2 / 3)
    assert found.races.difference == pytest.approx(mean)
    assert found.races.half_width == pytest.approx(half) and found.races.outcome == "cannot tell"
    assert found.same.difference == pytest.approx(math.log(0.5))
    assert found.same.half_width == pytest.approx(0) and found.same.outcome == "helps"
    # on the same trace, a replay is compared with a replay
    rows = [row(PLAIN, s, 1.0, 0.5, mode="lock-free", own_loss=0.25) for s in (0, 1)]
    (found,) = compared([*rows, *(row(FEEDBACK, s, 0.5, mode="lock-free") for s in (0, 1))])
    assert found.races.difference == pytest.approx(math.log(0.5)), found.races
    assert found.same.difference == pytest.approx(math.log(2)) and found.same.outcome == "hurts"
    said = verdict(rows_of((1.0, 2.0, 0.5), (0.5, 1.0, 0.4), (0.5, 1.0, 0.25)))
    assert "of 1 cell, helps in 0, hurts in 0, cannot be told in 1" in said[0]
    assert "of 1 cell, helps in 1" in said[1] and "loss ×0.5 in" in said[1]
    low, high = math.exp(mean - half), math.exp(mean + half)
    assert said[3].startswith(
        "block, p = 4 (delay 3.0 on average, 8 at most; α = 0.1 without, 0.1 with): loss ×0.58 "
        f"({low:.2g} to {high:.2g}), cannot tell; same traces loss ×0.5 (0.5 to 0.5), helps"
    )


def test_divergence_and_a_single_seed_are_said():
    (found,) = compared(rows_of((1.0, 1.1), (None, None), (None, 0.5)))
    assert found.races.outcome == "hurts" and found.races.difference is None
    assert found.same.outcome == "cannot tell" and found.same.reason == "some seeds diverge"
    said = verdict(rows_of((1.0,), (0.5,), (0.5,)))
    assert said[0].startswith("With 1 seed nothing can be told")
    assert "cannot tell (fewer than two seeds)" in said[1] and verdict([])[1:] == []


def test_one_worker_is_no_asynchrony():
    rows = rows_of((1.0, 2.0), (0.5, 1.0), (0.5, 1.0), workers=1)
    assert compared(rows) == [] and not any("between races" in line for line in verdict(rows))


def test_a_drift_above_its_bound_is_found():
    rows = rows_of((1.0, 2.0), (0.5, 1.0), (0.5, 1.0))
    assert above(rows) == [] and "stays below in 2 of 2 races" in " ".join(verdict(rows))
    rows[0] = row(PLAIN, 0, 1.0, 0.5, drift_max=33.0, drift_to_bound=33 / 32)
    assert above(rows) == rows[:1]
    assert "ABOVE its bound in 1 of 2 races" in " ".join(verdict(rows))
    # one worker misses nothing: both are 0, to rounding
    rows = [row(DENSE, 0, 1.0, drift_max=1e-6, bound=0.0, drift_to_bound=None)]
    assert above(rows) == []


def test_speeds_edges_and_replays_are_said():
    rows = [
        row(DENSE, seed, 1.0, workers=p, updates_per_second=100.0 * p + seed)
        for p in (1, 2)
        for seed in (0, 2)
    ]
    rows += [row(DENSE, 0, 1.0, sleep=10.0, updates_per_second=1.0)]
    assert speeds(rows) == {"block": {1: [100.0, 102.0], 2: [200.0, 202.0]}}
    losses = {0.1: 0.5, 0.2: 0.3}
    rows += [
        row(DENSE, 9, loss, mode="asynchronous", alpha=alpha, load=None)
        for alpha, loss in losses.items()
    ]
    said = " ".join(verdict(rows))
    assert "races themselves make: block 101 (p = 1), 201 (p = 2)" in said
    assert "on the edge of their grid: p = 4, dense: 0.2" in said
    assert "Replays of 3 block, leashed and locked races end at most 0 of" in said


def test_the_bound_of_a_chain_that_holds_nothing_is_the_window():
    assert elastic_bound("asynchronous", PLAIN, 4, 0.99, 8, 4.0) == 32.0
    with_feedback = elastic_bound("asynchronous", FEEDBACK, 4, 0.25, 8, 4.0)
    assert with_feedback == pytest.approx((4 * 0.5 / 0.5 + 8) * 4.0)


def test_the_grid_chooses_step_sizes_before_it_races():
    config = hogwild.Config()
    grid = hogwild.grid(config)
    races = [one for one in grid if isinstance(one, hogwild.Race)]
    tuned = grid[: -len(races)]
    assert len(set(grid)) == len(grid) and not set(tuned) & set(races)
    assert {(one.workers, one.seed) for one in tuned} == {(p, 1000) for p in (1, 2, 4, 8)}
    modes, seeds = len(config.modes), len(config.seeds)
    assert len(races) == 3 * (modes * (1 + 2 * seeds) + seeds)
    hogwild.check(config)
    hogwild.check(hogwild.QUICK)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--steps 100", "--steps 100: give a multiple of --points, 8"),
        ("--points 2", "--points 2: give at least 3"),
        ("--workers 0", "--workers 0: give whole numbers from 1 to 256"),
        ("--workers 2 2", "--workers 2 2: give each value once"),
        ("--alphas -1", "--alphas -1.0: give finite numbers above 0"),
        ("--sleep 0", "--sleep 0.0: give a finite number above 0"),
        ("--fraction 1", "--fraction 1.0: give a number above 0, below 1"),
        ("--tuning-seed 1", "--tuning-seed 1: give a whole number from 0 that is none of --seeds"),
        ("--eval-images 10", "--eval-images 10: give at least 250"),
        ("--out pyproject.toml", "--out pyproject.toml: that is a file; name a folder"),
    ],
)
def test_bad_arguments_are_refused_at_once(capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(ROOT)
    assert hogwild.main(arguments.split()) == 2
    assert words in capsys.readouterr().err


def test_a_batch_depends_on_seed_worker_and_step_alone():
    params = {"w": np.zeros(2, np.float32)}
    settings = (0, 0.0), (0, 1.0), (1, 0.0)  # seed, sleep
    makes = [task("mnist", params, DENSE, 0.1, 1, 4, *which) for which in settings]
    first, slept, other = (made.batch(1, 2) for made in makes)
    np.testing.assert_array_equal(first[0], slept[0])
    assert first[0].shape == (4, 28, 28, 1) and first[1].shape == (4,)
    for different in (other, makes[0].batch(0, 2), makes[0].batch(1, 3)):
        assert not np.array_equal(first[0], different[0])
    assert kept_of(0.01, 10_042) == 101 and kept_of(0.01, 3) == 1


def test_what_is_followed_is_the_race():
    """On a quadratic, whose steps do not spread rounding: each of T sums rounds by EPS/2."""
    made = functools.partial(quadratic, optimizer="feedback", pause=1e-3)
    recording = ej.hogwild.train(made, workers=2, updates=40, blocks=3, start="forkserver")
    step = compiled_step(quadratic(), FEEDBACK, 3)
    found = follow(recording, quadratic(optimizer="feedback"), step, ALPHA, points=4)
    rounding = 40 * 4 * EPS * np.abs(recording.start).max()
    np.testing.assert_allclose(found.params, recording.params, rtol=0, atol=rounding)
    # a loss is a sum of either sign: what it may be off by is its slope's, not its own size
    steps = zip(recording.worker.tolist(), recording.step.tolist(), strict=True)
    slope = max(np.abs(quadratic().batch(*at)).sum() for at in steps)
    slope += EIGENVALUES.sum() * np.abs(recording.start).max()
    np.testing.assert_allclose(found.loss, recording.loss, rtol=0, atol=rounding * slope)
    assert len(found.points) == 4
    np.testing.assert_array_equal(found.points[-1], found.params)
    assert recording.delay.max() > 0 and np.abs(found.points[0] - found.params).max() > 1e-3


@pytest.mark.slow
def test_a_tiny_run_interrupted_and_resumed(tmp_path, capsys, monkeypatch):
    """Ctrl-C keeps what is done; what is resumed is not done again."""
    hold, held, tracks = hogwild.Track.race, [], []

    def interrupted(self, race):
        if held:
            raise KeyboardInterrupt
        held.append(race)
        return hold(self, race)

    def track(config, make=hogwild.Track):  # one for both, which compiles once
        tracks.append(tracks[0] if tracks else make(config))
        return tracks[0]

    arguments = (
        "--modes leashed --workers 2 --sleepers --alphas 0.1 --seeds 0 --steps 24 --points 3"
    )
    arguments = [*arguments.split(), "--eval-images", "250", "--quick", "--out", str(tmp_path)]
    monkeypatch.setattr(hogwild_config, "METHODS", (PLAIN, FEEDBACK))
    monkeypatch.setattr(hogwild.Track, "race", interrupted)
    monkeypatch.setattr(hogwild, "Track", track)
    assert hogwild.main(arguments) == 130
    said = capsys.readouterr()
    assert "3 of 4 runs are kept" in said.err and "Incomplete: 1 of 4" in said.out
    before = (tmp_path / "rows.jsonl").read_text()

    monkeypatch.setattr(type(tracks[0]), "race", hold)
    assert hogwild.main([*arguments, "--resume"]) == 0
    assert (tmp_path / "rows.jsonl").read_text().startswith(before)
    names = ["curves.png", "hogwild.png", "rows.csv", "rows.json", "rows.jsonl", "verdict.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    said = capsys.readouterr().out
    assert said == (tmp_path / "verdict.txt").read_text() and "With 1 seed nothing" in said
    assert len(list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))) == 4
    check_rows(json.loads((tmp_path / "rows.json").read_text()))


def check_rows(content):
    assert "experiments.hogwild" in content["command"] and content["seeds"] == [0]
    assert {"jax", "optax", "numpy", "elastic_jax"} <= content["versions"].keys()
    assert [found["mode"] for found in content["rows"]] == ["asynchronous"] * 2 + ["leashed"] * 2
    for found in content["rows"][2:]:
        assert found["end"] == "done" and found["gradients"] == 24
        assert 0 <= found["drift_rms"] <= found["drift_max"] < found["bound"] + 1e-4
        assert 0 < found["train_loss"] and found["updates_per_second"] > 0
        assert 0 <= found["apart"] < 1
    assert content["rows"][2]["fed_loss"] > 0 and content["rows"][3]["fed_loss"] is None


def test_figures_are_drawn_from_rows_alone():
    rows = [*rows_of((1.0, 2.0), (0.5, 1.0), (0.5, 1.0)), row(DENSE, 0, 1.0)]
    rows += rows_of((1.0, None), (0.5, 1.0), (0.5, 1.0), mode="leashed", sleep=10.0, workers=8)
    figure = draw(rows)
    assert [axis.get_title() for axis in figure.axes[:2]] == ["block, p = 4"] * 2
    titles = [axis.get_title() for axis in curves(rows).axes[:2]]
    assert titles == ["block, p = 4", "leashed, p = 8, sleeping"]
    plt.close("all")


def test_the_figure_of_the_readme_is_what_its_rows_make(tmp_path):
    """It carries the rows of the whole grid, and they say what the README says."""
    rows, held = carried_rows(ROOT / "docs/hogwild.png", Row)
    assert held["command"].removesuffix(" --resume") == "python -m experiments.hogwild"
    assert [
        Run(r.mode, r.workers, r.method, r.fraction, r.alpha, r.seed)
        if r.mode in SIMULATED
        else hogwild.Race(r.mode, r.workers, r.method, r.sleep, r.seed)
        for r in rows
    ] == hogwild.grid(hogwild.Config())
    assert is_picture(ROOT / "docs/hogwild.png", draw(rows), tmp_path)
    text, found = " ".join((ROOT / "README.md").read_text().split()), compared(rows)
    races, same = [one.races for one in found], [one.same for one in found]
    helps = [sum(cell.outcome == "helps" for cell in cells) for cells in (races, same)]
    assert f"in {helps[0]} of the {len(found)} modes" in text
    assert f"the same traces in {helps[1]}" in text
    assert not any(cell.outcome == "hurts" for cell in (*races, *same))
    effects = [math.exp(cell.difference) for cell in (*races, *same)]
    assert f"loss is {min(effects):.2f} to {max(effects):.2f} times" in text
    bounded = [row for row in races_of(rows) if row.drift_to_bound is not None]
    assert not above(rows) and f"in all {len(bounded)} races" in text
