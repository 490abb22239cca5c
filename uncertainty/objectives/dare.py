"""DARE: weights grow as long as the training data are fitted well enough."""

import jax
import jax.numpy as jnp

from uncertainty.types import Aux, Batch, Collections, Model, Objective, Own, Params

EPSILON = 1.1920929e-07  # added to squares, as in the reference code


def dare(threshold: float, weight: float = 1.0) -> Objective:
    """nll - weight [nll <= threshold] mean_k log(w_k^2 + 1.2e-7), over all weights of a network.

    Source: de Mathelin et al. 2023, "Deep anti-regularized ensembles provide reliable
    out-of-distribution uncertainty quantification", and the class of that name in the authors' code
    for the mean over weights and the constant. Members, the particles here, that fit the training
    data equally well are pushed to large weights in directions that the data leave open, where
    their predictions then differ. The nll is the mean over the batch (and over the members of one
    network), in nats: with targets and a Gaussian of variance s^2 it is E / (2 s^2) +
    log(2 pi s^2) / 2 for the squared error E, which the threshold of the paper is of.

    The metrics `anti_regularised` and `log_square` are [nll <= threshold] and the mean logarithm.

    Args:
      threshold: tau, such as the nll on validation data of a network that is trained alone.
      weight: at least 0; 1 in the code.

    Raises:
      ValueError: a negative weight, or (when used) a batch without labels.
    """
    if not weight >= 0:
        raise ValueError(f"weight: {weight}; at least 0")

    def loss(
        model: Model,
        params: Params,
        collections: Collections,
        batch: Batch,
        key: jax.Array,
        own: Own,
    ) -> tuple[jax.Array, Aux]:
        if "y" not in batch:
            raise ValueError("objective: 'dare' needs labels, an entry 'y' in the batch")
        key_forward, key_likelihood = jax.random.split(key)
        latent, new, auxiliary = model.forward(
            params, collections, batch["x"], key_forward, train=True
        )
        nll = model.likelihood.nll(latent, batch["y"], key_likelihood)
        leaves = jax.tree.leaves(params)
        logs = sum(jnp.sum(jnp.log(EPSILON + jnp.square(w))) for w in leaves)
        logs = logs / sum(w.size for w in leaves)
        fits = (jnp.mean(nll) <= threshold).astype(nll.dtype)
        total = jnp.mean(nll) - weight * fits * logs
        return total, Aux(new, nll, dict(anti_regularised=fits, log_square=logs), auxiliary)

    return Objective("dare", loss=loss)
