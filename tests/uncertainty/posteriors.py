"""Posteriors that are known exactly, and tests that a set of draws is theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from uncertainty import likelihoods
from uncertainty.types import Latent, Model


def linear_regression(d: int, noise_std: float) -> Model:
    """y = w . x + e, e ~ N(0, noise_std^2); w [d] begins at N(0, I)."""

    def init(key, x):
        return {"layer": {"kernel": jax.random.normal(key, (d,))}}, {}

    def forward(params, collections, x, key, *, train, mutable=(), mask=None):
        mean = (x @ params["layer"]["kernel"])[None, :, None]
        return Latent(mean), collections, jnp.zeros(())

    return Model(init, forward, likelihoods.gaussian(noise_std=noise_std))


def data(n: int, d: int, seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) @ (np.eye(d) + 0.5 * np.triu(np.ones((d, d)), 1))
    y = x @ rng.normal(size=d) + 0.7 * rng.normal(size=n)
    return dict(x=jnp.asarray(x, jnp.float32), y=jnp.asarray(y[:, None], jnp.float32))


def posterior(batch, noise_std, prior_std, temperature=1.0, likelihood_temperature=1.0):
    """Mean [d] and covariance [d, d] of w."""
    x, y = np.asarray(batch["x"], np.float64), np.asarray(batch["y"], np.float64)[:, 0]
    noise = noise_std**2 * likelihood_temperature
    precision = x.T @ x / noise + np.eye(x.shape[1]) / prior_std**2
    return np.linalg.solve(precision, x.T @ y / noise), temperature * np.linalg.inv(precision)


def p_values(draws: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> tuple[float, float]:
    """p of independent draws [n, d] being N(mean, covariance), by their mean and covariance.

    The mean by chi^2 = n |L^-1 (average - mean)|^2 with d degrees of freedom; the covariance by the
    likelihood ratio against any other about the same mean, n (tr S - log det S - d) with d (d + 1)
    / 2, S = L^-1 scatter L^-T / n.
    """
    n, d = draws.shape
    white = np.linalg.solve(np.linalg.cholesky(covariance), (draws - mean).T).T
    by_mean = scipy.stats.chi2.sf(n * np.sum(white.mean(0) ** 2), d)
    S = white.T @ white / n
    ratio = n * (np.trace(S) - np.linalg.slogdet(S)[1] - d)
    return by_mean, scipy.stats.chi2.sf(ratio, d * (d + 1) / 2)
