"""`experiments.scheduler`: its verdict, its bounds, and one tiny run that is interrupted."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest
from verdict_rows import carried_rows, is_picture

from experiments import scheduler
from experiments.scheduler_verdict import NORM, VARIANCE, Row, cells, draw, first_time, verdict

ROOT = Path(__file__).parents[1]


def row(rule, value, seed, seconds, accuracy=0.9, ratio=0.5, **more):
    """A row that reached the target loss after so many seconds; None: it did not."""
    values = dict(workers=8, alpha=0.1, steps=100, target=0.3, train_loss=0.2)
    values |= dict(seconds_to_target=seconds, seconds=90.0, seconds_waiting=100.0)
    values |= dict(test_accuracy=accuracy, drift_rms=1.0, drift_max=2.0, moment_max=4.0, bound=4.0)
    values |= dict(drift_to_bound=0.5 if value else None, curve=(2.3, 0.2), clock=(0.0, 90.0))
    return Row(rule, value, ratio, seed, **{**values, **more})


def rows_of(seconds, accuracies=(0.9, 0.9, 0.9), waiting=(100.0, 50.0, 80.0)):
    pairs = zip(seconds, accuracies, strict=True)
    return [row(NORM, 0.0, seed, t) for seed, t in enumerate(waiting)] + [
        row(NORM, 0.2, seed, t, accuracy) for seed, (t, accuracy) in enumerate(pairs)
    ]


def test_saved_is_paired_by_seed_with_students_interval():
    (cell,) = cells(rows_of((80.0, 40.0, 64.0)))
    assert (cell.rule, cell.value, cell.ratio, cell.seeds, cell.missed) == (NORM, 0.2, 0.5, 3, 0)
    assert cell.saved == pytest.approx(0.2) and cell.low == pytest.approx(cell.high)
    (cell,) = cells(rows_of((80.0, 40.0, 80.0)))
    logs = [math.log(0.8), math.log(0.8), 0.0]
    mean = sum(logs) / 3
    half = 4.302652729911275 * math.sqrt(sum((x - mean) ** 2 for x in logs) / 2 / 3)
    assert cell.saved == pytest.approx(1 - math.exp(mean))
    assert cell.low == pytest.approx(1 - math.exp(mean + half)) and cell.low < 0
    assert cell.high == pytest.approx(1 - math.exp(mean - half))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (rows_of((80.0, 40.0, 63.0)), "1 of 1 values of β save time for certain"),
        (rows_of((120.0, 61.0, 97.0)), "no value saves time for certain, of 1 values of β; 1 cost"),
        (rows_of((90.0, 60.0, 70.0)), "no value saves time for certain, of 1 values of β; 0 cost"),
        (rows_of((80.0, 40.0, 63.0), (0.8, 0.8, 0.8)), "no value saves time for certain"),
        (rows_of((80.0, 40.0, None)), "no value saves time for certain"),
        (rows_of((80.0, None, None)), "nothing can be told"),
    ],
)
def test_a_saving_must_be_certain_and_keep_the_accuracy(rows, words):
    said = verdict(rows)
    assert words in said[0] and said[0].startswith("ratio 0.5, norm-bounded")
    assert said[1].startswith("B̂ ≤ B in all 3 runs") and len(said) == 2


def test_the_verdict_says_that_the_best_is_the_largest_tried():
    rows = rows_of((80.0, 40.0, 63.0))
    assert "β = 0.2, the largest tried: 20" in verdict(rows)[0]
    rows += [row(NORM, 0.4, seed, t) for seed, t in enumerate((90.0, 45.0, 73.0))]
    assert "most is saved at β = 0.2: 20" in verdict(rows)[0]


def test_the_verdict_says_what_should_not_be():
    rows = rows_of((80.0, 40.0, 63.0))
    rows[-1] = dataclasses.replace(rows[-1], drift_to_bound=1.2, seconds=101.0)
    said = " ".join(verdict(rows))
    assert "B̂ is ABOVE B in 1 of 3 runs" in said and "1 runs took LONGER" in said
    assert verdict([]) == []


def test_the_first_time_lies_between_two_points():
    assert first_time((0.0, 2.0, 6.0), (3.0, 2.0, 1.0), 1.5) == 4.0
    assert first_time((0.0, 2.0, 6.0), (3.0, 2.0, 1.0), 0.5) is None
    assert first_time((0.0, 2.0), (3.0, 2.0), 3.0) == 0.0
    assert first_time((0.0, 2.0), (3.0, math.nan), 1.0) is None


def test_bounds_by_hand():
    assert scheduler.elastic_bound(NORM, 0.2, 8, 3.0) == pytest.approx(0.75)
    assert scheduler.elastic_bound(NORM, 0.0, 8, 3.0) == 0
    assert scheduler.elastic_bound(VARIANCE, 2, 8, 3.0) == 1.5


def test_the_grid_holds_full_waiting_and_every_run_once():
    config = scheduler.Config()
    runs = scheduler.grid(config)
    assert len(set(runs)) == len(runs) == 10 * len(config.ratios) * len(config.seeds)
    assert runs[0] == scheduler.Run(NORM, 0.0, config.ratios[0], config.seeds[0])
    scheduler.check(config)
    scheduler.check(scheduler.QUICK)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--workers 0", "--workers 0: give a whole number of at least 1"),
        ("--steps 100", "--steps 100: give a multiple of --points, 40"),
        ("--betas 0.5 1", "--betas 0.5 1.0: give numbers above 0, below 1"),
        ("--betas 0.5 0.5", "--betas 0.5 0.5: give each value once"),
        ("--missing 8", "--missing 8: give whole numbers from 1, below --workers, 8"),
        ("--ratios 0", "--ratios 0.0: give finite numbers above 0"),
        ("--seeds -1", "--seeds -1: give whole numbers from 0"),
        ("--alpha nan", "--alpha nan: give a finite number above 0"),
        ("--spread -1", "--spread -1.0: give a finite number of at least 0"),
        ("--eval-images 600", "--eval-images 600: give a multiple of 250"),
        ("--out pyproject.toml", "--out pyproject.toml: that is a file; name a folder"),
    ],
)
def test_bad_arguments_are_refused_at_once(capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(ROOT)
    assert scheduler.main(arguments.split()) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_a_quick_run_interrupted_and_resumed(tmp_path, capsys, monkeypatch):
    """Ctrl-C keeps what is done; what is resumed is not done again, and says the same."""
    train, done = scheduler.Simulator.train, []

    def interrupted(self, run):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(run)
        return train(self, run)

    arguments = ["--quick", "--out", str(tmp_path)]
    monkeypatch.setattr(scheduler.Simulator, "train", interrupted)
    assert scheduler.main(arguments) == 130
    said = capsys.readouterr()
    assert "3 of 8 runs are kept" in said.err and "--resume" in said.err
    assert "Incomplete: 5 of 8 runs are missing" in said.out
    before = (tmp_path / "rows.jsonl").read_text()

    monkeypatch.setattr(scheduler.Simulator, "train", train)
    assert scheduler.main([*arguments, "--resume"]) == 0
    assert (tmp_path / "rows.jsonl").read_text().startswith(before)
    names = ["rows.csv", "rows.json", "rows.jsonl", "scheduler.png", "verdict.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    said = capsys.readouterr().out
    assert said == (tmp_path / "verdict.txt").read_text() and "A quick run" in said
    check_rows(json.loads((tmp_path / "rows.json").read_text()))
    assert len(list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))) == 8


def check_rows(content):
    assert "experiments.scheduler" in content["command"] and content["seeds"] == [0, 1]
    assert {"jax", "optax", "numpy", "elastic_jax"} <= content["versions"].keys()
    assert content["verdict"][1:] and len(content["rows"]) == 8
    for found in content["rows"]:
        rounding = 1e-4 * found["moment_max"]
        assert found["drift_rms"] <= found["drift_max"] <= found["bound"] + rounding, found
        assert 0 < found["seconds"] <= found["seconds_waiting"] * (1 + 1e-5)
        assert 0 < found["seconds_to_target"] <= found["seconds"]
        if (found["rule"], found["value"]) == (NORM, 0):
            assert found["drift_max"] <= rounding
            assert found["seconds"] == pytest.approx(found["seconds_waiting"], rel=1e-5)
        else:
            assert found["drift_max"] > 100 * rounding
            assert found["seconds"] < 0.99 * found["seconds_waiting"]


def test_the_figure_is_drawn_from_rows_alone():
    rows = rows_of((80.0, 40.0, 63.0))
    rows += [row(VARIANCE, float(m), seed, 70.0 + m) for m in (1, 2) for seed in range(3)]
    figure = draw(rows)
    assert [axis.get_title() for axis in figure.axes[:2]] == ["norm-bounded", "variance-bounded"]
    assert len(draw([rows[0]]).axes) == 2


def test_the_figure_of_the_readme_is_what_its_rows_make(tmp_path):
    """It carries the rows of the whole grid, and they say what the README says."""
    rows, held = carried_rows(ROOT / "docs/scheduler.png", Row)
    assert held["command"].removesuffix(" --resume") == "python -m experiments.scheduler"
    grid = scheduler.grid(scheduler.Config())
    assert [scheduler.Run(r.rule, r.value, r.ratio, r.seed) for r in rows] == grid
    assert is_picture(ROOT / "docs/scheduler.png", draw(rows), tmp_path)
    said, text = verdict(rows), " ".join((ROOT / "README.md").read_text().split())
    assert any(line.startswith("B̂ ≤ B in all") for line in said)
    most = max(cell.drift_max / cell.bound for cell in cells(rows))  # as it is drawn
    assert most == pytest.approx(max(row.drift_to_bound or 0 for row in rows))
    assert f"B̂/B at most {most:.2f}" in text
    best = max(cells(rows), key=lambda cell: cell.saved if cell.rule == NORM else 0.0)
    assert f"{best.saved:.0%}" in text and f"β = {best.value:g}" in text
    for rule, value, name in ((NORM, 0.8, "missing"), (VARIANCE, 4.0, "8 are missing")):
        own = [cell for cell in cells(rows) if (cell.rule, cell.value) == (rule, value)]
        shown = [f"{c.saved:.0%}" if c.low > 0 else "nothing for certain" for c in own]
        if rule == NORM:
            shown[1] += f" ({100 * own[1].low:.1f} to {100 * own[1].high:.1f})"
        assert f"{name} | {' | '.join(shown)} |" in text
