"""Evaluators: `name='file'` in a config is the function `file` of `file.py` here.

An evaluator gets `predict` and its fields in the config, and yields (metric, value); arrays are
kept for the plots. Its attribute `task` says what data it is for; None for any. Its attribute
`yields` takes the same fields and gives the names of all numbers that there may be, in which `*`
stands for a layer's name; names are joined by `runtime/keys.py`. Its file may have LABELS, what
the labels of a field's data sets are to the model (`data.source.load`; by default they are its
own), and `check(source, **fields)`, which refuses fields before training.
"""

import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from experiments.data import labels as labels_lib
from experiments.data.derived import key_of, specs
from experiments.data.fields import check_fields
from experiments.data.source import Source, check_spec, load
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
        if value is not None or inspect.signature(run).parameters[key].default is not None:
            _check_kind(key, value, f"{field}.{key}")
        for path, data in specs(value, f"{field}.{key}"):
            check_spec(data, path)
    if run.task not in (task, None):
        hint = ""
        if task == "regression":
            hint = " (labels that are stored as floats are labels where num_classes is given)"
        raise ConfigError(f"{field}.name: {spec['name']!r} is for {run.task}, the training data "
                          f"for {task}{hint}")  # fmt: skip
    return functools.partial(run, **fields)


def yields(name: str, spec: Mapping[str, Any]) -> set[str]:
    """The names of all numbers that the evaluator `name` of a config may find, see above.

    Raises:
      ConfigError: an unknown evaluator or field, or a missing field.
    """
    run, fields = _found(spec, f"evaluators.{name}")
    check_fields(run, fields, f"evaluators.{name}.", given=("predict",))
    try:
        return run.yields(**fields)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"evaluators.{name}: {error}") from error


def _found(spec: Mapping[str, Any], field: str) -> tuple[Callable, dict[str, Any]]:
    """The function of an evaluator's spec, and its fields."""
    files = [m.name for m in pkgutil.iter_modules(__path__)]
    if not isinstance(spec, Mapping) or spec.get("name") not in files:
        kind = spec.get("name") if isinstance(spec, Mapping) else spec
        raise ConfigError(f"{field}.name: no evaluator {kind!r}; {nearest(str(kind), files)}")
    kind = spec["name"]
    run = getattr(importlib.import_module(f"{__name__}.{kind}"), kind)
    return run, {key: value for key, value in spec.items() if key != "name"}


SETS = ("data", "grid", "train")  # fields that are a data set ...
GROUPS = ("groups", "ood", "sets")  # ... and a dict of some


def _check_kind(key: str, value: Any, field: str) -> None:
    """Raises ConfigError for a field of data sets that holds something else."""
    if key in GROUPS:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{field}: {value!r} is not a dict of data sets by their names")
        for name, inner in value.items():
            _check_kind("data", inner, f"{field}.{name}")
    elif key in SETS and not isinstance(value, Mapping | Source):
        raise ConfigError(f"{field}: {value!r} is not a dict of fields, such as "
                          "{'split': 'test'}")  # fmt: skip


def check_data(evaluators: Mapping[str, Mapping[str, Any]], source: Source) -> None:
    """Reads every data set of the evaluators once, so that what is wrong shows before training.

    Args:
      evaluators: of a config; each is one that `evaluator` takes.
      source: the training data.

    Raises:
      ConfigError: with a line for each fault: a missing file, another shape, labels that are not
        the model's, and what an evaluator's module refuses in its `check(source, **fields)`.
    """
    faults: dict[str, None] = {}  # in order, each once
    seen = set()
    for name, spec in evaluators.items():
        run, fields = _found(spec, f"evaluators.{name}")
        module, sound = sys.modules[run.__module__], True
        for field, value in fields.items():
            labels = getattr(module, "LABELS", {}).get(field, labels_lib.ALIKE)
            for path, data in specs(value, f"evaluators.{name}.{field}"):
                if (labels, key_of(data)) in seen:
                    continue
                seen.add((labels, key_of(data)))
                try:
                    load(data, path, like=source, labels=labels)
                except (ValueError, OSError, ImportError) as error:
                    faults[str(error)], sound = None, False
        if sound and hasattr(module, "check"):
            try:
                module.check(source, **fields)
            except (ValueError, TypeError, AttributeError) as error:
                faults[f"evaluators.{name}.{error}"] = None
    if faults:
        raise ConfigError("\n".join(faults))
