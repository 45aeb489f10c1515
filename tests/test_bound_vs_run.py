"""`experiments.bound_vs_run`: what it measures, what it compares, and what it keeps."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from verdict_rows import carried_rows, is_picture

import elastic_jax as ej
from elastic_jax.estimate import Constants, Estimate
from experiments import bound_tasks, bound_verdict, bound_vs_run, runs
from experiments.bound_tasks import Done, Runner, Task
from experiments.bound_verdict import BROKEN, HOLDS, UNCLEAR, Row, compare, draw, outcome
from experiments.chains import parse

ROOT = Path(__file__).parents[1]
VALUES = np.array([1.0, 0.5, 0.25])
ALPHA = 0.2


def exactly(number):
    return Estimate(number, number, number)


def task(noise=0.0):
    """A quadratic; without noise every run can be followed by hand."""
    problem = ej.problems.quadratic(VALUES, noise=noise)

    def constants(iterates, views, radius):
        M = problem.second_moment(radius)
        return Constants(*map(exactly, (1.0, 0.25, noise, M, float(VALUES.sum() / 2))))

    start = problem.init
    whole = jnp.zeros((2, 3))
    return Task(
        "quadratic",
        problem.loss,
        lambda _: start,
        problem.sample,
        whole,
        problem.minimiser,
        constants,
        "known",
    )


def run_of(chain, workers=2, noise=0.0, seed=0, points=5, chunk=4):
    own = task(noise)
    runner = Runner(own, parse(chain), workers, ALPHA, chunk)
    *ticks, done = runner.run(seed, points, looks=2)
    assert ticks == [None] * points
    return own, done


def by_hand(tau, steps):
    """Iterates x_t of SGD whose updates arrive τ steps late."""
    held, view, xs = [np.zeros(3)] * tau, np.ones(3), []
    for _ in range(steps + 1):
        xs.append(view + sum(held, np.zeros(3)))
        held.append(-ALPHA * VALUES * view)
        view = view + held.pop(0)
    return np.array(xs)


@pytest.mark.parametrize(("chain", "tau"), [("none", 0), ("delay 3", 3)])
def test_measures_what_the_bounds_are_about(chain, tau):
    _, done = run_of(chain)
    xs = by_hand(tau, 20)
    squares = np.cumsum((VALUES * xs[:-1]) ** 2, axis=0).sum(1) / np.arange(1, 21)
    np.testing.assert_allclose(done.gradient, squares[3::4], rtol=1e-5)
    np.testing.assert_allclose(done.distance, (xs[4::4] ** 2).sum(1), rtol=1e-5)
    assert done.M[0] >= math.sqrt(max(done.moment))
    if not tau:
        moments = ((VALUES * xs[:-1]) ** 2).sum(1).reshape(5, 4).mean(1)
        np.testing.assert_allclose(done.moment, moments, rtol=1e-5)


@pytest.mark.slow
def test_the_whole_gradient_is_that_of_f():
    made = bound_tasks.make("logistic", 3, 250, "digits")
    problem = ej.problems.logistic(jax.random.key(0), n=200, d=10, batch_size=3)
    x = made.params(0) / 3
    np.testing.assert_allclose(made.gradient(x), problem.gradient(x), rtol=1e-4, atol=1e-6)
    halves = made._replace(whole=made.whole.reshape(2, 100))
    np.testing.assert_allclose(halves.gradient(x), problem.gradient(x), rtol=1e-4, atol=1e-6)
    network = bound_tasks.make("cnn", 3, 500, "digits")
    x = network.params(1)
    whole = jax.jit(jax.grad(network.loss))(x, network.whole.ravel())
    pieces = jax.jit(network.gradient)(x)
    for own, truth in zip(*map(jax.tree.leaves, (pieces, whole)), strict=True):
        np.testing.assert_allclose(own, truth, rtol=1e-3, atol=1e-5)


CHAINS = {
    "none": ["N", "W", "S"],
    "delay 2": ["N", "W", "S"],
    "topk 0.1 feedback, delay 4": ["N", "W", "S"],
    "delay 4, top_k 0.5 feedback": ["N", "S"],
    "sign feedback": ["N", "W", "S"],
    "natural, delay 1": ["N", "S"],
    "delay 2, gossip ring": ["N", "S"],
    "topk 0.5 feedback, late 3": ["N", "S"],
}


@pytest.mark.parametrize(("text", "names"), CHAINS.items())
def test_chains_have_the_rates_that_are_proved(text, names):
    chain, found, missing = bound_verdict.rates(task(), parse(text), workers=4)
    assert list(found) == names
    assert len(missing) == 3 - len(names) and all("no bound" in line for line in missing)
    assert chain.workers == 4


# ---- the verdict ----


def test_outcomes():
    assert outcome(1.0, 0.1, 1.2) == outcome(1.0, math.nan, 1.0) == HOLDS
    assert outcome(1.0, 0.1, 1.05) == outcome(1.0, 0.1, 0.95) == UNCLEAR
    assert outcome(1.0, 0.1, 0.85) == outcome(1.0, math.nan, 0.9) == BROKEN


@pytest.mark.slow
def test_bounds_hold_and_wrong_constants_break_them():
    chain = parse("topk 0.4 feedback, delay 1")
    found = [run_of("topk 0.4 feedback, delay 1", noise=0.3, seed=seed) for seed in (0, 1, 2)]
    own, done = found[0][0], [one for _, one in found]
    rows, said = compare(own, chain, 2, 20, done)
    assert {row.rate for row in rows} == {"N", "W", "S"} and len(rows) == 15
    assert all(row.outcome == HOLDS and row.slack > 1 for row in rows)
    assert [row.steps for row in rows[:5]] == [4, 8, 12, 16, 20]
    assert "known" in said[0] and all("holds at all 5 T (mean of 3 seeds)" in x for x in said[1:])
    small = {"Delta": tuple(exactly(0.01)), "M": tuple(exactly(0.01))}
    lying = [dataclasses.replace(one, **small) for one in done]
    rows, said = compare(own, chain, 2, 20, lying)
    assert {row.outcome for row in rows if row.rate == "N"} == {BROKEN}
    assert "above M, so N and S say nothing" in said[0]
    assert "is BROKEN at T = 4, 8, 12, 16, 20" in said[1]


def test_intervals_count_with_their_safe_side():
    one = {name: (2.0, 1.0, 3.0) for name in Constants._fields}
    other = {name: (2.5, 0.5, 2.75) for name in Constants._fields}
    found = {symbol.name: value for symbol, value in bound_verdict.worst([one, other]).items()}
    assert found == {"L": 3.0, "σ": 3.0, "M": 3.0, "Δ": 3.0, "c": 0.5}


def test_no_bound_where_its_conditions_fail():
    own, done = run_of("delay 4")
    steep = dataclasses.replace(done, L=tuple(exactly(2.0)))
    rows, said = compare(own, parse("delay 4"), 2, 20, [steep])
    assert {row.rate for row in rows} == {"N", "S"}  # αL = 0.4 is small enough for these two
    assert any("W: no bound at this α" in line for line in said)
    assert all(math.isnan(row.half_width) for row in rows)
    assert "one seed" in said[-1] or "one seed" in said[1]


def test_the_chosen_step_is_the_best_of_the_best_rate():
    own, chain = task(noise=0.5), parse("delay 2")
    alpha = bound_verdict.choose(own, chain, 2, 1000)
    rate = bound_verdict.rates(own, chain, 2)[1]["W"]
    at = {"L": 1.0, "T": 1000, "Delta": 0.875, "sigma": 0.5}
    best = rate.minimise("alpha").at(**at)[0]
    assert alpha <= best <= 1.1 * alpha
    assert rate.at(alpha=alpha, **at) < min(rate.at(alpha=k * best, **at) for k in (0.7, 1.15))


# ---- the program ----


SMALL = ["--problems", "quadratic", "--steps", "20", "--points", "4", "--seeds", "0", "1"]
SMALL += ["--looks", "1", "--chain", "topk 0.2 feedback, delay 2", "--workers", "2"]


def tables(folder):
    with (folder / "rows.csv").open(newline="") as file:
        return list(csv.DictReader(file)), json.loads((folder / "rows.json").read_text())


@pytest.mark.slow
def test_rows_figure_verdict_and_resume(tmp_path, capsys):
    arguments = [*SMALL, "--out", str(tmp_path)]
    assert bound_vs_run.main(arguments) == 0
    table, whole = tables(tmp_path)
    assert len(table) == len(whole["rows"]) == 3 * 4
    assert list(table[0]) == list(whole["rows"][0])
    assert whole["command"].startswith("python -m experiments.bound_vs_run --problems quadratic")
    assert whole["versions"] == runs.versions() and whole["seeds"] == [0, 1]
    assert (tmp_path / "bound_vs_run.png").stat().st_size > 5000
    said = (tmp_path / "verdict.txt").read_text()
    assert said.splitlines() == whole["verdict"] and said in capsys.readouterr().out
    journal = (tmp_path / "rows.jsonl").read_bytes()
    assert bound_vs_run.main([*arguments, "--resume"]) == 0  # nothing is left to do
    assert (tmp_path / "rows.jsonl").read_bytes() == journal
    assert tables(tmp_path)[1]["rows"] == whole["rows"]


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done(tmp_path, capsys, monkeypatch):
    run = Runner.run

    def pressed(self, seed, points, looks):
        for tick in run(self, seed, points, looks):
            if seed == 1:
                raise KeyboardInterrupt
            yield tick

    arguments = [*SMALL, "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "run", pressed)
        assert bound_vs_run.main(arguments) == 130
    captured = capsys.readouterr()
    assert "stopped: 1 of 2 runs are kept" in captured.err and "--resume" in captured.err
    assert "one seed" in captured.out
    assert {row["half_width"] for row in tables(tmp_path)[1]["rows"]} == {None}  # JSON has no NaN
    first = (tmp_path / "rows.jsonl").read_text()
    assert first.count("\n") == 1
    assert bound_vs_run.main([*arguments, "--resume"]) == 0
    whole = (tmp_path / "rows.jsonl").read_text()
    assert whole.startswith(first) and whole.count("\n") == 2
    assert Done(**{k: v for k, v in json.loads(first).items() if k != "key"}).seed == 0


REFUSED = [
    (["--workers", "0"], "--workers 0: give a whole number"),
    (["--steps", "30", "--points", "7"], "--steps 30: give a multiple of --points, 7"),
    (["--images", "300"], "--images 300: give a multiple of 250"),
    (["--images", "2000"], "digits has 1442"),
    (["--alpha", "-1"], "--alpha -1.0: give a finite number"),
    (["--seeds", "1", "1"], "give at least one, each once"),
    (["--seeds", "-1"], "give whole numbers from 0"),
    (["--chain", "topk 0.1"], "--chain: 'topk 0.1': no bound"),
    (["--chain", "delay 2, diloco 4 1 0"], "an outer optimizer multiplies what reaches it"),
    (["--chain", "delay 2, natural", "--alpha", "0.05"], "unbiased compression behind another"),
    (["--chain", "threshold 0.1 feedback", "--alpha", "0.05"], "'threshold 0.1 feedback': gamma=1"),
    (["--chain", "choco exponential sign", "--workers", "5"], "exponential() is not symmetric"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_bad_arguments(arguments, message, tmp_path, capsys):
    assert bound_vs_run.main([*arguments, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_the_figure_of_the_readme_is_what_its_rows_make(tmp_path):
    """It carries the rows of the default chain, every bound holds, and W is as near as is said."""
    picture, config = ROOT / "docs/bound_vs_run.png", bound_vs_run.Config()
    rows, held = carried_rows(picture, Row)
    assert held["command"].removesuffix(" --resume") == f"python -m {bound_vs_run.MODULE}"
    assert held["seeds"] == list(config.seeds) and is_picture(picture, draw(rows), tmp_path)
    rates = {(row.problem, row.rate) for row in rows}
    assert len(rows) == config.points * len(rates) and {p for p, _ in rates} == set(config.problems)
    assert all(row.outcome == HOLDS for row in rows)
    last = max(row.slack for row in rows if row.rate == "W" and row.steps == config.steps)
    text = " ".join((ROOT / "README.md").read_text().split())
    assert f"At T = {config.steps} the rate that needs no B" in text
    assert f"within a factor of {last:.1f} of what it bounds" in text


@pytest.mark.slow
def test_quick(tmp_path):
    assert bound_vs_run.main(["--quick", "--out", str(tmp_path)]) == 0
    rows = tables(tmp_path)[1]["rows"]
    cells = {(row["problem"], row["rate"]) for row in rows if row["outcome"] == HOLDS}
    known = {(problem, rate) for problem in ("quadratic", "logistic") for rate in "NWS"}
    assert cells == known | {("cnn", "N"), ("cnn", "W")}
