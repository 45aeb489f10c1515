"""Several processes as one run: how they meet, stop together, and what becomes of a lost one.

The engine is `jax.distributed`. On a cluster each host starts one process; `rehearse` starts
several on this machine, which meet over gloo on 127.0.0.1.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax

LOST = 3  # exit status: another process was lost
MEET = 300  # seconds that a process waits for the others to start; then JAX aborts it
HEARTBEAT = 60  # seconds without a sign of life after which a process counts as lost
GRACE = 20.0  # seconds that processes get to end by themselves once one of them has ended badly
_PARENT = "EXPERIMENTS_TRAIN_PARENT"


def connect(
    coordinator: str | None, process_id: int | None, process_count: int | None, cluster: bool
) -> None:
    """Joins the other processes, before JAX is used; alone it does nothing.

    Args:
        coordinator: host and port of process 0; with it, the next two.
        process_id: this process's number, from 0.
        process_count: how many there are.
        cluster: let JAX find all three (SLURM, GKE, TPU pods, Open MPI).
    """
    _watch_parent()
    if coordinator is None and not cluster:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # only CPUs look at it
    jax.distributed.initialize(
        coordinator,
        process_count,
        process_id,
        initialization_timeout=MEET,
        heartbeat_timeout_seconds=HEARTBEAT,
    )


def _watch_parent() -> None:
    """A rehearsed process stops when the one that started it is gone."""
    parent = os.environ.get(_PARENT)
    if parent is None:
        return

    def watch():
        while os.getppid() == int(parent):
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


class Signals:
    """Notes the first SIGTERM or SIGINT; a second one of its kind ends the process at once."""

    def __init__(self):
        """Listens from now on (JAX's own notice of preemption is overruled)."""
        self.number = 0
        self.before = {
            number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)
        }

    def _note(self, number: int, _frame: Any) -> None:
        self.number = self.number or number
        signal.signal(number, signal.SIG_DFL)

    def close(self) -> None:
        """Puts the former handlers back."""
        for number, handler in self.before.items():
            signal.signal(number, handler)


def give_up(error: BaseException, again: str) -> None:
    """Ends this one of several processes, without waiting for the others.

    Args:
        error: why it cannot go on.
        again: the command that goes on.
    """
    lost = isinstance(error, jax.errors.JaxRuntimeError)
    reason = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
    what = "probably lost another process" if lost else "cannot go on"
    print(
        f"process {jax.process_index()} of {jax.process_count()} {what} "
        f"({type(error).__name__}: {reason[:300]}); all up to the last checkpoint is kept, to go "
        f"on from it: {again}",
        file=sys.stderr,
        flush=True,
    )
    sys.stdout.flush()
    os._exit(LOST if lost else 1)


def rehearse(command: Sequence[str], count: int, again: str) -> int:
    """Runs a command in several processes of this machine, as on a cluster.

    A signal to this process is passed on to all. When one of them ends badly the others get a
    little time to end by themselves, and are then killed.

    Args:
        command: of one process, to which its place is added.
        count: how many.
        again: the command that goes on, for the message.

    Returns:
        The exit status: 0 if all ended well, their common one, or `LOST`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = ["--coordinator", f"127.0.0.1:{port}", "--process-count", str(count), "--process-id"]
    environment = {"JAX_PLATFORMS": "cpu", **os.environ, _PARENT: str(os.getpid())}
    children: list[subprocess.Popen[bytes]] = []
    passed: list[int] = []

    def pass_on(number: int, _frame: Any) -> None:
        passed.append(number)
        for child in children:
            child.send_signal(number)

    before = {sign: signal.signal(sign, pass_on) for sign in (signal.SIGTERM, signal.SIGINT)}
    try:
        for i in range(count):
            full = [*command, *place, str(i)]
            # a session of its own: Ctrl-C comes from here alone, once
            children.append(subprocess.Popen(full, env=environment, start_new_session=True))
        first = _wait(children)
    finally:
        for child in children:
            child.kill()
            child.wait()
        for sign, handler in before.items():
            signal.signal(sign, handler)
    codes = [child.returncode for child in children]
    if len(set(codes)) == 1 and codes[0] >= 0:
        return codes[0]
    if passed and all(code in (-passed[0], 128 + passed[0]) for code in codes):
        return 128 + passed[0]  # some were stopped before they listened
    if first is None:
        return 0
    code = codes[first]
    how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
    print(
        f"process {first} of {count} {how}, so the others were stopped; all up to the last "
        f"checkpoint is kept, to go on from it: {again}",
        file=sys.stderr,
        flush=True,
    )
    return LOST


def _wait(children: list[subprocess.Popen[bytes]]) -> int | None:
    """Waits till all have ended, or one badly and its grace is over; returns which one failed."""
    until = float("inf")
    bad: list[int] = []
    while time.monotonic() < until and any(child.poll() is None for child in children):
        for i, child in enumerate(children):
            if i not in bad and child.poll() not in (None, 0):
                bad.append(i)
                until = min(until, time.monotonic() + GRACE)
        time.sleep(0.05)
    bad += [i for i, c in enumerate(children) if i not in bad and c.poll() not in (None, 0)]
    # those that only noticed the loss of another are not the cause
    cause = [i for i in bad if children[i].returncode not in (LOST, -signal.SIGABRT)]
    return (cause or bad or [None])[0]
