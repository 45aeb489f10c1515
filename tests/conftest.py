"""Strict settings for every test, and eight virtual CPU devices."""

import hypothesis
import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Fixed examples, so that a failure is found again; time limits belong to pytest.
hypothesis.settings.register_profile(
    "fixed", derandomize=True, deadline=None, print_blob=True, max_examples=25
)
hypothesis.settings.load_profile("fixed")
