"""Kills the trainer at random moments, resumes it, and looks for any difference.

    python -m experiments.train_soak [--times 50] [--processes 1 2] [--seed 0] [--out DIR]

Each time a small run is killed one to three times (SIGTERM or SIGKILL; of two processes one or
both; while it starts, trains, or writes a checkpoint) and resumed. In the end its metrics must be
those of a run that nobody disturbed, and its last checkpoint (views, optimizer states, held mass)
too, bit by bit.
"""

import dataclasses
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.progress import Progress

KEPT = {128 + signal.SIGTERM: "stopped", -signal.SIGKILL: "killed", -signal.SIGTERM: "killed"}
DEVICES = 4  # of all processes
RUN = ("--steps", "40", "--batch", "4", "--log-every", "4", "--eval-every", "16", "--delay", "2")
RUN += ("--checkpoint-every", "5", "--compressor", "random_k", "--optimizer", "momentum")
RUN += ("--workers", str(DEVICES), "--learning-rate", "0.05")


@dataclasses.dataclass(frozen=True)
class Config:
    """Kills the trainer at random moments, resumes it, and looks for any difference."""

    times: int = 20
    """Runs that are disturbed."""
    processes: tuple[int, ...] = (1, 2)
    """Numbers of processes, in turn."""
    seed: int = 0
    """Seed of moments and signals."""
    out: Path = Path("results/train_soak")
    """Folder; runs that differ are kept there."""
    limit: float = 180.0
    """Seconds after which a process that should have ended counts as hanging."""


def life(arguments: Sequence[str], log: Path) -> None:
    """One process of the trainer, to its end."""
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    from experiments import hosts, train

    # here all are started at once, on one machine: who does not come or is silent was killed
    hosts.MEET, hosts.HEARTBEAT = 60, 20
    sys.exit(train.main(arguments))


