"""Residual networks, version 1, for CIFAR and for ImageNet."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from uncertainty.backbones.inputs import check_images
from uncertainty.layers.residual import (
    BasicBlock,
    BottleneckBlock,
    ConvModule,
    Stage,
    Stem,
    global_mean,
)
from uncertainty.types import Backbone


class _Shape(NamedTuple):
    block: type[BasicBlock]
    stages: tuple[int, ...]  # blocks in each
    width: int  # of the first stage
    imagenet: bool  # which stem


_SHAPES = {n: _Shape(BasicBlock, (n // 6,) * 3, 16, False) for n in (8, 14, 20, 32, 44, 56, 110)}
_SHAPES |= {
    18: _Shape(BasicBlock, (2, 2, 2, 2), 64, True),
    34: _Shape(BasicBlock, (3, 4, 6, 3), 64, True),
    50: _Shape(BottleneckBlock, (3, 4, 6, 3), 64, True),
    101: _Shape(BottleneckBlock, (3, 4, 23, 3), 64, True),
}


class ResNet(ConvModule, Backbone):
    """Images x [M or 1, B, H, W, C] -> features [M or 1, B, D], means over space.

    Version 1 of He et al. (2016a). Depths 8, 14, 20, 32, 44, 56 and 110 are the CIFAR networks
    (D = 64); 18, 34 (D = 512), 50 and 101 (D = 2048) the ImageNet networks. With `norm=None` the
    convolutions have biases, and at initialisation activations grow with each block.

    Differences from the paper: CIFAR networks project their shortcuts as the ImageNet ones do,
    unless `shortcuts` is 'zero_padding' (with their heads, ResNet-20 has 272,474 parameters by
    option B and 269,722 by option A); bottlenecks have their stride in the 3 x 3 convolution.
    Strided 3 x 3 convolutions and the pooling of the stem use 'SAME' padding, as in
    uncertainty-baselines, unless `padding` is 'symmetric', as in PyTorch.

    Attributes:
      depth: number of convolutions between input and features, plus the dense head.
      width: filters of the first stage, doubled with each stage; None for the paper's.
      shortcuts: where shapes change; 'projection', the paper's option B, or 'zero_padding', its
        option A (see `BasicBlock`), which the CIFAR networks of the paper have.
      remat: recompute each block in the backward pass instead of keeping its activations.
      conv, norm, dropout, filterwise_dropout, padding, dtype: see `ConvModule`. Dropout follows
        the projections, and every ReLU except those that end a block.

    Raises:
      ValueError: an unknown depth, padding or kind of shortcut, a width below 1, or an input that
        is not images.
    """

    depth: int = 20
    width: int | None = None
    shortcuts: str = "projection"
    remat: bool = False

    def __post_init__(self):
        if self.depth not in _SHAPES:
            allowed = ", ".join(map(str, sorted(_SHAPES)))
            raise ValueError(f"depth: {self.depth}; allowed {allowed}")
        if self.width is not None and self.width < 1:
            raise ValueError(f"width: {self.width}; allowed None, or at least 1")
        if self.shortcuts not in ("projection", "zero_padding"):
            raise ValueError(f"shortcuts: {self.shortcuts!r}; allowed 'projection', 'zero_padding'")
        super().__post_init__()

    @property
    def sizes(self) -> dict[str, Any]:
        """The fields that set the numbers of features, with their values for None."""
        return dict(width=self.width or _SHAPES[self.depth].width)

    @property
    def input_layers(self) -> tuple[str, ...]:
        """Paths of layers whose input is x, or a flattened image."""
        return ("stem/conv",)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        check_images(x)
        shape = _SHAPES[self.depth]
        width = self.width or shape.width
        stem = Stem(features=width, imagenet=shape.imagenet, **self.layers, name="stem")
        x = stem(x.astype(self.dtype), train=train)
        for i, depth in enumerate(shape.stages):
            block = functools.partial(
                shape.block,
                features=width * 2**i,
                zero_padding=self.shortcuts == "zero_padding",
                **self.layers,
            )
            strides = 1 if i == 0 else 2
            stage = Stage(block, depth, strides, self.remat, name=f"stage{i + 1}")
            x = stage(x, train=train)
        return global_mean(x)
