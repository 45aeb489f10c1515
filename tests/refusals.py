"""Calls that are refused, and what their messages must hold."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
import pytest

import elastic_jax as ej

TOP = ej.top_k(1)
SGD = optax.sgd(0.1)
VIEW = jnp.ones(3)
NAN = float("nan")


def loss(params, batch):
    return jnp.sum(params * batch)


class Bad(NamedTuple):
    """A call that is refused."""

    call: Callable[[], object]
    error: type[Exception]
    words: tuple[str, ...]  # the message holds: the argument, its value, the remedy


def refused(call, *words):
    return Bad(call, ValueError, words)


def no_type(call, *words):
    return Bad(call, TypeError, words)


def late(step: Any, **extra: Any) -> Any:
    return step > 1


def assert_refused(case: Bad) -> None:
    for _ in range(2):  # and again: no cached trace lets it pass
        with pytest.raises(case.error) as caught:
            case.call()
        message = str(caught.value)
        assert [word for word in case.words if word not in message] == [], message
