"""Runs on a GPU what the tests and experiments claim, and sums it up.

    python -m experiments.gpu [--data cifar10 --data-dir DIR] [--out DIR] …
    python -m experiments.gpu --quick            a rehearsal, on a CPU where there is no GPU

Four parts, each a command of its own: the laws (pytest on the GPU), the agreement of simulated and
real devices with a CPU, error feedback on ResNet-20, and the speeds. The folder gets a log of each,
rows.csv, rows.json and summary.md. The status is 1 if a part fails.

All but the speeds run with `--xla_gpu_deterministic_ops=true`, so that a program gives the same
bits again (it also stops XLA from choosing kernels by timing them), and the laws with full float32
products, on which their tolerances rely.
"""

import dataclasses
import importlib.util
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from experiments import data, runs
from experiments.command import Experiment, refuse
from experiments.command import run as run_command

MODULE = "experiments.gpu"
ROOT = Path(__file__).parents[1]
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
LAWS = ("laws", "contracts", "compressors", "selection", "meter", "events", "absent")
Part = Literal["laws", "agreement", "training", "speed"]
TAIL = 40  # lines of a part's output that the summary shows


@dataclasses.dataclass(frozen=True)
class Config:
    """Runs on a GPU what the tests and experiments claim, and sums it up."""

    out: Path = Path("results/gpu")
    """Folder for logs, rows and summary."""
    parts: tuple[Part, ...] = ("laws", "agreement", "training", "speed")
    """What to run."""
    data: Literal["mnist", "fashion", "digits", "cifar10"] = "mnist"
    """Images to train on."""
    data_dir: Path | None = None
    """Folder with the files of fashion or cifar10."""
    model: Literal["cnn", "resnet20"] = "resnet20"
    """Network."""
    quick: bool = False
    """A rehearsal in seconds to minutes, on a CPU too: a few of the tests, a tiny network."""
    resume: bool = False
    """Go on with the parts that the folder lacks, or that failed."""


QUICK = Config(out=Path("results/gpu_quick"), data="digits", model="cnn", quick=True)


@dataclasses.dataclass(frozen=True)
class Task:
    """A part, on what it runs."""

    part: Part
    platform: str  # cuda | rocm | cpu
    device: str  # its kind, as JAX names it
    devices: int


@dataclasses.dataclass(frozen=True)
class Row:
    """A part and what came of it."""

    part: str
    platform: str
    device: str
    devices: int
    command: str
    passed: bool
    seconds: float
    said: tuple[str, ...]  # the last lines of its output


def platform() -> str:
    """Names the platform of the GPUs that are here: cuda, rocm, or cpu where there are none."""
    for name in ("cuda", "rocm"):
        try:
            jax.devices(name)
            return name
        except RuntimeError:
            pass
    return "cpu"


