"""Types that several modules share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex

Key = chex.PRNGKey  # typed key, shape []
Tree = Any  # a pytree of float arrays


class Compressor(NamedTuple):
    """A compression operator C on trees, as data.

    All functions are pure. `state` is the compressor's own memory (a warm start; `()` for most),
    `key` is a typed PRNG key, ignored where `deterministic`. A payload is a tree of arrays with
    static shapes: what would cross the wire.

    Attributes:
        name: what it is, with its settings.
        init: `(key, like) -> state`.
        encode: `(key, state, tree) -> (payload, state)`.
        decode: `(payload, like) -> tree`; `like` gives shapes and dtypes.
        dense: `(key, state, tree) -> (tree, state)`: decode∘encode, computed directly.
        nbytes: `like -> int`, the payload's bytes.
        gamma: `like -> float`, the contraction: `E||C(y) - y||² <= gamma ||y||²`; 1 where C
            never expands the error and promises no more, inf where it may expand it.
        omega: `like -> float`, the variance of an unbiased C: `E C(y) = y`,
            `E||C(y) - y||² <= omega ||y||²`; None for a biased C.
        deterministic: whether the key is ignored.
        linear: whether the payloads that workers send at one step may be averaged as they are:
            `decode` is linear in the payload's floats, and the rest of it is the same on all.
        meet: `(key, state, tree, average) -> (message, mean message, state)`, for workers that
            compress together: a message that depends on what the others say, or a mean that is
            rounded on its way. `average(arrays) -> (own, mean)`, floats in float32 or wider, with
            `mean_i own_i = mean`, the rest (the same on all) as it is. None: every worker sends its
            own C(y), and their mean is exact.
    """

    name: str
    init: Callable[[Key, Tree], Any]
    encode: Callable[[Key, Any, Tree], tuple[Any, Any]]
    decode: Callable[[Any, Tree], Tree]
    dense: Callable[[Key, Any, Tree], tuple[Tree, Any]]
    nbytes: Callable[[Tree], int]
    gamma: Callable[[Tree], float]
    omega: Callable[[Tree], float] | None = None
    deterministic: bool = True
    linear: bool = False
    meet: Callable[[Key, Any, Tree, Callable[[Tree], tuple[Tree, Tree]]], Any] | None = None
