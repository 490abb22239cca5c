"""Pooling."""

import jax
import jax.numpy as jnp


def max_pool(x: jax.Array) -> jax.Array:
    """Maxima over windows of 2 x 2 with stride 2: [..., H, W, C] -> [..., ceil(H/2), ceil(W/2), C].

    The same values as `flax.linen.max_pool(x, (2, 2), (2, 2), 'SAME')`, from strided slices, whose
    gradient XLA's CPU backend computes about ten times faster than that of a window reduction.
    Equal maxima share the gradient.
    """
    H, W = x.shape[-3:-1]
    pad = [(0, 0)] * (x.ndim - 3) + [(0, H % 2), (0, W % 2), (0, 0)]
    x = jnp.pad(x, pad, mode="edge") if H % 2 or W % 2 else x
    x = jnp.maximum(x[..., 0::2, :, :], x[..., 1::2, :, :])
    return jnp.maximum(x[..., 0::2, :], x[..., 1::2, :])
