"""p(y | u) for classes, for independent labels and for real-valued targets."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from uncertainty import predictive
from uncertainty.types import Latent, Likelihood, Posterior


def softmax(
    temperature: float = 1.0, samples: int = 256, mean_field: float | None = None
) -> Likelihood:
    """Categorical: p(y = k | u) = softmax(u / temperature)_k.

    Labels are integers [B] or probabilities [B, K] (mixup); the latter cost the cross-entropy
    -sum_k y_k log p_k. `nll` raises ValueError for others.

    Args:
      temperature: divides u; above 0.
      samples: Monte Carlo draws of u, in training and evaluation, if the head has a Sigma. In
        training the examples of a batch share them; in evaluation each has its own.
      mean_field: instead of draws, softmax(mean / (temperature sqrt(1 + mean_field variance))) with
        the variance of u / temperature (`predictive.mean_field`); None to draw. pi / 8 in theory;
        SNGP's code uses 20 (CIFAR-10), 7.5 (CIFAR-100) and 1 (ImageNet), for features of amplitude
        sqrt(m / 2) (`layers/random_features.py`).
    """
    _positive(temperature=temperature, samples=samples)
    collapse = _collapse(mean_field, temperature)

    def log_softmax(u: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(u / temperature)

    def log_probs(latent: Latent, key: jax.Array) -> jax.Array:
        return predictive.log_expectation(log_softmax, collapse(latent), key, samples)

    def nll(latent: Latent, labels: jax.Array, key: jax.Array) -> jax.Array:
        def expectation(log_f: Callable[[jax.Array], jax.Array]) -> jax.Array:
            return predictive.log_expectation(log_f, collapse(latent), key, samples, shared=True)

        if _of_class(labels, latent):
            # Only the label's class, so that gradients store little for many draws.
            def log_f(u: jax.Array) -> jax.Array:
                at = jnp.broadcast_to(labels[:, None], (*u.shape[:-1], 1))
                return jnp.take_along_axis(log_softmax(u), at, axis=-1)[..., 0]

            return -expectation(log_f)
        # 0 log 0 = 0: avoids 0 * -inf for a label of probability zero.
        return -jnp.sum(jnp.where(labels == 0, 0.0, labels * expectation(log_softmax)), axis=-1)

    return Likelihood(nll=nll, log_probs=log_probs, posterior=Posterior("softmax", 1.0))


def sigmoid(
    temperature: float = 1.0, samples: int = 256, mean_field: float | None = None
) -> Likelihood:
    """K independent Bernoullis: p(y_k = 1 | u) = sigmoid(u_k / temperature).

    Labels are integers [B] (one class on, the others off) or 0/1 (or soft) targets [B, K]; `nll`
    raises ValueError for others. The nll is -sum_k [y_k log p_k + (1 - y_k) log(1 - p_k)] with
    p_k = E_u[sigmoid(u_k)]: each class is integrated by itself, as in evaluation, so a covariance
    between classes does not enter.
    `log_probs` is log p_k, which does not sum to one over k. Arguments are those of `softmax`.
    """
    _positive(temperature=temperature, samples=samples)
    collapse = _collapse(mean_field, temperature)

    def log_probs(latent: Latent, key: jax.Array) -> jax.Array:
        def log_f(u):
            return jax.nn.log_sigmoid(u / temperature)

        return predictive.log_expectation(log_f, collapse(latent), key, samples)

    def nll(latent: Latent, labels: jax.Array, key: jax.Array) -> jax.Array:
        def log_f(u):  # both log p and log(1 - p), on the same draws of u
            return jax.nn.log_sigmoid(jnp.stack([u, -u], axis=-1) / temperature)

        log_on, log_off = jnp.moveaxis(
            predictive.log_expectation(log_f, collapse(latent), key, samples, True), -1, 0
        )
        if _of_class(labels, latent):
            labels = jax.nn.one_hot(labels, latent.mean.shape[-1])
        return -jnp.sum(labels * log_on + (1 - labels) * log_off, axis=-1)

    assumed = Posterior("sigmoid", 1.0)
    return Likelihood(nll=nll, log_probs=log_probs, normalised=False, posterior=assumed)


def gaussian(noise_std: float = 1.0) -> Likelihood:
    """y = u + noise, noise ~ N(0, noise_std^2 I): p(y) = N(y; mean, Sigma + noise_std^2 I), exact.

    Labels are real, [B, K] or (K = 1) [B], in the units of the data after normalisation. With a
    head that predicts its own variance (`mean_variance`) set `noise_std=0`.

    Args:
      noise_std: standard deviation of the noise, in the units of the normalised targets.

    Raises:
      ValueError: a negative noise_std; in `nll`, 0 if the latents have no variance, or labels of
        another number of targets.
    """
    if not noise_std >= 0:
        raise ValueError(f"noise_std: {noise_std!r} must not be negative")

    def moments(latent: Latent) -> tuple[jax.Array, jax.Array]:
        return latent.mean, predictive.marginal_variance(latent) + noise_std**2

    def nll(latent: Latent, labels: jax.Array, key: jax.Array) -> jax.Array:
        del key
        if not noise_std and latent.variance is None and latent.factors is None:
            raise ValueError(
                "noise_std: 0, but the head predicts no variance in training; set it above 0, or "
                "use a head such as mean_variance.MeanVariance"
            )
        labels = labels[:, None] if labels.ndim == 1 else labels
        K = latent.mean.shape[-1]
        if labels.shape[-1] != K:  # or one target would be that of all outputs
            raise ValueError(
                f"labels: {labels.shape[-1]} targets for {K} outputs; [B, {K}] is needed (for "
                "classes the likelihood is softmax)"
            )
        residual = labels - latent.mean
        if (latent.factors is None and latent.projection is None) or K == 1:
            variance = moments(latent)[1]
            terms = jnp.log(2 * jnp.pi * variance) + residual**2 / variance
            return 0.5 * jnp.sum(terms, axis=-1)
        root = predictive.covariance_root(latent)
        covariance = jnp.einsum("mbkr,mblr->mbkl", root, root)
        if latent.projection is None:
            diagonal = moments(latent.replace(factors=None))[1]
        else:  # all of it is in the root
            diagonal = jnp.full_like(latent.mean, noise_std**2)
        covariance = covariance + diagonal[..., None] * jnp.eye(K)
        factor = jnp.linalg.cholesky(covariance)
        white = jax.lax.linalg.triangular_solve(
            factor, residual[..., None], left_side=True, lower=True
        )[..., 0]
        log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)), axis=-1)
        return 0.5 * (K * jnp.log(2 * jnp.pi) + log_det + jnp.sum(white**2, axis=-1))

    return Likelihood(nll=nll, moments=moments, posterior=Posterior("gaussian", noise_std**2))


def _of_class(labels: jax.Array, latent: Latent) -> bool:
    """Whether labels are classes, integers [B], and not one value for each class, [B, K].

    Raises:
      ValueError: they are neither, and would be broadcast.
    """
    B, K = latent.mean.shape[-2:]
    if labels.shape == (B,) and jnp.issubdtype(labels.dtype, jnp.integer):
        return True
    if labels.shape != (B, K):
        raise ValueError(
            f"labels: {labels.dtype} of shape {labels.shape}; integers [{B}] or probabilities "
            f"[{B}, {K}] are needed"
        )
    return False


def _collapse(factor: float | None, temperature: float) -> Callable[[Latent], Latent]:
    if factor is None:
        return lambda latent: latent
    _positive(mean_field=factor)
    return lambda latent: predictive.mean_field(latent, factor / temperature**2)


def _positive(**fields: float) -> None:
    for name, value in fields.items():
        if not value > 0:
            raise ValueError(f"{name}: {value!r} must be positive")
