"""Kernels for XLA's CPU backend, where the plain expression is slow: off for any other platform.

Each file has one kernel, a pure function. The plain expression is in the method's own file,
selected by `cpu.enabled()`, and `tests/uncertainty/test_cpu.py` compares the two.

The platform is the one that a program is compiled for, which need not be present:

    with cpu.compiling_for("tpu"):
        lowered = jax.jit(update).trace(state, batch).lower(lowering_platforms=("tpu",))

JAX's caches depend on this context, so a function may be traced for several platforms.
"""

import contextlib
import os

import jax

_PLATFORM = jax.make_user_context(None)


def compiling_for(platform: str | None) -> contextlib.AbstractContextManager[None]:
    """Within this context, tracing is for this platform ('cpu', 'tpu', 'cuda', ...).

    None, the default, means the platform of `jax.default_backend()`.
    """
    return _PLATFORM(platform)


def enabled() -> bool:
    """Whether the platform that is traced for is CPU, so that kernels are used."""
    return (_PLATFORM.value or jax.default_backend()) == "cpu"


def cores() -> int:
    """The processor's cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1
