"""Selection by magnitude against a stable sort: exactly k, the largest, ties by lowest index."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax import Array, lax

from elastic_jax import selection

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
SHORT = (1, 7, 517, 5000)
LONG = 40_001  # the shortest kind of array that is coded in bytes, with a remainder


def reference(x: Array, k: int) -> np.ndarray:
    """Marks the first k of a stable sort by descending magnitude, NaN as infinite."""
    size = np.nan_to_num(np.abs(np.asarray(x).astype(np.float64)), nan=np.inf, posinf=np.inf)
    mask = np.zeros(size.shape, bool)
    mask[np.argsort(-size, kind="stable")[:k]] = True
    return mask


KINDS = {
    "normal": lambda r, d: r.normal(size=d),
    "few values": lambda r, d: r.integers(-3, 4, d),
    "constant": lambda r, d: np.full(d, -0.3),
    "zeros": lambda r, d: np.where(r.random(d) < 0.5, 0.0, -0.0),
    "sparse": lambda r, d: r.normal(size=d) * (r.random(d) < 0.02),
    "two values": lambda r, d: np.where(r.random(d) < 0.9, 1.0, 1.0 + 2.0**-20),
    "heavy": lambda r, d: r.standard_cauchy(d) ** 3,
    "subnormal": lambda r, d: r.normal(size=d) * 1e-41,
    "ascending": lambda r, d: np.arange(d) / d,
    "descending": lambda r, d: -np.arange(d)[::-1] / d,
    "periodic": lambda r, d: np.where(np.arange(d) % 3 == 0, 1e-3, r.normal(size=d)),
    "not finite": lambda r, d: r.choice([np.nan, -np.nan, np.inf, -np.inf, 1.0, -0.0], d),
    # Every entry of the sample that a long array takes is an outlier, so that it misleads.
    "sample low": lambda r, d: np.where(np.arange(d) % (d // 2**13 | 1), r.normal(size=d), 1e-9),
    "sample high": lambda r, d: np.where(np.arange(d) % (d // 2**13 | 1), r.normal(size=d), 1e9),
}

VARIED = ("normal", "few values", "zeros", "sample low")
mask_of = jax.jit(selection.top_mask)
dense_of = jax.jit(selection.dense_top_k)


def draw(kind: str, seed: int, d: int, dtype) -> Array:
    with np.errstate(all="ignore"):
        return jnp.asarray(KINDS[kind](np.random.default_rng(seed), d).astype(np.float32), dtype)


def ks(d: int, share: float) -> tuple[int, ...]:
    return tuple({0, 1, int(share * d), d - 1, d})


@pytest.mark.slow
@given(
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(SHORT),
    st.sampled_from(DTYPES),
    st.floats(0, 1),
    st.integers(0, 99),
)
@settings(max_examples=60)
def test_mask_is_a_stable_sorts(kind, d, dtype, share, seed):
    x = draw(kind, seed, d, dtype)
    for k in ks(d, share):
        np.testing.assert_array_equal(mask_of(x, k), reference(x, k))


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_mask_is_a_stable_sorts(kind, dtype):
    x = draw(kind, 0, LONG, dtype)
    for k in ks(LONG, 0.01):
        np.testing.assert_array_equal(mask_of(x, k), reference(x, k))


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("d", (517, LONG))
def test_dense_is_the_masks(kind, d):
    x = draw(kind, 6, d, jnp.float32)
    for k in ks(d, 0.3):
        np.testing.assert_array_equal(dense_of(x, k), np.where(reference(x, k), x, np.float32(0)))


@pytest.mark.parametrize("kind", ("normal", "two values", "constant", "sample low", "sample high"))
def test_million(kind):
    x = draw(kind, 1, 10**6, jnp.float32)
    np.testing.assert_array_equal(mask_of(x, 10_000), reference(x, 10_000))


@pytest.mark.slow
@pytest.mark.parametrize("d", (517, LONG))
def test_vmap_over_arrays_and_k(d):
    x = jnp.stack([draw(kind, 2, d, jnp.float32) for kind in VARIED])  # [kinds, d]
    k = jnp.arange(len(VARIED), dtype=jnp.int32) * (d // len(VARIED))
    want = np.stack([reference(row, int(n)) for row, n in zip(x, k, strict=True)])
    np.testing.assert_array_equal(jax.jit(jax.vmap(selection.top_mask))(x, k), want)
    few = jax.jit(jax.vmap(selection.top_mask, (None, 0)))(x[0], k[:3])
    np.testing.assert_array_equal(few, np.stack([reference(x[0], int(n)) for n in k[:3]]))


def test_scan_with_traced_k():
    x, k = draw("normal", 3, 517, jnp.float32), jnp.array([0, 5, 517, 600, -1], jnp.int32)
    _, masks = lax.scan(lambda carry, n: (carry, selection.top_mask(x, n)), None, k)
    np.testing.assert_array_equal(masks.sum(axis=1), [0, 5, 517, 517, 0])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_indices_are_the_masks(kind):
    x = draw(kind, 4, 517, jnp.float32)
    indices = jax.jit(functools.partial(selection.top_indices, k=50))(x)
    assert indices.dtype == jnp.int32
    np.testing.assert_array_equal(indices, np.flatnonzero(reference(x, 50)))


def test_magnitude_orders_and_passes_integers_through():
    x = jnp.array([jnp.nan, -jnp.inf, 3.0, -3.0, -0.0, 0.0])
    bits = selection.magnitude(x)
    assert bits[0] == bits[1] and bits[2] == bits[3] and bits[4] == bits[5] == 0
    assert bits[0] > bits[2] > bits[4]
    np.testing.assert_array_equal(selection.top_mask(bits, 3), reference(x, 3))


@pytest.mark.parametrize("d", (517, LONG))
def test_double_precision(d):
    with jax.enable_x64(True):
        x = jnp.asarray(1 + np.random.default_rng(5).normal(size=d) * 1e-14, jnp.float64)
        np.testing.assert_array_equal(jax.jit(selection.top_mask)(x, 100), reference(x, 100))
