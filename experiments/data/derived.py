"""Data sets that a config describes by their differences from the training data."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.data.splits import within

OF_A_SPLIT = ("label_noise",)  # what is done to one part of a set, and not to the others
SET = ("name", "path", "data_dir")  # the fields that say which set it is, not which part of it


def derived(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with every data set written out.

    A data set of `data` and `evaluators` that has a split and no name, such as
    `dict(split="test")`, is the training data with these fields: so changing `data.train` changes
    all of them. A field, a set or an evaluator that is None is left out.

    Args:
      config: plain dicts; it is not changed.
    """
    sections = [config.get(key) for key in ("data", "evaluators")]
    if not all(isinstance(section, Mapping) for section in sections):
        return dict(config)  # refused later
    train = config["data"].get("train")
    if not isinstance(train, Mapping):
        return dict(config)
    data = {key: _filled(value, train) for key, value in config["data"].items() if key != "train"}
    particles = data.get("particles")
    if isinstance(particles, Mapping) and isinstance(particles.get("sets"), list | tuple):
        sets = [_filled(spec, train) for spec in particles["sets"]]
        data["particles"] = {**particles, "sets": sets}
    evaluators = {
        key: _filled(value, train)
        for key, value in config["evaluators"].items()
        if value is not None
    }
    return {**config, "data": {"train": train, **data}, "evaluators": evaluators}


def _filled(value: Any, train: Mapping[str, Any]) -> Any:
    if not isinstance(value, Mapping):
        return value
    if "split" in value and "name" not in value:
        return part_of(train, value)
    is_set = "name" in value  # None may be a valid value of its other fields
    return {k: _filled(v, train) for k, v in value.items() if is_set or v is not None}


def part_of(train: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """Another part of the training data's set, read in the same way but for the fields of `spec`.

    Label noise belongs to the part that has it. A range that is measured on a part of 'train', as
    the training data are one, is measured on that part.
    """
    shared = {key: value for key, value in train.items() if key not in OF_A_SPLIT}
    split = str(train.get("split", "train"))
    if train.get("range") == "measured" and split != "train" and within(split, "train"):
        shared.setdefault("statistics", split)
    return {key: value for key, value in {**shared, **spec}.items() if value is not None}


def key_of(spec: Mapping[str, Any]) -> str:
    """A text that is equal for equal specs."""
    return json.dumps(spec, sort_keys=True, default=str)


def specs(value: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(path, spec) of each data set in an evaluator's field: the spec itself, or those of a dict.

    Args:
      value: of the field.
      path: of the field; names within it follow after a full stop.
    """
    if not isinstance(value, Mapping) or not value:
        return
    if all(isinstance(inner, Mapping) for inner in value.values()):
        for key, inner in value.items():
            yield from specs(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def path_of(evaluator: str, field: str) -> str:
    """The path of a field's data sets in sets.json: 'test' of `data`, 'ood' of `sets`."""
    return evaluator if field in ("data", "sets") else f"{evaluator}.{field}"


def same_set(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two specs read one data set, whichever parts of it."""
    made_of = {key for spec in (a, b) for key, value in spec.items() if _is_set(value)}
    alike = all(str(a.get(key)) == str(b.get(key)) for key in SET)
    return alike and all(
        _is_set(a.get(key)) and _is_set(b.get(key)) and same_set(a[key], b[key]) for key in made_of
    )


def _is_set(value: Any) -> bool:
    return isinstance(value, Mapping) and "name" in value


# Words of a path that say which part of a set it is: `own-train.npz`, `held_out/x.npz`, `fold2`.
PART = re.compile(
    r"(train|valid|validation|val|dev|test|t10k|eval|evaluation|calib|calibration|fit|fold|part|split"
    r"|hold|held|out|holdout|heldout|set)(ing|set|data)?\d*"
)


def parts_of_one(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two specs read one data set, or files whose paths differ by the part that they are.

    `own/train.npz` and `own/test.npz` are parts of one set; `mnist.npz` and `fashion.npz` are not.
    """
    return all(_words(a, key) == _words(b, key) for key in SET)


def _words(spec: Mapping[str, Any], key: str) -> list[str]:
    value = str(spec.get(key))
    if key != "path":
        return [value]
    words = re.split(r"[^a-z0-9]+", value.lower())
    return [word for word in words if word and not PART.fullmatch(word)]


def divided_otherwise(spec: Mapping[str, Any], train: Mapping[str, Any]) -> str | None:
    """Why another part of the training data's set may overlap with it; None if it cannot.

    A seed decides which examples belong to which part.
    """
    if same_set(spec, train) and spec.get("seed") != train.get("seed"):
        return (
            f"seed {spec.get('seed')}, but the training data's is {train.get('seed')}, so that "
            "the two may have examples in common"
        )
    return None