class Lives:
    """Processes that start quickly: what the trainer imports is there when they are forked."""

    def __init__(self):
        """Starts the process that all others are forked from."""
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        os.environ["NPROC"] = "1"  # another number of threads means other bits
        os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # compiles sooner
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(".cache/jax").absolute()))
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        self.context: Any = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["experiments.train", "sklearn.datasets"])

    def start(
        self,
        folder: Path,
        count: int,
        resume: bool,
        run: Sequence[str] = RUN,
        devices: int = DEVICES,
    ) -> list[Any]:
        """Starts one life of a run in some processes, with so many devices in all."""
        arguments = ["--out", str(folder), "--devices", str(devices // count), *run]
        arguments += ["--resume"] * resume
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        host = ["--coordinator", f"127.0.0.1:{port}", "--process-count", str(count)]
        processes = []
        for i in range(count):
            full = [*arguments, *host, "--process-id", str(i)] if count > 1 else arguments
            log = folder.with_name(f"{folder.name}.{i}.log")
            processes.append(self.context.Process(target=life, args=(full, log), daemon=True))
            processes[-1].start()
        return processes


def end(processes: list[Any], limit: float) -> list[int | None]:
    """Waits for processes; returns their exit codes, None for one that had to be killed."""
    until = time.monotonic() + limit
    codes = []
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        hangs = process.is_alive()
        if hangs:
            process.kill()
            process.join()
        codes.append(None if hangs else process.exitcode)
    return codes


def rows(folder: Path) -> list[dict[str, Any]]:
    """Reads the metrics, less their times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def state(folder: Path) -> dict[str, np.ndarray]:
    """Reads all arrays of the last checkpoint."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)  # it misses metadata that no one needs
    step = max(int(path.name) for path in (folder / "checkpoints").iterdir())
    with ocp.PyTreeCheckpointer() as reader:
        path = (folder / "checkpoints" / str(step) / "states").absolute()
        tree = reader.metadata(path).item_metadata.tree
        args = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in tree}
        return {"": np.asarray(step), **reader.restore(path, restore_args=args)}


def differences(one: Path, other: Path) -> list[str]:
    """Names what two finished runs differ in."""
    found = []
    if rows(one) != rows(other):
        found.append("metrics")
    a, b = state(one), state(other)
    if sorted(a) != sorted(b):
        return [*found, "the arrays of the checkpoint"]
    return found + [name for name in a if a[name].tobytes() != b[name].tobytes()]


def moment(folder: Path, before: float, rng: random.Random, seconds: float) -> str:
    """Waits for a random moment of a life; returns what the process was doing."""
    what = rng.choice(("start", "train", "train", "train", "save", "save"))
    until = time.monotonic() + 60
    if what == "start":
        time.sleep(rng.uniform(0, 2))
        return what
    metrics = folder / "metrics.jsonl"
    while time.monotonic() < until and not (metrics.exists() and metrics.stat().st_mtime > before):
        time.sleep(0.005)
    if what == "train":
        time.sleep(rng.uniform(0, seconds))
        return what
    skip = rng.randrange(4)  # saves to let pass
    seen: set[str] = set()
    until = time.monotonic() + 1.5 * seconds
    while time.monotonic() < until:
        names = os.listdir(folder / "checkpoints") if (folder / "checkpoints").exists() else []
        seen |= {name for name in names if "tmp" in name}
        if len(seen) > skip and any("tmp" in name for name in names):
            time.sleep(rng.choice((0.0, 0.0, rng.uniform(0, 0.1))))
            return what
        time.sleep(0.001)
    return "train"


def disturb(
    lives: Lives, folder: Path, count: int, rng: random.Random, seconds: float, limit: float
) -> tuple[list[str], list[str]]:
    """Runs to the end with some kills between; returns what was done, and what was wrong."""
    deeds, wrong = [], []
    for kill in range(rng.randint(1, 3)):
        before = time.time()
        processes = lives.start(folder, count, resume=kill > 0)
        what = moment(folder, before, rng, seconds)
        sign = rng.choice((signal.SIGTERM, signal.SIGKILL))
        victims = rng.choice(([0], [1], [0, 1])) if count == 2 else [0]
        for i in victims:
            if processes[i].is_alive():
                os.kill(processes[i].pid, sign)
        codes = end(processes, limit)
        deeds.append(f"{sign.name} of {victims} in {what}: {codes}")
        if None in codes:
            wrong.append(f"hangs after {deeds[-1]}")
        if all(code == 0 for code in codes):
            break
        for i, code in enumerate(codes):
            if i in victims and code not in (0, *KEPT) and count == 1:
                wrong.append(f"exit status after {deeds[-1]}")
    codes = end(lives.start(folder, count, resume=True), limit)
    if any(codes):
        wrong.append(f"the last life ended with {codes}")
    return deeds, wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the soak; the exit status is 1 where anything differed, hung or was lost."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.train_soak")
    if config.times < 1 or not set(config.processes) <= {1, 2} or not config.processes:
        text = f"--times {config.times} --processes {config.processes}"
        print(f"error: {text}: give at least 1, and 1 or 2", file=sys.stderr)
        return 2
    shutil.rmtree(config.out, ignore_errors=True)
    config.out.mkdir(parents=True)
    lives, rng = Lives(), random.Random(config.seed)
    seconds: dict[int, float] = {}
    for count in config.processes:
        for name in ("first", "reference"):  # the first one fills the cache of compiled programs
            folder = config.out / f"{name}-{count}"
            codes = end(lives.start(folder, count, resume=False), 600)
            if any(codes):
                print(f"error: undisturbed, {folder} ended with {codes}", file=sys.stderr)
                return 1
        last = (folder / "metrics.jsonl").read_text().splitlines()[-1]
        seconds[count] = json.loads(last)["seconds"]
        print(f"{count} processes: undisturbed {seconds[count]:.1f} s of training")
    bad, runs, done = 0, 0, Counter[str]()
    progress = Progress(config.times, 0)
    try:
        for time_ in range(config.times):
            count = config.processes[time_ % len(config.processes)]
            folder = config.out / f"run-{time_}"
            deeds, wrong = disturb(lives, folder, count, rng, seconds[count], config.limit)
            if not wrong:
                wrong = differences(config.out / f"reference-{count}", folder)
            done.update(f"{deed.split(':')[0]} ({count} processes)" for deed in deeds)
            if wrong:
                bad += 1
                progress.note(f"{folder}: {'; '.join(deeds)}: {', '.join(wrong)}")
            else:
                for path in config.out.glob(f"run-{time_}*"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            runs += 1
            progress.step()
    except KeyboardInterrupt:  # runs do not depend on one another: those that are done count
        print(f"stopped after {runs} of {config.times} runs", file=sys.stderr)
    finally:
        progress.stop()
    for deed, number in sorted(done.items()):
        print(f"{number:4} × {deed}")
    print(
        f"{runs} runs, {sum(done.values())} kills: {bad} with a difference or a hang, "
        f"{runs - bad} bit-identical to an undisturbed run"
    )
    return 1 if bad else 0 if runs == config.times else 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
