"""The shapes of batches, for programs that are traced before there are any."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.data.source import Source


def batch_shapes(source: Source, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """x [B, ...] and y of a batch: classes [B], or real outcomes [B, K]."""
    x = jax.ShapeDtypeStruct((size, *source.shape), jnp.float32)
    if source.task == "classification":
        return {"x": x, "y": jax.ShapeDtypeStruct((size,), jnp.int32)}
    return {"x": x, "y": jax.ShapeDtypeStruct((size, source.outputs), jnp.float32)}


def update_shapes(config: Mapping[str, Any], source: Source) -> dict[str, jax.ShapeDtypeStruct]:
    """Those of a batch of training, with the points of `data.context` if there are any."""
    batch = batch_shapes(source, config["batch_size"])
    return batch | ({"context": batch["x"]} if config["data"].get("context") else {})
