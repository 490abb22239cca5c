"""A multilayer perceptron behind the features, for losses of embeddings; it is not kept."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax

from uncertainty.layers.norm import BatchNorm


class Projector(nn.Module):
    """Features [M or 1, B, D] -> [M or 1, B, widths[-1]]: affine, norm and ReLU, ..., affine, norm.

    The default is that of the code of multi-symmetry ensembles (Loh et al. 2023): affine maps
    without biases, each normalised over the batch. It is called in training alone, so averages of
    statistics have no use.

    Attributes:
      widths: of all layers, the last is that of the embedding.
      norm: factory of the normalisations; None for none, with biases instead.
      last: what follows the last affine map: True for a norm, False for nothing, with a bias.

    Raises:
      ValueError: no widths, or one below 1.
    """

    widths: Sequence[int] = (2048, 2048, 128)
    norm: Callable[..., nn.Module] | None = BatchNorm
    last: bool = True

    def __post_init__(self):
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths: {tuple(self.widths)}; at least one, each at least 1")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for i, width in enumerate(self.widths):
            last = i == len(self.widths) - 1
            norm = self.norm if self.last or not last else None
            x = nn.Dense(width, use_bias=norm is None, name=f"dense{i}")(x)
            x = x if norm is None else norm(name=f"norm{i}")(x, train=train)
            x = x if last else nn.relu(x)
        return x
