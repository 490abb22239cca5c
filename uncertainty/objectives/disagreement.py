"""Disagreement of functions on unlabelled data, by a distance between their predictions."""

import jax
import jax.numpy as jnp

from uncertainty.types import Latent, Likelihood, Metrics, Objective, Together

KINDS = ("kl", "l1", "l2", "std")


def disagreement(
    kind: str = "l1", weight: float = 1.0, stream: str | None = "unlabelled"
) -> Objective:
    """nll + weight mean_x (1 - d(x)), with d(x) in [0, 1] how far the predictions are apart.

    These are our own forms. The literature (such as Scimeca et al. 2023, "Shortcut bias mitigation
    via ensemble diversity using diffusion probabilistic models") compares pairwise divergences, L1,
    L2 and terms of the variance, in forms that could not be read. Ours are bounded, so that no pair
    is driven apart without end at the cost of the likelihood:

      l1   mean_{i<j} 1/2 sum_k |p_ik - p_jk|, the total variation
      l2   mean_{i<j} 1/2 sum_k (p_ik - p_jk)^2, which is the variance over the functions, summed
           over classes, with N - 1 in its denominator
      std  the square root of l2, whose gradient does not vanish where functions agree
      kl   mean_{i<j} 1 - exp(-(KL(p_i || p_j) + KL(p_j || p_i)) / 2)

    The metric `disagreement` is the mean of d.

    Args:
      kind: one of KINDS.
      weight: at least 0.
      stream: of the batch (`data.streams`), without labels; None for the batch itself.

    Raises:
      ValueError: an unknown kind, a negative weight, or (when used) a likelihood that is not one of
        exclusive classes.
    """
    if kind not in KINDS:
        hint = "; the variance over functions is 'l2'" * (kind == "variance")
        raise ValueError(f"kind: {kind!r}; one of {', '.join(map(repr, KINDS))}{hint}")
    if not weight >= 0:
        raise ValueError(f"weight: {weight}; at least 0")

    def loss(
        likelihood: Likelihood, latent: Latent, key: jax.Array, step: jax.Array | int
    ) -> tuple[jax.Array, Metrics]:
        apart = jnp.mean(distance(likelihood.of_classes("disagreement")(latent, key), kind))
        return weight * (1 - apart), dict(disagreement=apart)

    return Objective("disagreement", together=Together(loss, stream))


def distance(log_p: jax.Array, kind: str) -> jax.Array:
    """d(x) [B] of log-probabilities [N, B, K]."""
    p = jnp.exp(log_p)
    if kind in ("l2", "std"):
        variance = jnp.sum(jnp.var(p, axis=0, ddof=1), axis=-1)
        return variance if kind == "l2" else jnp.sqrt(variance + 1e-12)  # a finite gradient at 0
    i, j = jnp.triu_indices(len(p), 1)
    if kind == "l1":
        return jnp.mean(0.5 * jnp.sum(jnp.abs(p[i] - p[j]), axis=-1), axis=0)
    both = 0.5 * jnp.sum((p[i] - p[j]) * (log_p[i] - log_p[j]), axis=-1)
    return jnp.mean(-jnp.expm1(-both), axis=0)
