"""Traces: exact schedules, exact files, honest races, and refusals that help."""

import heapq
import itertools
import math
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_jax import speeds
from elastic_jax.speeds import Speed, draw_trace
from elastic_jax.traces import Trace, make_trace


@st.composite
def any_trace(draw):
    """Any 0 ≤ version[t] ≤ t, whoever applied what; some times unknown, some workers idle."""
    ticks = draw(st.integers(1, 40))
    worker = draw(st.lists(st.integers(0, 5), min_size=ticks, max_size=ticks))
    version = [draw(st.integers(0, t)) for t in range(ticks)]
    seconds = np.sort(draw(st.lists(st.floats(-1e9, 1e9), min_size=ticks, max_size=ticks)))
    unknown = draw(st.lists(st.booleans(), min_size=ticks, max_size=ticks))
    time = draw(st.sampled_from([None, np.where(unknown, np.nan, seconds)]))
    return make_trace(worker, version, time=time, workers=draw(st.sampled_from([None, 6, 8])))


def all_speeds():
    return st.sampled_from(
        [
            speeds.constant(),
            speeds.constant(0.5),
            speeds.exponential(2.0),
            speeds.lognormal(),
            speeds.pareto(),
            speeds.stops_after(speeds.exponential(0.1), 3),
            speeds.stops_after(speeds.constant(), 0),
        ]
    )


@st.composite
def any_race(draw):
    drawn = draw(st.lists(all_speeds(), max_size=6))
    return [*drawn, speeds.exponential()], draw(st.integers(1, 150)), draw(st.integers(0, 2**40))


def assert_same(a: Trace, b: Trace):
    assert a.workers == b.workers
    for x, y in zip(a[:3], b[:3], strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: speeds.constant(0), "seconds=0: give a finite number > 0"),
        (lambda: speeds.exponential(-1.0), "mean=-1.0"),
        (lambda: speeds.lognormal(sigma=math.nan), "sigma=nan"),
        (lambda: speeds.pareto(shape=math.inf), "shape=inf"),
        (lambda: speeds.pareto("1"), "minimum='1'"),
        (
            lambda: speeds.stops_after(speeds.constant(), -1),
            "updates=-1 is no number of updates; pass an int >= 0",
        ),
        (lambda: draw_trace([], 1), r"speeds=\[\]: give a list with one Speed"),
        (lambda: draw_trace([speeds.constant], 1), "give a list with one Speed"),
        (lambda: draw_trace([speeds.constant()], 0), "ticks=0 is no number of updates"),
        (lambda: draw_trace([speeds.constant()], 1, seed=-1), "seed=-1"),
        (
            lambda: draw_trace([speeds.stops_after(speeds.constant(), 2)] * 3, 7),
            "stopped after 6 updates",
        ),
        (lambda: draw_trace([Speed("odd", lambda rng, n: np.zeros(n))], 1), "'odd' .* seconds > 0"),
        (lambda: draw_trace([Speed("odd", lambda rng, n: np.ones(2))], 1), r"drew shape \(2,\)"),
    ],
)
def test_bad_speeds_and_races_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("speed", "mean", "deviation"),
    [
        (speeds.constant(3.0), 3.0, 0.0),
        (speeds.exponential(2.0), 2.0, 2.0),
        (
            speeds.lognormal(2.0, 0.5),
            2.0 * math.exp(0.125),
            2.0 * math.exp(0.125) * math.sqrt(math.expm1(0.25)),
        ),
        (speeds.pareto(1.0, 4.0), 4 / 3, math.sqrt(4 / (9 * 2))),
    ],
    ids=lambda value: value.name if isinstance(value, Speed) else "",
)
def test_durations_have_the_stated_mean(speed, mean, deviation, seed):
    n = 100_000
    durations = speed.sample(np.random.default_rng(seed), n)
    assert durations.shape == (n,) and durations.dtype == np.float64 and durations.min() > 0
    assert abs(durations.mean() - mean) <= 5 * deviation / math.sqrt(n)  # 5 standard errors


