"""Traces: exact schedules, exact files, honest races, and refusals that help."""

import itertools
import math
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from races import any_race, any_trace, assert_same

from elastic_jax import speeds
from elastic_jax.speeds import draw_trace
from elastic_jax.traces import Trace, make_trace


def alive(trace: Trace) -> int:
    """The largest number of versions that are written and still to be read, counted plainly."""
    versions = trace.version.tolist()
    return max(len({v for v in versions[t:] if v <= t}) for t in range(len(versions)))


def replay(trace: Trace):
    schedule = trace.schedule()
    memory = [-1] * (schedule.slots + 1)
    for t in range(len(trace.version)):
        memory[schedule.write[t]] = t
        assert memory[schedule.read[t]] == trace.version[t]
        assert schedule.read[t] < schedule.slots
        assert (schedule.write[t] == schedule.slots) == (t not in trace.version)
    np.testing.assert_array_equal(schedule.worker, trace.worker)
    assert all(array.dtype == np.int32 for array in schedule[:3])
    return schedule


@given(any_trace())
@settings(max_examples=100, deadline=None)
def test_a_schedule_replays_every_version_with_the_fewest_rows(trace):
    slots = replay(trace).slots
    assert slots == alive(trace) <= trace.delay.max() + 1
    if trace.one_view:
        assert slots <= trace.workers


@given(any_race())
@settings(max_examples=60, deadline=None)
def test_a_race_needs_at_most_one_row_per_worker(race):
    trace = draw_trace(*race)
    assert trace.one_view
    assert replay(trace).slots <= trace.workers


def test_one_view_is_reported_not_enforced():
    assert not make_trace([0, 0], version=[0, 0]).one_view
    assert make_trace([0, 0], version=[0, 1]).one_view


@given(any_trace())
@settings(max_examples=60, deadline=None)
def test_statistics_and_histogram_against_plain_counting(trace):
    stats, delay = trace.statistics(), trace.delay.tolist()
    assert trace.histogram().tolist() == [delay.count(n) for n in range(max(delay) + 1)]
    assert trace.delay.dtype == np.int32
    for i in range(trace.workers):
        own = [t for t in range(len(delay)) if trace.worker[t] == i]
        gaps = [trace.time[b] - trace.time[a] for a, b in itertools.pairwise(own)]
        gaps = [gap for gap in gaps if not math.isnan(gap)]
        assert stats.updates[i] == len(own)
        assert stats.max_delay[i] == max([delay[t] for t in own], default=-1)
        assert stats.last_tick[i] == (own[-1] if own else -1)
        expected = {
            "mean_delay": sum(delay[t] for t in own) / len(own) if own else math.nan,
            "mean_interval": sum(gaps) / len(gaps) if gaps else math.nan,
            "last_seen": trace.time[own[-1]] if own else math.nan,
        }
        for name, value in expected.items():
            # sums in the same order: equal to the last bit
            np.testing.assert_array_equal(getattr(stats, name)[i], value)


