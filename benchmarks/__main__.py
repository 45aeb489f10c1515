"""Runs the benchmarks, prints a table, and writes its rows as csv and json."""

import argparse
import csv
import importlib
import json
import os
import platform
import sys
import time
from pathlib import Path

FIELDS = ("name", "ratio", "low", "high", "target", "met", "milliseconds", "floor", "note")


def main() -> None:
    found = {path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py")}
    names = sorted(found)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer rounds")
    parser.add_argument("--only", choices=names, action="append", help="may be repeated")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="a folder")
    args = parser.parse_args()
    if "NPROC" not in os.environ:  # XLA reads it once, before its first computation
        os.environ["NPROC"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{'':52} {'ratio':>7} {'quartiles':>15} {'target':>8} {'met':>4} {'ms/step':>9}  floor")
    for name in args.only or names:
        start = time.perf_counter()
        rows = []
        for row in importlib.import_module(f"benchmarks.bench_{name}").rows(args.quick):
            rows.append(row._asdict() | {"met": row.met})
            quartiles = f"{row.low:.3f} – {row.high:.3f}"
            print(
                f"{row.name:52} {row.ratio:7.3f} {quartiles:>15} {row.target:>8} {row.met:>4} "
                f"{row.milliseconds:9.4f}  {row.floor}" + (f"; {row.note}" if row.note else ""),
                flush=True,
            )
        _write(args.out / name, rows, args.quick, time.perf_counter() - start)


def _write(path: Path, rows: list[dict], quick: bool, seconds: float) -> None:
    import jax
    import numpy
    import optax

    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    about = {
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "quick": quick,
        "seconds": round(seconds, 1),
        "threads": os.environ["NPROC"],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "optax": optax.__version__,
            "numpy": numpy.__version__,
        },
        "rows": rows,
    }
    text = json.dumps(about, indent=1, ensure_ascii=False).replace("NaN", "null")
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