@pytest.mark.parametrize("shape", [0.8, 1.5])
def test_pareto_tail(shape):
    n = 100_000
    durations = speeds.pareto(2.0, shape).sample(np.random.default_rng(0), n)
    for seconds in (2.0, 4.0, 20.0):
        tail = (2.0 / seconds) ** shape
        error = 5 * math.sqrt(tail * (1 - tail) / n)
        assert abs((durations >= seconds).mean() - tail) <= error


@pytest.mark.parametrize("p", [1, 2, 7])
def test_equal_constant_speeds_give_delay_p_minus_1(p):
    trace = draw_trace([speeds.constant(2.0)] * p, 5 * p)
    assert trace.delay.tolist() == [min(t, p - 1) for t in range(5 * p)]
    assert trace.worker.tolist() == list(range(p)) * 5
    assert trace.time.tolist() == [2.0 * (t // p + 1) for t in range(5 * p)]


def race_by_heap(speeds: list[Speed], ticks: int, seed: int) -> Trace:
    """The definition: pop the earliest (time, worker), apply, read, compute."""
    streams = np.random.SeedSequence(seed).spawn(len(speeds))
    rngs = [np.random.default_rng(stream) for stream in streams]
    left = [math.inf if speed.updates is None else speed.updates for speed in speeds]

    def next_event(i, now):
        left[i] -= 1
        return (now + speeds[i].sample(rngs[i], 1)[0] if left[i] >= 0 else math.inf), i

    events = [next_event(i, 0.0) for i in range(len(speeds))]
    heapq.heapify(events)
    version, rows = [0] * len(speeds), []
    for t in range(ticks):
        now, i = heapq.heappop(events)
        rows.append((i, version[i], now))
        version[i] = t + 1
        heapq.heappush(events, next_event(i, now))
    worker, versions, time = zip(*rows, strict=True)
    return make_trace(worker, versions, time=time, workers=len(speeds))


@given(any_race())
@settings(max_examples=60, deadline=None)
def test_a_race_is_the_event_loop_bit_for_bit(race):
    assert_same(draw_trace(*race), race_by_heap(*race))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_lopsided_race_is_the_event_loop_bit_for_bit(seed):
    fast, slow = speeds.pareto(0.001), [speeds.exponential(0.1), speeds.constant(0.5)]
    race = [slow[0], speeds.stops_after(fast, 700), *slow, fast, speeds.constant(0.5)], 2000, seed
    assert_same(draw_trace(*race), race_by_heap(*race))


def test_a_race_looks_just_far_enough():
    race = [speeds.constant(0.1), speeds.constant(0.12)]
    longest = race_by_heap(race, 1500, 0)
    for ticks in range(1300, 1500):  # somewhere here the first block of durations runs out
        assert_same(draw_trace(race, ticks), Trace(*(x[:ticks] for x in longest[:3]), 2))


@given(any_race())
@settings(max_examples=30, deadline=None)
def test_a_shorter_race_is_the_start_of_a_longer_one(race):
    racers, ticks, seed = race
    short, long = draw_trace(racers, ticks, seed), draw_trace(racers, 3 * ticks, seed)
    for a, b in zip(short[:3], long[:3], strict=True):
        np.testing.assert_array_equal(a, b[:ticks])
    # A worker's delays telescope: delay + 1 adds up to its last tick + 1.
    stats = short.statistics()
    spans = np.bincount(short.worker, short.delay + 1, minlength=short.workers)
    np.testing.assert_array_equal(spans, stats.last_tick + 1)


def test_workers_that_stop():
    twice = speeds.stops_after(speeds.stops_after(speeds.constant(), 2), 5)
    assert twice.updates == 2 and "stops after 2" in twice.name
    breaks = Speed("breaks", lambda rng, n: np.where(np.arange(n) < 3, 1.0, np.inf))
    trace = draw_trace(
        [twice, breaks, speeds.constant(), speeds.stops_after(speeds.constant(), 0)], 50
    )
    assert trace.statistics().updates.tolist() == [2, 3, 45, 0]
    assert trace.workers == 4


# ---- versions that a server hands out ----

ASSIGNMENTS = [(name, wait) for name in ("pure", "random", "shuffled") for wait in (1, 3)]


def drawn(assignment, wait, ticks=400, seed=5):
    race = [speeds.lognormal(), speeds.exponential(0.3), speeds.constant(1.1), speeds.pareto()]
    return draw_trace(race, ticks, seed, assignment=assignment, wait=wait)


@pytest.mark.parametrize(("assignment", "wait"), ASSIGNMENTS)
def test_versions_are_handed_out_after_every_few_updates(assignment, wait):
    """By definition: p are out at first, w more at each multiple of w; first come, first done."""
    trace = drawn(assignment, wait)
    given = np.bincount(trace.version, minlength=400)
    assert given[0] == 4
    still_out = wait - given[wait::wait]
    assert still_out.min() >= 0 and still_out.sum() <= 4
    assert not given[np.arange(400) % wait != 0].any()
    in_flight = 4 + wait * (np.arange(400) // wait) - np.arange(400)
    assert in_flight.max() == 4 and in_flight.min() == 4 - wait + 1
    for worker in range(4):
        own = trace.version[trace.worker == worker]
        assert (np.diff(own) >= 0).all()  # in the order in which they were given


def test_a_worker_that_finishes_is_given_the_newest():
    """Without waiting this is the race of workers that read again at once, bit for bit."""
    race = [speeds.lognormal(), speeds.exponential(0.3), speeds.stops_after(speeds.pareto(), 5)]
    streams = np.random.SeedSequence(3).spawn(4)
    rngs = [np.random.default_rng(stream) for stream in streams[:3]]
    by_hand = speeds._draw_assigned(race, 300, rngs, np.random.default_rng(streams[3]), "pure", 1)
    assert_same(by_hand, draw_trace(race, 300, 3))


def test_waiting_for_all_is_synchronous():
    trace = drawn("pure", 4)
    np.testing.assert_array_equal(trace.version, np.arange(400) // 4 * 4)
    assert all(set(trace.worker[i : i + 4]) == set(range(4)) for i in range(0, 400, 4))


def test_shuffled_workers_count_alike_however_fast():
    """Each round of four versions goes to four workers; the fastest waits for work."""
    trace = drawn("shuffled", 1, ticks=800)
    first_still_out = np.flatnonzero(np.bincount(trace.version, minlength=800) == 0)[0]
    order = np.argsort(trace.version, kind="stable")[4 : first_still_out + 3]  # as handed out
    rounds = trace.worker[order[: len(order) // 4 * 4]].reshape(-1, 4)
    assert len(rounds) > 20 and all(set(row) == set(range(4)) for row in rounds)
    random = drawn("random", 1, ticks=800)
    assert np.bincount(random.worker).min() > 150  # a quarter each, up to chance
    assert np.bincount(drawn("pure", 1, ticks=800).worker).min() < 150


def test_what_cannot_be_handed_out_is_refused():
    for arguments, words in (
        ({"assignment": "best"}, "assignment='best': pass 'pure', 'random' or 'shuffled'"),
        ({"wait": 5}, "wait=5 but there are 2 workers"),
        ({"wait": 0}, "wait=0 is no number of updates"),
    ):
        with pytest.raises(ValueError, match=words):
            draw_trace([speeds.constant()] * 2, 10, **arguments)
    with pytest.raises(ValueError, match="all workers have stopped, or wait for a version"):
        draw_trace([speeds.stops_after(speeds.constant(), 2)] * 3, 50, wait=3)
