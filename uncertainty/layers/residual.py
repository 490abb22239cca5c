"""The building blocks of convolutional residual networks."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uncertainty.layers.conv import Conv
from uncertainty.layers.norm import BatchNorm

PADDINGS = ("SAME", "symmetric")


def pads(padding: str, size: int) -> Any:
    """One of `PADDINGS` for a window of odd size, as convolutions and pooling take it."""
    return "SAME" if padding == "SAME" else ((size // 2, size // 2),) * 2


class ConvModule(nn.Module, kw_only=True):
    """Fields and steps shared by residual networks and their parts.

    Attributes:
      conv: factory of all convolutions; kernels start He normal.
      norm: factory of all normalisations; None for none, in which case convolutions have biases.
      dropout: factory, or None.
      filterwise_dropout: whether a mask drops whole filters; `dropout` then takes `broadcast_dims`.
      padding: of strided convolutions and pooling; 'SAME', or 'symmetric' as in PyTorch: half the
        window on every side, so that at even sizes the window's centre lies on pixels 0, 2, ...,
        where 'SAME' has it on 1, 3, ....
      dtype: of computation.

    Raises:
      ValueError: another padding.
    """

    conv: Callable[..., nn.Module] = Conv
    norm: Callable[..., nn.Module] | None = BatchNorm
    dropout: Callable[..., nn.Module] | None = None
    filterwise_dropout: bool = False
    padding: str = "SAME"
    dtype: Any = "float32"

    def __post_init__(self):
        if self.padding not in PADDINGS:
            raise ValueError(f"padding: {self.padding!r}; allowed {', '.join(map(repr, PADDINGS))}")
        super().__post_init__()

    @property
    def layers(self) -> dict[str, Any]:
        """The fields above, to pass to a part."""
        fields = ("conv", "norm", "dropout", "filterwise_dropout", "padding", "dtype")
        return {field: getattr(self, field) for field in fields}

    @nn.nowrap
    def convolve(
        self,
        x: jax.Array,
        name: str,
        features: int,
        size: int = 3,
        strides: int = 1,
        padding: str | None = None,
    ) -> jax.Array:
        return self.conv(
            features=features,
            kernel_size=(size, size),
            strides=(strides, strides),
            padding=pads(padding or self.padding, size),
            use_bias=self.norm is None,
            kernel_init=nn.initializers.he_normal(),
            dtype=self.dtype,
            name=name,
        )(x)

    @nn.nowrap
    def normalise(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        return x if self.norm is None else self.norm(name=name, dtype=self.dtype)(x, train=train)

    @nn.nowrap
    def drop(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        if self.dropout is None:
            return x
        options = {"broadcast_dims": (-3, -2)} if self.filterwise_dropout else {}
        return self.dropout(name=name, **options)(x, train=train)


class Stem(ConvModule):
    """The layers before the first stage: CIFAR's 3 x 3, or ImageNet's 7 x 7 and pooling, both / 2.

    ImageNet's convolution pads its input by 3 on each side; `padding` is that of its pooling.
    """

    features: int
    imagenet: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.imagenet:
            x = self.convolve(x, "conv", self.features, 7, 2, "symmetric")
        else:
            x = self.convolve(x, "conv", self.features)
        x = self.drop(nn.relu(self.normalise(x, "norm", train)), "dropout", train)
        return nn.max_pool(x, (3, 3), (2, 2), pads(self.padding, 3)) if self.imagenet else x


class BasicBlock(ConvModule):
    """relu(shortcut + norm(conv(relu(norm(conv(x)))))) with 3 x 3 convolutions (He et al. 2016a).

    The shortcut is the identity if shapes agree, else a strided 1 x 1 convolution and a norm, or
    with `zero_padding` every `strides`-th pixel with channels of zeros on both sides, half of them
    (rounded down) before the others. Dropout follows the inner ReLU and the projection.
    """

    features: int
    strides: int = 1
    zero_padding: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = self.convolve(x, "conv0", self.features, 3, self.strides)
        y = self.drop(nn.relu(self.normalise(y, "norm0", train)), "dropout0", train)
        y = self.normalise(self.convolve(y, "conv1", self.features), "norm1", train)
        return nn.relu(self.shortcut(x, self.features, train) + y)

    @nn.nowrap
    def shortcut(self, x: jax.Array, features: int, train: bool) -> jax.Array:
        if self.strides == 1 and x.shape[-1] == features:
            return x
        if self.zero_padding:
            x, more = x[..., :: self.strides, :: self.strides, :], features - x.shape[-1]
            return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((more // 2, more - more // 2),))
        x = self.convolve(x, "shortcut", features, 1, self.strides)
        return self.drop(self.normalise(x, "shortcut_norm", train), "shortcut_dropout", train)


class BottleneckBlock(BasicBlock):
    """As BasicBlock with convolutions 1 x 1, 3 x 3, 1 x 1; the last has 4 x `features` filters.

    Differences from the paper: the stride is in the 3 x 3 convolution ("v1.5"), not in the first.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = self.convolve(x, "conv0", self.features, 1)
        y = self.drop(nn.relu(self.normalise(y, "norm0", train)), "dropout0", train)
        y = self.convolve(y, "conv1", self.features, 3, self.strides)
        y = self.drop(nn.relu(self.normalise(y, "norm1", train)), "dropout1", train)
        y = self.normalise(self.convolve(y, "conv2", 4 * self.features, 1), "norm2", train)
        return nn.relu(self.shortcut(x, 4 * self.features, train) + y)


class PreActivationBlock(ConvModule):
    """shortcut + conv(relu(norm(conv(relu(norm(x)))))) with 3 x 3 convolutions (He et al. 2016b).

    The shortcut is the identity if shapes agree, else a strided 1 x 1 convolution of x.

    Differences from the paper: the projection sees x, not relu(norm(x)), as in
    uncertainty-baselines.

    Attributes:
      residual_dropout: dropout between the convolutions only; otherwise around every convolution.
    """

    features: int
    strides: int = 1
    residual_dropout: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        def drop_around(y: jax.Array, name: str) -> jax.Array:
            return y if self.residual_dropout else self.drop(y, name, train)

        y = drop_around(nn.relu(self.normalise(x, "norm0", train)), "dropout0")
        y = self.convolve(y, "conv0", self.features, 3, self.strides)
        if self.residual_dropout:
            y = self.drop(y, "dropout", train)
        y = drop_around(nn.relu(self.normalise(y, "norm1", train)), "dropout1")
        y = drop_around(self.convolve(y, "conv1", self.features), "dropout2")
        if self.strides != 1 or x.shape[-1] != self.features:
            x = self.convolve(x, "shortcut", self.features, 1, self.strides)
            x = drop_around(x, "shortcut_dropout")
        return x + y


class Stage(nn.Module):
    """`depth` blocks, `block0`, `block1`, ...; the first takes the strides.

    With `remat`, the backward pass computes each block's activations again.
    """

    block: Callable[..., nn.Module]
    depth: int
    strides: int = 1
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        def run(block: nn.Module, x: jax.Array) -> jax.Array:
            return block(x, train=train)

        for i in range(self.depth):
            block = self.block(strides=self.strides if i == 0 else 1, name=f"block{i}")
            x = (nn.remat(run) if self.remat else run)(block, x)
        return x


def global_mean(x: jax.Array) -> jax.Array:
    """[M or 1, B, H, W, D] -> [M or 1, B, D]."""
    return jnp.mean(x, axis=(-3, -2))
