"""What compressors refuse, with messages that help."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import elastic_jax as ej

AMOUNT = "pass a float fraction in \\(0, 1\\], or an int count"
TWO = {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float16)}


def refused(make, values, message, error: type[Exception] = ValueError):
    return [(make, value, error, message.replace("VALUE", str(value))) for value in values]


@pytest.mark.parametrize("make, value, error, message", [
    *(case for make in (ej.top_k, ej.block_top_k, ej.random_k, lambda x: ej.threshold(1.0, x))
      for case in refused(make, [0, -1, 0.0, 1.5, math.nan, math.inf], f"=VALUE .*{AMOUNT}")),
    *refused(ej.top_k, [True, "1", None, [1], 1j], f"fraction_or_count=.*{AMOUNT}", TypeError),
    *refused(ej.top_k, [jnp.ones(2), jnp.asarray(True)], f"has shape .* and dtype .*; {AMOUNT}"),
    *refused(lambda x: ej.top_k(1, scope=x), ["all"], "scope='VALUE' is unknown; use 'leaf'"),
    *refused(ej.top_k(1, scope="tree").nbytes, [TWO], "one dtype .*float16.* use scope='leaf'"),
    *refused(lambda x: ej.block_top_k(1, x), [0, -1, 2.0, True], "block=VALUE .* pass an int >= 1"),
    *refused(ej.block_top_k, [jnp.asarray(1)], "fraction_or_count is a JAX .*Python number"),
    *refused(ej.random_k, [jnp.asarray(1)], "fraction_or_count is a JAX .*Python number"),
    *refused(ej.threshold, [0, -1.0, math.nan], "value=VALUE .* pass a threshold > 0"),
    *refused(lambda x: ej.threshold(1, x), [jnp.asarray(1)], "capacity is a JAX .*Python number"),
    *refused(lambda x: ej.random_k(1, shared_seed=x), [True, 1.0], "shared_seed=VALUE .* an int"),
    *refused(ej.quantize, [1, 9, 4.0, True], "bits=VALUE .* pass an int from 2 to 8"),
    *refused(ej.low_rank, [0, -1, 1.0, True], "rank=VALUE .* pass an int >= 1"),
])  # fmt: skip
def test_bad_arguments_are_refused(make, value, error, message):
    with pytest.raises(error, match=message):
        make(value)
