"""The benchmarks run; what they measure is for people to read."""

import csv
import json
import math
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_quick_run_writes_its_rows(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "delay", "--out", tmp_path]
    environment = {name: value for name, value in os.environ.items() if name != "NPROC"}
    subprocess.run(command, check=True, env=environment, timeout=120)
    with (tmp_path / "delay.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    about = json.loads((tmp_path / "delay.json").read_text())
    assert about["threads"] == "1" and about["versions"]["jax"]
    assert [row["name"] for row in rows] == [row["name"] for row in about["rows"]]
    assert any("delay(64)" in row["name"] for row in rows)
    for row in rows:
        assert math.isfinite(float(row["ratio"])) and float(row["ratio"]) > 0
        assert float(row["low"]) <= float(row["ratio"]) <= float(row["high"])
        assert row["met"] in ("yes", "no")
