"""Wide residual networks."""

import functools
from typing import Any

import flax.linen as nn
import jax

from uncertainty.backbones.inputs import check_images
from uncertainty.layers.residual import ConvModule, PreActivationBlock, Stage, global_mean
from uncertainty.types import Backbone


class WideResNet(ConvModule, Backbone):
    """Images x [M or 1, B, H, W, C] -> features [M or 1, B, 64 k], means over space.

    WRN-n-k of Zagoruyko & Komodakis (2016): a convolution of 16 filters, three stages of
    (n - 4) / 6 pre-activation blocks with 16 k, 32 k and 64 k filters, then norm and ReLU; no
    biases in convolutions unless `norm=None`. WRN-28-10 has 36,479,194 parameters with a dense head
    of 10.

    Differences from the paper, all as in uncertainty-baselines: projections see the block's input
    before its norm; `residual_dropout` follows the first convolution of a block, before its norm.

    Attributes:
      depth: n = 6 i + 4.
      width_multiplier: k.
      width: filters of the first convolution, 16; stages have k, 2 k and 4 k times as many.
      residual_dropout: dropout inside blocks only, as in the paper; otherwise around every
        convolution, which with `filterwise_dropout` is the "improved" Monte Carlo dropout of
        uncertainty-baselines.
      remat: recompute each block in the backward pass instead of keeping its activations.
      conv, norm, dropout, filterwise_dropout, padding, dtype: see `ConvModule`.

    Raises:
      ValueError: an invalid depth, a multiplier or width below 1, or an input that is not images.
    """

    depth: int = 28
    width_multiplier: int = 10
    residual_dropout: bool = True
    width: int = 16
    remat: bool = False

    def __post_init__(self):
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"depth: {self.depth}; allowed 6 i + 4: 10, 16, 22, 28, 34, 40, ...")
        if self.width_multiplier < 1:
            raise ValueError(f"width_multiplier: {self.width_multiplier}; allowed at least 1")
        if self.width < 1:
            raise ValueError(f"width: {self.width}; allowed at least 1")
        super().__post_init__()

    @property
    def sizes(self) -> dict[str, Any]:
        """The fields that set the numbers of features, with their values for None."""
        return dict(width=self.width)

    @property
    def input_layers(self) -> tuple[str, ...]:
        """Paths of layers whose input is x, or a flattened image."""
        return ("stem",)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        check_images(x)
        x = self.convolve(x.astype(self.dtype), "stem", self.width)
        if not self.residual_dropout:
            x = self.drop(x, "dropout", train)
        for i in range(3):
            block = functools.partial(
                PreActivationBlock,
                features=self.width * self.width_multiplier * 2**i,
                residual_dropout=self.residual_dropout,
                **self.layers,
            )
            strides = 1 if i == 0 else 2
            stage = Stage(block, (self.depth - 4) // 6, strides, self.remat, name=f"stage{i + 1}")
            x = stage(x, train=train)
        return global_mean(nn.relu(self.normalise(x, "norm", train)))
