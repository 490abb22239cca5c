"""Negative correlation learning: regression whose errors are to cancel in the mean."""

import jax
import jax.numpy as jnp

from uncertainty.types import Latent, Likelihood, Metrics, Objective, Together


def negative_correlation(weight: float = 0.5) -> Objective:
    """nll - weight / 2 mean_n sum_k (f_n - f)^2, with f the mean of all functions f_n.

    Source: Liu & Yao 1999, "Ensemble learning via negative correlation", eq. 4 to 6, for targets
    with noise of variance 1, where the nll is (f_n - y)^2 / 2: the gradient of function n in f_n is
    f_n - y - weight (f_n - f). With weight 0 functions are trained alone; with 1 the loss is
    (f - y)^2 / 2, of their mean alone. With another variance s^2 of the noise, 1 / s^2 is that
    limit. f_n is the mean of the latent. Of logits, and with a variance that the network predicts
    itself, the loss has no minimum for any weight above 0, since the nll grows slower than the
    square; both are refused.

    The metric `variance` is mean_x sum_k of the variance over functions.

    Args:
      weight: lambda, at least 0.

    Raises:
      ValueError: a negative weight, or (when used) a likelihood of classes or a head that predicts
        a variance.
    """
    if not weight >= 0:
        raise ValueError(f"weight: {weight}; at least 0")

    def loss(
        likelihood: Likelihood, latent: Latent, key: jax.Array, step: jax.Array | int
    ) -> tuple[jax.Array, Metrics]:
        if likelihood.moments is None:
            raise ValueError(
                "objective: 'negative_correlation' needs real-valued targets, as with likelihood "
                "'gaussian'; 'disagreement' is for classes"
            )
        if latent.variance is not None or latent.factors is not None:
            raise ValueError(
                "objective: 'negative_correlation' needs one variance for all inputs, but this "
                "head predicts its own; use dense.Dense and likelihood.noise_std"
            )
        variance = jnp.mean(jnp.sum(jnp.var(latent.mean, axis=0), axis=-1))
        return -0.5 * weight * variance, dict(variance=variance)

    return Objective("negative_correlation", together=Together(loss))
