"""`experiments.scaling`: bytes as declared, break-even by hand, a run that is interrupted."""

import csv
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from verdict_rows import carried_rows, is_picture

import elastic_jax as ej
from elastic_jax.programs import collectives
from elastic_jax.wire import wire
from experiments import scaling
from experiments.scaling_programs import coding, in_turns, matrix, normal, training
from experiments.scaling_verdict import Row, draw, largest, pays_below, speedup, verdict

ROOT = Path(__file__).parents[1]
GIGA = 10**9


# ---- bytes ----

KINDS = {"gather": "top_k 0.01", "reduce": "low_rank 2", "dense": "top_k 0.9"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_program_hands_over_what_is_declared(kind):
    compressor = scaling.parse(KINDS[kind])
    said = wire(compressor, matrix(600), 4, on_each=2)
    assert said.kind == kind
    found = collectives(training(compressor, 600, 4, 2)[1])
    assert sum(one.nbytes for one in found) == said.nbytes


# ---- what is timed ----


def test_matrices_are_as_square_as_can_be():
    assert [matrix(d).shape for d in (12, 16, 7, 1)] == [(3, 4), (4, 4), (1, 7), (1, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("text", [*KINDS.values(), "sign"])
def test_coding_keeps_what_it_does_not_send(text):
    """All machines say the same: the mean is this one's message, and the residual is the rest."""
    run, update = coding(scaling.parse(text), 600, 4), normal(24, 25)
    (_, *results), _ = run()
    residual, mean = map(np.array, results)  # copies: the next step takes the buffers
    size = float(np.abs(update).max())
    # a message is a few products of sums of up to 600 numbers; p of them are added
    bound = (np.sqrt(600) + 4) * np.finfo(np.float32).eps * size
    np.testing.assert_allclose(residual + mean, update, rtol=0, atol=bound)
    assert 0 < float(np.abs(mean).max()) <= 2 * size and np.abs(residual).max() > bound
    (_, residual_2, _), _ = run()  # it goes on from the residual that it kept
    assert np.abs(residual_2 - residual).max() > bound


def test_programs_take_turns():
    order, programs = [], {}
    for name in "ab":
        programs[name] = lambda name=name: order.append(name)
    times = in_turns(programs, rounds=3, seconds=0)
    assert "".join(order) == "ab" * 5  # one to warm up, one to count by, three that count
    assert all(found.wall.shape == found.processor.shape == (3,) for found in times.values())
    assert all((found.wall >= 0).all() and (found.processor >= 0).all() for found in times.values())


# ---- the verdict ----


def row(**more):
    """Sends 250 MB in place of 1.75 GB, for 0.75 s of coding: 16 Gbit/s breaks even."""
    values = dict(compressor="top_k 0.1", d=10**6, workers=8, devices=8, device="cpu")
    values |= dict(kind="gather", declared=100, handed=100, sent=700)
    values |= dict(dense_declared=4000, dense_handed=4000, dense_sent=7000)
    values |= dict(seconds=0.3, seconds_low=0.28, seconds_high=0.34, ratio=3.0)
    values |= dict(dense_seconds=0.1, dense_seconds_low=0.09, dense_seconds_high=0.11)
    values |= dict(ratio_low=2.5, ratio_high=4.0, load=1.0, machine_kind="gather")
    values |= dict(machine_sent=GIGA // 4, machine_dense_sent=7 * GIGA // 4)
    values |= dict(coding=0.75, coding_low=0.7, coding_high=0.8)
    return Row(**{**values, **more})


def test_break_even_by_hand():
    sent, dense = GIGA // 4, 7 * GIGA // 4  # 2 Gbit and 14 Gbit
    assert pays_below(sent, dense, 0.75) == row().pays_below == 16.0
    assert speedup(sent, dense, 0.75, 16.0) == 1.0
    # at 1 Gbit/s: 14 s against 2 s and 0.75 s; at 400: 0.035 s against 0.755 s
    assert speedup(sent, dense, 0.75, 1.0) == pytest.approx(14 / 2.75)
    assert speedup(sent, dense, 0.75, 400.0) == pytest.approx(0.035 / 0.755)
    assert pays_below(dense, dense, 0.75) == pays_below(dense + 1, dense, 0.75) == 0


def test_the_verdict_says_where_it_pays_and_what_was_seen():
    said = verdict([row()])
    assert said[0].endswith("to the byte, in 1 of 1 rows with several devices.")
    assert said[1] == (
        "top_k 0.1, d = 1,000,000, p = 8: a machine sends 250 MB in place of 1.75e+03 MB, coding "
        "takes 750 ms (700 to 800); the exchange is faster on wires below 16 Gbit/s (×5.1 at 1, "
        "×1.5 at 10, ×0.18 at 100, ×0.046 at 400 Gbit/s)."
    )
    assert "3 times the dense one in the median of 1 rows" in said[2]
    assert "faster in 0 and slower in 1." in said[2]
    assert "in 0 of 1 rows the quartiles" in said[3] and len(said) == 4
    fast = row(ratio=0.5, ratio_low=0.4, ratio_high=0.9, seconds_high=0.6)
    said = verdict([row(), fast, row(ratio_low=0.9)])
    assert "faster in 1 and slower in 1." in said[2] and "in 1 of 3 rows" in said[3]
    one = verdict([row(devices=1)])
    assert len(one) == 3 and "in 0 of 0 rows" in one[0]  # one device has no wire
    assert verdict([]) == []


def test_the_verdict_says_what_more_workers_cost_and_what_never_pays():
    fewer = row(workers=2, coding=0.25)
    assert "coding takes 750 ms (700 to 800, 250 at p = 2);" in verdict([row(), fewer])[1]
    dense = row(machine_kind="dense", machine_sent=7 * GIGA // 4)
    assert dense.pays_below == 0 and "it never pays" in verdict([dense])[1]


def test_other_bytes_than_declared_refute(tmp_path):
    wrong = row(handed=101)
    assert row().exact and not wrong.exact and not row(dense_handed=4001).exact
    assert dataclasses.replace(wrong, devices=1).exact  # nothing crosses a wire
    said, refuted = scaling.conclude(tmp_path, [row(), wrong], {}, [])
    assert refuted and "in 1 of 2 rows; NOT in top_k 0.1, d = 1,000,000, p = 8" in said[0]


def test_the_figure_is_drawn_from_rows_alone():
    rows = [
        row(workers=p, devices=n, d=d, compressor=name)
        for p, n in ((2, 1), (2, 2), (8, 2), (8, 8))
        for d in (10**4, 10**6)
        for name in ("top_k 0.1", "sign")
    ]
    titles = [axis.get_title() for axis in draw(rows).axes]
    assert titles[1:] == [
        "would it pay? d = 1,000,000, p = 8",
        "measured, d = 1,000,000, p = 8",
        "measured, p = 8, n = 8 devices",
    ]
    assert len(draw([row(devices=1)]).axes) == 4


# ---- the program ----


def test_the_figure_of_the_readme_is_what_its_rows_make(tmp_path):
    """It carries the rows of the whole grid, and they say what the README says."""
    rows, held = carried_rows(ROOT / "docs/scaling.png", Row)
    assert held["command"].removesuffix(" --resume") == "python -m experiments.scaling"
    names = [field.name for field in dataclasses.fields(scaling.Case)]
    cases = [scaling.Case(*(getattr(row, name) for name in names)) for row in rows]
    assert cases == scaling.grid(scaling.Config(devices=(1, 2, 4, 8)))
    assert all(row.exact for row in rows)
    assert is_picture(ROOT / "docs/scaling.png", draw(rows), tmp_path)
    text = " ".join((ROOT / "README.md").read_text().split())
    shown = {row.compressor: row.pays_below for row in largest(rows)}
    low_rank, sign, top_k = (shown[name] for name in ("low_rank 2", "sign", "top_k 0.01"))
    assert f"{low_rank:.2g} Gbit/s with `low_rank(2)`, {sign:.2g} with `sign` and " in text
    assert f"{top_k:.2g} with `top_k(0.01)`" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--compressors topk", "--compressors topk: 'topk' is no compressor: use one of top_k,"),
        ("--compressors none", "'none' is no compressor"),
        ("--compressors top_k\\ 2.5", "--compressors top_k 2.5: 'top_k 2.5': "),
        ("--compressors sign\\ 1", "'sign 1': "),
        ("--compressors sign sign", "--compressors sign sign: give each value once"),
        ("--sizes 0", "--sizes 0: give whole numbers of at least 1"),
        ("--workers 1 8", "--workers 1 8: give at least 2: one has nobody to send to"),
        ("--workers 4 --devices 3", "--devices 3: 3 divides none of --workers"),
        ("--workers 9 --devices 9", "--devices 9: there are 8; give numbers up to that"),
        ("--rounds 1", "--rounds 1: give at least 2"),
        ("--out pyproject.toml", "--out pyproject.toml: that is a file; name a folder"),
    ],
)
def test_bad_arguments_are_refused_at_once(capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(ROOT)
    parts = [part.replace("\0", " ") for part in arguments.replace("\\ ", "\0").split()]
    assert scaling.main(parts) == 2
    assert words in capsys.readouterr().err


def test_the_grid_holds_every_layout_once(monkeypatch):
    config = scaling.Config(compressors=("sign", "top_k 0.1"), sizes=(100,), workers=(2, 4))
    cases = scaling.grid(config)
    layouts = [(case.workers, case.devices) for case in cases]
    assert layouts == [pair for pair in ((2, 1), (2, 2), (4, 1), (4, 2), (4, 4)) for _ in range(2)]
    monkeypatch.setattr(scaling.jax, "device_count", lambda: 3)
    monkeypatch.setattr(scaling.jax, "devices", lambda: [SimpleNamespace(device_kind="chip")] * 3)
    assert [case.devices for case in scaling.grid(config)[::2]] == [1, 2, 1, 2]


@pytest.mark.slow
def test_a_quick_run_interrupted_and_resumed(tmp_path, capsys, monkeypatch):
    """Ctrl-C keeps what is done; all bytes are those declared."""
    measure, done = scaling.measure, []

    def interrupted(*args):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(args)
        return measure(*args)

    arguments = ["--quick", "--out", str(tmp_path)]
    monkeypatch.setattr(scaling, "measure", interrupted)
    assert scaling.main(arguments) == 130
    said = capsys.readouterr()
    assert "1 of 4 runs are kept" in said.err and "--resume" in said.err
    before = (tmp_path / "rows.jsonl").read_text()
    monkeypatch.setattr(scaling, "measure", measure)
    assert scaling.main([*arguments, "--resume"]) == 0
    assert (tmp_path / "rows.jsonl").read_text().startswith(before)
    names = ["rows.csv", "rows.json", "rows.jsonl", "scaling.png", "verdict.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    said = capsys.readouterr().out
    assert said == (tmp_path / "verdict.txt").read_text() and "in 4 of 4 rows with" in said
    whole = json.loads((tmp_path / "rows.json").read_text())
    assert whole["machine"]["cores"] and "experiments.scaling" in whole["command"]
    like = matrix(5_000)
    for found in whole["rows"]:
        p, n = found["workers"], found["devices"]
        for name, prefix in ((found["compressor"], ""), ("none", "dense_")):
            compressor = ej.identity() if name == "none" else scaling.parse(name)
            nbytes = wire(compressor, like, p, on_each=p // n).nbytes
            assert found[f"{prefix}handed"] == nbytes == found[f"{prefix}declared"]
        for name in ("seconds", "dense_seconds", "ratio", "coding"):
            assert 0 < found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]
        saved = found["machine_dense_sent"] - found["machine_sent"]
        assert found["pays_below"] == pytest.approx(8e-9 * saved / found["coding"])
    assert len(list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))) == 4
