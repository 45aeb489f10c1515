"""`experiments.runs`: rows on disk, and processes that crash."""

import csv
import dataclasses
import json
import math
import threading
from multiprocessing import Pipe

import pytest
from verdict_rows import SETTINGS, row

from experiments import runs
from experiments.rows import FEEDBACK, PLAIN, Run

NAN = math.nan


# ---- rows on disk ----


def test_journal_keeps_rows_and_forgives_a_torn_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    journal = runs.Journal(path, resume=False)
    first, second = row(PLAIN, 0, 0.5), row(FEEDBACK, 0, NAN, diverged=True)
    journal.append("a", first)
    journal.append("b", second)
    assert runs.Journal(path, resume=True).rows == {"a": first, "b": second}
    with path.open("a") as file:
        file.write('{"key": "c", "data"')  # killed while it wrote
    journal = runs.Journal(path, resume=True)
    assert journal.rows == {"a": first, "b": second}
    journal.append("c", first)
    with path.open("a") as file:
        file.write('{"key": "d", "a column of another version": 1}\n')
    assert list(runs.Journal(path, resume=True).rows) == ["a", "b", "c"]
    assert runs.Journal(path, resume=False).rows == {}
    assert not path.exists() and (tmp_path / "rows.previous.jsonl").exists()


def test_tables_hold_every_column(tmp_path):
    rows = [row(PLAIN, 0, 0.5), row(FEEDBACK, 0, NAN, diverged=True)]
    runs.write_tables(tmp_path, rows, {"command": "python -m x", "seeds": [0]})
    table = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    whole = json.loads((tmp_path / "rows.json").read_text())
    assert list(table[0]) == list(whole["rows"][0]) == runs.COLUMNS
    assert whole["command"] == "python -m x"
    assert table[1]["train_loss"] == "" and whole["rows"][1]["train_loss"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv", "rows.json"]


def test_a_key_depends_on_run_and_settings_but_not_on_where_the_data_lie():
    run = Run("asynchronous", 4, PLAIN, 0.01, 0.1, 0)
    key = runs.key_of(run, SETTINGS)
    assert key == runs.key_of(run, dataclasses.replace(SETTINGS, data_dir="elsewhere"))
    assert key != runs.key_of(dataclasses.replace(run, seed=1), SETTINGS)
    assert key != runs.key_of(run, dataclasses.replace(SETTINGS, batch=4))


# ---- processes ----


class FakeProcess:
    exitcode = -9

    def join(self):
        pass

    def terminate(self):
        pass


def crashing(monkeypatch, plan):
    """Children that crash after so many runs, one number a child; None never does."""
    started = []

    def start(settings):
        here, there = Pipe()
        alive = plan[len(started)] if len(started) < len(plan) else None
        started.append(alive)

        def serve():
            done = 0
            try:
                while True:
                    for run in there.recv():
                        if done == alive:
                            there.send(("error", "Traceback\nMemoryError: none left"))
                            there.close()
                            return
                        there.send(("row", (run, row(PLAIN, run.seed, 0.5))))
                        done += 1
                    there.send(("done", None))
            except (EOFError, OSError):
                there.close()

        threading.Thread(target=serve, daemon=True).start()
        return runs._Child(FakeProcess(), here)

    monkeypatch.setattr(runs, "_start", start)
    return started


RUNS = [
    Run("asynchronous", p, method, 0.01, 0.1, seed)
    for p in (4, 8)
    for method in (PLAIN, FEEDBACK)
    for seed in range(3)
]


# With two processes a plan may speak of a child's first task alone: who gets the later ones is
# for the scheduler to say.
@pytest.mark.parametrize(
    ("processes", "plan"), [(2, [None, None]), (2, [1, None]), (2, [0, 0]), (1, [4, 2])]
)
def test_a_crashed_process_is_replaced_and_its_runs_are_done_once(monkeypatch, processes, plan):
    started, notes = crashing(monkeypatch, plan), []
    done = [run for run, _ in runs.sweep(RUNS, SETTINGS, processes, notes.append)]
    assert sorted(done, key=RUNS.index) == RUNS
    crashes = sum(alive is not None for alive in plan)
    assert len(notes) == crashes and len(started) == processes + crashes
    assert all("MemoryError" in note and "trying them again" in note for note in notes)


def test_runs_that_crash_twice_are_given_up_and_the_others_done(monkeypatch):
    notes = []
    crashing(monkeypatch, [0, 0])
    done = [run for run, _ in runs.sweep(RUNS, SETTINGS, 1, notes.append)]
    assert len(done) == 9 and "given up" in notes[1] and "3 runs" in notes[1]


def test_endless_crashes_end_the_sweep_with_the_reason(monkeypatch):
    crashing(monkeypatch, [0] * 9)
    with pytest.raises(runs.Crashed, match="MemoryError"):
        list(runs.sweep(RUNS, SETTINGS, 2, lambda note: None))
