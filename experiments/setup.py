"""From a config to everything that training and evaluation share, refused early if it is wrong."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments import config as config_lib
from experiments import execution
from experiments.data.source import Source, load
from uncertainty import build
from uncertainty.build import ConfigError
from uncertainty.types import Inference, Model, State


class Experiment(NamedTuple):
    """What a config stands for."""

    config: dict[str, Any]
    source: Source  # training data
    mesh: Mesh
    model: Model
    inference: Inference
    shapes: State  # ShapeDtypeStructs with shardings
    shardings: State

    def example(self, batch_size: int = 1) -> jax.Array:
        """Zeros of the shape of an input batch."""
        return jnp.zeros((batch_size, *self.source.shape), jnp.float32)

    def init(self) -> State:
        """The state at step 0, a function of the config's seed."""
        state = self.inference.init(jax.random.key(self.config["seed"]), self.example())
        return execution.place(state, self.shardings)


def setup(config: Mapping[str, Any]) -> Experiment:
    """Builds an experiment; everything is checked by tracing before anything is compiled.

    Raises:
      ConfigError: names the field, the value and what is allowed.
    """
    execution.prepare()
    config = config_lib.plain(config)
    config_lib.check(config)
    model = build.model(config)
    inference = build.inference(config)
    mesh = execution.make_mesh(config["mesh"])
    accumulate = config["inference"].get("accumulate", 1)
    execution.check_divides("batch_size", config["batch_size"], mesh, "data")
    if config["batch_size"] % accumulate:
        raise ConfigError(
            f"inference.accumulate: {accumulate} parts do not divide batch_size "
            f"{config['batch_size']}"
        )
    execution.check_divides("batch_size / inference.accumulate",
                            config["batch_size"] // accumulate, mesh, "data")  # fmt: skip
    execution.check_divides(
        "evaluation.batch_size", config["evaluation"]["batch_size"], mesh, "data"
    )
    source = load(config["data"]["train"])
    x = jax.ShapeDtypeStruct((1, *source.shape), jnp.float32)
    try:
        shapes = jax.eval_shape(inference.init, jax.random.key(0), x)
        latent = jax.eval_shape(inference.predict, shapes, x)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the network does not fit inputs of shape {source.shape}: {error}"
        ) from error
    P, K = shapes.key.shape[0], latent.mean.shape[-1]
    execution.check_divides("inference.size", P, mesh, "particle")
    if source.outputs != K:
        raise ConfigError(
            f"head.outputs: {K}, but {source.name} has {source.outputs} "
            + ("classes" if source.task == "classification" else "real outcomes")
        )
    discrete = model.likelihood.log_probs is not None
    if discrete != (source.task == "classification"):
        raise ConfigError(
            f"likelihood: {config['likelihood']!r} is for "
            f"{'classes' if discrete else 'real outcomes'}, but {source.name} is for {source.task}"
        )
    try:
        shardings = execution.state_shardings(shapes, mesh, config["sharding"])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    shapes = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings
    )
    return Experiment(config, source, mesh, model, inference, shapes, shardings)
