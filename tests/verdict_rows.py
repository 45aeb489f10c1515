"""Rows of results that several tests share."""

from experiments.rows import DENSE, Row, Settings

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
