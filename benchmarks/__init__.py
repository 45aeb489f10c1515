"""Benchmarks: paired, in turns, on one thread, with donated buffers; run `python -m benchmarks`.

Every module `bench_*.py` defines `rows(quick)`, which yields a `harness.Row` for each claim about
speed or memory. Ratios are medians over the rounds of a run, next to their quartiles; targets are
compared, never asserted, for a busy machine is no bug.
"""
