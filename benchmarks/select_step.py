"""One error-feedback step with the k largest: `dense_top_k` against `lax.top_k` and a scatter.

Run as `NPROC=1 python -m benchmarks.select_step`: one core, in turns, medians of paired ratios.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import Array, lax

from elastic_jax import selection


def sorted_top_k(x: Array, k: int) -> Array:
    _, indices = lax.top_k(jnp.abs(x), k)
    return jnp.zeros_like(x).at[indices].set(x[indices])


def feedback_step(select: Callable[[Array, int], Array], k: int):
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(h: Array, u: Array) -> tuple[Array, Array]:
        y = h + u
        m = select(y, k)
        return y - m, m

    return step


def rows(d: int = 1_000_000, share: float = 0.01, repeats: int = 25) -> Iterator[dict]:
    """Milliseconds a step, and how many times `lax.top_k` takes, for each selection."""
    u = jax.random.normal(jax.random.key(0), (d,))
    selections = {"lax.top_k": sorted_top_k, "dense_top_k": selection.dense_top_k}
    steps = {name: feedback_step(f, int(share * d)) for name, f in selections.items()}
    h = {name: step(jnp.zeros_like(u), u.copy())[0] for name, step in steps.items()}  # compiles
    times = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            v = jax.block_until_ready(u.copy())
            start = time.perf_counter()
            h[name], _ = jax.block_until_ready(step(h[name], v))
            times[name].append(time.perf_counter() - start)
    for name, spent in times.items():
        ratios = [a / b for a, b in zip(times["lax.top_k"], spent, strict=True)]
        yield {
            "selection": name,
            "d": d,
            "ms": 1e3 * statistics.median(spent),
            "speedup": statistics.median(ratios),
        }


if __name__ == "__main__":
    for row in rows():
        print(row)
