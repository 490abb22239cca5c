"""Builds models and inference from a config: the only module that interprets its sections."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn

from uncertainty.model import from_network
from uncertainty.optimisers import optimiser as optimisers
from uncertainty.optimisers.samplers import SamplingTransformation
from uncertainty.specs import (
    ConfigError,
    check_types,
    make,
    nearest,
    partial,
    resolve,
    signature,
    spec_of,
    unknown_field,
)
from uncertainty.types import Inference, Model, Objective, Stage

__all__ = [
    "ConfigError",
    "inference",
    "make",
    "model",
    "nearest",
    "network",
    "optimiser",
    "resolve",
    "schedule",
    "signature",
    "stages",
    "stages_ask",
]


def network(config: Mapping[str, Any]) -> nn.Module:
    """The Flax network of a config's `backbone`, `ensemble` and `head`."""
    return make(
        "ensembles",
        _section(config, "ensemble"),
        "ensemble",
        backbone=make("backbones", _section(config, "backbone"), "backbone"),
        head=make("heads", _section(config, "head"), "head"),
    )


def model(config: Mapping[str, Any], flax_network: nn.Module | None = None) -> Model:
    """The Model of a config's `backbone`, `ensemble`, `head` and `likelihood`.

    Args:
      config: of a run.
      flax_network: the result of `network(config)`, if it exists already.
    """
    likelihood = make("likelihoods", _section(config, "likelihood"), "likelihood")
    module = flax_network or network(config)
    try:
        return from_network(module, likelihood)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def optimiser(config: Mapping[str, Any], field: str = "optimiser") -> Any:
    """The optax transformation of a config's `optimiser`, over the steps of one particle.

    Args:
      config: has both sections.
      field: where the optimiser stands in the whole config, for messages.
    """
    fields = spec_of(_section(config, "optimiser"), field)
    schedule_spec = fields.pop("schedule", "constant")
    common, _ = signature(optimisers.optimiser)
    common -= {"direction", "schedule"}
    own = {key: fields.pop(key) for key in list(fields) if key in common}
    for key in ("weight_decay", "l2", "multipliers"):
        if isinstance(number := own.get(key), int | float):
            raise ConfigError(
                f"{field}.{key}: {number!r}; a list of rules (path pattern, number) is needed, "
                f"such as [['.*', {number!r}]] for all parameters"
            )
    if fields["name"] == "adamw" and not own.get("weight_decay"):
        raise ConfigError(f"{field}.weight_decay: adamw needs it, such as [['.*', 0.01]] for all")
    schedule = make(
        "optimisers.schedules", schedule_spec, f"{field}.schedule", total_steps=_steps_each(config)
    )
    directions = signature(resolve("optimisers.optimiser", fields["name"], field))[0]
    for key in sorted(set(fields) - {"name"} - directions):
        raise unknown_field(field, key, common | {"name", "schedule"} | directions)
    direction = make("optimisers.optimiser", fields, field)
    check_types(optimisers.optimiser, own, field)
    if "learning_rate" not in own:
        raise ConfigError(f"{field}.learning_rate: missing")
    try:
        return optimisers.optimiser(direction, schedule=schedule, **own)
    except ValueError as error:
        raise ConfigError(f"{field}.{error}") from error


def schedule(config: Mapping[str, Any]) -> Callable:
    """step -> learning rate, as the optimiser of this config uses it."""
    spec, each = spec_of(_section(config, "optimiser"), "optimiser"), _steps_each(config)
    multiple = make(
        "optimisers.schedules",
        spec.get("schedule", "constant"),
        "optimiser.schedule",
        total_steps=each,
    )
    own = (lambda step: step) if each == config["steps"] else (lambda step: step % each)
    return lambda step: spec["learning_rate"] * multiple(own(step))


def inference(
    config: Mapping[str, Any],
    network: Model | None = None,
    num_examples: int | None = None,
    optimise: Any = None,
) -> Inference:
    """The Inference of a whole config (plain dicts, not ConfigDicts).

    Args:
      config: has all sections of models and inference.
      network: the result of `model(config)`, if it exists already.
      num_examples: N, the size of the training set; needed for a posterior.
      optimise: the result of `optimiser(config)`, if it exists already.
    """
    spec = spec_of(_section(config, "inference"), "inference")
    arguments = {}
    if "direction" in spec:
        direction = spec.pop("direction")
        arguments["direction"] = partial(
            "inference.directions",
            direction,
            "inference.direction",
            ("over", "target", "accumulate", "objective", "own_examples"),
        )
    if spec.get("collect"):
        arguments["collect"] = make(
            "inference.thinning",
            spec.pop("collect"),
            "inference.collect",
            total_steps=_section(config, "steps"),
        )
    _check_together(config, spec.get("size", 1))
    optimise, network = optimise or optimiser(config), network or model(config)
    arguments |= _learning(config)
    algorithm = _inference(spec, network, optimise, num_examples, **arguments)
    _check_posterior(config, network, optimise, algorithm)
    return algorithm