@given(any_trace(), st.sampled_from([".npz", ".csv"]))
@settings(max_examples=60, deadline=None)
def test_files_are_exact(trace, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"trace{suffix}"
        trace.save(path)
        assert_same(Trace.load(str(path)), trace)
        assert os.listdir(folder) == [path.name]


def test_plain_csv_from_elsewhere(tmp_path):
    path = tmp_path / "plain.csv"
    path.write_text("\ufeffdelay, note, worker\n0,first,2\n1,,0\n", encoding="utf-8")
    assert_same(Trace.load(path), make_trace([2, 0], delay=[0, 1]))


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "trace.npz"
    old, new = make_trace([0], version=[0]), make_trace([0, 1], version=[0, 0])
    old.save(path)

    def fail(*args):
        raise OSError("disk gone")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk gone"):
        new.save(path)
    assert_same(Trace.load(path), old)
    assert os.listdir(tmp_path) == ["trace.npz"]


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("t.txt", b"", r"'.txt': use .npz or .csv"),
        ("t.npz", b"", "holds no readable trace"),
        ("t.npz", b"PK\x03\x04 nonsense", "holds no readable trace"),
        ("t.npz", b"nonsense", "holds no readable trace"),
        ("t.csv", b"", "needs worker, and version or delay"),
        ("t.csv", b"worker,time\n0,0.0\n", r"\['worker', 'time'\]; it needs worker, and version"),
        ("t.csv", b"version\n0\n", "needs worker, and version or delay"),
        ("t.csv", b"worker,version\n", "at least one integer"),
        ("t.csv", b"worker,version\n0,0\n1,half\n", "'half'} needs whole numbers"),
        ("t.csv", b"worker,version\n0,0.0\n", "'0.0'} needs whole numbers"),
        ("t.csv", b"worker,version\n0\n", "None} needs whole numbers"),
        ("t.csv", b"worker,version,delay\n0,0,0\n", "both given; give exactly one"),
        ("t.csv", b"worker,version\n0,1\n", r"version\[0\] = 1 is not in 0 … 0"),
        ("t.csv", b"# workers=many\nworker,version\n0,0\n", "'many'"),
        ("t.csv", b"worker,version\n\xff\n", "holds no readable trace"),
        ("t.csv", b"worker,version\n0," + b"9" * 200_000, "field larger than"),
    ],
)
def test_files_that_are_no_traces(tmp_path, name, contents, message):
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(ValueError, match=message) as caught:
        Trace.load(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_damaged_and_missing_files(tmp_path):
    path = tmp_path / "t.npz"
    trace = draw_trace([speeds.exponential()] * 3, 500)
    with pytest.raises(FileNotFoundError):
        Trace.load(path)
    with pytest.raises(ValueError, match=r"use \.npz or \.csv"):
        trace.save(tmp_path / "trace")
    np.savez(path, worker=[0])
    with pytest.raises(ValueError, match="version"):
        Trace.load(path)
    with open(path, "wb") as file:
        np.save(file, [1.0])
    with pytest.raises(ValueError, match="holds no readable trace"):
        Trace.load(path)
    trace.save(path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    for damaged in (whole[:middle], whole[:middle] + b"damaged!" + whole[middle + 8 :]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="holds no readable trace"):
            Trace.load(path)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"worker": [], "version": []}, r"worker has shape \(0,\).*at least one integer"),
        ({"worker": [[0]], "version": [0]}, r"worker has shape \(1, 1\)"),
        ({"worker": [0.0], "version": [0]}, "worker has .* dtype float64: give a 1-d array"),
        ({"worker": [-1], "version": [0]}, "worker holds -1: number the workers from 0"),
        ({"worker": [2**31], "version": [0]}, "worker holds 2147483648: .*renumber"),
        ({"worker": [3], "version": [0], "workers": 3}, "workers=3 .* give workers ≥ 4"),
        ({"worker": [0], "version": [0], "workers": 1.0}, "workers=1.0 is no number of workers"),
        ({"worker": [0]}, "version and delay: neither given"),
        ({"worker": [0], "version": [0], "delay": [0]}, "both given; give exactly one"),
        ({"worker": [0], "version": [True]}, "version has .* dtype bool"),
        ({"worker": [0], "version": [0, 1]}, "version has 2 entries but worker has 1"),
        ({"worker": [0, 0], "version": [0, 2]}, r"version\[1\] = 2 is not in 0 … 1"),
        ({"worker": [0, 0], "version": [0, -1]}, r"version\[1\] = -1 is not in 0 … 1"),
        ({"worker": [0, 0], "delay": [1, 0]}, r"delay\[0\] = 1 is not in 0 … 0.*leave out updates"),
        ({"worker": [0], "version": [0], "time": [0, 1]}, r"time has shape \(2,\).*give 1 real"),
        ({"worker": [0], "version": [0], "time": ["now"]}, "time has .* dtype <U3"),
        ({"worker": [0], "version": [0], "time": [np.inf]}, "time is infinite or decreases"),
        (
            {"worker": [0] * 3, "version": [0] * 3, "time": [2, np.nan, 1]},
            "time is infinite or decreases: give seconds in the order",
        ),
    ],
)
def test_bad_traces_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        make_trace(**parts)
