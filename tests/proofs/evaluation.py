"""The value of an expression, and the Gram entries of arrays, by plain numpy."""

import functools
import itertools
from collections.abc import Callable

import numpy as np
import sympy as sp

Values = dict[str, float]


@functools.cache
def compiled(expr: sp.Expr) -> tuple[list[str], Callable[..., float]]:
    arguments = sorted(expr.free_symbols, key=str)
    return [symbol.name for symbol in arguments], sp.lambdify(arguments, expr, "math")


def evaluate(expr: sp.Expr | int, values: Values) -> float:
    names, function = compiled(sp.sympify(expr))
    return float(function(*(values[name] for name in names)))


def gram(common: dict[str, np.ndarray], workers: dict[str, np.ndarray]) -> Values:
    """Return all Gram entries of common vectors [d] and per-worker vectors [p, d]."""
    values = {}
    means = common | {name: v.mean(0) for name, v in workers.items()}
    deviations = {name + "~": v - v.mean(0) for name, v in workers.items()}
    for (s, a), (t, b) in itertools.product(means.items(), repeat=2):
        values[f"⟨{s},{t}⟩"] = float(a @ b)
    for (s, a), (t, b) in itertools.product(deviations.items(), repeat=2):
        values[f"⟨{s},{t}⟩"] = float((a * b).sum(1).mean())
    return values
