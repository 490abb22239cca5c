"""Evaluators: `name='file'` in a config is the function `file` of `file.py` here, and
`name='package.module:function'` one of your own package.

It takes the fields of the config and returns an `Evaluator`; for a wrong value it raises ValueError
with the field's name first. There is nothing to register.
"""

import functools
import importlib
import inspect
import logging
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.data import labels as labels_lib
from experiments.data.derived import key_of
from experiments.data.source import Source, check_spec, load
from uncertainty.build import ConfigError, nearest
from uncertainty.specs import check_fields, check_types, imported, is_path

if TYPE_CHECKING:
    from experiments.prediction.predictor import Predictor

logger = logging.getLogger(__name__)

Data = Mapping[str, Any] | Source  # the spec of a data set, or its examples


class Reads(NamedTuple):
    """A data set that an evaluator reads."""

    field: str  # of the evaluator: 'data', or 'sets.mnist' for one of several
    data: Data
    labels: str  # the use of its labels, see `data.source.load`
    # Whether the evaluator's numbers are those of these examples, so that nothing may be selected
    # by them; False where it fits or chooses something by them.
    reported: bool = True


class Predicted(NamedTuple):
    """A data set whose predictions an evaluator's numbers follow from."""

    name: str  # in a file of predictions, see `prediction/archive.py`
    data: Data
    labels: str = labels_lib.ALIKE  # the use of its labels, see `data.source.load`


class Evaluator(NamedTuple):
    """An evaluator of a config, with its fields bound."""

    # predictor -> (metric, a number, or an array for the plots); names by `runtime/keys.py`
    run: Callable[["Predictor"], Iterator[tuple[str, Any]]]
    task: str | None  # 'classification' or 'regression'; None for both
    yields: set[str]  # the names of all metrics that it may yield; `*` matches a layer's name
    data: tuple[Reads, ...] = ()
    # Raises ValueError for training data that do not fit its fields.
    check: Callable[[Source], None] = lambda source: None
    # The sets that a file of predictions needs for the same numbers; none if they follow from more.
    predicted: Callable[["Predictor"], Iterator[Predicted]] = lambda predict: iter(())


def reads(
    field: str, data: Any, labels: str = labels_lib.ALIKE, reported: bool = True
) -> tuple[Reads, ...]:
    """The data set of a field, see `Reads`; empty for None.

    Raises:
      ValueError: the field is not a data set.
    """
    if data is None:
        return ()
    if not isinstance(data, Mapping | Source):
        raise ValueError(f"{field}: {data!r} is not a dict of fields, such as {{'split': 'test'}}")
    return (Reads(field, data, labels, reported),)


def reads_each(
    field: str, sets: Mapping[str, Any] | None, labels: str = labels_lib.ALIKE
) -> tuple[Reads, ...]:
    """The data sets of a field with several, by name; see `reads`."""
    return sum((reads(f"{field}.{k}", data, labels) for k, data in (sets or {}).items()), ())


def build(name: str, spec: Any, task: str | None = None) -> Evaluator:
    """The evaluator that a config calls `name`; no file is read.

    Args:
      name: in the config's `evaluators`.
      spec: its fields there.
      task: the model's, 'classification' or 'regression'; None skips this check.

    Raises:
      ConfigError: an unknown evaluator, an unknown or missing field, a wrong value, or another
        task.
    """
    field = f"evaluators.{name}"
    files = [module.name for module in pkgutil.iter_modules(__path__)]
    kind = spec.get("name") if isinstance(spec, Mapping) else spec
    own = is_path(kind)
    if not isinstance(spec, Mapping) or not (own or kind in files):
        raise ConfigError(f"{field}.name: no evaluator {kind!r}; {nearest(str(kind), files)}")
    if own:
        make = imported(kind, f"{field}.name")
    else:
        make = getattr(importlib.import_module(f"{__name__}.{kind}"), kind)
    fields = {key: value for key, value in spec.items() if key != "name"}
    check_fields(make, fields, f"{field}.")
    check_types(make, fields, field)
    try:
        evaluator: Evaluator = make(**fields)
    except ValueError as error:
        raise ConfigError(f"{field}.{error}") from error
    if not isinstance(evaluator, Evaluator):
        raise ConfigError(
            f"{field}.name: {kind!r} returns a {type(evaluator).__name__}; an "
            "`experiments.evaluators.Evaluator` is needed"
        )
    for read in evaluator.data:
        if isinstance(read.data, Mapping):
            check_spec(read.data, f"{field}.{read.field}")
    if task is not None and evaluator.task not in (task, None):
        hint = ""
        if task == "regression":
            hint = " (to use labels stored as floats, set num_classes)"
        elif task == "classification":
            hint = " (integer y are labels; store targets of regression as floats)"
        raise ConfigError(
            f"{field}.name: {kind!r} is for {evaluator.task}, the training data for {task}{hint}"
        )
    return evaluator


