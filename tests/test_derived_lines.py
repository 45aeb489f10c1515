"""The lines under the map of error feedback: theory's own, and compared honestly with rows."""

import dataclasses
import math

import numpy as np
import pytest
from verdict_rows import NAN, SETTINGS, constants_of, full_rows, pair, row

import theory
from experiments import constants, derived_lines
from experiments.derived_lines import ABOVE, AGREES, BELOW, Range, Setting, Stable
from experiments.derived_verdict import sentences
from experiments.figures import plt
from experiments.phase import phase
from experiments.rows import DENSE, FEEDBACK, PLAIN
from experiments.verdict import verdict
from theory.symbols import L as L_symbol
from theory.symbols import alpha, gamma, sigma


def setting(mode="asynchronous", workers=8, delay=7.0, L=(2.0, 8.0), **more):
    values = dict(sigma=1.0, dense_alpha=0.1, dense=Stable(0.1, 0.2))
    return Setting(mode, workers, delay, Range(*L), **{**values, **more})


PLACES = [setting(), setting("synchronous", delay=0.0), setting("sequential", 1, 0.0)]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.mode)
def test_lines_are_those_of_theory(place):
    fractions, L = np.array([0.001, 0.1, 0.5]), 4.0
    root = np.sqrt(1 - fractions)
    beta, share = root / (1 - root), place.steps
    assert share == (8 if place.mode == "asynchronous" else 1)
    limit = derived_lines.limit(fractions, place, L)
    np.testing.assert_allclose(share * limit * L, 2 / (1 + 2 * beta), rtol=1e-9)
    a = share * derived_lines.proved(fractions, place, L) * L
    rounds = place.delay / share
    np.testing.assert_allclose(2 * a**2 * (rounds**2 + beta**2), 1 - a, rtol=1e-9)
    late = derived_lines.delayed(place, L)
    assert late == pytest.approx(2 * math.sin(math.pi / (4 * place.delay + 2)) / L)
    both, least = theory.bounds()["W.both"], theory.bounds()["nofeedback.floor"]
    (penalty,) = [term for term in both.terms if gamma in term.free_symbols]
    for fraction, step in zip(fractions, derived_lines.floor(fractions, place, L), strict=True):
        values = {alpha: share * step, L_symbol: L, gamma: 1 - fraction, sigma: 3.0}
        assert float(penalty.subs(values)) == pytest.approx(least.at(gamma=1 - fraction, sigma=3))
    if place.delay:
        root = math.sqrt(1 - place.delay_alone)
        assert root / (1 - root) == pytest.approx(rounds)


def _radius(p, root, step):
    """Spectral radius of a round of p workers that take turns, C(y) = (1 + √γ)y with feedback."""
    size = 1 + 2 * p  # x, the views, the residuals
    whole = np.eye(size)
    for view in range(1, 1 + p):
        tick, held = np.eye(size), view + p
        proposed = np.zeros(size)
        proposed[[held, view]] = 1, step
        tick[0] -= (1 + root) * proposed
        tick[held] = -root * proposed
        tick[view] = tick[0]
        whole = tick @ whole
    return abs(np.linalg.eigvals(whole)).max()


@pytest.mark.parametrize("p", [1, 2, 8])
@pytest.mark.parametrize("fraction", [0.5, 0.1, 0.01])
def test_p_single_steps_as_one_parallel_step_is_on_the_safe_side(p, fraction):
    """On the extreme quadratic itself the limit is the line, or up to p times as much."""
    line = float(derived_lines.limit([fraction], setting(workers=p, delay=p - 1.0), 1.0)[0])
    root = math.sqrt(1 - fraction)
    assert _radius(p, root, line * (1 - 1e-6)) < 1
    assert _radius(p, root, line * p * (1 + 1e-6)) > 1


def test_constants_are_of_the_start_the_first_stretch_and_the_end_of_the_best_runs():
    rows = full_rows()
    found = constants.places(rows, SETTINGS)
    best = {
        key: min(
            (r for r in rows if (r.mode, r.workers) == key and r.train_loss is not None),
            key=lambda r: r.train_loss,
        )
        for key in {(r.mode, r.workers) for r in rows}
    }
    assert [place.evaluation for place in found] == [0, 1, 4] * 3
    for place in found:
        wanted = best[place.run.mode, place.run.workers]
        assert dataclasses.asdict(place.run).items() <= dataclasses.asdict(wanted).items()
    assert constants.places([row(DENSE, 0, NAN, diverged=True)], SETTINGS) == []


