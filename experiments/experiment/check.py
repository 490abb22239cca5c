"""What a config may not ask for: refused by tracing, before anything is compiled."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments.data.source import Source
from experiments.runtime import execution
from uncertainty import build
from uncertainty.build import ConfigError
from uncertainty.types import Inference, Model, State


def batch_shapes(source: Source, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """x [B, ...] and y of a batch: classes [B], or real outcomes [B, K]."""
    x = jax.ShapeDtypeStruct((size, *source.shape), jnp.float32)
    if source.task == "classification":
        return {"x": x, "y": jax.ShapeDtypeStruct((size,), jnp.int32)}
    return {"x": x, "y": jax.ShapeDtypeStruct((size, source.outputs), jnp.float32)}


def update_shapes(config: Mapping[str, Any], source: Source) -> dict[str, jax.ShapeDtypeStruct]:
    """Those of a batch of training, with the points of `data.context` if there are any."""
    batch = batch_shapes(source, config["batch_size"])
    return batch | ({"context": {"x": batch["x"]}} if config["data"].get("context") else {})


def check_update(
    config: Mapping[str, Any], inference: Inference, shapes: State, source: Source, mesh: Mesh
) -> None:
    """Traces a step, of one particle where that is enough, for what it refuses.

    Raises:
      ConfigError: what it refuses.
    """
    if inference.separable:
        shapes = execution.one_particle(shapes)
    batch = update_shapes(config, source)
    try:
        jax.eval_shape(execution.on_mesh(inference.update, mesh, particles=False), shapes, batch)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"inference: {error}") from error


def check_noise(config: Mapping[str, Any], model: Model) -> None:
    """Raises ConfigError where a head's posterior is not that of the likelihood."""
    head, spec, field = build.network(config).head, config["likelihood"], "head"
    if hasattr(head, "mean"):  # of HetSNGP
        head, field = head.mean(outputs=head.outputs), "head.mean"
    if not hasattr(head, "curvature"):
        return
    if model.likelihood.moments is None:
        name = spec if isinstance(spec, str) else spec["name"]
        if head.curvature not in ("gaussian", name):  # 'gaussian' is SNGP's choice for all
            raise ConfigError(
                f"{field}.curvature: {head.curvature!r}, but the likelihood is {name!r}; allowed "
                f"{name!r}, 'gaussian'"
            )
        return
    variance = (1.0 if isinstance(spec, str) else spec.get("noise_std", 1.0)) ** 2
    if head.curvature != "gaussian":
        raise ConfigError(f"{field}.curvature: {head.curvature!r}; real outcomes need 'gaussian'")
    if not variance or abs(head.noise / variance - 1) > 1e-6:
        raise ConfigError(
            f"{field}.noise: {head.noise}, but likelihood.noise_std^2 is {variance:g}; the "
            "posterior needs the likelihood's, above 0"
        )


def has_posterior(model: Model, shapes: State, x: jax.Array) -> bool:
    """Whether a layer of the model would sum over the data for its posterior."""
    params, collections, key = jax.eval_shape(
        lambda s: jax.tree.map(lambda a: a[0], (s.params, s.collections, s.key)), shapes
    )
    forward = functools.partial(model.forward, train=False, mutable=("moments",))
    return "moments" in jax.eval_shape(forward, params, collections, x, key)[1]


def check_batches(config: Mapping[str, Any], mesh: Mesh) -> None:
    """Raises ConfigError where the devices or `accumulate` do not divide a batch."""
    size, accumulate = config["batch_size"], config["inference"].get("accumulate", 1)
    execution.check_divides("batch_size", size, mesh, *execution.BATCH)
    if size % accumulate:
        raise ConfigError(
            f"inference.accumulate: {accumulate} parts do not divide batch_size {size}"
        )
    part = "batch_size / inference.accumulate"
    execution.check_divides(part, size // accumulate, mesh, *execution.BATCH)
    size = config["evaluation"]["batch_size"]
    execution.check_divides("evaluation.batch_size", size, mesh, *execution.BATCH)
