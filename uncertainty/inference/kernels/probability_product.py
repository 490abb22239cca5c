"""The probability product kernel."""

import math

import jax
import jax.numpy as jnp

from uncertainty.types import Kernel

FLOOR = 1e-6  # added to each probability: p^power has no slope at 0 for a power below 1


def probability_product(power: float = 0.5) -> Kernel:
    """k(p, q) = 1/B sum_b sum_k (p_bk q_bk)^power, of predictive distributions p [.., B, K].

    Power 0.5 is the Bhattacharyya kernel, k(p, p) = 1, and 1 the expected likelihood kernel.
    Source: Jebara, Kondor & Howard 2004, "Probability product kernels". The force on a particle,
    sum_j grad_{p_j} k(p_j, p_i) = power/B sum_j p_i^power p_j^(power - 1), raises what is unlikely
    for the others.

    Differences from the paper: p is (p + 1e-6) / (1 + 1e-6 K), so that its slope is finite at 0.

    Args:
      power: above 0, at most 1.

    Raises:
      ValueError: a power out of range.
    """
    if not 0 < power <= 1:
        raise ValueError(f"power: {power}; above 0, at most 1")

    def features(p: jax.Array) -> jax.Array:
        """Elementwise features of p [P, ..., B, K]."""
        examples = math.prod(p.shape[1:-1])
        return ((p + FLOOR) / (1 + FLOOR * p.shape[-1])) ** power / examples**0.5

    def kernel(inner: jax.Array) -> tuple[jax.Array, jax.Array]:
        return inner, len(inner) * jnp.eye(len(inner), dtype=inner.dtype)

    return Kernel(kernel, stationary=False, features=features)
