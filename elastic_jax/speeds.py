"""How fast workers are, and the race between them: speeds → trace."""

import collections
import heapq
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from elastic_jax.checks import positive, whole
from elastic_jax.traces import Trace, make_trace, previous_tick


class Speed(NamedTuple):
    """How long a worker takes for one update."""

    name: str
    # (rng, n) → float64 [n], seconds > 0, independent draws; inf means it never finishes. However
    # many are drawn at once, the same durations must follow: n and then m as n + m together.
    sample: Callable[[np.random.Generator, int], np.ndarray]
    updates: int | None = None  # how many updates it makes before it stops; None: no end


def constant(seconds: float = 1.0) -> Speed:
    """Every update takes `seconds`."""
    seconds = positive("seconds", seconds)
    return Speed(f"constant({seconds:g} s)", lambda rng, n: np.full(n, seconds))


def exponential(mean: float = 1.0) -> Speed:
    """Memoryless durations of the given mean, in seconds."""
    mean = positive("mean", mean)
    return Speed(f"exponential({mean:g} s)", lambda rng, n: rng.exponential(mean, n))


def lognormal(median: float = 1.0, sigma: float = 0.5) -> Speed:
    """Durations median·exp(sigma·N(0, 1)) in seconds; their mean is median·exp(sigma²/2)."""
    median, sigma = positive("median", median), positive("sigma", sigma)
    name = f"lognormal({median:g} s, {sigma:g})"
    return Speed(name, lambda rng, n: rng.lognormal(math.log(median), sigma, n))


def pareto(minimum: float = 1.0, shape: float = 1.5) -> Speed:
    """Heavy-tailed stragglers: P(duration > s) = (minimum/s)^shape for s ≥ minimum, in seconds.

    The mean is minimum·shape/(shape − 1), infinite for shape ≤ 1; the variance is infinite for
    shape ≤ 2.
    """
    minimum, shape = positive("minimum", minimum), positive("shape", shape)
    name = f"pareto({minimum:g} s, {shape:g})"
    return Speed(name, lambda rng, n: minimum * (1 + rng.pareto(shape, n)))


def stops_after(speed: Speed, updates: int) -> Speed:
    """A worker of the given speed that makes `updates` ≥ 0 updates and is never seen again."""
    updates = whole("updates", updates, "number of updates", 0)
    updates = updates if speed.updates is None else min(updates, speed.updates)
    return Speed(f"{speed.name}, stops after {updates}", speed.sample, updates)


