"""The driver of a run on a cluster: starts actors, hears who ends, and collects what happened."""

import itertools
import json
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from elastic_jax.actors import Desk, Entry, Plan, Server, Worker
from elastic_jax.processes import GRACE, NOBODY, WATCH, Progress, about
from elastic_jax.recording import Recording

LOST, LEFT = -9, -15  # exits: as if by SIGKILL, and by SIGTERM
SERVER_LOST = "server lost"


class Run:
    """A run that is going on; `progress` says how far it is."""

    def __init__(self, ray: Any, task: Any, plan: Plan, begin: Any, options: Any):
        """Has Ray start the servers and the first workers.

        Args:
            ray: the module.
            task: makes the task.
            plan: of the run.
            begin: the first parameters, [n], and the first state of the server's chain or None.
            options: of workers, and of servers.
        """
        self._ray, self._task, self._plan = ray, task, plan
        self._begin, state = begin
        worker, server = options
        bounds = plan.layout.bounds
        blocks = [self._begin[slice(*pair)] for pair in itertools.pairwise(bounds)]
        crowd = server | {"max_concurrency": 10**6}  # as many workers may wait
        serves = None if state is None else task
        desk = ray.remote(Desk).options(**crowd).remote(plan, blocks[0], serves, state)
        make = ray.remote(Server).options(**crowd).remote
        self._servers = [desk, *(make(plan, block) for block in blocks[1:])]
        self._make = ray.remote(Worker).options(**worker).remote
        self._logs: list[list[Entry]] = [[] for _ in blocks]
        self._kept: list[dict[int, np.ndarray]] = [{0: block} for block in blocks]  # by tick
        self._actors: list[Any] = []  # by worker
        self._going: dict[Any, int] = {}  # what a worker will return -> worker
        self._exits: dict[int, int] = {}
        self._refused: dict[int, int] = {}
        self._asked: set[int] = set()  # to leave
        self._dismissed: set[int] = set()  # killed by us, after the end
        self._said: list[str] = []
        self.progress = Progress(0, 0.0, (), 0)
        for _ in range(plan.layout.workers):
            self.add_worker()

    @property
    def workers(self) -> tuple[int, ...]:
        """The numbers of the workers that have not ended."""
        return tuple(self._going.values())

    def add_worker(self) -> int:
        """Starts a worker with a fresh chain once Ray has room for it, and returns its number."""
        worker = len(self._actors)
        self._actors.append(self._make())
        made = self._task, self._plan, worker, self._servers
        self._going[self._actors[worker].run.remote(*made)] = worker
        return worker

    def remove_worker(self, worker: int) -> None:
        """Asks a worker to leave after the update that it is at."""
        if worker not in self.workers:
            there = ", ".join(map(str, self.workers)) or "none is"
            raise ValueError(f"worker={worker!r} is not there: pass one of those that are, {there}")
        self._asked.add(worker)
        self._ray.get(self._servers[0].dismiss.remote(worker))

    def wait(self, limit: float, restarts: int, watch: Callable[["Run"], object] | None) -> str:
        """Waits for the end, and says how it came.

        Args:
            limit: seconds.
            restarts: how many lost workers are replaced.
            watch: called with this.
        """
        end, deadline = "", float("inf")
        while True:
            try:
                try:
                    if not self._going:
                        self._collect(last=True)
                        break
                    lost = self._look()
                    if end:
                        self._ray.get(self._servers[0].stop.remote())
                except self._ray.exceptions.RayError as error:
                    self._said.append(str(error))
                    end = SERVER_LOST
                    break
                if self.progress.updates >= self._plan.layout.updates:
                    end = end or "done"
                elif self.progress.seconds > limit:
                    end = end or "out of time"
                for _ in range(0 if end else min(lost, restarts)):
                    self.add_worker()
                    restarts -= 1
                if end:
                    now = time.perf_counter()
                    deadline = min(deadline, now + GRACE)
                    self._dismiss(everyone=now > deadline)
                if watch is not None:
                    watch(self)
            except KeyboardInterrupt:
                if end == "interrupted":  # pressed again
                    deadline = 0.0
                end = "interrupted"
        return self._concluded(end or NOBODY)

    def kill(self) -> None:
        """Ends all actors."""
        for actor in [*self._actors, *self._servers]:
            self._ray.kill(actor)

    def recording(self, end: str, threads: int) -> Recording:
        """Joins what the servers have reported, up to the last version that all have."""
        layout, updates = self._plan.layout, self._whole()
        workers = range(len(self._actors))
        return Recording(
            mode="cluster",
            workers=len(workers),
            bounds=np.array(layout.bounds),
            start=self._begin,
            params=np.concatenate([kept[updates] for kept in self._kept]),
            **joined(self._logs, updates),
            refused=np.array([self._refused.get(i, 0) for i in workers]),
            exits=np.array([self._exits.get(i, 0) for i in workers]),
            threads=threads,
            seconds=self.progress.seconds,
            end=end,
            about=json.dumps(about() | {"ray": self._ray.__version__}),
        )

    def _look(self) -> int:
        """Hears who has ended and what has happened; returns how many workers were lost."""
        ended, _ = self._ray.wait(list(self._going), timeout=WATCH)
        lost = sum(self._part(ref) == LOST for ref in ended)
        updates, seconds, pids, refused = self._ray.get(self._servers[0].status.remote())
        self._refused = refused | self._refused
        there, everyone = self.workers, range(len(self._actors))
        pids = tuple(pids.get(i) if i in there else None for i in everyone)
        self.progress = Progress(updates, seconds, pids, sum(self._refused.values()))
        self._collect(last=False)
        return lost

    def _part(self, ref: Any) -> int:
        """Takes leave of a worker that has ended, and returns its exit; again if interrupted."""
        ray, worker = self._ray, self._going[ref]
        code, why = LEFT if worker in self._asked else 0, ""
        try:
            self._refused[worker] = ray.get(ref)
        except ray.exceptions.RayTaskError as error:  # raised there
            code, why = 1, str(error)
        except ray.exceptions.RayError as error:
            code, why = LOST, str(error)
        tick = ray.get(self._servers[0].leave.remote(worker))
        ray.get([server.lose.remote(worker, tick) for server in self._servers[1:]])
        ray.kill(self._actors[worker])  # its place is free
        code = 0 if worker in self._dismissed else code
        refused = self._refused.get(worker, 0)
        self._said.append(f"worker {worker}: exit {code}, {refused} refused. {why}".rstrip())
        self._exits[worker] = code
        del self._going[ref]
        return code

    def _dismiss(self, everyone: bool) -> None:
        """Kills, after the end, who has not even begun; or everyone."""
        for worker in self.workers:
            if everyone or self.progress.pids[worker] is None:
                self._dismissed.add(worker)
                self._ray.kill(self._actors[worker])

    def _collect(self, last: bool) -> None:
        """Asks the servers for what is new, and forgets copies that are not the latest."""
        logs, copies = self._logs, self._kept
        calls = [
            server.collect.remote(len(log), max(kept), last)
            for server, log, kept in zip(self._servers, logs, copies, strict=True)
        ]
        for log, kept, (new, more) in zip(logs, copies, self._ray.get(calls), strict=True):
            log += new
            kept |= more
        whole = self._whole()
        self._kept = [{t: part for t, part in kept.items() if t >= whole} for kept in copies]

    def _whole(self) -> int:
        """How many updates are in the last version that every server has sent."""
        return max(set.intersection(*map(set, self._kept)))

    def _concluded(self, end: str) -> str:
        """Warns of what went wrong; raises if there is nothing to return."""
        if not self._whole():
            if end == "interrupted":
                raise KeyboardInterrupt
            raise RuntimeError(f"{end}: no update was made.\n" + "\n".join(self._said))
        if self.progress.updates >= self._plan.layout.updates and end != SERVER_LOST:
            end = "done"
        if end in (NOBODY, SERVER_LOST) or max(self._exits.values(), default=0) > 0:
            warnings.warn(f"{end}. " + "\n".join(self._said), RuntimeWarning, stacklevel=4)
        return end


