"""`experiments.gpu` and `experiments.agreement`, as far as a CPU can tell."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import tyro

from experiments import agreement, error_feedback, gpu, scaling

EVERY = ("laws", "agreement", "training", "speed")


def task(part, platform="cuda"):
    return gpu.Task(part, platform, "chip", 1)


# ---- the commands ----


@pytest.mark.parametrize("quick", [False, True])
def test_the_experiments_take_their_arguments(quick):
    """Those of a GPU, too, which the rehearsal does not run."""
    config = gpu.QUICK if quick else gpu.Config()
    for part, module in (("training", error_feedback), ("speed", scaling)):
        name, *arguments = gpu.command(config, task(part))
        assert name == module.MODULE
        default = module.QUICK if "--quick" in arguments else module.Config()
        found = tyro.cli(module.Config, args=arguments, default=default)
        assert module.grid(found) and found.out == (config.out / part).absolute()
        module.check(found)
        if part == "training":
            assert (found.model, found.data) == (config.model, config.data)
            assert quick or {run.method for run in module.grid(found)} == {
                *("dense", "topk", "topk+feedback")
            }
    name, *arguments = gpu.command(config, task("laws"))
    assert name == "pytest"
    files = [gpu.ROOT / part for part in arguments if part.startswith("tests/")]
    assert files and all(file.is_file() for file in files)


def test_the_folder_of_the_data_and_resume_are_passed_on(tmp_path):
    config = gpu.Config(data="cifar10", data_dir=tmp_path, resume=True)
    arguments = gpu.command(config, task("training"))
    assert arguments[arguments.index("--data-dir") + 1] == str(tmp_path)
    resumed = ["--resume" in gpu.command(config, task(part)) for part in EVERY]
    assert resumed == [False, False, True, True]


def test_the_environment_asks_for_the_gpu_and_for_the_same_bits(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=here")
    found = {part: gpu.environment(task(part)) for part in EVERY}
    assert {one["JAX_PLATFORMS"] for one in found.values()} == {"cuda,cpu"}
    flags = [found[part]["XLA_FLAGS"].split() for part in EVERY]
    assert flags == [["--xla_dump_to=here", gpu.DETERMINISTIC]] * 3 + [["--xla_dump_to=here"]]
    assert found["laws"]["JAX_DEFAULT_MATMUL_PRECISION"] == "highest"
    assert gpu.environment(task("laws", "cpu"))["JAX_PLATFORMS"] == "cpu"


@pytest.mark.slow
def test_pytest_runs_where_jax_platforms_says():
    """On a CPU unless asked otherwise, and so do the processes that tests start."""
    assert jax.config.jax_platforms == os.environ["JAX_PLATFORMS"]
    probe = "import conftest, jax; print(jax.config.jax_platforms, len(jax.devices('cpu')))"
    asked = os.environ | {"JAX_PLATFORMS": "cpu,cpu"}
    command = [sys.executable, "-c", probe]
    done = subprocess.run(command, cwd=gpu.ROOT, env=asked, stdout=subprocess.PIPE, text=True)
    assert done.stdout.strip() == "cpu,cpu 8"


# ---- the program ----


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "there is no GPU: JAX"),
        (["--quick", "--parts", "laws", "laws"], "--parts laws laws: give at least one, each once"),
        (["--quick", "--data", "cifar10"], "data_dir=None"),
        (["--quick", "--out", "README.md"], "--out README.md: that is a file; name a folder"),
    ],
)
def test_bad_arguments_are_refused_at_once(capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(gpu.ROOT)
    assert gpu.main(arguments) == 2
    assert words in capsys.readouterr().err


def test_a_part_that_fails_is_told_and_kept(tmp_path, capsys, monkeypatch):
    def command(config, task):
        return ["platform"] if task.part == "speed" else ["no_such_module"]

    monkeypatch.setattr(gpu, "command", command)
    arguments = ["--quick", "--parts", "speed", "agreement", "--out", str(tmp_path)]
    assert gpu.main(arguments) == 1
    said = capsys.readouterr().out
    assert "## speed: passed" in said and "## agreement: FAILED" in said
    assert "nothing here was computed on a GPU" in said and "A quick run" in said
    assert said == (tmp_path / "summary.md").read_text()
    names = ["agreement.log", "rows.csv", "rows.json", "rows.jsonl", "speed.log", "summary.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["passed"] for row in rows] == [True, False]


def test_resumed_only_what_failed_is_run_again(tmp_path, capsys, monkeypatch):
    """Until it passes; the others stay as they are, and with nothing to do nothing is run."""
    module, run = {"speed": "platform", "agreement": "no_such_module"}, []

    def command(config, task):
        run.append(task.part)
        return [module[task.part]]

    monkeypatch.setattr(gpu, "command", command)
    arguments = ["--quick", "--parts", "speed", "agreement", "--out", str(tmp_path)]
    assert gpu.main(arguments) == 1
    assert gpu.main([*arguments, "--resume"]) == 1
    module["agreement"] = "this"
    assert gpu.main([*arguments, "--resume"]) == 0
    assert gpu.main([*arguments, "--resume"]) == 0
    assert run == ["speed", "agreement", "agreement", "agreement"]
    said = capsys.readouterr().out.split("# What was claimed")[-1]
    assert "## speed: passed" in said and "## agreement: passed" in said
    assert "Zen of Python" in (tmp_path / "agreement.log").read_text()


@pytest.mark.slow
def test_a_rehearsal(tmp_path, capsys):
    """All parts but training, whose command has tests of its own."""
    arguments = ["--quick", "--parts", "laws", "agreement", "speed", "--out", str(tmp_path)]
    assert gpu.main(arguments) == 0
    said = capsys.readouterr().out
    parts = said.split("## ")[1:]
    words = ("3 passed", "one on each of 2 cpu: agrees", "the exchange is faster on wires below")
    for part, name, word in zip(parts, ("laws", "agreement", "speed"), words, strict=True):
        assert part.startswith(f"{name}: passed") and word in part, part


# ---- agreement ----


def test_what_rounding_does_not_explain_is_told(monkeypatch):
    monkeypatch.setattr(agreement, "excess", lambda got, want, workers: 1.5)
    said, fine = agreement.compare(["dense"], jax.devices()[:1])
    assert not fine and "does NOT agree" in said[0]


def test_excess_is_in_units_of_rounding():
    want = [np.array([[4.0, -8.0], [1.0, 2.0]])]
    off = agreement.rounding(workers=2, size=8.0)
    assert off == 6 * 14 * 2.0**-52 * 8
    got = [want[0] + np.array([[0, off / 2], [0, 0]])]
    assert agreement.excess(got, want, 2) == pytest.approx(0.5, rel=0.1)
    assert agreement.excess([want[0][::-1]], want, 2) > 1e12  # another order of workers
    assert not agreement.excess([np.full((2, 2), np.nan)], want, 2) <= 1


def test_unknown_exchanges_are_refused(capsys):
    assert agreement.main(["--only", "topk"]) == 2
    assert "--only topk: give some of dense, delay, top_k" in capsys.readouterr().err
