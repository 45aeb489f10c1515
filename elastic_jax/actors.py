"""The actors of a run on a cluster: servers that own blocks of the parameters, and workers.

They are plain classes, of which `cluster` has Ray make actors. An update goes to the first server,
the desk, which gives it its tick, and then to the others, which apply updates in the order of
ticks. A view is taken from the desk, at some version v, and then from the others, each of which
answers once it has applied all updates before v. So the update with tick t misses none but the
t − v between, whatever the block, and what bounds those at the desk bounds the delay of the run.

A method changes nothing before it has waited for its turn, and does not wait after: a call is done
wholly or not at all. Who was declared lost is refused from then on, should it still be there.
"""

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import numpy as np

from elastic_jax.racer import compiled, work
from elastic_jax.recording import Task
from elastic_jax.shared import Layout, Update, gap


class Plan(NamedTuple):
    """What all actors of a run know."""

    layout: Layout
    most: int | None  # how many updates a view may miss
    gap_every: int
    keep_every: int  # updates between two versions that are kept for the driver
    x64: bool


class Entry(NamedTuple):
    """One update in one block."""

    tick: int
    seconds: float  # on the desk's clock, when it got its tick
    share: float  # of the block in the gap
    made: tuple[Any, ...]  # by worker, step, versions, loss, norm, moment; at the desk only


def in_time(ticks: int, views: Iterable[int], most: int | None) -> bool:
    """Whether views can all be applied, oldest first, before any has missed too many updates.

    If that holds now, it holds once the oldest view is applied: somebody may always go on.

    Args:
        ticks: how many updates there are.
        views: the versions of the views that are under way, oldest first.
        most: how many updates each may miss; None for any number.
    """
    return most is None or all(ticks + k - view <= most for k, view in enumerate(views))


def pack(message: np.ndarray) -> Any:
    """Encodes a message as the places of its numbers and the numbers, where that is shorter."""
    where = np.flatnonzero(message.view(f"u{message.itemsize}"))  # a zero with a sign counts
    if len(where) * (4 + message.itemsize) >= message.nbytes:
        return message
    return where.astype(np.uint32), message[where]


def unpack(packed: Any, like: np.ndarray) -> np.ndarray:
    """Decodes what `pack` made, to the bit."""
    if isinstance(packed, np.ndarray):
        return packed
    message = np.zeros_like(like)
    message[packed[0]] = packed[1]
    return message