# Field of an evaluator that may be left out -> field of the config's `data` that it is then.
SHARED = {"data": "test", "sets": "ood", "ood": "ood"}


def with_shared(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config whose evaluators have the test and OOD sets of its `data` written out.

    An evaluator without the field `data` gets `data.test`; one with OOD sets (`sets` beside `data`,
    or `ood`) that are left out gets `data.ood`. Both then leave `data`.

    A warning is logged where every evaluator that could read one of them has a set of its own.
    """
    data, specs = config.get("data"), config.get("evaluators")
    given = {name for name in SHARED.values() if isinstance(data, Mapping) and name in data}
    if not given or not isinstance(specs, Mapping):
        return dict(config)
    filled, used, ignored = {}, set(), {}
    for key, spec in specs.items():
        filled[key] = spec
        make = _function(spec)
        if make is None:
            continue  # refused later, or left out
        valid = set(inspect.signature(make).parameters)
        for field, name in SHARED.items():
            if name not in given or field not in valid or (field == "sets" and "data" not in valid):
                continue
            if spec.get(field) is not None:
                ignored.setdefault(name, f"evaluators.{key}.{field}")
            elif data[name] is not None:
                filled[key] = {**filled[key], field: data[name]}
                used.add(name)
    for name, field in ignored.items():
        if name not in used and data[name] is not None:
            _warn_once(f"config.data.{name}: nothing reads it, as {field} is set")
    if data.get("ood") is not None and not {"ood"} & {*used, *ignored}:
        _warn_once("config.data.ood: nothing reads it; add evaluators.ood={'name': 'ood'}")
    rest = {name: value for name, value in data.items() if name not in given}
    return {**config, "data": rest, "evaluators": filled}


@functools.cache
def _warn_once(text: str) -> None:
    logger.warning("%s", text)


def _function(spec: Any) -> Callable[..., Evaluator] | None:
    """The function of an evaluator, or None if there is none of its name."""
    kind = spec.get("name") if isinstance(spec, Mapping) else None
    if kind not in [module.name for module in pkgutil.iter_modules(__path__)]:
        return None
    return getattr(importlib.import_module(f"{__name__}.{kind}"), kind)


def build_all(specs: Mapping[str, Any], task: str | None = None) -> dict[str, Evaluator]:
    """The evaluators of a config by their names there, see `build`."""
    return {name: build(name, spec, task) for name, spec in specs.items()}


def check_data(evaluators: Mapping[str, Evaluator], source: Source) -> None:
    """Reads every data set of the evaluators once, so that errors show before training.

    Args:
      evaluators: of a config, as `build_all` makes them.
      source: the training data.

    Raises:
      ConfigError: one line for each fault: a missing file, a wrong shape, labels that do not match
        the model's, or what an evaluator's `check` refuses.
    """
    faults: dict[str, None] = {}  # in order, each once
    checked = set()
    for name, evaluator in evaluators.items():
        sound = True
        for read in evaluator.data:
            if isinstance(read.data, Source) or (read.labels, key_of(read.data)) in checked:
                continue
            checked.add((read.labels, key_of(read.data)))
            path = f"evaluators.{name}.{read.field}"
            try:
                load(read.data, path, like=source, labels=read.labels)
            except (ValueError, OSError, ImportError) as error:
                faults[str(error)], sound = None, False
        if sound:
            try:
                evaluator.check(source)
            except (ValueError, TypeError, AttributeError) as error:
                faults[f"evaluators.{name}.{error}"] = None
    if faults:
        raise ConfigError("\n".join(faults))
