"""What a run keeps of its training data: how they were read, and which they were."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from experiments.data.normalisation import compact, per_example
from experiments.data.source import Source, load
from experiments.runtime.workdir import DATA, jsonable, read_config, read_json, write_json

SAME = ("shape", "examples", "digest", "classes")  # when a run resumes


def describe(source: Source) -> dict[str, Any]:
    """What evaluation, and the other processes of a training, must know of the training data."""
    axes = len(source.shape) - 1
    return dict(
        name=source.name,
        shape=source.shape,
        dtype=str(np.dtype(source.x.dtype)),
        examples=len(source),
        digest=source.digest(),
        classes=source.classes,
        outputs=source.outputs,
        class_names=source.class_names,
        range=source.range,
        measured=source.measured,
        mean=compact(source.mean, axes),
        std=compact(source.std, axes),
        y_mean=compact(source.y_mean, 0),
        y_std=compact(source.y_std, 0),
        reading=dict(source.reading),
    )


def write_description(workdir: pathlib.Path, source: Source) -> None:
    """Notes `describe(source)`.

    Raises:
      ValueError: the workdir belongs to a run on other data.
    """
    description, path = jsonable(describe(source)), workdir / DATA
    noted = read_json(path, NOTED) if path.is_file() else {}
    changed = [f"  {key}: {noted[key]} -> {description[key]}" for key in SAME
               if key in noted and noted[key] != description[key]]  # fmt: skip
    if changed:
        raise ValueError(
            f"workdir {workdir} belongs to a run on other training data (old -> new):\n"
            + "\n".join(changed)
        )
    write_json(path, description)


NOTED = {"name": str, "shape": [int], "classes": (int, None), "outputs": int}


def read_description(workdir: str | pathlib.Path) -> Source | None:
    """The training data without its examples; None where nothing was noted.

    Runs of versions that noted less need their training data for it.

    Raises:
      ValueError: the file is damaged, or those data are not there.
    """
    path = pathlib.Path(workdir) / DATA
    if not path.is_file():
        return None
    noted = read_json(path, NOTED)
    try:
        if "digest" not in noted:  # nor how they were read
            source = load(read_config(workdir)["data"]["train"], "data.train")
            return dataclasses.replace(
                source, x=np.zeros((0, *source.shape), source.x.dtype), y=None
            )
        shape, names, limits = tuple(noted["shape"]), noted["class_names"], noted["range"]
        return Source(
            noted["name"],
            np.zeros((0, *shape), noted["dtype"]),
            None,
            noted["classes"],
            noted["outputs"],
            *(per_example(noted[key], shape, key) for key in ("mean", "std")),
            *(None if noted[key] is None else np.asarray(noted[key], np.float32)
              for key in ("y_mean", "y_std")),
            range=tuple(limits) if isinstance(limits, list) else limits,
            measured=noted["measured"],
            class_names=None if names is None else tuple(names),
            reading=dict(noted["reading"]),
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
