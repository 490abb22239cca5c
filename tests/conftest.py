"""8 CPU devices, a persistent compilation cache, and little time spent on optimising programs."""

import gc
import os
import pathlib

import hypothesis
import jax
import jaxlib

from tests.programs import digits, no_program_is_left, programs  # noqa: F401

CACHE = pathlib.Path(__file__).parent.parent / ".cache" / "jax"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8"
    # Tests compile much and run little: half the compile time for 40% more running time.
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"
)
if jaxlib.version.__version_info__ < (0, 11):  # a third of the time again; later ones lack the flag
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)  # less is as soon compiled
jax.config.update("jax_traceback_in_locations_limit", 0)  # which nobody reads; lowering writes them
# Tracing makes millions of objects that stay: to look through them often is an eighth of its time.
gc.set_threshold(200_000, 20, 50)
# A busy machine is no failure of a property.
hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")


def pytest_collection_modifyitems(config, items):
    """Leaves out what needs the TPU compiler, unless `-m tpu` asks for it."""
    if "tpu" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("tpu")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