def _steps_each(config: Mapping[str, Any]) -> int:
    """The steps in which one particle is trained: all, unless the objective trains them in turn."""
    together = _objective(config).together
    return (together and together.steps_each) or _section(config, "steps")


def _check_together(config: Mapping[str, Any], size: int) -> None:
    """Refuses functions to compare that are the same one, or are not trained equally long."""
    together, steps = _objective(config).together, _section(config, "steps")
    if together is None:
        return
    repeated = spec_of(config.get("ensemble") or "single", "ensemble").get("batch_repetitions", 1)
    if repeated > 1:
        raise ConfigError(
            f"ensemble.batch_repetitions: {repeated}, but the objective compares functions, and "
            "repetitions are of one function; use 1"
        )
    if (each := together.steps_each) and size * each != steps:
        raise ConfigError(
            f"steps: {steps}, but objective.steps_each={each} trains {size} particles in "
            f"{size * each} steps"
        )


def _objective(config: Mapping[str, Any]) -> Objective:
    return make("objectives", config.get("objective") or "likelihood", "objective")


def _learning(config: Mapping[str, Any]) -> dict[str, Any]:
    """The objective, and whether particles have their own examples, for training and stages."""
    particles = config.get("data", {}).get("particles", "shared")
    shared = spec_of(particles, "data.particles")["name"] == "shared"
    return dict(objective=_objective(config), own_examples=not shared)


def _check_posterior(
    config: Mapping[str, Any],
    network: Model,
    optimiser: Any,
    algorithm: Inference,
    field: str = "optimiser",
) -> None:
    """Refuses a posterior over parameters for an ensemble that has a variational posterior."""
    fields = dict(
        prior=spec_of(_section(config, "inference"), "inference").get("prior") is not None,
        direction=algorithm.posterior,
        optimiser=isinstance(optimiser, SamplingTransformation),
    )
    defining = [name for name, is_set in fields.items() if is_set]
    if defining and network.variational:
        where = field if defining[0] == "optimiser" else f"inference.{defining[0]}"
        name = spec_of(_section(config, "ensemble"), "ensemble")["name"]
        raise ConfigError(
            f"{where}: defines a posterior over parameters, but ensemble {name!r} already has a "
            "variational posterior; unset it"
        )


def _inference(
    spec: Mapping[str, Any],
    network: Model,
    optimiser: Any,
    num_examples: int | None,
    **arguments: Any,
) -> Inference:
    spec = dict(spec)
    if spec.get("prior") is not None:
        arguments["prior"] = make("priors", spec.pop("prior"), "inference.prior")
    arguments |= dict(model=network, optimiser=optimiser, num_examples=num_examples)
    return make("inference", spec, "inference", **arguments)


def stages(
    config: Mapping[str, Any], network: Model, over: Callable, sizes: Mapping[str, Any]
) -> list[tuple[str, Stage]]:
    """The stages after training, by name and in order.

    A stage with an `optimiser` also gets its learning rate.

    Args:
      config: of a run.
      network: the result of `model(config)`.
      over: executor that maps over the particles.
      sizes: examples of 'train' and of 'validation'.
    """
    spec = spec_of(_section(config, "inference"), "inference")
    alone = {k: v for k, v in spec.items() if k not in ("direction", "collect")}

    def train(optimiser: Any) -> Inference:
        algorithm = _inference(alone, network, optimiser, sizes["train"], **_learning(config))
        _check_posterior(config, network, optimiser, algorithm, f"{field}.optimiser")
        return algorithm

    offered = dict(model=network, over=over, train=train, num_validation=sizes["validation"])
    built = []
    for field, spec, accepted in _stage_specs(config):
        passed, rate = {key: value for key, value in offered.items() if key in accepted}, None
        if "optimiser" in accepted & set(spec):
            section = dict(optimiser=spec.pop("optimiser"), steps=spec.get("steps", 1))
            passed["optimiser"] = optimiser(section, f"{field}.optimiser")
            rate = schedule(section)
        stage = make("stages", spec, field, **passed)
        built.append((spec["name"], stage._replace(learning_rate=rate)))
    return built


def stages_ask(config: Mapping[str, Any], name: str) -> bool:
    """Whether a stage of a config takes the argument `name`, such as 'num_validation'."""
    return any(name in accepted for _, _, accepted in _stage_specs(config))


def _stage_specs(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], set[str]]]:
    """For each stage its field in the config, its spec, and the names of all its arguments."""
    specs = config.get("stages", ())
    if not isinstance(specs, list | tuple):
        raise ConfigError(f"stages: {specs!r} is not a list, such as (dict(name='laplace'),)")
    for i, spec in enumerate(specs):
        spec, field = spec_of(spec, f"stages[{i}]"), f"stages[{i}]"
        yield field, spec, signature(resolve("stages", spec["name"], field))[0]


def _section(config: Mapping[str, Any], name: str) -> Any:
    if name not in config:
        raise ConfigError(f"{name}: missing from the config")
    return config[name]
