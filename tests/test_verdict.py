"""The verdict on error feedback: of rows alone, and honest about what they do not tell."""

import dataclasses
import math

import numpy as np
import pytest
from verdict_rows import SETTINGS, constants_of, full_rows, pair, row

import theory
from experiments import figures, report, runs, verdict
from experiments.derived_lines import compare
from experiments.derived_verdict import sentences
from experiments.phase import phase
from experiments.rows import DENSE, FEEDBACK, PLAIN, elastic_bound
from experiments.verdict import BOTH_DIVERGE, HELPS, HURTS, UNKNOWN


def swapped(rows):
    other = {PLAIN: FEEDBACK, FEEDBACK: PLAIN}
    return [dataclasses.replace(r, method=other.get(r.method, r.method)) for r in rows]


NAN = math.nan
OUTCOMES = [
    ([0.50, 0.55, 0.45], [0.25, 0.28, 0.22], HELPS),
    ([0.25, 0.28, 0.22], [0.50, 0.55, 0.45], HURTS),
    ([0.50, 0.55, 0.45], [0.25, 0.60, 0.44], UNKNOWN),
    ([0.50, 0.55, 0.45], [0.50, 0.55, 0.45], UNKNOWN),
    ([0.50, 0.55, 0.45], [NAN, NAN, 0.44], HURTS),
    ([NAN, NAN, NAN], [0.50, 0.55, 0.45], HELPS),
    ([0.50, 0.55, 0.45], [0.10, 0.10, NAN], UNKNOWN),
    ([NAN, 0.55, 0.45], [NAN, NAN, 0.44], UNKNOWN),
    ([NAN, NAN, NAN], [NAN, NAN, 0.4], BOTH_DIVERGE),
]


@pytest.mark.parametrize(("without", "with_", "outcome"), OUTCOMES)
def test_outcome_of_a_cell_and_of_its_mirror_image(without, with_, outcome):
    mirrored = {HELPS: HURTS, HURTS: HELPS}.get(outcome, outcome)
    rows = pair(without, with_)
    assert [cell.outcome for cell in verdict.verdict(rows).equal] == [outcome]
    assert [cell.outcome for cell in verdict.verdict(swapped(rows)).equal] == [mirrored]


def test_interval_is_students_t_of_paired_logarithms():
    gaps = np.array([-0.30, -0.10, -0.50])
    base = np.array([0.9, 0.1, 0.3])  # their spread must not matter: seeds are paired
    found = verdict.verdict(pair(base, base * np.exp(gaps))).equal[0]
    assert found.difference == pytest.approx(gaps.mean())
    assert found.half_width == pytest.approx(4.302652729911275 * gaps.std(ddof=1) / math.sqrt(3))
    assert (found.outcome, found.seeds) == (UNKNOWN, 3)  # -0.30 ± 0.497


def test_best_alpha_excludes_divergence_and_unfinished_step_sizes():
    rows = [row(PLAIN, s, loss, alpha=a) for a, loss in ((0.1, 0.5), (0.2, 0.4)) for s in (0, 1)]
    assert verdict.best_alpha(rows) == 0.2
    lost = [dataclasses.replace(rows[-1], diverged=True, train_loss=None)]
    assert verdict.best_alpha(rows[:-1] + lost) == 0.1
    assert verdict.best_alpha([*rows, row(PLAIN, 0, 0.01, alpha=0.3)]) == 0.2
    assert verdict.best_alpha(lost) is None


def test_best_compares_each_method_at_its_own_step_size_and_equal_at_all():
    rows = pair([0.5, 0.52], [0.9, 0.91], alpha=0.2) + pair([0.8, 0.82], [0.3, 0.31], alpha=0.1)
    rows += [row(DENSE, s, loss, alpha=a) for s in (0, 1) for a, loss in ((0.1, 0.2), (0.2, 0.3))]
    found = verdict.verdict(rows)
    (best,) = found.best
    assert (best.alpha_without, best.alpha_with, best.outcome) == (0.2, 0.1, HELPS)
    assert {cell.alpha_with: cell.outcome for cell in found.equal} == {0.1: HELPS, 0.2: HURTS}
    assert found.dense_alpha == {("asynchronous", 16): 0.1}
    assert len(found.edges) == 3  # two step sizes are all edge
    assert "of 2 cells, helps in 1, hurts in 1" in " ".join(found.sentences)


