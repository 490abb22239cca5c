"""DivDis: heads whose predictions on unlabelled data are independent of each other."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from uncertainty.types import Latent, Likelihood, Metrics, Objective, Together


def divdis(
    weight: float = 10.0,
    prior_weight: float = 10.0,
    prior: Sequence[float] | None = None,
    stream: str | None = "unlabelled",
) -> Objective:
    """nll + weight mean_{i<j} I_ij + prior_weight mean_i KL(q_i || prior).

    Source: Lee et al. 2023, "Diversify and disambiguate", section 3, and their code. On a batch of
    unlabelled inputs, with p_i(x) [K] the probabilities of function i,

      q_i  = mean_x p_i(x)
      I_ij = sum_kl J_kl log(J_kl / (q_ik q_jl)),  J = mean_x p_i(x) p_j(x)^T

    I is at least 0, and 0 for independent predictions; so functions that agree on the training data
    are led apart where the unlabelled data allow it, and the second term keeps each from one class
    for all. The default weights are those of the code.

    Difference from the code: the prior is given; there it is the mean prediction of all functions
    for the labelled batch, the same where labels are fitted and as frequent as the prior says.

    The metrics `mutual_information` and `prior_kl` are the mean of I_ij and of the KL.

    Args:
      weight, prior_weight: at least 0.
      prior: of the classes, [K]; uniform by default, as for balanced training data.
      stream: of the batch (`data.streams`), without labels; None for the batch itself.

    Raises:
      ValueError: a negative weight, a prior that is no distribution, or (when used) a likelihood
        that is not one of exclusive classes, another number of them.
    """
    for field, value in (("weight", weight), ("prior_weight", prior_weight)):
        if not value >= 0:
            raise ValueError(f"{field}: {value}; at least 0")
    if prior is not None and not (min(prior) > 0 and abs(sum(prior) - 1) < 1e-6):
        raise ValueError(f"prior: {list(prior)}; positive numbers whose sum is 1")

    def loss(
        likelihood: Likelihood, latent: Latent, key: jax.Array, step: jax.Array | int
    ) -> tuple[jax.Array, Metrics]:
        log_p = likelihood.of_classes("divdis")(latent, key)  # [N, B, K]
        N, B, K = log_p.shape
        if prior is not None and len(prior) != K:
            raise ValueError(f"objective.prior: {len(prior)} probabilities for {K} classes")
        p = jnp.exp(log_p)
        q = p.mean(1)
        i, j = jnp.triu_indices(N, 1)
        joint = jnp.einsum("nbk,nbl->nkl", p[i], p[j]) / B
        ratio = _log(joint) - _log(q)[i][:, :, None] - _log(q)[j][:, None, :]
        information = jnp.mean(jnp.sum(joint * ratio, axis=(1, 2)))
        of_classes = jnp.full(K, 1 / K) if prior is None else jnp.asarray(prior)
        apart = jnp.sum(q * (_log(q) - jnp.log(of_classes)), axis=1)
        value = weight * information + prior_weight * jnp.mean(apart)
        return value, dict(mutual_information=information, prior_kl=apart.mean())

    return Objective("divdis", together=Together(loss, stream))


def _log(p: jax.Array) -> jax.Array:
    """log p, finite with a finite gradient where p underflows."""
    return jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny))
