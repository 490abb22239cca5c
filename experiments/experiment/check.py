"""Checks of a config by tracing, before anything is compiled."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
from jax.sharding import Mesh

from experiments.data.source import Source
from experiments.data.streams import Data
from experiments.runtime import execution
from uncertainty.build import ConfigError
from uncertainty.types import Inference, Latent, Model, Stage, State


def check_outputs(config: Mapping[str, Any], model: Model, latent: Latent, source: Source) -> None:
    """Raises ConfigError if the network's predictions do not match the data."""
    classes = source.task == "classification"
    if not source.labelled:
        return
    if source.outputs != latent.mean.shape[-1]:
        raise ConfigError(
            f"head.outputs: {latent.mean.shape[-1]}, but {source.name} has {source.outputs} "
            + ("classes" if classes else "targets")
        )
    discrete = model.likelihood.log_probs is not None
    if discrete != classes:
        raise ConfigError(
            f"likelihood: {config['likelihood']!r} is for "
            f"{'classes' if discrete else 'targets'}, but {source.name} is for {source.task}"
        )


def check_passes(stages: Sequence[tuple[str, Stage]], data: Data) -> None:
    """Raises ConfigError for a pass over examples that not all particles were trained on."""
    for i, (name, stage) in enumerate(stages):
        if stage.passes and stage.data == "train" and not data.all_see_all:
            raise ConfigError(
                f"stages[{i}]: {name!r} passes over all of data.train, but data.particles gives "
                "each particle examples of its own; 'shared' and 'shuffled' give all to each"
            )


def check_faults(config: Mapping[str, Any], inference: Inference) -> None:
    """Raises ConfigError for 'freeze' if particles interact."""
    if config["on_fault"] == "freeze" and not inference.separable:
        raise ConfigError(
            "on_fault: 'freeze' needs independent particles; these interact, so a fault of one "
            "affects all"
        )


def check_pretrained(
    spec: Mapping[str, Any],
    network: nn.Module,
    shape: Sequence[int],
    shapes: State,
    required: bool = False,
) -> None:
    """Raises ConfigError if there is a file of initial parameters and it does not fit."""
    if spec:
        from experiments.experiment import initialise

        initialise.check(spec, network, shape, shapes, required)


def check_batches(config: Mapping[str, Any], mesh: Mesh) -> None:
    """Raises ConfigError if the devices or `accumulate` do not divide a batch."""
    size, accumulate = config["batch_size"], config["inference"].get("accumulate", 1)
    execution.check_divides("batch_size", size, mesh, *execution.BATCH)
    if size % accumulate:
        raise ConfigError(
            f"inference.accumulate: {accumulate} parts do not divide batch_size {size}"
        )
    for name, spec in (config["data"].get("streams") or {}).items():
        field, of_stream = f"data.streams.{name}.batch_size", spec.get("batch_size", size)
        execution.check_divides(field, of_stream, mesh, *execution.BATCH)
    part = "batch_size / inference.accumulate"
    execution.check_divides(part, size // accumulate, mesh, *execution.BATCH)
