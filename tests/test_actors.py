"""Servers and their turns, without Ray: any order in which messages may arrive, any loss."""

import asyncio
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_jax.actors import Desk, Plan, Server, in_time, pack, unpack
from elastic_jax.driver import joined
from elastic_jax.recording import COMPUTE, READ, Recording
from elastic_jax.shared import Layout, Update

N = 6


def message(view, worker, step):
    return (-0.1 * view + np.cos(np.arange(N) + 10 * worker + step)).astype(np.float32)


class Net:
    """Delivers messages after any while, and answers too."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.sent: list[asyncio.Future] = []

    def send(self, method, *arguments):
        """What was sent arrives, whatever becomes of its sender."""
        self.sent.append(asyncio.ensure_future(self.call(method, *arguments)))
        return asyncio.shield(self.sent[-1])

    async def pause(self):
        for _ in range(self.rng.integers(1, 12)):
            await asyncio.sleep(0)

    async def call(self, method, *arguments):
        await self.pause()
        found = await method(*arguments)
        await self.pause()
        return found


async def work(net, worker, servers, bounds):
    """As `actors.Worker` does it."""
    desk, *others = servers
    await net.send(desk.join, worker, worker)
    for step in itertools.count():
        first = await net.send(desk.enter, worker, 0)
        if first is None:
            return
        calls = [net.send(server.read, worker, first[1]) for server in others]
        parts, versions = zip(first, *[await call for call in calls], strict=True)
        u = message(np.concatenate(parts), worker, step)
        rest = [
            Update(pack(u[a:b]), np.zeros(0), step, 0.0, 0.0, 0.0, True)
            for a, b in itertools.pairwise(bounds)
        ]
        await net.pause()
        turn = await net.send(desk.submit, worker, versions, rest[0])
        if turn is None:
            return
        await net.pause()  # here it may die between two servers
        calls = []
        for server, part in zip(others, rest[1:], strict=True):
            calls.append(net.send(server.apply, worker, *turn, part))
            await net.pause()
        for call in calls:
            await call


def run(*arguments):
    return asyncio.run(asyncio.wait_for(race(*arguments), 20))


async def race(seed, workers, blocks, most, losses, joins, updates=40):
    """Runs to the end; as many workers as said are lost on the way, and as many join."""
    net = Net(seed)
    bounds = tuple(N * b // blocks for b in range(blocks + 1))
    layout = Layout("cluster", workers, updates, bounds, np.float32, np.float32, True, False, 0)
    plan = Plan(layout, most, 1, 7, False)
    start = np.arange(N, dtype=np.float32)
    parts = [start[a:b] for a, b in itertools.pairwise(bounds)]
    servers = [Desk(plan, parts[0], None, np.zeros(0, np.uint8))]
    servers += [Server(plan, part) for part in parts[1:]]

    async def one(worker):
        try:
            await work(net, worker, servers, bounds)
        finally:
            tick = await servers[0].leave(worker)
            for server in servers[1:]:
                await net.pause()
                await server.lose(worker, tick)

    going = [asyncio.ensure_future(one(worker)) for worker in range(workers)]
    lost = net.rng.permutation(workers)[:losses]
    when = np.sort(net.rng.integers(0, updates, losses + joins))
    for tick in when:
        while servers[0].ticks < tick and not servers[0].over:
            await asyncio.sleep(0)
        if len(going) < workers + joins:
            going.append(asyncio.ensure_future(one(len(going))))
        else:
            going[lost[-1]].cancel()
            lost = lost[:-1]
    done = await asyncio.gather(*going, return_exceptions=True)
    await asyncio.gather(*net.sent)  # what was sent by those who were lost
    assert all(found is None or isinstance(found, asyncio.CancelledError) for found in done)
    for server in servers:
        assert server.ticks == servers[0].ticks == updates
    logs = [(await server.collect(0, 0, last=False))[0] for server in servers]
    rest = dict.fromkeys(Recording._fields)
    log = joined(logs, servers[0].ticks)
    last = np.concatenate([server.params for server in servers])
    rest |= dict(mode="cluster", workers=len(going), bounds=np.array(bounds), start=start)
    return Recording(**(rest | log | {"params": last})), servers


def replayed(recording):
    params, bounds = recording.start.copy(), recording.bounds
    views, messages = np.empty((2, recording.workers, N), np.float32)
    for kind, t, b in recording.events().tolist():
        worker, block = recording.worker[t], slice(bounds[b], bounds[b + 1])
        if kind == READ:
            views[worker, block] = params[block]
        elif kind == COMPUTE:
            messages[worker] = message(views[worker], worker, recording.step[t])
        else:
            params[block] += messages[worker, block]
    return params


@pytest.mark.slow
@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    workers=st.integers(1, 5),
    blocks=st.integers(1, 4),
    most=st.sampled_from([None, 0, 1, 2, 4, 7]),
    losses=st.integers(0, 4),
    joins=st.integers(0, 2),
)
def test_any_race_keeps_its_bound_and_can_be_replayed(seed, workers, blocks, most, losses, joins):
    """Whoever is lost, whenever: no update is applied twice, none waits for ever."""
    losses = min(losses, workers - 1)
    recording, servers = run(seed, workers, blocks, most, losses, joins)
    np.testing.assert_array_equal(replayed(recording), recording.params)
    assert most is None or recording.delay.max() <= most
    made = list(zip(recording.worker.tolist(), recording.step.tolist(), strict=True))
    for worker in range(recording.workers):  # each update once, in order
        steps = [step for i, step in made if i == worker]
        assert steps == list(range(len(steps)))
    lengths = (recording.tick >= 0).sum(1)
    assert lengths[0] == 40 and lengths.min() >= 40 - losses
    for t in set().union(*(set(range(40)).difference(ticks) for ticks in recording.tick)):
        # cut off by the loss of its worker, whose last it was
        assert made[t][0] not in [i for i, _ in made[t + 1 :]]
    np.testing.assert_array_equal(recording.tick[0], np.arange(40))
    for server in servers:
        assert not server.views


@given(
    seed=st.integers(0, 2**32),
    workers=st.integers(1, 6),
    most=st.integers(0, 6),
)
def test_somebody_may_always_go_on(seed, workers, most):
    """The rule of turns alone: the oldest view is free to be applied, and no delay is above."""
    rng = np.random.default_rng(seed)
    out, ticks, largest = {}, 0, 0
    for _ in range(200):
        free = [i for i in out if in_time(ticks + 1, [v for j, v in out.items() if j != i], most)]
        entering = [i for i in range(workers) if i not in out]
        entering = entering if in_time(ticks, [*out.values(), ticks], most) else []
        assert not out or min(out, key=lambda i: (out[i], i not in free)) in free
        i = rng.choice(free + entering)
        if i in out:
            largest = max(largest, ticks - out.pop(i))
            ticks += 1
        else:
            out[i] = ticks
    assert largest <= most
    assert workers == 1 or most == 0 or largest > 0


def test_what_the_driver_has_is_forgotten():
    """Asking twice gives the same; what was had is not sent again."""
    _, (desk, *_) = run(0, 2, 2, None, 0, 0)

    def collect(have, since, last):
        return asyncio.run(desk.collect(have, since, last))

    log, kept = collect(0, 0, False)
    assert [entry.tick for entry in log] == list(range(40)) and set(kept) == {7, 14, 21, 28, 35}
    again = collect(30, 14, False)
    assert again[0] == log[30:] == collect(30, 14, False)[0]
    assert set(again[1]) == {21, 28, 35} and set(collect(30, 14, True)[1]) == {21, 28, 35, 40}


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_messages_arrive_to_the_bit(dtype):
    rng = np.random.default_rng(0)
    dense = rng.normal(size=200).astype(np.dtype(dtype) if dtype != "bfloat16" else jnp.bfloat16)
    sparse = np.where(rng.random(200) < 0.1, dense, dense.dtype.type(0))
    sparse[3] = -0.0
    for sent in (dense, sparse, sparse[:1]):
        packed = pack(sent)
        found = unpack(packed, sent)
        assert found.tobytes() == sent.tobytes() and found.dtype == sent.dtype
    assert isinstance(pack(dense), np.ndarray) and not isinstance(pack(sparse), np.ndarray)