def grid(config: Config) -> list[Task]:
    """Lists the parts.

    Raises:
        ValueError: without a GPU, unless it is a rehearsal; for bad arguments.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves memory to the parts
    found = platform()
    if found == "cpu" and not config.quick:
        raise ValueError(
            f"there is no GPU: JAX {jax.__version__} finds {jax.devices()}. Where one is, install "
            "elastic-jax[gpu]; to rehearse on this machine, add --quick"
        )
    if not config.parts or len(set(config.parts)) < len(config.parts):
        refuse(config, "parts", "give at least one, each once")
    if "laws" in config.parts and importlib.util.find_spec("hypothesis") is None:
        refuse(config, "parts", "the laws need pytest and hypothesis: install elastic-jax[test]")
    if "training" in config.parts:
        data.load(config.data, config.data_dir)
    if config.out.exists() and not config.out.is_dir():
        refuse(config, "out", "that is a file; name a folder")
    devices = jax.devices(found)
    return [Task(part, found, devices[0].device_kind, len(devices)) for part in config.parts]


def command(config: Config, task: Task) -> list[str]:
    """Returns the command of a part: a module and its arguments."""
    quick, where = config.quick, ["--out", str((config.out / task.part).absolute())]
    where += ["--resume"] if config.resume else []
    if task.part == "laws":
        tests = [f"tests/test_{name}.py" for name in LAWS[: 1 if quick else None]]
        few = ["-k", "test_law_1_of_two_workers and error_feedback"] if quick else []
        return ["pytest", "-q", "-p", "no:cacheprovider", *tests, *few]
    if task.part == "agreement":
        return ["experiments.agreement", *(["--only", "top_k"] if quick else [])]
    if task.part == "speed":
        small = ["--quick", "--sizes", "1000", "--devices", "1", "--compressors", "sign"]
        large = ["--sizes", "100000", "1000000", "10000000"]
        return ["experiments.scaling", *(small if quick else large), *where]
    fit = ["--workers", "1", "8", "--fractions", "1", "0.01", "--seeds", "0", "1", "2"]
    fit += ["--alphas", "0.02", "0.05", "0.1", "--synchronous-alphas", "0.2", "0.4", "0.8"]
    fit += ["--gradients", "4096", "--batch", "32", "--points", "8"]
    if quick:
        fit = ["--workers", "1", "--fractions", "0.1", "--alphas", "0.1", "--seeds", "0"]
        fit += ["--gradients", "32", "--points", "4", "--eval-images", "250"]
    fit += ["--data", config.data, "--model", config.model, "--processes", "1"]
    fit += [] if config.data_dir is None else ["--data-dir", str(config.data_dir.absolute())]
    return ["experiments.error_feedback", *fit, *where]


def environment(task: Task) -> dict[str, str]:
    """Returns the variables that a part runs with."""
    found = dict(os.environ)
    # The CPU stays at hand, to compare with. What JAX_PLATFORMS names, pytest uses too.
    found["JAX_PLATFORMS"] = "cpu" if task.platform == "cpu" else f"{task.platform},cpu"
    if task.part != "speed":
        found["XLA_FLAGS"] = f"{found.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    if task.part == "laws":
        found["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
    if task.part == "agreement" and task.platform == "cpu":
        found["JAX_NUM_CPU_DEVICES"] = "2"
    return found


def perform(config: Config, task: Task) -> Row:
    """Runs a part, its output in a log."""
    arguments, start = command(config, task), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=environment(task),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    with runs.replacing(config.out / f"{task.part}.log") as part:
        part.write_text(done.stdout)
    lines = tuple(line for line in done.stdout.splitlines() if line.strip())
    return Row(
        **dataclasses.asdict(task),
        command=shlex.join(["python", "-m", *arguments]),
        passed=done.returncode == 0,
        seconds=time.monotonic() - start,
        said=lines[-1:] if task.part == "laws" and not done.returncode else lines[-TAIL:],
    )


def summary(rows: Sequence[Row], about: Mapping[str, Any], warnings: Sequence[str]) -> list[str]:
    """Writes the summary, markdown: on what, with what, and what each part said."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    out = ["# What was claimed, on a GPU", "", *(f"> **{warning}**" for warning in warnings)]
    if rows:
        out.append(f"* {rows[0].devices} × {rows[0].device} ({rows[0].platform}); {versions}.")
    out.append(
        f"* `{about['command']}`; all parts but the speeds with `XLA_FLAGS={DETERMINISTIC}`."
    )
    for row in rows:
        verdict = "passed" if row.passed else "FAILED"
        out += ["", f"## {row.part}: {verdict}, {row.seconds:.0f} s", "", f"`{row.command}`", ""]
        out += [f"    {line}" for line in row.said]
    return out


def _do(config: Config, to_do: Sequence[Task], step: Any) -> Iterator[tuple[Task, Row]]:
    for task in to_do:
        yield task, perform(config, task)


def _conclude(
    config: Config, done: Mapping[Task, Row], about: dict[str, Any], warnings: list[str]
) -> tuple[list[str], bool]:
    rows = list(done.values())
    if rows and rows[0].platform == "cpu":
        warnings.append("A rehearsal on a CPU: nothing here was computed on a GPU.")
    lines = summary(rows, about, warnings)
    runs.write_tables(config.out, rows, about, [field.name for field in dataclasses.fields(Row)])
    with runs.replacing(config.out / "summary.md") as part:
        part.write_text("\n".join(lines) + "\n")
    return lines, not all(row.passed for row in rows)


EXPERIMENT = Experiment(
    *(MODULE, Config(), QUICK, ("parts", "data_dir"), Row, grid, _do, _conclude),
    failed=lambda row: not row.passed,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts; see `experiments.command.run`. The status is 1 if one fails."""
    return run_command(EXPERIMENT, arguments)


if __name__ == "__main__":
    sys.exit(main())
