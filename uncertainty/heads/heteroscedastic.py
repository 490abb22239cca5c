"""Label noise that depends on the input: HET, HET-XL, and over a GP mean HetSNGP."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from uncertainty.heads.dense import Dense
from uncertainty.types import Head, Latent, Posterior


class Heteroscedastic(Head):
    """u = mu(h) + V(h) e_R + d(h) * e_K, with e_R ~ N(0, I_R) and e_K ~ N(0, I_K).

    Source: Collier et al. 2021, "Correlated input-dependent label noise in large-scale image
    classification" (HET); over `mean=dict(name='sngp.Sngp', ...)` Fortuin et al. 2022 (HetSNGP):

        var(u_c) = noise_weight d_c^2 + mean_weight var_mean,c + |V_c|^2

    V(h) [K, R] and d(h) = softplus(.) + minimum are affine in the features h, which are those of
    the mean. With `efficient`, V(h) = v(h) * V with one V [K, R] for all inputs and v(h) in R^K.
    The likelihood integrates by draws, independent for each class.

    In training an SNGP mean is its MAP value, and noise_weight is not applied: only label noise is
    drawn, with its full variance.

    Differences from edward2's JAX layers: each class has its own diagonal noise (there one draw is
    shared by all classes, which makes it a correlated factor d d^T); the mean's variance is used by
    default (there it is not); draws are shared across the batch in training only (there always).

    Attributes:
      outputs: K.
      rank: R, factors of the covariance; 0 for independent noise alone.
      mean: head of mu, and of its variance if it has one; dense by default.
      efficient: see above.
      learn_temperature: divides u by 0.3 + 2.7 sigmoid(a), a learned from 0. (A fixed temperature
        is the likelihood's.)
      noise_weight, mean_weight: w_het and w_gp of HetSNGP, at prediction.
      minimum: of the standard deviation d.

    Raises:
      ValueError: outputs below 1, a negative rank, weight or minimum.
    """

    outputs: int
    rank: int = 6
    mean: Callable[..., Head] = Dense
    efficient: bool = False
    learn_temperature: bool = False
    noise_weight: float = 1.0
    mean_weight: float = 1.0
    minimum: float = 1e-3

    def __post_init__(self):
        _check(self, "outputs", 1)
        for field in ("rank", "noise_weight", "mean_weight", "minimum"):
            _check(self, field, 0)
        super().__post_init__()

    @property
    def posterior(self) -> Posterior | None:
        """The posterior of the mean, if it has one."""
        posterior = self.mean(outputs=self.outputs, parent=None).posterior
        return posterior and posterior._replace(field="mean")

    @nn.compact
    def __call__(self, h: jax.Array, *, train: bool) -> Latent:  # [M or 1, B, D]
        h = h.astype(jnp.float32)
        latent = self.mean(outputs=self.outputs, name="mean")(h, train=train)
        if latent.factors is not None or latent.projection is not None:
            raise ValueError("mean: this head already has factors; use a dense or GP head")
        deviation, factors = _noise(self, h, self.outputs)
        variance = deviation**2 if train else self.noise_weight * deviation**2
        epistemic = None
        if latent.epistemic is not None:
            epistemic = self.mean_weight * latent.epistemic
        if latent.variance is not None:
            variance = variance + self.mean_weight * latent.variance
        latent = latent.replace(variance=variance, factors=factors, epistemic=epistemic)
        return _tempered(self, latent) if self.learn_temperature else latent


class HeteroscedasticXL(Head):
    """u = W^T (h + V(h) e_R + d(h) * e_D) + b: noise in the D features, not in the K classes.

    Source: Collier et al. 2023, "Massively scaling heteroscedastic classifiers" (HET-XL). The
    parameters of the noise do not grow with K.

    Differences from the paper: V(h) is a dense map of h unless `efficient`.

    Attributes:
      outputs: K.
      rank, efficient, learn_temperature, minimum: as in `Heteroscedastic`; the temperature is
        learned by default, as in the paper.

    Raises:
      ValueError: outputs below 1, or a negative rank or minimum.
    """

    outputs: int
    rank: int = 6
    efficient: bool = True
    learn_temperature: bool = True
    minimum: float = 1e-3

    def __post_init__(self):
        _check(self, "outputs", 1)
        for field in ("rank", "minimum"):
            _check(self, field, 0)
        super().__post_init__()

    @nn.compact
    def __call__(self, h: jax.Array, *, train: bool) -> Latent:  # [M or 1, B, D]
        h = h.astype(jnp.float32)
        M, _, D = h.shape
        logits = nn.Dense(self.outputs, name="logits")
        mean = logits(h)
        deviation, factors = _noise(self, h, D)
        kernel = logits.variables["params"]["kernel"]
        latent = Latent(
            mean=mean,
            variance=deviation**2,
            factors=factors,
            projection=jnp.broadcast_to(kernel, (M, *kernel.shape)),
        )
        return _tempered(self, latent) if self.learn_temperature else latent


def _noise(head: nn.Module, h: jax.Array, size: int) -> tuple[jax.Array, jax.Array | None]:
    """d(h) [M, B, size] and V(h) [M, B, size, R]."""
    deviation = nn.softplus(nn.Dense(size, name="diagonal")(h)) + head.minimum
    if head.rank == 0:
        return deviation, None
    if head.efficient:
        init = nn.initializers.lecun_normal(in_axis=1, out_axis=0)
        factors = head.param("shared_factors", init, (size, head.rank))
        scale = nn.Dense(size, name="factors_scale")(h)
        return deviation, scale[..., None] * factors
    factors = nn.Dense(size * head.rank, name="factors")(h)
    return deviation, factors.reshape(*h.shape[:-1], size, head.rank)


def _tempered(head: nn.Module, latent: Latent) -> Latent:
    """u / temperature, with the temperature as a parameter."""
    a = head.param("temperature", nn.initializers.zeros, ())
    temperature = 0.3 + 2.7 * nn.sigmoid(a)
    scaled = latent.replace(mean=latent.mean / temperature)
    if latent.projection is not None:  # the projection is divided by the temperature
        return scaled.replace(projection=latent.projection / temperature)

    def divide(value: jax.Array | None, by: jax.Array) -> jax.Array | None:
        return None if value is None else value / by

    return scaled.replace(
        variance=divide(latent.variance, temperature**2),
        epistemic=divide(latent.epistemic, temperature**2),
        factors=divide(latent.factors, temperature),
    )


def _check(head: nn.Module, field: str, least: float) -> None:
    value = getattr(head, field)
    if not value >= least:
        raise ValueError(f"{field}: {value}; at least {least} is needed")
