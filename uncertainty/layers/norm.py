"""Normalisation layers with one signature, `norm(name=..., dtype=...)(x, train=train)`."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uncertainty import cpu
from uncertainty.cpu import rows


class BatchNorm(nn.BatchNorm):
    """Batch normalisation (Ioffe & Szegedy 2015) of [M or 1, B, ..., D] over all axes but the last.

    y = scale (x - mean) / sqrt(var + epsilon) + bias. In training mean and var are those of this
    batch, pooled over members, examples and space, and the averages in the collection `batch_stats`
    move by `average <- momentum average + (1 - momentum) batch`; otherwise the averages are used.

    Differences from the paper: members share one set of statistics, and the variance that enters
    the average is the biased one.

    Attributes:
      momentum: weight of the old average in a step (PyTorch's is 1 - momentum).
      epsilon: added to the variance.
      force_float32_reductions: whether statistics are float32 for any type of x.
      Others as in `flax.linen.BatchNorm`.
    """

    momentum: float = 0.9

    # Callers pass `train` here; Flax's own layer takes `use_running_average`.
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:  # type: ignore[override]
        return super().__call__(x, use_running_average=not train)


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016): scale (x - mean) / sqrt(var + epsilon) + bias.

    Over the last axis [..., D], in float32; the same in both modes. Parameters `scale` and `bias`
    [D].

    Attributes:
      epsilon: added to the variance.
      dtype: of the result; None for that of x and the parameters.
    """

    epsilon: float = 1e-6
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        dtype = self.dtype or jnp.promote_types(x.dtype, scale.dtype)
        y = standardise(x.astype(jnp.float32), self.epsilon)
        return (y * scale + bias).astype(dtype)


def standardise(x: jax.Array, epsilon: float) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon) of the last axis."""
    return rows.standardise(x, epsilon) if cpu.enabled() else jax.nn.standardize(x, epsilon=epsilon)