def test_stable_is_up_to_the_first_step_at_which_a_seed_diverges():
    rows = pair([0.5, 0.5], [0.4, 0.4], alpha=0.1) + pair([0.4, 0.4], [0.2, NAN], alpha=0.2)
    rows += pair([NAN, NAN], [0.5, 0.5], alpha=0.4)
    plain, fed = ([r for r in rows if r.method == method] for method in (PLAIN, FEEDBACK))
    assert derived_lines.stable(plain) == Stable(0.2, 0.4)
    assert derived_lines.stable(fed) == Stable(0.1, 0.2)  # one seed is enough
    slow = [row(DENSE, 0, NAN, alpha=0.01, diverged=True), row(DENSE, 0, 0.3, alpha=0.1)]
    assert derived_lines.stable(slow) == Stable(0.1, math.inf)
    assert derived_lines.stable(slow[:1]) == Stable(0.0, 0.01)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.01, 0.09, BELOW), (0.01, 0.1, AGREES), (0.12, 0.15, AGREES), (0.3, 9, ABOVE)],
)
def test_a_derived_range_agrees_where_it_meets_what_was_measured(low, high, said):
    assert Stable(0.1, 0.2).relation(Range(low, high)) == said
    assert Stable(0.1, math.inf).relation(Range(low, high)) == (BELOW if said == BELOW else AGREES)


def losses(method, steps, loss, **more):
    return [row(method, seed, loss(a), alpha=a, **more) for a in steps for seed in (0, 1)]


def test_slowdown_is_the_dense_step_that_ends_alike():
    dense = losses(DENSE, (0.001, 0.01, 0.1, 1.0), lambda a: a**-0.5 if a < 1 else 9.0)
    plain = losses(PLAIN, (0.02, 0.1), lambda a: (0.3 * a) ** -0.5)
    found = derived_lines.slowdown(plain, dense, L=10.0)
    assert found == pytest.approx((0.3, 0.3))
    assert derived_lines.slowdown(plain, [], L=10.0) is None
    lost = losses(PLAIN, (0.02, 0.1), lambda a: 1e3)  # worse than any dense run: at most this
    assert derived_lines.slowdown(lost, dense, L=10.0) == pytest.approx((0.01, 0.05))
    assert derived_lines.slowdown(plain, dense, L=1e6) == pytest.approx((0.3, 0.3))


def told(rows, **known):
    compared = derived_lines.compare(rows, constants_of(rows, **known))
    return compared, " ".join(sentences(compared, verdict(rows).equal))


def test_every_cell_with_both_methods_is_compared():
    compared, said = told(full_rows())
    assert [(c.setting.mode, c.fraction) for c in compared] == [
        (mode, fraction)
        for mode in ("sequential", "asynchronous", "synchronous")
        for fraction in (0.1, 0.01)
    ]
    (cell,) = [c for c in compared if c.setting.workers == 16 and c.fraction == 0.1][:1]
    assert cell.memory == pytest.approx(theory.bounds()["feedback"].at(M=1, gamma=0.9))
    assert cell.measured_memory == pytest.approx(1 / 16)  # B̂ = M̂, over p
    assert cell.setting.L == (2.0, 1.01 * 8.0) and cell.with_ == Stable(0.2, 0.5)  # L_high
    assert "largest 8.1, least 2" in said and "diverge in none of 6" in said
    assert told([r for r in full_rows() if r.method == DENSE]) == ([], "")
    assert derived_lines.compare(full_rows(), []) == []


def test_what_contradicts_theory_is_said():
    """Feedback diverges where a rate is proved, or wherever its limit at worst is not reached."""
    where = dict(mode="sequential", workers=1, fraction=0.5)
    rows = pair([0.5, 0.5], [0.4, 0.4], alpha=0.01, **where)
    rows += pair([0.5, 0.5], [NAN, NAN], alpha=0.02, **where)
    compared, said = told(rows, L=(0.1, 0.2))
    assert compared[0].with_ == Stable(0.01, 0.02)
    assert "BROKEN in 1 of 1" in said and "lies ABOVE in 1 of 1" in said


def test_equal_steps_are_counted_on_either_side_of_the_floor():
    rows = pair([0.50, 0.55, 0.45], [0.25, 0.28, 0.22], alpha=0.01, mode="sequential", workers=1)
    rows += pair([0.50, 0.55, 0.45], [0.25, 0.28, 0.22], alpha=0.1, mode="sequential", workers=1)
    rows += pair([0.25, 0.28, 0.22], [0.50, 0.55, 0.45], alpha=1.0, mode="sequential", workers=1)
    _, said = told(rows, L=(4.0, 8.0))  # the line: from 0.06 to 0.13
    assert "within it feedback helps in 1 and hurts in 0 of 1" in said
    assert "below it feedback helps in 1 and hurts in 0 of 1" in said
    assert "above it feedback helps in 0 and hurts in 1 of 1" in said


@pytest.mark.parametrize("keep", [lambda r: r.method == DENSE, lambda r: r.workers == 1])
def test_the_phase_diagram_is_drawn_of_whatever_was_run(keep):
    rows = [r for r in full_rows() if keep(r)]
    drawn = phase(rows, verdict(rows), derived_lines.compare(rows, constants_of(rows)))
    drawn.canvas.draw()
    plt.close(drawn)
