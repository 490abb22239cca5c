"""One process for all tests: 8 CPU devices and a persistent compilation cache."""

import os
import pathlib

import jax

CACHE = pathlib.Path(__file__).parent.parent / ".cache" / "jax"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8"
)
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
