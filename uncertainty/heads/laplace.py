"""Last-layer Laplace: a dense head with the variance of its posterior."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from uncertainty.layers.posterior import LinearPosterior
from uncertainty.types import Head, Latent, Posterior


class Laplace(Head):
    """u = W h + b as `dense.Dense`; var(u) by Laplace over (W, b) ~ N(0, I / prior_precision).

    Source: MacKay 1992; Kristiadi et al. 2020, "Being Bayesian, even just a bit, fixes
    overconfidence in ReLU networks"; Daxberger et al. 2021 ("Laplace redux").

    Parameters have the names and values of `dense.Dense`, so a run with that head can get its
    posterior after training: `python -m experiments.stage --start RUN --workdir NEW
    --config.head.name=laplace.Laplace`.

    Differences from the papers: the curvature is block-diagonal, a block for each class (or, for
    'gaussian', shared by them), without the covariance between classes of the full generalised
    Gauss-Newton matrix, so that with 'softmax' the variances are 1.0 to 4.5 times too small for up
    to 1,000 examples of 10 features, and more so for more: `LinearPosterior` says what that means
    for predictions; prior_precision is given, not chosen by the marginal likelihood.

    Attributes:
      outputs: K.
      prior_precision: of each weight and bias; training with an L2 of prior_precision / N has this
        prior's mode.
      curvature, noise, momentum, num_examples: see `LinearPosterior`.

    Raises:
      ValueError: outputs below 1, a prior_precision that is not positive, or see `LinearPosterior`.
    """

    outputs: int
    prior_precision: float = 1.0
    curvature: str = "softmax"
    noise: float = 1.0
    momentum: float | None = None
    num_examples: int | None = None

    def __post_init__(self):
        if self.outputs < 1:
            raise ValueError(f"outputs: {self.outputs}; at least 1 is needed")
        if not self.prior_precision > 0:
            raise ValueError(f"prior_precision: {self.prior_precision}; a positive one is needed")
        LinearPosterior(self.curvature, self.noise, self.momentum, self.num_examples, parent=None)
        super().__post_init__()

    @property
    def posterior(self) -> Posterior:
        """The posterior of the last layer."""
        return Posterior(self.curvature, self.noise, moving=self.momentum is not None)

    @property
    def affine(self) -> str:
        """The layer of the mean."""
        return "logits"

    @nn.compact
    def __call__(self, h: jax.Array, *, train: bool) -> Latent:  # [M or 1, B, D]
        h = h.astype(jnp.float32)
        kernel_init = nn.initializers.glorot_uniform()
        mean = nn.Dense(self.outputs, kernel_init=kernel_init, name="logits")(h)
        phi = jnp.concatenate([h, jnp.ones_like(h[..., :1])], axis=-1) / self.prior_precision**0.5
        posterior = LinearPosterior(
            self.curvature, self.noise, self.momentum, self.num_examples, name="posterior"
        )
        variance = posterior(phi, mean, train=train)
        return Latent(mean=mean, variance=variance, epistemic=variance)
