"""The expectations of the equation: E over u, and the mean 1/PM over members.

p(y | x) = 1/PM sum_{p,m} E_{u ~ N(mu_pm(x), Sigma_pm(x))} [p(y | u)]
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from uncertainty.types import Latent

LIMIT = 2**26  # numbers in one chunk of draws: 256 MB of float32 over all devices


def is_certain(latent: Latent) -> bool:
    """Whether u is a point, so that no integral is needed."""
    return latent.variance is None and latent.factors is None


def sample(latent: Latent, key: jax.Array, samples: int, shared: bool = False) -> jax.Array:
    """u = mean + sqrt(variance) e_K + factors e_R, [S, M, B, K].

    The noise is independent across classes, and across examples unless `shared`; members share it
    (common random numbers), so that differences between members are not sampling noise. Draws come
    in pairs of opposite sign.
    """
    B = 1 if shared else latent.mean.shape[1]
    key_diagonal, key_factors = jax.random.split(key)

    def normal(key: jax.Array, size: int) -> jax.Array:
        half = jax.random.normal(key, (-(-samples // 2), 1, B, size), latent.mean.dtype)
        return jnp.concatenate([half, -half])[:samples]

    deviation = jnp.zeros((), latent.mean.dtype)
    if latent.variance is not None:
        # One variance for all classes still means independent noise for each class.
        classes = latent.mean if latent.projection is None else latent.variance
        # The derivative of a root is infinite at 0, and NaN when multiplied by 0.
        std = jnp.sqrt(jnp.maximum(latent.variance, jnp.finfo(latent.variance.dtype).tiny))
        deviation = std * normal(key_diagonal, classes.shape[-1])
    if latent.factors is not None:
        noise = normal(key_factors, latent.factors.shape[-1])
        deviation = deviation + jnp.einsum("mbkr,sxbr->smbk", latent.factors, noise)
    if latent.projection is not None and not is_certain(latent):
        deviation = jnp.einsum("smbq,mqk->smbk", deviation, latent.projection)
    return jnp.broadcast_to(latent.mean + deviation, (samples, *latent.mean.shape))


def log_expectation(
    log_f: Callable[[jax.Array], jax.Array],
    latent: Latent,
    key: jax.Array,
    samples: int,
    shared: bool = False,
) -> jax.Array:
    """log E_u[f(u)] by Monte Carlo with `samples` draws (see `sample`); exact where u is certain.

    `log_f` maps u [..., M, B, K] to [..., M, B, ...]. With few samples the estimate of the log is
    low by about Var[f] / (2 S E[f]^2) (Jensen). Draws are made in chunks of at most LIMIT numbers,
    in the gradient too.
    """
    if is_certain(latent):
        return log_f(latent.mean)
    # With a projection the noise may have more dimensions than there are classes.
    size = samples * max(latent.mean.size, 0 if latent.variance is None else latent.variance.size)
    divisors = [n for n in range(1, samples + 1) if samples % n == 0]
    chunks = next((n for n in divisors if size <= LIMIT * n), samples)
    if chunks == 1:
        values = log_f(sample(latent, key, samples, shared))
        return jax.nn.logsumexp(values, axis=0) - jnp.log(samples)

    @jax.checkpoint
    def add(total: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        u = sample(latent, jax.random.fold_in(key, i), samples // chunks, shared)
        return jnp.logaddexp(total, jax.nn.logsumexp(log_f(u), axis=0)), None

    start = jnp.full_like(jax.eval_shape(log_f, latent.mean), -jnp.inf)
    return jax.lax.scan(add, start, jnp.arange(chunks))[0] - jnp.log(samples)


def functions(
    latent: Latent, whitened: jax.Array, key: jax.Array, draws: int
) -> tuple[jax.Array, Latent]:
    """Draws of functions: the epistemic part of u, with its correlation between inputs.

    f_s(x) = sqrt(epistemic(x)) w(x) . z_s / |w(x)|, z_s ~ N(0, I_m), which are the same for all
    inputs: the law of a linear map's posterior, f = beta . phi(x), of which w = F phi
    (`layers/posterior.py`) has the correlations, and `epistemic` the scale that the head gave it.

    Args:
      latent: with an epistemic part.
      whitened: w, [M, B, m], or [M, B, K, m] of each class.
      key: of z; equal keys are equal functions, at whichever inputs.
      draws: S.

    Returns:
      mean [S, M, B, K] of each function, and the latent with the rest of the variance, which is
      noise of its own for each input.

    Raises:
      ValueError: the latent has no epistemic part.
    """
    if latent.epistemic is None or latent.variance is None:
        raise ValueError("latent: no epistemic part, so there are no functions to draw")
    length = jnp.sqrt(jnp.sum(whitened**2, axis=-1, keepdims=True))
    unit = whitened / jnp.maximum(length, jnp.finfo(whitened.dtype).tiny)
    z = jax.random.normal(key, (draws, unit.shape[-1], latent.mean.shape[-1]), unit.dtype)
    axes = "mbf,sfk->smbk" if unit.ndim == 3 else "mbkf,sfk->smbk"
    deviation = jnp.sqrt(latent.epistemic) * jnp.einsum(axes, unit, z)
    rest = latent.replace(
        variance=jnp.maximum(latent.variance - latent.epistemic, 0.0), epistemic=None
    )
    return latent.mean + deviation, rest


def mean_field(latent: Latent, factor: float) -> Latent:
    """A point that replaces u, mean / sqrt(1 + factor diag(Sigma)).

    Its sigmoid approximates E[sigmoid(u)] for factor = pi / 8 (MacKay 1992); for the softmax the
    same formula, with a tuned factor, is the mean-field approximation of Lu, Ie & Sha (2020).
    """
    if is_certain(latent):
        return latent
    return Latent(mean=latent.mean / jnp.sqrt(1 + factor * marginal_variance(latent)))


def mixture(log_p: jax.Array) -> jax.Array:
    """log of the mean of the members' probabilities: [M, B, ...] -> [B, ...]."""
    return jax.nn.logsumexp(log_p, axis=0) - jnp.log(log_p.shape[0])


def covariance_root(latent: Latent) -> jax.Array:
    """C [M, B, K, R'] with Sigma = C C^T, for a latent with factors or a projection."""
    columns = [] if latent.factors is None else [latent.factors]
    if latent.projection is not None and latent.variance is not None:
        columns.append(jnp.sqrt(latent.variance)[..., None] * jnp.eye(latent.variance.shape[-1]))
    root = jnp.concatenate(columns, axis=-1)
    if latent.projection is not None:
        root = jnp.einsum("mqk,mbqr->mbkr", latent.projection, root)
    return root


def marginal_variance(latent: Latent) -> jax.Array:
    """diag(Sigma), [M, B, K]."""
    variance = jnp.zeros_like(latent.mean)
    if latent.projection is not None and latent.variance is not None:
        variance = variance + latent.variance @ latent.projection**2
    elif latent.variance is not None:
        variance = variance + latent.variance
    if latent.factors is not None:
        factors = latent.factors
        if latent.projection is not None:
            factors = jnp.einsum("mqk,mbqr->mbkr", latent.projection, factors)
        variance = variance + jnp.sum(factors**2, axis=-1)
    return variance
