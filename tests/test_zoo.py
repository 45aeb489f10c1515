"""The zoo: short compositions that run, with measured constants within the derived ones."""

import ast
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from verdict_rows import carried_rows, is_picture

from experiments import elastic_constants, zoo, zoo_runs
from experiments.elastic_constants import Item, Row, draw, table, verdict

ROOT = Path(__file__).parents[1]
UPDATES, P = 320, 8


def test_every_system_is_at_most_twelve_lines():
    tree = ast.parse(Path(zoo.__file__).read_text())
    (table,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "ZOO"
    )
    lengths = [value.end_lineno - value.lineno + 1 for value in table.values]
    assert len(lengths) == len(zoo.ZOO) >= 27 and max(lengths) <= 12
    for name, system in zoo.ZOO.items():
        assert system.source and (system.bound or system.why), name


@pytest.mark.slow  # compiles them all
@pytest.mark.parametrize("task", ["constant", "opposed"])
@pytest.mark.parametrize("name", zoo.ZOO)
def test_measured_within_derived(task, name):
    runner = runners(task)
    done = [runner.run(name, seed) for seed in range(4)]
    found = zoo_runs.constant(zoo.ZOO[name], done, runner.facts(done))
    assert found.holds is not False, found
    assert found.holds or found.bound is None or zoo.ZOO[name].mean == "draws"
    assert all(np.isfinite(leaf).all() for leaf in np.atleast_1d(done[0].params))


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8])
def test_there_is_a_bound_for_any_number_of_workers(p):
    """On up to three workers a ring averages all views at every step; one has no gap to others."""
    facts = zoo.Facts(2.0, 1.0, 1.0, 0.01, p, 5, np.zeros(40))
    bounds = {name: system.bound(facts) for name, system in zoo.ZOO.items() if system.bound}
    assert len(bounds) >= 31 and all(0 <= bound < np.inf for bound in bounds.values())
    for name in ("gossip", "gradient tracking, accelerated gossip"):
        assert (bounds[name] == 0) == (p <= 3), name
    shared = ["quantised gossip", "local SGD", "message passing, bounded delay"]
    shared += ["message passing, lossy links"]
    assert all((bounds[name] == 0) == (p == 1) for name in shared)


RUNNERS = {}


def runners(name):
    if name not in RUNNERS:
        RUNNERS[name] = zoo_runs.Runner(zoo_runs.task(name, UPDATES), P)
    return RUNNERS[name]


@pytest.mark.slow
def test_a_bound_that_is_too_small_is_seen():
    """Half of a bound that is attained does not hold; three standard errors do not hide it."""
    runner = runners("constant")
    for name in ("consistent lock-free memory", "message passing, lossy links"):
        system = zoo.ZOO[name]
        done = [runner.run(name, seed) for seed in range(8)]
        facts = runner.facts(done)
        assert zoo_runs.constant(system, done, facts).holds is not False
        half = system._replace(bound=lambda facts, full=system.bound: full(facts) / 2)
        assert zoo_runs.constant(half, done, facts).holds is False


def fake(*gaps):
    """Runs with given gaps, in units of alpha²."""
    return [
        zoo_runs.Done(np.full((steps, 2), value), np.ones((steps, 2)), 0.0, np.zeros(1), 0)
        for steps, value in gaps
    ]


def test_nothing_hides_a_violation():
    facts = zoo.Facts(1.0, 1.0, 1.0, 1.0, 2, 0, np.zeros(1))
    system = zoo.System("", lambda alpha, seed: None, bound=lambda facts: 1.0)

    def holds(mean, *gaps):
        return zoo_runs.constant(system._replace(mean=mean), fake(*gaps), facts).holds

    assert holds("", (5, 1.0), (9, 1.0)) and holds("workers", (5, 1.0), (5, 0.5))
    assert holds("", (5, np.nan)) is False and holds("draws", (5, np.inf), (5, 1.0)) is False
    longer = fake((5, 1.0), (9, 1.0))
    longer[1].gap[8] = 100.0  # at a step that the shorter run has not
    assert zoo_runs.constant(system, longer, facts).holds is False
    assert holds("workers", (5, 1.0), (5, 1.0), (5, 1.7**2)) is False
    assert holds("draws", (5, 1.0), (5, 1.0), (5, 1.7**2)) is None
    assert holds("draws", (5, 4.0), (5, 4.1), (5, 3.9)) is False