class Server:
    """Owns a block and its versions."""

    def __init__(self, plan: Plan, start: np.ndarray):
        """Begins with version 0."""
        self.plan, self.params = plan, start
        self.held = np.zeros(len(start), plan.layout.wide) if plan.layout.held else None
        self.ticks = 0  # of updates that were applied here, or never will be
        self.version = 0  # how many were
        self.never: set[int] = set()  # ticks of updates whose workers were lost before
        self.views: dict[int, np.ndarray] = {}  # by worker
        self.gone: set[int] = set()  # workers
        self.log: list[Entry] = []
        self.forgotten = 0  # entries of the log that the driver has
        self.kept: dict[int, np.ndarray] = {}  # some versions, by tick
        self.changed = asyncio.Event()

    async def read(self, worker: int, least: int) -> tuple[np.ndarray, int]:
        """Hands out the block and its version, with all updates before tick `least`."""
        await self._until(lambda: self.ticks >= least)
        if worker not in self.gone:
            self.views[worker] = self.params
        return self.params, self.version

    async def apply(self, worker: int, tick: int, seconds: float, update: Update) -> None:
        """Applies this block's part of an update, in its turn."""
        await self._until(lambda: self.ticks == tick or tick in self.never)
        if tick not in self.never:
            update = update._replace(message=unpack(update.message, self.params))
            self._apply(update, seconds, self._share(worker, update))

    async def lose(self, worker: int, tick: int) -> None:
        """Waits no longer for a lost worker's last update, if that has not come."""
        self.gone.add(worker)
        self.views.pop(worker, None)
        if tick >= self.ticks:
            self.never.add(tick)
            self._pass(self.ticks)

    async def collect(
        self, have: int, since: int, last: bool
    ) -> tuple[list[Entry], dict[int, np.ndarray]]:
        """Reports the log from entry `have` on, and versions kept after tick `since`.

        What the caller has is forgotten. `last` keeps the present version too.
        """
        del self.log[: have - self.forgotten]
        self.forgotten = have
        kept = self.kept | ({self.ticks: self.params} if last else {})
        self.kept = {tick: params for tick, params in kept.items() if tick > since}
        return list(self.log), dict(self.kept)

    async def _until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            await self.changed.wait()

    def _change(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def _share(self, worker: int, update: Update) -> float:
        """Measures the block's share in the gap of the view that the worker took."""
        view = self.views.pop(worker)
        if not update.measured:
            return np.nan
        return gap(self.params, view, self.held, self.plan.layout.wide)

    def _apply(self, update: Update, seconds: float, share: float, *made: Any) -> None:
        """Makes the next version. Nobody writes to an array that was one: it may be on its way."""
        if self.held is not None and update.moved.size:
            self.held += update.moved
        self.params = self.params + update.message
        self.log.append(Entry(self.ticks, seconds, share, made))
        self.version += 1
        self._pass(self.ticks + 1)

    def _pass(self, ticks: int) -> None:
        """Goes on to a tick, and over those whose updates will never come."""
        while self.ticks < ticks or self.ticks in self.never:
            self.ticks += 1
            if self.ticks % self.plan.keep_every == 0:
                self.kept[self.ticks] = self.params
        self._change()


class Desk(Server):
    """Owns the first block, and says whose turn it is."""

    def __init__(
        self, plan: Plan, start: np.ndarray, task: Callable[[], Task] | None, state: np.ndarray
    ):
        """Compiles the server's chain, if there is one; `state` is its first state, in bytes."""
        super().__init__(plan, start)
        self.state, self.serve = state, None
        if task is not None:
            jax.config.update("jax_enable_x64", plan.x64)
            self.serve = compiled(task(), start, plan.layout.gap).serve
        self.out: dict[int, int] = {}  # worker -> version of its view, oldest first
        self.last: dict[int, int] = {}  # each worker's last tick
        self.pids: dict[int, int] = {}  # of all who ever were ready
        self.refused: dict[int, int] = {}
        self.leaving: set[int] = set()
        self.origin = 0.0  # the clock at the start, when the first workers are ready; 0 before
        self.over = False

    async def join(self, worker: int, pid: int) -> None:
        """Says that a worker is ready; returns at the start."""
        self.pids[worker] = pid
        self._start()
        await self._until(lambda: self.origin > 0 or self.over)

    async def enter(self, worker: int, refused: int) -> tuple[np.ndarray, int] | None:
        """Hands out the block and its version; None if there is no need of more updates."""
        self.refused[worker] = refused
        self.out.pop(worker, None)  # of a gradient that was refused
        self._change()

        def ended():
            return self.over or worker in self.gone or worker in self.leaving

        def free():
            return in_time(self.ticks, [*self.out.values(), self.ticks], self.plan.most)

        await self._until(lambda: ended() or free())
        if ended():
            return None
        self.out[worker] = self.ticks
        self.views[worker] = self.params
        return self.params, self.ticks

    async def submit(
        self, worker: int, versions: Sequence[int], update: Update
    ) -> tuple[int, float] | None:
        """Applies the first block's part; returns the update's tick and time; None at the end."""

        def ended():
            return self.over or worker in self.gone

        def free():
            others = [view for other, view in self.out.items() if other != worker]
            return in_time(self.ticks + 1, others, self.plan.most)

        await self._until(lambda: ended() or free())
        if ended():
            return None
        update = update._replace(message=unpack(update.message, self.params))
        share = self._share(worker, update)
        late = self.ticks - self.out.pop(worker)
        if self.serve is not None:
            update, self.state = self.serve(update, self.params, self.state, late)
        tick, seconds = self.ticks, self._seconds()
        self.last[worker] = tick
        self.over = tick + 1 == self.plan.layout.updates
        numbers = update.loss, update.norm, update.moment
        self._apply(update, seconds, share, worker, update.step, versions, *numbers)
        return tick, seconds

    async def dismiss(self, worker: int) -> None:
        """Asks a worker to leave after the update that it is at."""
        self.leaving.add(worker)
        self._change()

    async def leave(self, worker: int) -> int:
        """Notes that a worker has ended or is lost; returns the tick of its last update, or −1."""
        self.gone.add(worker)
        self.out.pop(worker, None)
        self.views.pop(worker, None)
        self._start()
        return self.last.get(worker, -1)

    async def stop(self) -> None:
        """Takes no more updates."""
        self.over = True
        self._change()

    async def status(self) -> tuple[int, float, dict[int, int], dict[int, int]]:
        """Reports updates, seconds, the processes of who is or was there, and refusals."""
        return self.ticks, self._seconds(), dict(self.pids), dict(self.refused)

    def _start(self) -> None:
        first = range(self.plan.layout.workers)
        if not self.origin and all(i in self.pids or i in self.gone for i in first):
            self.origin = time.perf_counter()
        self._change()

    def _seconds(self) -> float:
        return time.perf_counter() - self.origin if self.origin else 0.0


class Worker:
    """Takes views, computes, and sends updates."""

    def run(self, task: Callable[[], Task], plan: Plan, worker: int, servers: Sequence[Any]) -> int:
        """Works until there is no need of it any more.

        Args:
            task: makes the task.
            plan: of the run.
            worker: its number.
            servers: handles of the actors, the desk first.

        Returns:
            How many gradients were refused, as they were not finite.
        """
        import ray

        jax.config.update("jax_enable_x64", plan.x64)
        made = task()._replace(server=None)  # that is the desk's to compile
        start = np.array(jax.flatten_util.ravel_pytree(made.params)[0])
        program = compiled(made, start, plan.layout.gap)
        desk, *others = servers
        blocks = [slice(*pair) for pair in itertools.pairwise(plan.layout.bounds)]
        refused, versions = 0, ()

        def read():
            nonlocal versions
            first = ray.get(desk.enter.remote(worker, refused))
            if first is None:
                return None
            rest = ray.get([server.read.remote(worker, first[1]) for server in others])
            parts, versions = zip(first, *rest, strict=True)
            return np.concatenate(parts)

        def apply(update):
            first, *rest = [
                update._replace(
                    message=pack(update.message[block]),
                    moved=update.moved[block] if update.moved.size else update.moved,
                )
                for block in blocks
            ]
            turn = ray.get(desk.submit.remote(worker, versions, first))
            if turn is None:
                return False
            calls = zip(others, rest, strict=True)
            ray.get([server.apply.remote(worker, *turn, part) for server, part in calls])
            return True

        def refuse():
            nonlocal refused
            refused += 1

        ray.get(desk.join.remote(worker, os.getpid()))
        work(program, made.batch, worker, plan.gap_every, read, apply, refuse)
        return refused
