"""Rows of results that several tests share."""

import dataclasses
import math

import numpy as np
from PIL import Image

from experiments.constants import Constants
from experiments.figures import held_by, save
from experiments.rows import DENSE, FEEDBACK, PLAIN, Row, Settings

NAN = math.nan  # for a loss: the run diverged

SETTINGS = Settings(
    data="digits",
    data_dir=None,
    model="cnn",
    gradients=256,
    batch=8,
    points=4,
    eval_images=500,
    speed="lognormal",
    diverged=4.0,
)


def row(
    method, seed, loss, alpha=0.1, mode="asynchronous", workers=16, fraction=0.01, diverged=False
):
    return Row(
        data="digits",
        model="cnn",
        d=6010,
        mode=mode,
        workers=workers,
        method=method,
        fraction=1.0 if method == DENSE else fraction,
        kept=61,
        alpha=alpha,
        seed=seed,
        gradients=256,
        train_loss=None if diverged else loss,
        test_accuracy=None if diverged else 0.9,
        diverged=diverged,
        drift_rms=1.0,
        drift_max=2.0,
        moment_rms=1.0,
        moment_max=2.0,
        delay_mean=0.0 if mode == "synchronous" else workers - 1.0,
        delay_max=0 if mode == "synchronous" else 2 * workers,
        bound=20.0,
        drift_to_bound=0.1,
        lost_norm=0.0,
        seconds=0.1,
        curve=(2.4, 1.0, None if diverged else loss),
    )


def pair(without, with_, **where):
    """Rows of both methods; NaN stands for divergence."""
    return [
        row(method, seed, loss, diverged=math.isnan(loss), **where)
        for method, losses in ((PLAIN, without), (FEEDBACK, with_))
        for seed, loss in enumerate(losses)
    ]


def full_rows():
    rng = np.random.default_rng(0)
    rows = []
    for mode, workers in (("sequential", 1), ("asynchronous", 16), ("synchronous", 16)):
        for alpha in (0.1, 0.2, 0.5):
            where = dict(mode=mode, workers=workers, alpha=alpha)
            rows += [row(DENSE, seed, float(rng.uniform(0.1, 0.2)), **where) for seed in range(3)]
            for fraction in (0.1, 0.01):
                losses = rng.uniform(0.1, 1, (2, 3)) * (1 if alpha < 0.5 else NAN)
                rows += pair(*losses.tolist(), fraction=fraction, **where)
    return rows


def constants_of(rows, L=(2.0, 8.0), sigma=1.0):
    """Constants of every mode and p that the rows have."""
    keys = dict.fromkeys((found.mode, found.workers) for found in rows)
    return [
        Constants(mode, p, DENSE, 1.0, 0.1, 0, 256 * i, value, 1.01 * value, sigma, 2 * sigma)
        for mode, p in keys
        for i, value in enumerate(L)
    ]


def carried_rows(path, kind):
    """The rows that a figure carries, what it does not need being None, and all else it carries."""
    held = held_by(path)
    nothing = dict.fromkeys(field.name for field in dataclasses.fields(kind))
    tables = (zip(held["columns"], values, strict=True) for values in held["rows"])
    return [kind(**{**nothing, **dict(table)}) for table in tables], held


def is_picture(path, drawn, folder):
    """Whether a file shows what was drawn, pixel by pixel."""
    (name,) = save(folder, {"again.png": drawn})
    with Image.open(path) as one, Image.open(folder / name) as other:
        return np.array_equal(one.convert("RGB"), other.convert("RGB"))
