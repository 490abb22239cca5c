"""Function values for comparing functions."""

import jax
import jax.numpy as jnp

from uncertainty.inference import sharded
from uncertainty.types import Kernel, Latent, Model

VALUES = ("logits", "probabilities")


def represent(model: Model, latent: Latent, key: jax.Array, values: str) -> jax.Array:
    """Function values of each particle, [P, M, B, K]; all probabilities use the same draws.

    With different draws, equal particles would differ and repel each other.
    """
    if values == "logits":
        return latent.mean
    if model.likelihood.log_probs is None:
        raise ValueError("values: 'probabilities' need a likelihood of classes; use 'logits'")
    return jnp.exp(jax.vmap(model.likelihood.log_probs, (0, None))(latent, key))


def features(kernel: Kernel, z: jax.Array) -> tuple[jax.Array, jax.Array | float]:
    """phi = features(z), and the factor that turns B phi into a force on z.

    Features are elementwise, for a kernel phi(a) . phi(b). So sum_j grad_{z_j} k(z_j, z_i) = sum_j
    phi'(z_j) phi(z_i), the mean of phi' over the particles times (F phi)_i, F = P I.
    """
    if (phi := kernel.features) is None:
        return z, 1.0
    return phi(z), sharded.mean(jax.grad(lambda z: phi(z).sum())(z))
