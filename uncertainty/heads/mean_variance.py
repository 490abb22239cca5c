"""A mean and an input-dependent variance, for regression."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from uncertainty.types import Head, Latent


class MeanVariance(Head):
    """u ~ N(W phi + b, diag(softplus(V phi + c) + minimum)).

    Source: Lakshminarayanan et al. 2017, section 2.2.1.

    The variance is that of the data given the input, so use it with
    `likelihood=dict(name='gaussian', noise_std=0.)`.

    Attributes:
      outputs: K, the number of targets.
      minimum: smallest variance, in squared units of the normalised data.

    Raises:
      ValueError: outputs below 1.
    """

    outputs: int
    minimum: float = 1e-6

    def __post_init__(self):
        if self.outputs < 1:
            raise ValueError(f"outputs: {self.outputs}; at least 1 is needed")
        super().__post_init__()

    @nn.compact
    def __call__(self, phi: jax.Array, *, train: bool) -> Latent:  # [M or 1, B, D]
        phi = phi.astype(jnp.float32)
        variance = nn.softplus(nn.Dense(self.outputs, name="variance")(phi)) + self.minimum
        return Latent(mean=nn.Dense(self.outputs, name="mean")(phi), variance=variance)
