"""Builds what training and evaluation share from a config, and refuses wrong configs early."""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments.data.description import Described
from experiments.data.examples import batch_shapes
from experiments.data.loader import Batch
from experiments.data.source import Source
from experiments.data.streams import Data
from experiments.evaluators import Evaluator, build_all, check_data
from experiments.experiment import config as config_lib
from experiments.experiment.check import (
    check_batches,
    check_faults,
    check_outputs,
    check_passes,
    check_pretrained,
)
from experiments.experiment.load import (
    check_validation,
    described,
    load_data,
    load_validation,
    traced,
    warn_of_data,
)
from experiments.runtime import execution, writers
from uncertainty import build
from uncertainty.build import ConfigError
from uncertainty.inference import executors
from uncertainty.specs import spec_of
from uncertainty.types import Inference, Latent, Model, Stage, State

logger = logging.getLogger(__name__)


class Experiment(NamedTuple):
    """Everything that a config describes, built once: no other code builds from `config`."""

    config: dict[str, Any]
    data: Data
    mesh: Mesh
    network: nn.Module
    model: Model
    optimiser: Any  # of one particle
    learning_rate: Callable[[int], Any]  # of a step
    executor: str  # one of `executors.NAMES`
    over: Callable[[Callable], Callable]  # maps a function over the particles by that executor
    inference: Inference
    update: execution.Update | None  # of training; None without training data
    stages: list[tuple[str, Stage]]  # run after training
    evaluators: dict[str, Evaluator]
    shapes: State  # ShapeDtypeStructs with shardings
    shardings: State
    final_shapes: State  # after the stages

    @property
    def source(self) -> Source:
        """The training data."""
        return self.data.train

    @property
    def validation(self) -> Source | None:
        """The validation data, or None."""
        return self.data.validation

    def example(self, batch_size: int = 1) -> jax.Array:
        """A batch of zeros as input, for shapes."""
        return jnp.zeros((batch_size, *self.source.shape), jnp.float32)

    def batches(self, start: int) -> Iterator[tuple[int, Batch]]:
        """(step, batch) of training from step `start` on, this process's share, without end."""
        particles = self.shapes.key.shape[0]
        return self.data.batches(start, particles, **execution.share(self.mesh))

    @property
    def put(self) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """Puts a batch of training on the mesh; made once for all batches."""
        return execution.put_batch(self.mesh, self.data.own_examples)

    def rounding(self) -> dict[str, Any]:
        """See `execution.rounding`."""
        return execution.rounding(self.mesh, self.executor)

    def monitor(self, state: State) -> tuple[dict[str, float], str]:
        """The monitors' values for the record, and a short text for the progress line."""
        record, texts = {}, []
        for monitor in self.model.monitors:
            collections = {name: state.collections[name] for name in monitor.collections}
            values, text = monitor.run(execution.host(collections))
            record |= values
            texts.append(text)
        return record, " · ".join(texts)

    def init(self) -> State:
        """The state at step 0, a function of the config's seed."""
        spec, shape = self.config["pretrained"], self.source.shape
        check_pretrained(spec, self.network, shape, self.shapes, required=True)
        state = self.inference.init(jax.random.key(self.config["seed"]), self.example())
        if spec:
            from experiments.experiment import initialise

            initialise.warn(spec, state.key.shape[0], self.source)
            state = initialise.load(spec, self.network, shape, state, self.optimiser)
            state = self.inference.restart(state)
        return execution.place(state, self.shardings)


