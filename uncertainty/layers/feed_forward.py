"""The two-layer perceptron of a transformer block."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax


class FeedForward(nn.Module):
    """W1 gelu(W0 x + b0) + b1 on tokens [M or 1, B, T, D].

    GELU is the tanh approximation, as in the published Flax ViT checkpoints. Dropout follows the
    GELU and the output.

    Differences from those: biases start at zero, not at N(0, 1e-12).

    Attributes:
      mlp_dim: features between the two layers.
      dense: factory of both layers.
      dropout: factory, or None.
      dtype: of computation.
    """

    mlp_dim: int
    dense: Callable[..., nn.Module] = nn.Dense
    dropout: Callable[..., nn.Module] | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        layer = functools.partial(
            self.dense,
            use_bias=True,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
        )
        y = nn.gelu(layer(features=self.mlp_dim, name="dense0")(x), approximate=True)
        if self.dropout is not None:
            y = self.dropout(name="dropout0")(y, train=train)
        y = layer(features=x.shape[-1], name="dense1")(y)
        if self.dropout is not None:
            y = self.dropout(name="dropout1")(y, train=train)
        return y
