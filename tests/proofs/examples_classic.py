"""Examples of the classic forms: one worker, and steps as short as they ask for."""

import numpy as np
from evaluation import Values
from examples_sgd import a_run, one_step


def slower_run(rng: np.random.Generator, step: str) -> Values:
    """A run whose power is of 1 − αc/2."""
    enough = {"lengths": (250, 300), "convexity": (0.7, 0.95)} if step == "two logs" else {}
    values = a_run(rng, step, workers=1, **enough)
    return values | {"r^T": values["r_½^T"]}


def textbook_run(rng: np.random.Generator) -> Values:
    return a_run(rng, "root", workers=1, smoothness=(0.1, 0.9))


EXAMPLES = {
    r"classic\.split|N\.step\.classic": lambda rng: one_step(
        rng, bumpy=rng.random() < 0.7, workers=1, longest=1 / 6
    ),
    r"S\.step\.classic": lambda rng: one_step(rng, workers=1),
    r"N\.classic(\.sum)?": lambda rng: a_run(rng, "sixth", workers=1),
    r"N\.tuned\.classic|N\.tuned\.order": textbook_run,
    r"S\.classic|S\.half\.classic": lambda rng: slower_run(rng, "curved sixth"),
    r"S\.tuned\.classic": lambda rng: slower_run(rng, "two logs"),
    r"N\.order|S\.decay|S\.floor|S\.order": lambda rng: a_run(rng, workers=1),
    r"S\.order\.ball": lambda rng: a_run(rng, workers=1, convexity=(1, 1)),
    r"S\.tuned\.order": lambda rng: a_run(rng, "log", workers=1),
}