def draw_trace(
    speeds: Sequence[Speed],
    ticks: int,
    seed: int = 0,
    *,
    assignment: Literal["pure", "random", "shuffled"] = "pure",
    wait: int = 1,
    cap: int | None = None,
) -> Trace:
    """Race workers that read, compute, apply, and read the newest version again at once.

    Worker i applies its k-th update at the sum of its first k durations; ties go to the lower
    index. Each worker has its own random stream, so a shorter draw is the start of a longer one,
    and another worker's speed changes only the order.

    A server may also hand out the work: whenever `wait` more updates have been applied, it gives
    the newest version to as many workers, which keep what they were given in a queue. A slow
    worker's queue may grow, and what it applies is then old: B = τ_max M, where steps are numbered
    by applied updates, as `asynchronous` does. (Numbered by reads B = n M, n ≤ p: never more than
    p gradients are in flight.)

    With a `cap` on delays the server throws away what is too stale, counts it as no update (but
    among those after which its worker stops), and gives that worker the newest version: τ_max < cap
    however slow a worker is; but a slow one may never have an update applied.

    Args:
        speeds: one `Speed` per worker, p ≥ 1 of them.
        ticks: T ≥ 1, how many updates to apply in all.
        seed: a non-negative integer.
        assignment: who is given the newest version: "pure", those whose updates were applied;
            "random", workers drawn afresh; "shuffled", all of them in turn, in an order that is
            drawn afresh each round (so that all workers' data count alike, however fast they are).
        wait: 1 ≤ wait ≤ p, how many updates are applied before any version is handed out.
        cap: R ≥ 1, all applied updates have delays below it; None applies everything.

    Returns:
        A trace of T updates with times in simulated seconds. With equal constant speeds every
        delay is p − 1, after the first p ticks.

    Raises:
        ValueError: for bad arguments, for durations that are not positive, and if all workers
            stop before `ticks` updates, saying how many there were.

    Example:
        >>> draw_trace([constant()] * 3, ticks=6).delay.tolist()
        [0, 1, 2, 2, 2, 2]
        >>> draw_trace([constant()] * 3, ticks=6, wait=3).delay.tolist()
        [0, 1, 2, 0, 1, 2]
        >>> draw_trace(
        ...     [constant()] * 3, ticks=6, cap=2
        ... ).worker.tolist()  # worker 2 is always too late
        [0, 1, 0, 1, 0, 1]

    Reference:
        Islamov, Safaryan, Alistarh, "AsGrad: a sharp unified analysis of asynchronous-SGD
        algorithms", 2024; for the cap: Maranjyan, Tyurin, Richtárik, "Ringmaster ASGD: the first
        asynchronous SGD with optimal time complexity", 2025.
    """
    p, ticks = len(speeds), whole("ticks", ticks, "number of updates")
    if not p or not all(isinstance(speed, Speed) for speed in speeds):
        raise ValueError(f"speeds={speeds!r}: give a list with one Speed for each worker")
    if whole("wait", wait, "number of updates") > p:
        raise ValueError(f"wait={wait} but there are {p} workers; pass an int from 1 to {p}")
    if assignment not in ("pure", "random", "shuffled"):
        raise ValueError(f"assignment={assignment!r}: pass 'pure', 'random' or 'shuffled'")
    *streams, server = np.random.SeedSequence(whole("seed", seed, "seed", 0)).spawn(p + 1)
    rngs = [np.random.default_rng(stream) for stream in streams]
    cap = ticks if cap is None else whole("cap", cap, "number of updates")
    if assignment != "pure" or wait > 1 or cap < ticks:
        chance = np.random.default_rng(server)
        return _draw_assigned(speeds, ticks, rngs, chance, assignment, wait, cap)
    times = [np.zeros(0)] * p  # when each worker applies, as far as drawn
    most = [ticks if s.updates is None else min(ticks, s.updates) for s in speeds]
    behind = [i for i in range(p) if most[i]]
    # The workers do not wait for one another, so popping a heap of events equals sorting their
    # times. Durations are drawn until every worker is past the T-th smallest time.
    while behind:
        for i in behind:
            n = min(max(len(times[i]), ticks // p + 64), most[i] - len(times[i]))
            times[i] = np.append(times[i], _more_times(speeds[i], rngs[i], n, times[i][-1:]))
            if np.isinf(times[i][-1]):
                times[i] = times[i][np.isfinite(times[i])]
                most[i] = len(times[i])
        merged = np.concatenate(times)
        end = np.partition(merged, ticks - 1)[ticks - 1] if merged.size >= ticks else math.inf
        behind = [i for i in range(p) if len(times[i]) < most[i] and times[i][-1] <= end]
    merged = np.concatenate(times)
    if merged.size < ticks:
        raise ValueError(
            f"ticks={ticks} but all workers have stopped after {merged.size} updates: ask for "
            f"fewer, or let a worker go on"
        )
    worker = np.repeat(np.arange(p), [len(own) for own in times])
    order = np.lexsort((worker, merged))[:ticks]
    worker = worker[order]
    return make_trace(worker, previous_tick(worker) + 1, time=merged[order], workers=p)


def _draw_assigned(
    speeds: Sequence[Speed],
    ticks: int,
    rngs: list[np.random.Generator],
    server: np.random.Generator,
    assignment: str,
    wait: int,
    cap: int,
) -> Trace:
    """The event loop of a server that hands out versions; a worker that has stopped keeps its."""
    p = len(speeds)
    queues = [collections.deque([0]) for _ in speeds]
    made, events, rows, order = [0] * p, [], [], []

    def begin(i: int, now: float) -> None:
        if made[i] != speeds[i].updates:
            done = _more_times(speeds[i], rngs[i], 1, np.array([now]))[0]
            if done < math.inf:
                heapq.heappush(events, (done, i))

    for i in range(p):
        begin(i, 0.0)
    finished: list[int] = []
    while len(rows) < ticks:
        if not events:
            raise ValueError(
                f"ticks={ticks} but all workers have stopped, or wait for a version, after "
                f"{len(rows)} updates: ask for fewer, let a worker go on, or wait for fewer"
            )
        now, i = heapq.heappop(events)
        version = queues[i].popleft()
        made[i] += 1
        if len(rows) - version < cap:
            rows.append((i, version, now))
            finished.append(i)
        else:
            queues[i].append(len(rows))
        if queues[i]:
            begin(i, now)
        if len(finished) < wait:
            continue
        chosen, finished = finished, []
        if assignment == "random":
            chosen = server.integers(p, size=wait).tolist()
        elif assignment == "shuffled":
            while len(order) < wait:
                order += server.permutation(p).tolist()
            chosen, order = order[:wait], order[wait:]
        for j in chosen:
            queues[j].append(len(rows))
            if len(queues[j]) == 1:
                begin(j, now)
    worker, version, time = zip(*rows, strict=True)
    return make_trace(worker, version, time=time, workers=p)


def _more_times(
    speed: Speed, rng: np.random.Generator, n: int, last: np.ndarray
) -> np.ndarray:  # [n]
    """The times of a worker's next n updates, after its last one (none: a start at 0)."""
    durations = np.asarray(speed.sample(rng, n))
    if durations.shape != (n,) or not (durations > 0).all():
        raise ValueError(
            f"speed {speed.name!r} drew shape {durations.shape}, smallest "
            f"{durations.min(initial=math.inf)}: its sample(rng, {n}) must give [{n}] seconds > 0"
        )
    return np.cumsum(np.append(last, durations))[len(last) :]
