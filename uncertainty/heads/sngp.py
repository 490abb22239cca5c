"""Spectral-normalised neural Gaussian process: the head, a GP by random Fourier features."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from uncertainty.layers.posterior import LinearPosterior
from uncertainty.layers.random_features import RandomFeatures
from uncertainty.types import Head, Latent, Posterior


class Sngp(Head):
    """u = beta^T phi(h) with random features phi and beta_c ~ N(0, I); var(u) by Laplace.

    Source: Liu et al. 2020, "Simple and principled uncertainty estimation with deterministic deep
    learning via distance awareness". Distance awareness needs features h that keep distances: give
    the backbone `spectral_norm` layers and residual connections.

    In training u is the MAP mean and beta is learned; beta's prior is an L2 of 1 / N on
    `head/(mean/)?logits/kernel` (`optimiser.l2`). The variance [M, B, 1] (or [M, B, K] by class) of
    predictions needs either `stages=(dict(name='laplace'),)`, in which case validation during
    training uses the MAP mean alone, or `momentum`; see `LinearPosterior`. Integrate over it by
    draws or by the likelihood's `mean_field`.

    Differences from the paper: the covariance is shared by the classes unless `curvature` is set
    otherwise, as in the authors' code ('softmax' has one for each class but none between classes,
    which makes its variances too small: see `LinearPosterior`); features are scaled by sqrt(2 / m),
    so that the prior's variance is amplitude^2 whatever m; no bias on the mean.

    Attributes:
      outputs: K.
      features: m, random features.
      length_scale, amplitude, orthogonal: of the kernel; see `RandomFeatures`.
      normalise: layer normalisation without scale and bias of the kernel's inputs. It removes their
        mean and length, so do not use it with few features.
      projection: if given, h is first projected to this many dimensions by a fixed random matrix
        with N(0, 1 / projection) entries, which keeps distances on average.
      use_bias: a bias on the mean, without a prior.
      kernel_init: initialiser of beta [m, K].
      curvature, noise, momentum, num_examples: of the posterior; see `LinearPosterior`.

    Raises:
      ValueError: outputs or projection below 1, or see `RandomFeatures` and `LinearPosterior`.
    """

    outputs: int
    features: int = 1024
    length_scale: float | None = None
    amplitude: float = 1.0
    orthogonal: bool = True
    normalise: bool = True
    projection: int | None = None
    use_bias: bool = False
    kernel_init: Callable = nn.initializers.lecun_normal()
    curvature: str = "gaussian"
    noise: float = 1.0
    momentum: float | None = None
    num_examples: int | None = None

    def __post_init__(self):
        for field in ("outputs", "projection"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field}: {value}; at least 1 is needed")
        # Both are checked here, before anything is traced.
        LinearPosterior(self.curvature, self.noise, self.momentum, self.num_examples, parent=None)
        RandomFeatures(self.features, self.length_scale, self.amplitude, parent=None)
        super().__post_init__()

    @property
    def posterior(self) -> Posterior:
        """The posterior of the last layer."""
        return Posterior(self.curvature, self.noise, moving=self.momentum is not None)

    @nn.compact
    def __call__(self, h: jax.Array, *, train: bool) -> Latent:  # [M or 1, B, D]
        h = h.astype(jnp.float32)
        if self.projection is not None:
            h = h @ self._projection(h.shape[-1], self.projection)
        if self.normalise:
            if h.shape[-1] == 1:
                raise ValueError("normalise: one feature is constant once normalised; set False")
            h = nn.LayerNorm(use_scale=False, use_bias=False, name="norm")(h)
        phi = RandomFeatures(
            self.features, self.length_scale, self.amplitude, self.orthogonal, name="features"
        )(h)
        mean = nn.Dense(
            self.outputs, use_bias=self.use_bias, kernel_init=self.kernel_init, name="logits"
        )(phi)
        posterior = LinearPosterior(
            self.curvature, self.noise, self.momentum, self.num_examples, name="posterior"
        )
        variance = posterior(phi, mean, train=train)
        return Latent(mean=mean, variance=variance, epistemic=variance)

    def _projection(self, D: int, d: int) -> jax.Array:
        def draw() -> jax.Array:
            return jax.random.normal(self.make_rng("params"), (D, d)) / d**0.5

        return self.variable("random_features", "projection", draw).value
