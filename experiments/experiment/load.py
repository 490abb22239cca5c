"""The data of a config: training and validation data, and further streams."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.interpreters import partial_eval

from experiments.data import assignment, labels
from experiments.data.derived import SET, divided_otherwise, parts_of_one
from experiments.data.examples import Source
from experiments.data.loader import batches
from experiments.data.source import load
from experiments.data.streams import Data, Stream, check_streams, same_entries
from experiments.runtime.execution import Update
from uncertainty.build import ConfigError
from uncertainty.types import Batch, State

logger = logging.getLogger(__name__)

LARGE = 10.0  # a standard deviation of targets, or a mean in such units, that is slow to learn
STREAM = ("batch_size", "augment", "labels")  # fields of a stream beside those of its data set


def load_data(config: Mapping[str, Any]) -> Data:
    """All data that training reads.

    Raises:
      ConfigError: a wrong spec or augmentation, or an augmentation that does not fit the data.
      ValueError: data that is damaged, empty or not finite; validation data that are training data.
    """
    section, every = config["data"], config["evaluation"]["every"]
    train = load(section["train"], "data.train", labels=labels.OPTIONAL)
    if every and not section.get("validation"):
        raise ConfigError(f"evaluation.every: {every}, but there is no data.validation")
    streams = {
        name: _stream(name, spec, train) for name, spec in (section.get("streams") or {}).items()
    }
    sets = _sets(section.get("particles") or assignment.SHARED, train)
    validation = load_validation(config, train, sets) if every else None
    data = described(config, train, streams, validation, sets)
    check_streams(data.streams, train)
    sources = data.sets or (train,)
    assignment.own_of(data.particles, sources, data.seed, (0,))
    for field, source, size, augment in (
        ("data", train, data.batch_size, data.augment),
        *((f"data.streams.{k}", *stream) for k, stream in data.streams.items()),
    ):
        try:
            batches(source, seed=0, batch_size=size, augment=augment)
        except ConfigError as error:
            raise ConfigError(f"{field}.{error}") from error
    return data


def described(
    config: Mapping[str, Any],
    train: Source,
    streams: Mapping[str, Source] | None = None,
    validation: Source | None = None,
    sets: tuple[Source, ...] = (),
) -> Data:
    """The data of a config with these sources, or with their records from `read_description`."""
    section = config["data"]
    fields = section.get("streams") or {}
    alike = train.with_entries(x=train.x[:0])  # for older runs without a record of their streams
    return Data(
        train,
        seed=config["seed"],
        batch_size=config["batch_size"],
        augment=section["augment"],
        streams={
            name: Stream(
                (streams or {}).get(name, alike),
                spec.get("batch_size", config["batch_size"]),
                spec.get("augment", ()),
            )
            for name, spec in fields.items()
        },
        particles=section.get("particles") or assignment.SHARED,
        validation=validation,
        sets=sets,
    )


def _stream(name: str, spec: Mapping[str, Any], train: Source) -> Source:
    """The source of a stream."""
    field, fields = f"data.streams.{name}", dict(spec)
    defaults = zip(STREAM, (1, (), labels.UNUSED), strict=True)
    size, _, use = (fields.pop(key, default) for key, default in defaults)
    if type(size) is not int or size < 1:
        raise ConfigError(f"{field}.batch_size: {size!r}; a whole number from 1 is needed")
    if use not in (labels.UNUSED, labels.ALIKE):
        raise ConfigError(
            f"{field}.labels: {use!r}; 'unused' for x alone, or 'alike' for the model's labels "
            "or targets"
        )
    return load(fields, field, train, use)


def _sets(particles: Any, train: Source) -> tuple[Source, ...]:
    """The data sets in `data.particles.sets`, each once."""
    _, fields = assignment.parse(particles)
    field = "data.particles.sets"
    sets = tuple(
        load(spec, f"{field}[{i}]", train, labels.ALIKE)
        for i, spec in enumerate(fields.get("sets", ()))
    )
    same_entries(sets, train, field)
    return sets


def load_validation(
    config: Mapping[str, Any], train: Source, sets: tuple[Source, ...] = ()
) -> Source:
    """The validation data of a config.

    Args:
      config: of a run.
      train: `data.train`.
      sets: those of `data.particles.sets`, which particles are trained on instead.

    Raises:
      ConfigError: the config has none, or they do not match the training data.
      ValueError: they are training data, see `require_apart`.
    """
    if not config["data"].get("validation"):
        raise ConfigError("stages: one needs data.validation, and there is none")
    source = load(config["data"]["validation"], "data.validation", train, labels.ALIKE)
    _require_held_out(source, sets or (train,))
    return source


def _require_held_out(validation: Source, trained: tuple[Source, ...]) -> None:
    from experiments.data.overlap import require_apart

    for source in trained:
        require_apart("data.validation", validation, source, "the training data")


def check_validation(config: Mapping[str, Any], train: Source, sets: tuple[Source, ...]) -> None:
    """Refuses validation data that are training data, in a run that does not read them itself.

    What selects and calibrates by its predictions later relies on them. Data that cannot be read
    are reported there. Arguments and errors are those of `load_validation`.
    """
    try:
        source = load(config["data"]["validation"], "data.validation", train, labels.ALIKE)
    except (ValueError, OSError, ImportError):
        return
    _require_held_out(source, sets or (train,))


def traced(
    make: Callable[[State, Batch], Update], state: State, batch: Batch, data: Data
) -> Update:
    """The update that `make` makes for a state and a batch, traced.

    Args:
      make: called with shapes.
      state, batch: their shapes.
      data: of training, which makes the batches.

    Raises:
      ConfigError: the update cannot be traced, reads an entry that the batch lacks, or does not
        depend on one of the streams.
    """
    try:
        update = make(state, batch)
        program = update.trace(state, batch).jaxpr.jaxpr
    except KeyError as error:
        (name,) = error.args
        if name in batch:
            raise
        raise ConfigError(
            f"data.train: {data.train.name} has no entry {name!r}, which training "
            f"reads; it has {', '.join(map(repr, batch))}"
        ) from error
    except (TypeError, ValueError) as error:
        unlabelled = f"data.train: {data.train.name} has no entry 'y'"
        field = "inference" if "y" in batch else unlabelled
        raise ConfigError(f"{field}: {error}") from error
    views = [name for name in batch if name not in data.train.names and name not in data.streams]
    if data.streams or views:
        used = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))[1]
        paths = jax.tree_util.tree_leaves_with_path(batch)  # the batch is the last argument
        used = used[len(used) - len(paths) :]
        entries_read = {
            path[0].key for (path, _), is_used in zip(paths, used, strict=True) if is_used
        }
        for name in views:
            if name not in entries_read:
                raise ConfigError(
                    f"data.augment: nothing reads the view {name!r}; leave it out, or choose an "
                    "objective that does"
                )
        for name in data.streams:
            if name not in entries_read:
                raise ConfigError(
                    f"data.streams.{name}: nothing reads it; set what reads it, such as "
                    "inference.direction.context=dict(name='other') for a stream 'context', or "
                    f"unset data.streams.{name}"
                )
    return update


def warn_of_data(config: Mapping[str, Any], source: Source) -> None:
    """Warns of likely mistakes: test data of another set, a batch larger than the data."""
    train = config["data"]["train"]
    others = {"data.validation": config["data"].get("validation")}
    for name, spec in config["evaluators"].items():
        others[f"evaluators.{name}.data"] = spec.get("data") if isinstance(spec, Mapping) else None
    apart: dict[tuple[str, str], list[str]] = {}
    for field, spec in others.items():
        if isinstance(spec, Mapping) and "name" in spec and not parts_of_one(spec, train):
            words = (" ".join(str(s[key]) for key in SET if key in s) for s in (spec, train))
            apart.setdefault(tuple(words), []).append(field)
        if isinstance(spec, Mapping) and (why := divided_otherwise(spec, train)):
            logger.warning("%s: %s", field, why)
    for (there, here), fields in apart.items():
        logger.warning(
            "%s read%s %s, but data.train reads %s; set %s={'split': '...'} for a split of the "
            "training data's set",
            ", ".join(fields),
            "s" * (len(fields) == 1),
            there,
            here,
            fields[0],
        )
    if source.task == "regression" and source.y is not None and source.y_std is None:
        center, spread = np.abs(source.y.mean(0)).max(), source.y.std(0).max()
        if spread > LARGE or center > LARGE * max(spread, 1.0):
            logger.warning(
                "data.train: targets with a mean of %.4g and a standard deviation of %.4g are "
                "learned as they are; data.train.standardise=true takes them in units of these",
                source.y.mean(0)[0],
                source.y.std(0)[0],
            )
    if config["batch_size"] > len(source):
        logger.warning(
            "batch_size: %d, but %s has %d examples, so batches repeat examples",
            config["batch_size"],
            source.name,
            len(source),
        )
