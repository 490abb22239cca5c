"""The data of a config: what it trains on, validates on and compares functions at."""

import logging
from collections.abc import Mapping
from typing import Any

from experiments.data import labels
from experiments.data.derived import SET, divided_otherwise, same_set
from experiments.data.loader import batches
from experiments.data.source import Source, load
from uncertainty.build import ConfigError

logger = logging.getLogger(__name__)


def load_data(config: Mapping[str, Any]) -> tuple[Source, Source | None, Source | None]:
    """The training data of a config; what it is validated on, and other data, if it asks for them.

    Raises:
      ConfigError: data, an augmentation, or the two together that cannot be.
      ValueError: data that is damaged, empty or not finite.
    """
    data, every = config["data"], config["evaluation"]["every"]
    source, validation, context = load(data["train"], "data.train"), None, None
    if every and not data.get("validation"):
        raise ConfigError(f"evaluation.every: {every}, but there is no data.validation")
    if every:
        validation = load_validation(config, source)
    try:
        batches(source, seed=0, batch_size=config["batch_size"], augment=data["augment"])
    except ConfigError as error:
        raise ConfigError(f"data.{error}") from error
    if data.get("context"):
        direction = config["inference"].get("direction")
        points = direction.get("context") if isinstance(direction, Mapping) else None
        if not isinstance(points, Mapping) or points.get("name") != "other":
            raise ConfigError(
                "data.context: nothing looks at it; set "
                "inference.direction.context=dict(name='other'), or unset data.context"
            )
        context = load(data["context"], "data.context", source, labels.UNUSED)
    return source, validation, context


def load_validation(config: Mapping[str, Any], source: Source) -> Source:
    """What a config validates on.

    Raises:
      ConfigError: there is none, or it is not like the training data.
    """
    if not config["data"].get("validation"):
        raise ConfigError("stages: one needs data.validation, and there is none")
    validation = load(config["data"]["validation"], "data.validation", source, labels.ALIKE)
    return validation


def warn_of_data(config: Mapping[str, Any], source: Source) -> None:
    """Logs what is likely a mistake: test data of another set, a batch larger than the data."""
    train = config["data"]["train"]
    others = {"data.validation": config["data"].get("validation")}
    for name, spec in config["evaluators"].items():
        others[f"evaluators.{name}.data"] = spec.get("data") if isinstance(spec, Mapping) else None
    for field, spec in others.items():
        if isinstance(spec, Mapping) and "name" in spec and not same_set(spec, train):
            names = [" ".join(str(s[key]) for key in SET if key in s) for s in (spec, train)]
            logger.warning("%s reads %s, but data.train %s; %s={'split': '...'} is a part of the "
                           "training data's set", field, *names, field)  # fmt: skip
        if isinstance(spec, Mapping) and (why := divided_otherwise(spec, train)):
            logger.warning("%s: %s", field, why)
    if config["batch_size"] > len(source):
        logger.warning("batch_size: %d, but %s has %d examples, so a batch has some of them more "
                       "than once", config["batch_size"], source.name, len(source))  # fmt: skip