def joined(logs: list[list[Entry]], updates: int) -> dict[str, Any]:
    """Joins the servers' logs of as many updates, the desk's first, for a `Recording`."""
    logs = [[entry for entry in log if entry.tick < updates] for log in logs]
    worker, step, read, loss, norm, moment = zip(*(e.made for e in logs[0]), strict=True)
    tick = np.full((len(logs), updates), -1, np.int32)
    time = np.full((len(logs), updates), np.nan)
    gap, parts = np.zeros(updates, np.float32), np.zeros(updates, np.int64)
    for b, log in enumerate(logs):
        ticks = [entry.tick for entry in log]
        tick[b, : len(log)] = ticks
        time[b, : len(log)] = [entry.seconds for entry in log]
        gap[ticks] += np.array([entry.share for entry in log], np.float32)
        parts[ticks] += 1
    return {
        "worker": np.array(worker, np.int32),
        "step": np.array(step, np.int32),
        "read": np.array(read, np.int32),
        "tick": tick,
        "time": time,
        "loss": np.array(loss, np.float32),
        "norm": np.array(norm, np.float32),
        "moment": np.array(moment, np.float32),
        "gap": np.where(parts == len(logs), gap, np.float32(np.nan)),
        "retries": np.zeros(updates, np.int32),
        "window": np.zeros((0, 4)),
        "unfinished": np.zeros((0, 4)),
    }
