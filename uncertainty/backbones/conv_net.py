"""A plain convolutional network: small random functions of images, as in priors of epinets."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from uncertainty.backbones.inputs import check_images
from uncertainty.layers.conv import Conv
from uncertainty.types import Backbone


class ConvNet(Backbone):
    """Images x [M or 1, B, H, W, C] -> features [M or 1, B, D], the last layer flattened.

    Every layer is ReLU(W * x + b) with strides and 'SAME' padding, followed by dropout if set. The
    additive priors of the authors' epinets (`ensembles/epinet.py`) are such networks and an affine
    layer: on CIFAR the default, on ImageNet `channels=(4, 8, 8), kernel_sizes=(10, 10, 3),
    strides=(5, 5, 2)`.

    Attributes:
      channels: filters of each layer.
      kernel_sizes, strides: of each layer, in both directions; one number for all of them.
      kernel_init, bias_init: initialisers of W and b.
      conv: factory of the layers `conv0`, `conv1`, ...
      dropout: factory, or None.
      dtype: of computation and of the features; parameters are float32.

    Raises:
      ValueError: no channels, a number below 1, or lists that differ in length; when called, an
        input that is no batch of images.
    """

    channels: Sequence[int] = (4, 8, 4)
    kernel_sizes: int | Sequence[int] = 5
    strides: int | Sequence[int] = 2
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros_init()
    conv: Callable[..., nn.Module] = Conv
    dropout: Callable[..., nn.Module] | None = None
    dtype: Any = "float32"

    def __post_init__(self):
        if not self.channels or min(self.channels) < 1:
            raise ValueError(
                f"channels: {tuple(self.channels)}; one layer or more, at least 1 each"
            )
        for field in ("kernel_sizes", "strides"):
            each = self._each(field)
            if len(each) != len(self.channels) or min(each) < 1:
                raise ValueError(
                    f"{field}: {each} for {len(self.channels)} layers; a number for each, at least "
                    "1, or one for all"
                )
        super().__post_init__()

    @property
    def sizes(self) -> dict[str, Any]:
        """The fields that set the numbers of features, with their values for None."""
        return dict(channels=tuple(self.channels))

    @property
    def input_layers(self) -> tuple[str, ...]:
        """Paths of layers whose input is x, or a flattened image."""
        return ("conv0",)

    @nn.nowrap
    def _each(self, field: str) -> tuple[int, ...]:
        value = getattr(self, field)
        return (value,) * len(self.channels) if isinstance(value, int) else tuple(value)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        check_images(x)
        x = x.astype(self.dtype)
        layers = zip(self.channels, self._each("kernel_sizes"), self._each("strides"), strict=True)
        for i, (features, size, stride) in enumerate(layers):
            x = self.conv(
                features=features,
                kernel_size=(size, size),
                strides=(stride, stride),
                padding="SAME",
                use_bias=True,
                kernel_init=self.kernel_init,
                bias_init=self.bias_init,
                dtype=self.dtype,
                name=f"conv{i}",
            )(x)
            x = nn.relu(x)
            if self.dropout is not None:
                x = self.dropout(name=f"dropout{i}")(x, train=train)
        return x.reshape(*x.shape[:2], -1)
