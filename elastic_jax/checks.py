"""Refusals that name the argument, its value and the remedy."""

import math
import numbers
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def whole(
    name: str, value: Any, what: str = "number", least: int = 1, most: int | None = None
) -> int:
    """Returns a whole number (Python's, numpy's, or a JAX scalar that is not traced).

    Args:
        name: of the argument.
        value: what was passed for it.
        what: what it should be, for the message: "number of workers".
        least: the smallest that will do.
        most: the largest, if there is one.

    Raises:
        ValueError: for anything else, a bool too.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool) or (most is not None and number > most):
        room = f">= {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name}={value!r} is no {what}; pass an int {room}")
    return number


def steps(name: str, value: Any, least: int = 0) -> int:
    """Returns a number of steps, which int32 counts; refuses what is no int by its type."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}={value!r} is no number of steps; pass an int >= {least}")
    number = int(value)
    if not least <= number < 2**31:
        room = f">= {least}" if number < least else "below 2^31"
        raise ValueError(f"{name}={value} is out of range; pass an int {room}")
    return number


def positive(name: str, value: Any) -> float:
    """Returns a finite number above 0; refuses any other."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not 0 < float(value) < math.inf:
        raise ValueError(f"{name}={value!r} is out of range; pass a finite number > 0")
    return float(value)


def number(name: str, value: Any, fits: Callable[[float], bool], advice: str) -> bool:
    """Refuses what is no number, or none that fits; says whether it is a JAX scalar.

    Args:
        name: of the argument.
        value: Python's, numpy's, or a JAX scalar, whose value is not looked at if it is traced.
        fits: whether a number will do.
        advice: what to pass: "a number in [0, 1)".

    Raises:
        ValueError: for anything else, a bool or an array too.
    """
    if scalar(name, value, fits, advice):
        return True
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not fits(float(value)):
        raise ValueError(f"{name}={value!r} is out of range; pass {advice}")
    return False


def scalar(
    name: str, value: Any, fits: Callable[[float], bool], advice: str, *, whole: bool = False
) -> bool:
    """Says whether a value is a JAX scalar; refuses other arrays, and a value that does not fit.

    As `number`; `whole` asks for an integer.
    """
    if not isinstance(value, jax.Array):
        return False
    kinds = (jnp.integer,) if whole else (jnp.floating, jnp.integer)
    if value.ndim or not any(jnp.issubdtype(value.dtype, kind) for kind in kinds):
        raise ValueError(
            f"{name} has shape {value.shape} and dtype {value.dtype}; pass "
            f"{'an integer' if whole else 'a float'} scalar, {advice}"
        )
    try:
        known = float(value)
    except jax.errors.ConcretizationTypeError:  # traced
        return True
    if not fits(known):
        raise ValueError(f"{name}={value!r} is out of range; pass {advice}")
    return True


def flag(name: str, value: Any) -> None:
    """Refuses what is no bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is no bool; pass True or False")


def check_seed(seed: Any) -> None:
    """Refuses a seed that is no int (a JAX integer scalar may be traced)."""
    if scalar("seed", seed, lambda _: True, "an int", whole=True):
        return
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise TypeError(f"seed={seed!r} is no seed; pass an int")
