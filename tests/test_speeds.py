"""Races between workers of given speeds: honest, and the event loop bit for bit."""

import heapq
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from races import any_race, assert_same

from elastic_jax import speeds
from elastic_jax.speeds import Speed, draw_trace
from elastic_jax.traces import Trace, make_trace


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: speeds.constant(0), "seconds=0 is out of range; pass a finite number > 0"),
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


def race_by_heap(speeds: list[Speed], ticks: int, seed: int, cap: float = math.inf) -> Trace:
    """The definition: pop the earliest (time, worker), apply if not too stale, read, compute."""
    streams = np.random.SeedSequence(seed).spawn(len(speeds))
    rngs = [np.random.default_rng(stream) for stream in streams]
    left = [math.inf if speed.updates is None else speed.updates for speed in speeds]

    def next_event(i, now):
        left[i] -= 1
        return (now + speeds[i].sample(rngs[i], 1)[0] if left[i] >= 0 else math.inf), i

    events = [next_event(i, 0.0) for i in range(len(speeds))]
    heapq.heapify(events)
    version, rows = [0] * len(speeds), []
    while len(rows) < ticks:
        now, i = heapq.heappop(events)
        if len(rows) - version[i] < cap:
            rows.append((i, version[i], now))
        version[i] = len(rows)
        heapq.heappush(events, next_event(i, now))
    worker, versions, time = zip(*rows, strict=True)
    return make_trace(worker, versions, time=time, workers=len(speeds))


@given(any_race())
@settings(max_examples=60, deadline=None)
def test_a_race_is_the_event_loop_bit_for_bit(race):
    assert_same(draw_trace(*race), race_by_heap(*race))


@given(any_race(), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_a_capped_race_is_the_event_loop_bit_for_bit(race, cap):
    """What is too stale is no update, and its worker reads again at once."""
    trace = draw_trace(*race, cap=cap)
    assert_same(trace, race_by_heap(*race, cap))
    assert trace.delay.max() < cap and trace.one_view
    assert_same(draw_trace(*race, cap=race[1]), draw_trace(*race))


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
    by_hand = speeds._draw_assigned(
        race, 300, rngs, np.random.default_rng(streams[3]), "pure", 1, 300
    )
    assert_same(by_hand, draw_trace(race, 300, 3))


@pytest.mark.parametrize(("assignment", "wait"), ASSIGNMENTS)
def test_a_cap_holds_whoever_is_given_versions(assignment, wait):
    race = [speeds.lognormal(), speeds.exponential(0.3), speeds.constant(20.0), speeds.pareto()]
    late, capped = (
        draw_trace(race, 400, 5, assignment=assignment, wait=wait, cap=cap) for cap in (None, 6)
    )
    assert late.delay.max() > 6 > capped.delay.max()
    assert (np.diff(capped.time) >= 0).all() and len(capped.worker) == 400


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
        ({"cap": 0}, "cap=0 is no number of updates"),
    ):
        with pytest.raises(ValueError, match=words):
            draw_trace([speeds.constant()] * 2, 10, **arguments)
    with pytest.raises(ValueError, match="all workers have stopped, or wait for a version"):
        draw_trace([speeds.stops_after(speeds.constant(), 2)] * 3, 50, wait=3)
