"""Multi-head self-attention whose four projections are replaceable."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uncertainty import cpu
from uncertainty.cpu import heads_first


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V in each of `num_heads` heads of d = D / num_heads features.

    Vaswani et al. (2017), on tokens [M or 1, B, T, D]. Query, key, value and out are dense layers
    with kernels [D, D]; head h reads the features h d ... (h + 1) d of the first three.

    Attributes:
      num_heads: must divide D.
      dense: factory of the four projections.
      dtype: of computation; the softmax is float32.

    Raises:
      ValueError: `num_heads` does not divide D.
    """

    num_heads: int
    dense: Callable[..., nn.Module] = nn.Dense
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        D = x.shape[-1]
        if D % self.num_heads:
            raise ValueError(f"num_heads: {self.num_heads} does not divide the {D} features")
        project = functools.partial(
            self.dense,
            features=D,
            use_bias=True,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
        )
        projections = (project(name=name)(x) for name in ("query", "key", "value"))
        # Broadcast since perhaps not all of them have made members.
        query, key, value = jnp.broadcast_arrays(
            *(y.reshape(*y.shape[:-1], self.num_heads, D // self.num_heads) for y in projections)
        )
        y = attend(query, key, value)
        return project(name="out")(y.reshape(*y.shape[:-2], D))


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """softmax(Q K^T / sqrt(d)) V, of [M, B, T, heads, d]."""
    if cpu.enabled():
        return heads_first.attend(query, key, value)
    # Mapped over M, not folded with B: a batch sharded over devices stays where it is.
    return jax.vmap(jax.nn.dot_product_attention)(query, key, value)