def rows():
    one = Row("cnn", "synchronous", 8, 0.1, 3, 80, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, None, None, True,
              2.0, 1.0, 0.9, 0.0, 1.0, "")  # fmt: skip
    return [
        one,
        dataclasses.replace(one, system="gossip", bound=2.0, ratio=0.5, drift_max=1.0),
        dataclasses.replace(one, system="local SGD", bound=2.0, ratio=1.5, holds=False),
        dataclasses.replace(one, system="DiLoCo", bound=None, holds=None, loss=None, why="no rule"),
    ]


def test_the_verdict_says_what_the_rows_say():
    said = verdict(rows())
    assert said[0].startswith("cnn: B̂ ≤ B for 2 of 3 systems with a B; not for local SGD")
    assert said[1] == "cnn: the loss fell for 3 of 4 systems."
    assert said[2] == "no B for DiLoCo: no rule."
    lines = table(rows()).splitlines()
    assert "| local SGD | 0 | 0 | 0 | 1 | 2 | – | 1.5 | **no** | 1 |" in lines


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workers", "3"], "--workers 3: give a whole number of at least 4"),
        (["--updates", "81"], "--updates 81: give a multiple of --workers, 8"),
        (["--systems", "gosip"], "--systems 'gosip': give names of"),
    ],
)
def test_bad_arguments_are_refused_at_once(capsys, arguments, words):
    assert elastic_constants.main(arguments) == 2
    assert words in capsys.readouterr().err


SYSTEMS = ("synchronous", "gossip", "consistent lock-free memory", "local SGD")


@pytest.mark.slow
def test_interrupted_and_resumed(tmp_path):
    """Ctrl-C keeps the rows there are, and `--resume` makes the others only."""
    arguments = ["--quick", "--out", str(tmp_path), "--tasks", "opposed", "--systems", *SYSTEMS]
    command = [sys.executable, "-m", elastic_constants.MODULE, *arguments]
    child = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, env=os.environ | {"NPROC": "1"}
    )
    journal = tmp_path / "rows.jsonl"
    end = time.monotonic() + 120
    while time.monotonic() < end and not (journal.exists() and journal.read_text().count("\n")):
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, error = child.communicate(timeout=120)
    first = journal.read_text().splitlines()
    if child.returncode == 130:
        assert f"stopped: {len(first)} of 4 runs are kept" in error.decode()
        assert error.decode().rstrip().endswith("--resume")
    assert elastic_constants.main([*arguments, "--resume"]) == 0
    assert journal.read_text().splitlines()[: len(first)] == first
    found = json.loads((tmp_path / "rows.json").read_text())
    assert [row["system"] for row in found["rows"]] == list(SYSTEMS)
    assert all(row["holds"] for row in found["rows"])
    for name in ("rows.csv", "table.md", "verdict.txt", "elastic_constants.png"):
        assert (tmp_path / name).stat().st_size > 0


def test_the_figure_of_the_readme_is_what_its_rows_make(tmp_path):
    """It carries the rows of the whole grid, and they say what the README says."""
    picture = ROOT / "docs/elastic_constants.png"
    rows, held = carried_rows(picture, Row)
    assert held["command"].removesuffix(" --resume") == "python -m experiments.elastic_constants"
    config = elastic_constants.Config()
    assert [Item(row.task, row.system) for row in rows] == elastic_constants.grid(config)
    assert is_picture(picture, draw(rows), tmp_path)
    text, bounded = " ".join((ROOT / "README.md").read_text().split()), {}
    for task in config.tasks:
        own = [row for row in rows if row.task == task]
        bounded[task] = [row for row in own if row.bound is not None]
        assert not any(row.holds is False for row in bounded[task])
        median = np.median([row.ratio for row in bounded[task] if row.ratio is not None])
        assert f"{median:.2f}" in text
        if task == "cnn":
            assert f"{len(own)} systems" in text and f"falls for all {len(own)}" in text
            assert all(row.loss < row.loss_before for row in own)
    assert f"all {max(map(len, bounded.values()))} systems that have one" in text
