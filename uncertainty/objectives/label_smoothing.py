"""Label smoothing: part of the label's probability is spread evenly over all classes."""

import jax
import jax.numpy as jnp

from uncertainty.types import Batch, Latent, Likelihood, Objective, Own


def label_smoothing(rate: float = 0.1) -> Objective:
    """(1 - a) nll + a mean_k -log p(y = k | u), with a the rate.

    Source: Szegedy et al. 2016, "Rethinking the inception architecture for computer vision",
    section 7: the cross-entropy with (1 - a) one-hot + a / K. The reported nll is that of the
    unsmoothed labels. A particle's hyper-parameter `label_smoothing` replaces the rate.

    Args:
      rate: a.

    Raises:
      ValueError: a rate outside [0, 1), or (when used) a likelihood that is not one of exclusive
        classes.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate: {rate}; at least 0 and below 1")

    def latents(
        likelihood: Likelihood, latent: Latent, batch: Batch, key: jax.Array, own: Own
    ) -> jax.Array:
        likelihood.of_classes("label_smoothing")
        a = own.hyper.get("label_smoothing", rate)
        K = latent.mean.shape[-1]
        uniform = jnp.full((latent.mean.shape[1], K), 1 / K)
        # With the same draws of u, if any.
        labelled, smooth = (likelihood.nll(latent, y, key) for y in (batch["y"], uniform))
        return (1 - a) * labelled + a * smooth

    return Objective("label_smoothing", latents=latents, reads=("label_smoothing",))
