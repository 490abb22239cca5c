"""Evaluators: `name='file'` in a config is the function `file` of `file.py` here.

An evaluator gets `predict` and its fields in the config, and yields (metric, value); arrays are
kept for the plots. Its attribute `task` says what data it is for; None for any. Its attribute
`yields` takes the same fields and gives the names of all numbers that there may be, in which `*`
stands for a layer's name; names are joined by `experiments/keys.py`.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from experiments.data.fields import check_fields
from experiments.data.source import check_spec
from uncertainty.build import ConfigError, nearest


def evaluator(name: str, spec: Mapping[str, Any], task: str) -> Callable[[Any], Iterator]:
    """predict -> the metrics of the evaluator that a config calls `name`.

    Args:
      name: in the config's `evaluators`.
      spec: its fields there.
      task: 'classification' or 'regression', what the model is trained for.

    Raises:
      ConfigError: an unknown evaluator or field, a missing field, or one for another task.
    """
    field = f"evaluators.{name}"
    run, fields = _found(spec, field)
    check_fields(run, fields, f"{field}.", given=("predict",))
    for key, value in fields.items():
        _check_data(value, f"{field}.{key}")
    if run.task not in (task, None):
        kind = spec["name"]
        raise ConfigError(f"{field}.name: {kind!r} is for {run.task}, the training data for {task}")
    return functools.partial(run, **fields)


def yields(name: str, spec: Mapping[str, Any]) -> set[str]:
    """The names of all numbers that the evaluator `name` of a config may find, see above.

    Raises:
      ConfigError: an unknown evaluator or field, or a missing field.
    """
    run, fields = _found(spec, f"evaluators.{name}")
    check_fields(run, fields, f"evaluators.{name}.", given=("predict",))
    return run.yields(**fields)


def _found(spec: Mapping[str, Any], field: str) -> tuple[Callable, dict[str, Any]]:
    """The function of an evaluator's spec, and its fields."""
    files = [m.name for m in pkgutil.iter_modules(__path__)]
    if not isinstance(spec, Mapping) or spec.get("name") not in files:
        kind = spec.get("name") if isinstance(spec, Mapping) else spec
        raise ConfigError(f"{field}.name: no evaluator {kind!r}; {nearest(str(kind), files)}")
    kind = spec["name"]
    run = getattr(importlib.import_module(f"{__name__}.{kind}"), kind)
    return run, {key: value for key, value in spec.items() if key != "name"}


def _check_data(value: Any, field: str) -> None:
    """Checks the fields of a source's spec, and of those in a dict of specs."""
    if isinstance(value, Mapping) and all(isinstance(v, Mapping) for v in value.values()):
        for key, spec in value.items():
            _check_data(spec, f"{field}.{key}")
    elif isinstance(value, Mapping):
        check_spec(value, field)
