"""The shapes of batches, for programs that are traced before there are any."""

import jax
import jax.numpy as jnp

from experiments.data.source import Source


def batch_shapes(source: Source, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """x [B, ...] and y of a batch: classes [B], or real outcomes [B, K]."""
    x = jax.ShapeDtypeStruct((size, *source.shape), jnp.float32)
    if source.task == "classification":
        return {"x": x, "y": jax.ShapeDtypeStruct((size,), jnp.int32)}
    return {"x": x, "y": jax.ShapeDtypeStruct((size, source.outputs), jnp.float32)}
