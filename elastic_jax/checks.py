"""Refusals that name the argument, its value and the remedy."""

import operator
from typing import Any


def whole(name: str, value: Any, what: str = "number", least: int = 1) -> int:
    """Returns a whole number (Python's, numpy's, or a JAX scalar that is not traced).

    Args:
        name: of the argument.
        value: what was passed for it.
        what: what it should be, for the message: "number of workers".
        least: the smallest that will do.

    Raises:
        ValueError: for anything else, a bool too.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise ValueError(f"{name}={value!r} is no {what}; pass an int >= {least}")
    return number
