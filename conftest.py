"""Strict settings for every test, and eight virtual CPU devices."""

import os

import hypothesis
import jax
import pytest

# CPUs, which can be virtual devices, even where there is a GPU; JAX_PLATFORMS=cuda,cpu asks for it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # for the processes that tests start
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Fixed examples, so that a failure is found again; time limits belong to pytest.
hypothesis.settings.register_profile(
    "fixed", derandomize=True, deadline=None, print_blob=True, max_examples=25
)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def readers_settings(request):
    """The README runs as its readers will: with JAX's own settings."""
    if request.path.name != "README.md":
        yield
        return
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def quick_compiles():
    """Workers compile tiny programs: keep them, look for no faster ones, and take one core each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        for name in ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            patch.setenv(name, "1")
        yield