def setup(
    config: Mapping[str, Any],
    noted: Described | None = None,
    evaluated: bool = True,
    devices: Sequence[jax.Device] | None = None,
) -> Experiment:
    """Builds an experiment; everything is checked by tracing before anything is compiled.

    Args:
      config: of a run.
      noted: the record of the training data (`read_description`), for evaluation without them.
      evaluated: whether the run will be evaluated, so that the evaluators' data are checked too.
      devices: of the mesh, by default all of this machine; to compile alone they need not exist.

    Raises:
      ConfigError: a wrong config; the message names the field, the value and what is allowed.
      ValueError: data that cannot be trained on.

    With `head.outputs=None` the data are read first, and the experiment's config has the number.
    """
    execution.prepare()
    config = full(config)
    config_lib.check(config)
    data = None
    if asks_outputs(config):
        data = read(config) if noted is None else described(config, *noted)
        config = with_outputs(config, data.train.outputs)
    network = build.network(config)
    model = build.model(config, network)
    optimiser, learning_rate = build.optimiser(config), build.schedule(config)
    executor = config["inference"].get("executor", "auto")
    infer = functools.partial(build.inference, config, optimise=optimiser)
    trial = infer(model, num_examples=1)  # raises what does not depend on data before they are read
    mesh = execution.make_mesh(config["mesh"], devices)
    execution.check_executor(executor, trial, mesh)
    check_batches(config, mesh)

    if data is None:
        data = read(config) if noted is None else described(config, *noted)
    source = data.train
    num_examples = data.num_examples if len(source) else 1
    model = model._replace(pixels=data.pixels)
    try:
        inference = infer(model, num_examples=num_examples)
    except ConfigError as error:
        if num_examples is not None:
            raise
        raise ConfigError(
            "data.particles: gives particles different numbers of examples, so their "
            f"posteriors have no one N ({error})"
        ) from error
    evaluators, over = evaluators_of(config, source, evaluated), executors.mapping(executor)

    shapes, latent = initial_shapes(config, inference, mesh, source)
    check_outputs(config, model, latent, source)
    check_faults(config, inference)
    stages = stages_of(config, model, over, num_examples, data.validation)
    check_passes(stages, data)
    warn_of_posterior(stages, model)
    if len(source):
        warn_of_examples(config, num_examples)
    final = shapes_after(stages, shapes, mesh, data)
    try:
        rules = config["sharding"], model.sharding
        shardings = execution.state_shardings(shapes, mesh, *rules)
        shapes = placed(shapes, shardings)
        final = placed(final, execution.state_shardings(final, mesh, *rules))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    update = None
    if len(source):
        check_pretrained(config["pretrained"], network, source.shape, shapes)
        make = functools.partial(execution.update_of, inference, mesh, executor)
        batch = data.shapes(shapes.key.shape[0])
        batch = execution.put_shapes(batch, mesh, data.own_examples)
        update = traced(make, shapes, batch, data)
    return Experiment(
        config=config,
        data=data,
        mesh=mesh,
        network=network,
        model=model,
        optimiser=optimiser,
        learning_rate=learning_rate,
        executor=executor,
        over=over,
        inference=inference,
        update=update,
        stages=stages,
        evaluators=evaluators,
        shapes=shapes,
        shardings=shardings,
        final_shapes=final,
    )


def asks_outputs(config: Mapping[str, Any]) -> bool:
    """Whether the head has as many outputs as the data have classes or targets: `outputs=None`."""
    head = config["head"]
    return isinstance(head, Mapping) and "outputs" in head and head["outputs"] is None


def with_outputs(config: Mapping[str, Any], outputs: int) -> dict[str, Any]:
    """The config of a run on data with so many classes or targets: `outputs=None` is filled in."""
    if not asks_outputs(config):
        return dict(config)
    return {**config, "head": {**config["head"], "outputs": outputs}}


