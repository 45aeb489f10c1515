"""The values of expressions and conditions, for numbers and for arrays of them."""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import sympy as sp

from theory import symbols
from theory.region import Condition

ROUNDING = 1e-9
"""A condition may fail by this much of its largest term: α = 1/L is a legal step in floats."""


def number(name: str, value: Any) -> float:
    """Return a float, or raise a TypeError that names the argument."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name}={value!r} is no number; pass a float") from error


@cache
def _compiled(expr: sp.Expr) -> tuple[tuple[sp.Symbol, ...], Callable[..., Any]]:
    arguments = symbols.used(expr)
    stable = expr.replace(_is_decay, lambda power: _DECAY(1 - power.base, power.exp))
    return arguments, sp.lambdify(arguments, stable, [{_DECAY.__name__: _decay}, "numpy"])


_DECAY: Any = sp.Function("decay_of")


def _is_decay(expr: sp.Basic) -> bool:
    """Return whether this is (1 − loss)^steps, of which 1 − loss may lose all in rounding."""
    if not (isinstance(expr, sp.Pow) and expr.base.is_Add):
        return False
    base, steps = expr.as_base_exp()
    many = steps.is_positive and (not steps.is_number or steps > 2)
    return bool(many and (1 - base).is_nonnegative)


def _decay(loss: Any, steps: Any) -> Any:
    """Return (1 − loss)^steps; a loss may exceed 1 by rounding."""
    import numpy as np

    with np.errstate(divide="ignore"):  # log 0 = −∞, and the power is 0
        return np.exp(steps * np.log1p(-np.minimum(loss, 1.0)))


def evaluate(expr: sp.Expr, known: Mapping[sp.Symbol, Any]) -> Any:
    """Return the value of an expression at numbers or arrays."""
    arguments, function = _compiled(expr)
    return function(*(known[symbol] for symbol in arguments))


def holds(condition: Condition, known: Mapping[sp.Symbol, Any]) -> Any:
    """Return whether a condition holds, but for rounding if it is not strict."""
    value = evaluate(condition.expr, known)
    if condition.strict:
        return value > 0
    sizes = sum(abs(evaluate(term, known)) for term in sp.Add.make_args(condition.expr))
    return value >= -ROUNDING * sizes


def wrong_sign(symbol: sp.Symbol, value: Any) -> Any:
    """Return whether a symbol may not have this value: for its sign, or as it is not finite."""
    too_small = value <= 0 if symbol.is_positive else value < 0
    return too_small | (value == math.inf) | (value != value)


def check_sign(name: str, symbol: sp.Symbol, value: float) -> None:
    """Refuse a value that a symbol may not have, in the name of a bound."""
    if wrong_sign(symbol, value):
        sign = "positive" if symbol.is_positive else "non-negative"
        meaning = symbols.MEANINGS.get(symbol, "")
        raise ValueError(f"{name}: {symbol} ({meaning}) must be {sign} and finite, not {value:g}")
