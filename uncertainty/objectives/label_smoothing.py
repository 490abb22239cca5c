"""Label smoothing: some of the label's probability goes to all classes alike."""

import jax
import jax.numpy as jnp

from uncertainty.types import Batch, Latent, Likelihood, Objective, Own


def label_smoothing(rate: float = 0.1) -> Objective:
    """(1 - a) nll + a mean_k -log p(y = k | u), with a the rate.

    Source: Szegedy et al. 2016, "Rethinking the inception architecture for computer vision",
    section 7: the cross-entropy with (1 - a) one-hot + a / K. The nll that is reported is that of
    the labels as they are. The hyper-parameter `label_smoothing` of a particle takes the rate's
    place.

    Args:
      rate: a.

    Raises:
      ValueError: a rate outside [0, 1), or (when it is used) a likelihood that is not one of
        classes of which one is true.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate: {rate}; at least 0 and below 1")

    def latents(
        likelihood: Likelihood, latent: Latent, batch: Batch, key: jax.Array, own: Own
    ) -> jax.Array:
        if likelihood.log_probs is None or not likelihood.normalised:
            raise ValueError(
                "objective: 'label_smoothing' is for classes of which one is true, as of the "
                "likelihood 'softmax'"
            )
        a = own.hyper.get("label_smoothing", rate)
        K = latent.mean.shape[-1]
        uniform = jnp.full((latent.mean.shape[1], K), 1 / K)
        # By the same draws of u, where there are draws.
        labelled, smooth = (likelihood.nll(latent, y, key) for y in (batch["y"], uniform))
        return (1 - a) * labelled + a * smooth

    return Objective("label_smoothing", latents=latents, reads=("label_smoothing",))
