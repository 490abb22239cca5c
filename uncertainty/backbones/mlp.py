"""Multi-layer perceptron."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from uncertainty.types import Backbone

ACTIVATIONS = ("celu", "elu", "gelu", "relu", "selu", "sigmoid", "silu", "softplus", "tanh")


class MLP(Backbone):
    """x [M or 1, B, ...] -> features [M or 1, B, widths[-1]]; trailing axes are flattened.

    Every layer is activation(W x + b), followed by dropout if set. The layer of logits belongs to
    the head: 784-200-200-10 is `widths=(200, 200)`.

    Attributes:
      widths: features of each hidden layer; () returns the flattened input.
      activation: one of ACTIVATIONS, in `jax.nn`.
      kernel_init: initialiser of W; He et al. (2015) by default.
      bias_init: initialiser of b.
      input_bias_init: that of the first layer; None for `bias_init`.
      dense: factory of the layers `dense0`, `dense1`, ...
      dropout: factory, or None.
      dtype: of computation and of the features; parameters are float32.

    Raises:
      ValueError: a width below 1, an unknown activation, or an input with fewer than three axes.
    """

    widths: Sequence[int] = (200, 200)
    activation: str = "relu"
    kernel_init: Callable = nn.initializers.he_normal()
    bias_init: Callable = nn.initializers.zeros_init()
    input_bias_init: Callable | None = None
    dense: Callable[..., nn.Module] = nn.Dense
    dropout: Callable[..., nn.Module] | None = None
    dtype: Any = "float32"

    def __post_init__(self):
        if any(width < 1 for width in self.widths):
            raise ValueError(f"widths: {tuple(self.widths)}; allowed at least 1 feature in each")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation: {self.activation!r}; allowed {', '.join(map(repr, ACTIVATIONS))}"
            )
        super().__post_init__()

    @property
    def sizes(self) -> dict[str, Any]:
        """The fields that set the numbers of features, with their values for None."""
        return dict(widths=tuple(self.widths))

    @property
    def input_layers(self) -> tuple[str, ...]:
        """Paths of layers whose input is x, or a flattened image."""
        return ("dense0",)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if x.ndim < 3:
            raise ValueError(f"x: shape {x.shape}; allowed [M or 1, B, F] or more axes")
        x = x.reshape(*x.shape[:2], -1).astype(self.dtype)
        for i, width in enumerate(self.widths):
            first = None if i else self.input_bias_init
            x = self.dense(
                features=width,
                use_bias=True,
                kernel_init=self.kernel_init,
                bias_init=first or self.bias_init,
                dtype=self.dtype,
                name=f"dense{i}",
            )(x)
            x = getattr(jax.nn, self.activation)(x)
            if self.dropout is not None:
                x = self.dropout(name=f"dropout{i}")(x, train=train)
        return x
