"""The inverse multiquadric kernel."""

import jax
import jax.numpy as jnp

from uncertainty.inference.kernels.rbf import median_bandwidth, squared_distances
from uncertainty.types import Kernel


def imq(bandwidth: float | None = None, power: float = 0.5) -> Kernel:
    """k(a, b) = (1 + |a - b|^2 / (2 h))^-power, whose tails are heavier than those of `rbf`.

    sum_j grad_{z_j} k(z_j, z_i) = power / h sum_j (1 + |z_i - z_j|^2 / (2 h))^(-power - 1)
    (z_i - z_j). Source: Gorham & Mackey 2017, with c = 1 and beta = -power.

    Args:
      bandwidth: h, in squared units of z; None for that of `rbf`.
      power: between 0 and 1.

    Raises:
      ValueError: a bandwidth that is not positive, a power outside (0, 1).
    """
    if bandwidth is not None and not bandwidth > 0:
        raise ValueError(f"bandwidth: {bandwidth}; a positive number, or None for the median")
    if not 0 < power < 1:
        raise ValueError(f"power: {power}; between 0 and 1")

    def kernel(inner: jax.Array) -> tuple[jax.Array, jax.Array]:
        squared = squared_distances(inner)
        h = median_bandwidth(squared) if bandwidth is None else bandwidth
        base = 1 + squared / (2 * h)
        slope = power / h * base ** (-power - 1)
        return base**-power, jnp.diag(slope.sum(1)) - slope

    return Kernel(kernel, stationary=True)
