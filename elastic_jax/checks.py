"""Refusals that name the argument, its value and the remedy."""

import operator
from typing import Any


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
