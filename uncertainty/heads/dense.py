"""A point estimate of the latent: an affine map of the features."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from uncertainty.types import Head, Latent


class Dense(Head):
    """u = W phi + b, without uncertainty.

    Attributes:
      outputs: K, the number of latents.
      kernel_init: initialiser of W [D, K].
      bias_init: initialiser of b [K].
      dense: the layer itself.

    Raises:
      ValueError: outputs below 1.
    """

    outputs: int
    kernel_init: Callable = nn.initializers.glorot_uniform()
    bias_init: Callable = nn.initializers.zeros_init()
    dense: Callable[..., nn.Module] = nn.Dense

    def __post_init__(self):
        if self.outputs < 1:
            raise ValueError(f"outputs: {self.outputs}; at least 1 is needed")
        super().__post_init__()

    @property
    def affine(self) -> str:
        """The layer of the mean."""
        return "logits"

    @nn.compact
    def __call__(self, phi: jax.Array, *, train: bool) -> Latent:  # [M or 1, B, D]
        affine = self.dense(
            features=self.outputs,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            name="logits",
        )
        return Latent(mean=affine(phi.astype(jnp.float32)))
