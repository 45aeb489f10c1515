"""Traces and races that several tests draw."""

import numpy as np
from hypothesis import strategies as st

from elastic_jax import speeds
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
