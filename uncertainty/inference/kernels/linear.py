"""The linear kernel."""

import jax
import jax.numpy as jnp

from uncertainty.types import Kernel


def linear(offset: float = 1.0) -> Kernel:
    """k(a, b) = a . b + offset, under which SVGD matches means and covariances of a Gaussian.

    sum_j grad_{z_j} k(z_j, z_i) = P z_i. Source: Liu & Wang 2018, "Stein variational gradient
    descent as moment matching".

    Args:
      offset: not negative; 0 leaves the mean unmatched.

    Raises:
      ValueError: a negative offset.
    """
    if not offset >= 0:
        raise ValueError(f"offset: {offset}; at least 0")

    def kernel(inner: jax.Array) -> tuple[jax.Array, jax.Array]:
        P = len(inner)
        return inner + offset, P * jnp.eye(P, dtype=inner.dtype)

    return Kernel(kernel, stationary=False)
