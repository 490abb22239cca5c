"""The position of a step within one of several equal cycles, without rounding."""

import jax
import jax.numpy as jnp


def share(step: jax.Array | int, steps: int, cycles: int) -> jax.Array:
    """(step cycles mod steps) / steps, in [0, 1]: the elapsed part of its cycle.

    Only the last division rounds, so that a cycle starts at 0. The product may exceed int32 (3e6
    steps of 1,000 cycles), so it is computed by doubling and adding modulo `steps`, below 2^32.

    Args:
      step: int32, from 0.
      steps: the total of all cycles, below 2^31.
      cycles: at least 1; they need not divide `steps`.
    """
    steps = jnp.uint32(steps)
    step = jnp.asarray(step).astype(jnp.uint32) % steps
    rest = jnp.zeros_like(step)
    for bit in f"{cycles:b}":
        rest = 2 * rest % steps
        if bit == "1":
            rest = (rest + step) % steps
    return rest / steps
