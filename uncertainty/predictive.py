"""The expectations of the equation: E over u, and the mean 1/PM over members.

p(y | x) = 1/PM sum_{p,m} E_{u ~ N(mu_pm(x), Sigma_pm(x))} [p(y | u)]
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from uncertainty.types import Latent


def is_certain(latent: Latent) -> bool:
    """Whether u is a point, so that no integral is needed."""
    return latent.variance is None and latent.factors is None


def sample(latent: Latent, key: jax.Array, samples: int) -> jax.Array:
    """u = mean + sqrt(variance) e_K + factors e_R, [S, M, B, K].

    The noise is independent across examples and classes and the same for every member (common
    random numbers), so that a difference between members is never sampling noise.
    """
    _, B, K = latent.mean.shape
    key_diagonal, key_factors = jax.random.split(key)
    u = latent.mean[None]
    if latent.variance is not None:
        noise = jax.random.normal(key_diagonal, (samples, 1, B, K), latent.mean.dtype)
        u = u + jnp.sqrt(latent.variance) * noise
    if latent.factors is not None:
        R = latent.factors.shape[-1]
        noise = jax.random.normal(key_factors, (samples, 1, B, R), latent.mean.dtype)
        u = u + jnp.einsum("mbkr,sxbr->smbk", latent.factors, noise)
    return u


def log_expectation(
    log_f: Callable[[jax.Array], jax.Array], latent: Latent, key: jax.Array, samples: int
) -> jax.Array:
    """log E_u[f(u)] by Monte Carlo with `samples` draws; exact where u is certain.

    `log_f` maps u [..., M, B, K] to [..., M, B, ...]. With few samples the estimate of the log is
    low by Var[f] / (2 S E[f]^2) (Jensen).
    """
    if is_certain(latent):
        return log_f(latent.mean)
    values = log_f(sample(latent, key, samples))
    return jax.nn.logsumexp(values, axis=0) - jnp.log(samples)


def mixture(log_p: jax.Array) -> jax.Array:
    """log of the mean of the members' probabilities: [M, B, ...] -> [B, ...]."""
    return jax.nn.logsumexp(log_p, axis=0) - jnp.log(log_p.shape[0])


def marginal_variance(latent: Latent) -> jax.Array:
    """diag(Sigma), [M, B, K]."""
    variance = jnp.zeros_like(latent.mean)
    if latent.variance is not None:
        variance = variance + latent.variance
    if latent.factors is not None:
        variance = variance + jnp.sum(latent.factors**2, axis=-1)
    return variance
