"""Where in one of several equal cycles a step is, without rounding."""

import jax
import jax.numpy as jnp


def share(step: jax.Array | int, steps: int, cycles: int) -> jax.Array:
    """(step cycles mod steps) / steps, in [0, 1]: the part of its cycle that is over.

    Only the last division rounds, so that a cycle begins at 0. The product itself may be beyond
    int32 (3e6 steps of 1,000 cycles): it is made by doubling and adding modulo `steps`, below 2^32.

    Args:
      step: int32, from 0.
      steps: in all cycles together, below 2^31.
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