def test_a_method_that_diverges_at_every_step_size_decides_the_best_comparison():
    rows = pair([0.5, 0.5], [NAN, 0.1], alpha=0.1) + pair([0.6, 0.6], [NAN, NAN], alpha=0.2)
    (cell,) = verdict.verdict(rows).best
    assert (cell.outcome, cell.alpha_with, cell.alpha_without) == (HURTS, None, 0.1)
    assert "diverges with feedback" in cell.reason
    (cell,) = verdict.verdict(swapped(rows)).best
    assert cell.outcome == HELPS


def test_an_edge_is_reported_only_where_it_is_one():
    losses = {1: 3, 2: 1, 3: 2}
    rows = [row(DENSE, s, loss, alpha=a) for s in (0, 1) for a, loss in losses.items()]
    assert verdict.verdict(rows).edges == ()
    rows = [dataclasses.replace(r, alpha=r.alpha + (r.alpha == 2) * 5) for r in rows]
    assert verdict.verdict(rows).edges == ("asynchronous, p = 16, dense: best α = 7",)


def test_one_seed_tells_nothing():
    found = verdict.verdict(pair([0.5], [0.1]))
    assert [cell.outcome for cell in (*found.best, *found.equal)] == [UNKNOWN, UNKNOWN]
    assert len(found.sentences) == 1 and "nothing can be told" in found.sentences[0]


HELPING, HURTING, NEITHER = OUTCOMES[0][:2], OUTCOMES[1][:2], OUTCOMES[2][:2]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([HELPING], "not confirmed here. Feedback helps in 1 of 1 and never hurts"),
        ([HELPING, NEITHER], "not confirmed here. Feedback helps in 1 of 2 and never hurts"),
        ([HURTING, NEITHER], "confirmed here. Feedback helps in none of 2 and hurts in 1"),
        ([NEITHER], "nothing could be told in any of 1"),
        ([HELPING, HURTING], "it depends. Feedback helps in 1 and hurts in 1 of 2"),
        ([], "it was not tested"),
    ],
)
def test_the_claim_is_judged_by_asynchronous_cells_alone(cells, words):
    rows = pair(*HURTING, mode="synchronous") + pair(*HURTING, mode="sequential", workers=1)
    for i, losses in enumerate(cells):
        rows += pair(*losses, workers=2**i)
    said = [line for line in verdict.verdict(rows).sentences if verdict.CLAIM in line]
    assert len(said) == 2 and all(words in line for line in said)
    if words.startswith("confirmed"):
        assert not any("not confirmed" in line for line in said)


def test_bounds_are_the_lemmas():
    gamma, bounds = 0.99, theory.bounds()
    window, residual = bounds["asynchronous"].at(n=20, M=3), bounds["feedback"].at(gamma=gamma, M=3)
    assert elastic_bound("asynchronous", DENSE, 8, 0.0, 20, 3.0) == 60
    assert elastic_bound("asynchronous", PLAIN, 8, gamma, 20, 3.0) == 60
    fed = elastic_bound("asynchronous", FEEDBACK, 8, gamma, 20, 3.0)
    assert fed == pytest.approx(window + 8 * residual)
    assert elastic_bound("synchronous", PLAIN, 8, gamma, 0, 3.0) == 0
    assert elastic_bound("synchronous", FEEDBACK, 8, gamma, 0, 3.0) == pytest.approx(residual)
    assert elastic_bound("sequential", FEEDBACK, 1, gamma, 0, 3.0) == pytest.approx(residual)


@pytest.mark.slow
def test_report_and_figures_are_made_from_rows_alone(tmp_path):
    rows = full_rows()
    found, compared = verdict.verdict(rows), compare(rows, constants_of(rows))
    drawn = {"phase.png": phase(rows, found, compared), "drift.png": figures.drift(rows)}
    names = figures.save(tmp_path, {**drawn, "curves.png": figures.curves(rows)}, {"phase.png": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    picture = (tmp_path / "phase.png").read_bytes()
    assert len(picture) < 150_000
    assert 850 < int.from_bytes(picture[16:20], "big") < 1000  # width in pixels
    about = {"command": "python -m x", "versions": runs.versions()}
    about["constants"] = [dataclasses.asdict(point) for point in constants_of(rows)]
    text = report.report(rows, found, compared, SETTINGS, about, ["Take care."], names)
    assert "**Take care.**" in text
    assert all(line in text for line in (*found.sentences, *sentences(compared, found.equal)))
    assert text.count("| asynchronous | 16 |") == 2 + 2 + 2 + 2 + 5  # lines, constants, …, methods
    assert text == report.report(rows, found, compared, SETTINGS, about, ["Take care."], names)
    plain = report.report(rows, found, [], SETTINGS, about, [], names)
    assert "Derived lines" in text and "Derived lines" not in plain
