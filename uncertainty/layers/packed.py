"""Dense layers in groups that do not see one another."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Dense(nn.Module):
    """x [..., D] -> [..., K]: group g of K / G outputs sees only group g of D / G inputs.

    Kernel [G, D / G, K / G], each group initialised like a separate dense layer; bias [K].

    Attributes:
      features: K.
      groups: G.
      use_bias, kernel_init, bias_init: as of `flax.linen.Dense`.
      dtype: what is computed in; None for that of the input and parameters.

    Raises:
      ValueError: groups that do not divide D and K.
    """

    features: int
    groups: int = 1
    use_bias: bool = True
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()
    bias_init: Callable[..., jax.Array] = nn.initializers.zeros
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        G, D, K = self.groups, x.shape[-1], self.features
        if G < 1 or D % G or K % G:
            raise ValueError(f"groups: {G} do not divide {D} inputs and {K} features")

        def init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return jax.vmap(lambda k: self.kernel_init(k, shape[1:], jnp.float32))(
                jax.random.split(key, G)
            )

        kernel = self.param("kernel", init, (G, D // G, K // G))
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (K,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = jnp.einsum("...gd,gdk->...gk", x.reshape(*x.shape[:-1], G, -1), kernel)
        y = y.reshape(*y.shape[:-2], K)
        return y if bias is None else y + bias
