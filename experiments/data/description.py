"""The record that a run keeps of its data: which data they were, and how they were read."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.data.examples import Source
from experiments.data.normalisation import compact, per_example
from experiments.data.source import load
from experiments.runtime import storage
from experiments.runtime.workdir import DATA, jsonable, read_config, read_json, write_json

# Have to be equal when a run resumes: which data they are, and how they are read.
SAME = ("shape", "examples", "digest", "classes", "range", "mean", "std", "y_mean", "y_std")
UNITS = dict(mean="std", std="std", y_mean="y_std", y_std="y_std")  # of differences
ROUNDING = 1e-5  # of a unit; sums of another machine are equal up to rounding alone


class Described(NamedTuple):
    """The training data of a run and its further streams, without their examples."""

    train: Source
    streams: Mapping[str, Source] = {}
    validation: Source | None = None
    sets: tuple[Source, ...] = ()  # of `data.particles.sets`


def describe(source: Source, streams: Mapping[str, Source] | None = None) -> dict[str, Any]:
    """What evaluation, and the other processes of a run, need to know about the training data."""
    axes = len(source.shape) - 1
    further = {
        key: dict(shape=shape, dtype=str(dtype))
        for key, (shape, dtype) in source.forms().items()
        if key not in ("x", "y")
    }
    description = dict(
        name=source.name,
        shape=source.shape,
        dtype=str(np.dtype(source.x.dtype)),
        examples=len(source),
        digest=source.digest(),
        classes=source.classes,
        outputs=source.outputs,
        labelled=source.labelled,
        entries=further,
        class_names=source.class_names,
        range=source.range,
        measured=source.measured,
        mean=compact(source.mean, axes),
        std=compact(source.std, axes),
        y_mean=compact(source.y_mean, 0),
        y_std=compact(source.y_std, 0),
        reading=dict(source.reading),
    )
    if streams:
        description["streams"] = {name: describe(stream) for name, stream in streams.items()}
    return description


def write_description(
    workdir: storage.Path, source: Source, streams: Mapping[str, Source] | None = None
) -> None:
    """Writes `describe(source, streams)` to the workdir.

    Raises:
      ValueError: see `check_description`.
    """
    write_json(workdir / DATA, check_description(workdir, source, streams))


def check_description(
    workdir: storage.Path, source: Source, streams: Mapping[str, Source] | None = None
) -> dict[str, Any]:
    """`describe(source, streams)` in JSON's types, compared with the record of a workdir.

    A workdir without a record is not compared with.

    Raises:
      ValueError: the workdir belongs to a run on other data, or on the same data read otherwise,
        such as with another mean; the message has the old and the new value.
    """
    path = workdir / DATA
    noted = read_json(path, NOTED) if path.is_file() else {}
    description = jsonable(describe(source, streams))
    changed = list(_changed(noted, description))
    if changed:
        raise ValueError(
            f"workdir {workdir} belongs to a run on other training data (old -> new):\n"
            + "\n".join(changed)
        )
    return description


def _changed(noted: dict[str, Any], description: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in SAME:
        if key in noted and noted[key] != description[key]:
            unit = description.get(UNITS.get(key, ""))
            if line := _difference(noted[key], description[key], key in UNITS, unit):
                yield f"  {prefix}{key}{line}"
    for name, stream in description.get("streams", {}).items():
        yield from _changed(noted.get("streams", {}).get(name, {}), stream, f"streams.{name}.")


def _difference(old: Any, new: Any, numbers: bool, unit: Any) -> str:
    """': old -> new', of many numbers of the two that differ most; '' if it is rounding alone."""
    if not numbers or old is None or new is None or np.shape(old) != np.shape(new):
        return f": {old!s:.60} -> {new!s:.60}"
    before, after = np.asarray(old, np.float64), np.asarray(new, np.float64)
    apart = np.abs(before - after)
    allowed = ROUNDING * np.asarray(1.0 if unit is None else unit) + 1e-6 * np.abs(before)
    if (apart <= allowed).all():
        return ""
    most = np.unravel_index(np.argmax(apart), apart.shape)
    at = f"[{', '.join(map(str, most))}]" if most else ""
    return f"{at}: {before[most]:.7g} -> {after[most]:.7g}"


NOTED = {"name": str, "shape": [int], "classes": (int, None), "outputs": int}


def read_description(workdir: str | storage.Path) -> Described | None:
    """The data of a run without their examples; None if the workdir has no record of them.

    Records of earlier versions that lack a digest are completed from the training data.

    Raises:
      ValueError: the file is damaged, or the training data are missing.
    """
    path = storage.path(workdir) / DATA
    if not path.is_file():
        return None
    noted = read_json(path, NOTED)
    try:
        if "digest" not in noted:  # nor how they were read
            return Described(_emptied(load(read_config(workdir)["data"]["train"], "data.train")))
        streams = {name: _source(stream) for name, stream in noted.get("streams", {}).items()}
        return Described(_source(noted), streams)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error


def _source(noted: Mapping[str, Any]) -> Source:
    shape, names, limits = tuple(noted["shape"]), noted["class_names"], noted["range"]
    entries = {
        key: np.zeros((0, *form["shape"]), form["dtype"])
        for key, form in noted.get("entries", {}).items()
    }
    source = Source(
        noted["name"],
        {"x": np.zeros((0, *shape), noted["dtype"]), **entries},
        noted["classes"],
        noted["outputs"],
        *(per_example(noted[key], shape, key) for key in ("mean", "std")),
        *(
            None if noted[key] is None else np.asarray(noted[key], np.float32)
            for key in ("y_mean", "y_std")
        ),
        range=tuple(limits) if isinstance(limits, list) else limits,
        measured=noted["measured"],
        class_names=None if names is None else tuple(names),
        reading=dict(noted["reading"]),
        labelled=False,
    )
    return _with_labels(source) if noted.get("labelled", True) else source


def _emptied(source: Source) -> Source:
    """The same without its examples."""
    entries = {
        key: np.zeros((0, *shape), source.x.dtype if key == "x" else dtype)
        for key, (shape, dtype) in source.forms().items()
    }
    return source.with_entries(**entries)


def _with_labels(source: Source) -> Source:
    real = source.classes is None
    y = np.zeros((0, source.outputs), np.float32) if real else np.zeros(0, np.int32)
    return source.with_entries(**source.entries, y=y)
