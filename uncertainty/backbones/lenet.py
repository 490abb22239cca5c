"""LeNet-5 in the two variants in use."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from uncertainty.backbones.inputs import check_images
from uncertainty.layers.conv import Conv
from uncertainty.layers.pool import max_pool
from uncertainty.types import Backbone


class LeNet5(Backbone):
    """Images x [M or 1, B, H, W, C] -> features [M or 1, B, widths[-1]]; 84 by default.

    Convolutions 5 x 5 with 6, 16 and 120 filters, the first padded to keep the image size, 2 x 2
    max-pooling after the first two, a dense layer of 84; ReLU after each, then dropout if set. With
    a dense head on 28 x 28 x 1 images and 10 classes:

      padding='VALID'  LeCun et al. (1998) with today's activations: 61,706 parameters
      padding='SAME'   as uncertainty-baselines' MNIST script builds it: 545,546 parameters

    Differences from the paper (1998): ReLU instead of tanh, max-pooling instead of trained
    averages, filters over all channels, a dense head instead of radial basis functions; 28 x 28
    images padded by the convolution.

    Attributes:
      padding: of the second and third convolution.
      widths: filters of the three convolutions, and features of the dense layer.
      conv, dense: factories of `conv0`, `conv1`, `conv2` and `dense0`; kernels start Glorot uniform
        as in Keras.
      dropout: factory, or None.
      dtype: of computation and of the features; parameters are float32.

    Raises:
      ValueError: an unknown padding, widths that are not four positive numbers, or images that are
        too small (VALID needs 25 x 25).
    """

    padding: str = "VALID"
    widths: Sequence[int] = (6, 16, 120, 84)
    conv: Callable[..., nn.Module] = Conv
    dense: Callable[..., nn.Module] = nn.Dense
    dropout: Callable[..., nn.Module] | None = None
    dtype: Any = "float32"

    def __post_init__(self):
        if self.padding not in ("VALID", "SAME"):
            raise ValueError(f"padding: {self.padding!r}; allowed 'VALID', 'SAME'")
        if len(self.widths) != 4 or min(self.widths) < 1:
            raise ValueError(f"widths: {tuple(self.widths)}; allowed four numbers, at least 1 each")
        super().__post_init__()

    @property
    def sizes(self) -> dict[str, Any]:
        """The fields that set the numbers of features, with their values for None."""
        return dict(widths=tuple(self.widths))

    @property
    def input_layers(self) -> tuple[str, ...]:
        """Paths of layers whose input is x, or a flattened image."""
        return ("conv0", "dense0")

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        check_images(x, smallest=25 if self.padding == "VALID" else 1)
        kernel_init = nn.initializers.glorot_uniform()
        x = x.astype(self.dtype)
        paddings = ("SAME", self.padding, self.padding)
        for i, (features, padding) in enumerate(zip(self.widths[:3], paddings, strict=True)):
            x = self.conv(
                features=features,
                kernel_size=(5, 5),
                strides=(1, 1),
                padding=padding,
                use_bias=True,
                kernel_init=kernel_init,
                dtype=self.dtype,
                name=f"conv{i}",
            )(x)
            x = nn.relu(max_pool(x) if i < 2 else x)  # ReLU is increasing: pooling first is cheaper
            x = self._drop(x, f"dropout{i}", train)
        x = self.dense(
            features=self.widths[3],
            use_bias=True,
            kernel_init=kernel_init,
            dtype=self.dtype,
            name="dense0",
        )(x.reshape(*x.shape[:2], -1))
        return self._drop(nn.relu(x), "dropout3", train)

    @nn.nowrap
    def _drop(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        return x if self.dropout is None else self.dropout(name=name)(x, train=train)
