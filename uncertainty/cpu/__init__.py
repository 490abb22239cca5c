"""Kernels for XLA's CPU backend, where the plain expression is slow: off for any other platform.

Each file has one, as a pure function. The plain expression stands in the method's own file, behind
`if cpu.enabled()`, and `tests/uncertainty/test_cpu.py` compares the two.

The platform is the one that a program is compiled for, which need not be one that is there:

    with cpu.compiling_for("tpu"):
        lowered = jax.jit(update).trace(state, batch).lower(lowering_platforms=("tpu",))

JAX keeps what it traces apart by this context, so the same function may be traced for several.
"""

import contextlib

import jax

_PLATFORM = jax.make_user_context(None)


def compiling_for(platform: str | None) -> contextlib.AbstractContextManager[None]:
    """What is traced within it is for this platform ('cpu', 'tpu', 'cuda', ...).

    None, as without it, stands for the platform of `jax.default_backend()`.
    """
    return _PLATFORM(platform)


def enabled() -> bool:
    """Whether the kernels are for the platform that is being traced for."""
    return (_PLATFORM.value or jax.default_backend()) == "cpu"
