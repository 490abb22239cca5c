"""The radial basis function kernel."""

import jax
import jax.numpy as jnp

from uncertainty import cpu
from uncertainty.cpu import median as bisection
from uncertainty.types import Kernel


def rbf(bandwidth: float | None = None) -> Kernel:
    """k(a, b) = exp(-|a - b|^2 / (2 h)).

    sum_j grad_{z_j} k(z_j, z_i) = 1 / h sum_j k_ij (z_i - z_j).

    Without a `bandwidth` h = median_{i<j} |z_i - z_j|^2 / (2 log(P + 1)), a constant under
    differentiation (Liu & Wang 2016, where h is twice ours and log is of P).

    Differences from the paper: the median excludes the P zeros |z_i - z_i|^2, which halve it at P =
    2; P + 1 in the logarithm, so that it is defined for P = 1. If so many particles coincide that
    the median is 0, it is taken over the pairs that differ (functions may agree on a batch). If all
    are equal, or there is only one, it is set to 1: the force is 0 for any h.

    Args:
      bandwidth: h, in squared units of z.

    Raises:
      ValueError: a bandwidth that is not positive.
    """
    if bandwidth is not None and not bandwidth > 0:
        raise ValueError(f"bandwidth: {bandwidth}; a positive number, or None for the median")

    def kernel(inner: jax.Array) -> tuple[jax.Array, jax.Array]:
        squared = squared_distances(inner)
        h = median_bandwidth(squared) if bandwidth is None else bandwidth
        gram = jnp.exp(-squared / (2 * h))
        return gram, (jnp.diag(gram.sum(1)) - gram) / h

    return Kernel(kernel, stationary=True, proportional=True)


def squared_distances(inner: jax.Array) -> jax.Array:
    """|z_i - z_j|^2 from z_i . z_j, [P, P]; exactly 0 on the diagonal."""
    norms = jnp.diagonal(inner)
    squared = norms[:, None] + norms[None, :] - inner - inner.T
    return jnp.maximum(squared, 0) * (1 - jnp.eye(len(inner), dtype=inner.dtype))


def median(squared: jax.Array) -> jax.Array:
    """Median over pairs i < j; if it is 0, over pairs that differ; 1 if none does.

    A constant under differentiation.
    """
    P = len(squared)
    if P == 1:
        return jnp.ones((), squared.dtype)
    return _median(jax.lax.stop_gradient(squared[jnp.triu_indices(P, 1)]))


def median_bandwidth(squared: jax.Array) -> jax.Array:
    """median / (2 log(P + 1))."""
    return (median(squared) / (2 * jnp.log(len(squared) + 1.0))).astype(squared.dtype)


def _median(values: jax.Array) -> jax.Array:
    """Median of numbers >= 0; if it is 0, of those above 0; 1 if all are 0."""
    if cpu.enabled():
        return bisection.median(values)
    ordered = jnp.sort(values.astype(jnp.float32))
    zeros = jnp.sum(ordered <= 0)
    zeros = jnp.where(zeros > len(values) // 2, zeros, 0)  # how many zeros to leave out
    n = len(values) - zeros
    middle = jnp.stack([zeros + (n - 1) // 2, zeros + n // 2])
    return jnp.where(n > 0, ordered[jnp.minimum(middle, len(values) - 1)].mean(), 1.0)
