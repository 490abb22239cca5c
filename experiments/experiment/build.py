"""From a config to everything that training and evaluation share, refused early if it is wrong."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments import evaluators
from experiments.data.loader import Batch, batches, with_context
from experiments.data.source import Source
from experiments.experiment import config as config_lib
from experiments.experiment import initialise as pretrained
from experiments.experiment.check import (
    batch_shapes,
    check_batches,
    check_noise,
    check_update,
    has_posterior,
)
from experiments.experiment.load import load_data, load_validation, warn_of_data
from experiments.runtime import execution, writers
from uncertainty import build
from uncertainty.build import ConfigError
from uncertainty.inference import executors
from uncertainty.types import Inference, Model, Stage, State

logger = logging.getLogger(__name__)

CONTEXT = 0x636F6E74  # added to the seed


class Experiment(NamedTuple):
    """What a config stands for."""

    config: dict[str, Any]
    source: Source  # training data
    validation: Source | None
    context: Source | None  # other data, where functions are compared
    mesh: Mesh
    model: Model
    inference: Inference
    shapes: State  # ShapeDtypeStructs with shardings
    shardings: State
    stages: list[tuple[str, Stage]]  # what follows training
    final_shapes: State  # after it

    def example(self, batch_size: int = 1) -> jax.Array:
        """Zeros of the shape of an input batch."""
        return jnp.zeros((batch_size, *self.source.shape), jnp.float32)

    def batches(self, start: int) -> Iterator[tuple[int, Batch]]:
        """(step, batch) of training from step `start` on, this process's share, without end."""
        config = self.config
        share = dict(
            batch_size=config["batch_size"],
            start_step=start,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        stream = batches(
            self.source, seed=config["seed"], augment=config["data"]["augment"], **share
        )
        if self.context is None:
            return stream
        seed = (config["seed"] + CONTEXT) % 2**64  # an order of its own, even of the same set
        return with_context(stream, batches(self.context, seed=seed, **share))

    def init(self) -> State:
        """The state at step 0, a function of the config's seed."""
        config, shape = self.config, self.source.shape
        if config["pretrained"]:
            pretrained.check(config, shape, self.shapes, required=True)
        state = self.inference.init(jax.random.key(config["seed"]), self.example())
        if config["pretrained"]:
            state = pretrained.load(config, shape, state, build.optimiser(config))
        return execution.place(state, self.shardings)


def setup(
    config: Mapping[str, Any], source: Source | None = None, evaluated: bool = True
) -> Experiment:
    """Builds an experiment; everything is checked by tracing before anything is compiled.

    Args:
      config: of a run.
      source: stands for the training data, as `read_description` gives it; for evaluation.
      evaluated: whether the run will be evaluated, so that the evaluators' data are checked too.

    Raises:
      ConfigError: names the field, the value and what is allowed.
      ValueError: data that cannot be trained on.
    """
    execution.prepare()
    config = {"pretrained": {}, **config_lib.plain(config)}  # runs of before have none
    config_lib.check(config)
    model = build.model(config)
    inference = build.inference(config, model, num_examples=1)  # refused early if it is wrong
    mesh = execution.make_mesh(config["mesh"])
    execution.check_executor(config, inference, mesh)
    check_batches(config, mesh)
    validation = context = None
    if source is None:
        if config["logging"]["tensorboard"]:
            writers.require_tensorboard()
        source, validation, context = load_data(config)
        warn_of_data(config, source)
    inference = build.inference(config, model, num_examples=max(len(source), 1))
    built = evaluators.build_all(config["evaluators"], source.task)
    if len(source) and evaluated:
        evaluators.check_data(built, source)
    one, many = (batch_shapes(source, n) for n in (1, config["evaluation"]["batch_size"]))
    x = one["x"]
    predict = execution.on_mesh(inference.predict, mesh, particles=False)
    try:
        shapes = jax.eval_shape(inference.init, jax.eval_shape(jax.random.key, 0), x)
        latent = jax.eval_shape(predict, shapes, many["x"])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{error} (with inputs of shape {source.shape})") from error
    execution.check_divides("inference.size", shapes.key.shape[0], mesh, "particle")
    if source.outputs != latent.mean.shape[-1]:
        raise ConfigError(
            f"head.outputs: {latent.mean.shape[-1]}, but {source.name} has {source.outputs} "
            + ("classes" if source.task == "classification" else "real outcomes")
        )
    discrete = model.likelihood.log_probs is not None
    if discrete != (source.task == "classification"):
        raise ConfigError(
            f"likelihood: {config['likelihood']!r} is for "
            f"{'classes' if discrete else 'real outcomes'}, but {source.name} is for {source.task}"
        )
    if config["on_fault"] == "freeze" and not inference.separable:
        raise ConfigError("on_fault: 'freeze' is for particles by themselves; these interact, so a "
                          "fault of one is one of all")  # fmt: skip
    over = executors.mapping(config["inference"].get("executor", "auto"))
    check_noise(config, model)
    sizes = dict(train=max(len(source), 1), validation=1)
    stages = build.stages(config, model, over, sizes)
    if len(source) and any(s.data == "validation" for _, s in stages):
        validation = validation or load_validation(config, source)
        stages = build.stages(config, model, over, {**sizes, "validation": len(validation)})
    if not stages and "precision" not in shapes.collections and has_posterior(model, shapes, x):
        logger.warning(
            "the head has a posterior that nothing fits, so its predictions have no variance; set "
            "stages=(dict(name='laplace'),)"
        )
    final = shapes
    if len(source):
        if config["pretrained"]:
            pretrained.check(config, source.shape, shapes)
        check_update(config, inference, shapes, source, mesh)
    for i, (_, stage) in enumerate(stages):
        try:
            final = jax.eval_shape(stage.begin, final, x)
            final = jax.eval_shape(stage.update, final, one)
            final = jax.eval_shape(stage.finish, final, x)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"stages[{i}]: {error}") from error
        execution.check_divides(f"stages[{i}].size", final.key.shape[0], mesh, "particle")
    try:
        shardings = execution.state_shardings(shapes, mesh, config["sharding"])
        final = placed(final, execution.state_shardings(final, mesh, config["sharding"]))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    shapes = placed(shapes, shardings)
    return Experiment(
        config, source, validation, context, mesh, model, inference, shapes, shardings, stages,
        final,
    )  # fmt: skip


def placed(shapes: State, shardings: State) -> State:
    """Shapes that know where their arrays go."""
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings
    )