def full(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as a run has it: plain, with the sections that older runs do not have."""
    made = {"pretrained": {}, "objective": {}, **config_lib.plain(config)}
    spec = made["pretrained"]
    if isinstance(spec, Mapping) and "path" in spec:  # {seed} in a path is that of the run
        spec = {**spec, "path": _seeded(spec["path"], made.get("seed"))}
    return {**made, "pretrained": spec}


def _seeded(path: Any, seed: Any) -> Any:
    if isinstance(path, list | tuple):
        return [_seeded(one, seed) for one in path]
    return path.replace("{seed}", str(seed)) if isinstance(path, str) else path


def read(config: Mapping[str, Any]) -> Data:
    """All data of training, see `load_data`; warns of likely mistakes."""
    writers.require(config["logging"])
    data = load_data(config)
    warn_of_data(config, data.train)
    if data.validation is not None:
        return data
    if build.stages_ask(config, "num_validation"):
        return data._replace(validation=load_validation(config, data.train, data.sets))
    if config["data"].get("validation"):
        check_validation(config, data.train, data.sets)
    return data


def evaluators_of(
    config: Mapping[str, Any], source: Source, evaluated: bool
) -> dict[str, Evaluator]:
    """The evaluators of a config; if they will be run, all their data are read once."""
    built = build_all(config["evaluators"], source.task)
    if len(source) and evaluated:
        check_data(built, source)
    return built


def initial_shapes(
    config: Mapping[str, Any], inference: Inference, mesh: Mesh, source: Source
) -> tuple[State, Latent]:
    """The shapes of the state at step 0, and of its predictions for a batch."""
    x = batch_shapes(source, 1)["x"]
    many = batch_shapes(source, config["evaluation"]["batch_size"])["x"]
    predict = execution.on_mesh(inference.predict, mesh, particles=False)
    try:
        shapes = jax.eval_shape(inference.init, jax.eval_shape(jax.random.key, 0), x)
        latent = jax.eval_shape(predict, shapes, many)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{error} (with inputs of shape {source.shape})") from error
    execution.check_divides("inference.size", shapes.key.shape[0], mesh, "particle")
    return shapes, latent


def stages_of(
    config: Mapping[str, Any],
    model: Model,
    over: Callable,
    num_examples: int | None,
    validation: Source | None,
) -> list[tuple[str, Stage]]:
    """The stages of a config; without data, for a validation set of one example."""
    sizes = dict(train=num_examples, validation=1 if validation is None else len(validation))
    return build.stages(config, model, over, sizes)


def warn_of_examples(config: Mapping[str, Any], num_examples: int | None) -> None:
    """Warns of a posterior in the network that is for another number of training examples."""
    head = spec_of(config["head"], "head")
    parts = {"ensemble": config["ensemble"], "head": head, "head.mean": head.get("mean") or {}}
    for field, spec in parts.items():
        declared = spec_of(spec, field).get("num_examples") if spec else None
        if declared is not None and declared != num_examples:
            are = "particles have different numbers" if num_examples is None else num_examples
            logger.warning(
                "%s.num_examples: %s, but the training examples are %s; its prior or precision is "
                "weighted by that number",
                field,
                declared,
                are,
            )


def warn_of_posterior(stages: list[tuple[str, Stage]], model: Model) -> None:
    """Warns if the head has a posterior that neither training nor a stage fits."""
    if not stages and model.posterior is not None and not model.posterior.moving:
        logger.warning(
            "the head has a posterior that nothing fits, so its predictions have no variance; "
            "add a stage that fits it to config.stages (uncertainty/stages)"
        )


def shapes_after(stages: list[tuple[str, Stage]], shapes: State, mesh: Mesh, data: Data) -> State:
    """The shapes of the state after the stages, found by tracing them, which also checks them."""
    one = batch_shapes(data.train, 1)
    final = shapes.replace(opt_state=()) if stages else shapes

    def run(stage: Stage, state: State, x: jax.Array, batch: Batch) -> State:
        state, carry, _ = stage.update(state, stage.begin(state, x), batch)
        return stage.finish(state, carry, x)

    for i, (_, stage) in enumerate(stages):
        batch = data.shapes(final.key.shape[0]) if stage.steps else one
        try:
            final = jax.eval_shape(functools.partial(run, stage), final, one["x"], batch)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"stages[{i}]: {error}") from error
        execution.check_divides(f"stages[{i}].size", final.key.shape[0], mesh, "particle")
    return final


def placed(shapes: State, shardings: State) -> State:
    """Shapes with shardings."""
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings
    )
