"""Predictions as files for other libraries: self-describing NumPy archives.

with np.load("test.npz") as file:
    log_p, y = file["log_p"], file["y"]          # [members, examples, classes], [examples]
    about = json.loads(file["metadata.json"])    # axes, units, class names, the data, the runs
p = np.exp(log_p).mean(axis=0)                   # what the ensemble predicts
"""

import contextlib
import json
import pathlib
import re
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.data import labels as labels_lib
from experiments.data.source import Source
from experiments.evaluators import Reads
from experiments.experiment.results import reported
from experiments.prediction.predictions import Predictions
from experiments.prediction.predictor import Predictor
from experiments.prediction.reading import Data, described, key_of_data
from experiments.runtime import storage
from experiments.runtime.workdir import jsonable

METADATA = "metadata.json"
STORED = "in the unit that y is stored in"
# Task -> array -> its axes and meaning.
ARRAYS = {
    "classification": {
        "log_p": ("members examples classes", "log p_m(y = k | x) of each member m, in nats"),
        "y": ("examples", "the label 0, 1, ..., an index into class_names"),
    },
    "regression": {
        "mean": ("members examples outputs", "mean of y of each member, normalised"),
        "variance": ("members examples outputs", "variance of y of each member, normalised"),
        "y": ("examples outputs", "the target, normalised"),
        "y_mean": ("outputs", f"0 of the normalised y, {STORED}"),
        "y_std": ("outputs", f"1 of the normalised y, {STORED}"),
    },
}
COMBINED = {
    "classification": "p(y | x) = mean over members of exp(log_p)",
    "regression": "p(y | x) = mean over members of N(mean, variance); as it is stored, y is "
    "y * y_std + y_mean, with mean * y_std + y_mean and variance * y_std**2",
}


def export_all(
    predict: Predictor,
    reads: Mapping[str, Reads],
    folder: storage.Path,
    runs: Sequence[Mapping[str, Any]],
) -> dict[str, str]:
    """Writes one file for each data set of the evaluators whose labels are the model's or unused.

    Args:
      predict: of one run or of several.
      reads: by the paths of the sets in sets.json; files are named after the data.
      folder: of the files.
      runs: of the members, in order: workdir, step.

    Returns:
      What failed -> the reason.
    """
    failures: dict[str, str] = {}
    paths: dict[tuple[str, str], list[str]] = {}  # data set -> its paths
    for path, read in reads.items():
        paths.setdefault((key_of_data(read.data), read.labels), []).append(path)
    names: set[str] = set()
    for (key, labels), of_set in paths.items():
        if labels == labels_lib.OWN:
            continue
        with reported(f"predictions of {of_set[0]}", failures):
            data = reads[of_set[0]].data
            name = re.sub(r"[^\w.-]+", "-", predict.source(data, labels).title).strip("-.")
            name = f"{name}-{zlib.crc32(key.encode()):08x}" if name in names else name
            names.add(name)
            export(predict, data, labels, folder / f"{name}.npz", dict(sets=of_set, runs=runs))
    return failures


def export(
    predict: Predictor,
    data: Data,
    labels: str,
    file: storage.Path,
    noted: Mapping[str, Any] | None = None,
) -> None:
    """Writes the predictions of a data set atomically, without holding them in memory.

    Args:
      predict: of one run or of several.
      data: a data set's spec, or its examples.
      labels: the use of its labels, see `data.source.load`; unused ones are left out.
      file: NAME.npz, replaced if it exists; its folder is created.
      noted: further metadata, such as the members' `runs`, in order.
    """
    source = predict.source(data, labels)
    with contextlib.ExitStack() as stack:
        folder = None
        if jax.process_index() == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            local = isinstance(file, pathlib.Path)
            temporary = tempfile.TemporaryDirectory(
                dir=str(file.parent) if local else None, prefix=f".{file.stem}."
            )
            folder = pathlib.Path(stack.enter_context(temporary))
        arrays: dict[str, np.ndarray] = {}  # on disk

        def write(part: Predictions, start: int) -> None:
            if folder is None:
                return
            if start == 0:  # restarts if members have to be left out
                arrays.clear()
            for name, (value, axis) in _arrays_of(part).items():
                size = value.shape[axis]
                if start == 0:
                    shape = (*value.shape[:axis], len(source), *value.shape[axis + 1 :])
                    path = folder / f"{name}.npy"
                    arrays[name] = np.lib.format.open_memmap(path, "w+", value.dtype, shape)
                arrays[name][(slice(None),) * axis + (slice(start, start + size),)] = value
            if start == 0:
                arrays["run"] = part.run

        predict.over(source, write)
        if folder is not None:
            if source.task == "regression":
                arrays |= _units(source)
            _pack(folder, arrays, _metadata(source, arrays) | dict(noted or {}), file)


def _arrays_of(part: Predictions) -> dict[str, tuple[np.ndarray, int]]:
    """The arrays of a batch for the file, each with its axis of examples."""
    source = part.source
    values = {name: part._asdict()[name] for name in ARRAYS[source.task] if name in part._fields}
    y = values.pop("y")
    arrays = {name: (np.asarray(value, np.float32), 1) for name, value in values.items()}
    if source.labelled:
        arrays["y"] = (y[:, None] if source.task == "regression" and y.ndim == 1 else y, 0)
    entries = {k: (v, 0) for k, v in part.entries.items() if not v.dtype.hasobject}
    return arrays | {name: item for name, item in entries.items() if name not in arrays}


def _units(source: Source) -> dict[str, np.ndarray]:
    """`y_mean` and `y_std` [K]."""
    K = source.outputs
    if source.y_mean is None:
        return dict(y_mean=np.zeros(K, np.float32), y_std=np.ones(K, np.float32))
    return dict(y_mean=source.y_mean, y_std=source.y_std)


def _metadata(source: Source, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The content of `metadata.json`."""
    descriptions = {**ARRAYS[source.task], "run": ("members", "which of `runs` a member is of")}
    return dict(
        format=1,
        task=source.task,
        data=described(source),
        order="examples are in the order of the data set",
        class_names=source.class_names,
        arrays={
            name: dict(
                shape=array.shape,
                dtype=str(array.dtype),
                axes=descriptions.get(name, ("examples", ""))[0].split(),
                meaning=descriptions.get(name, ("", "an entry of the data set"))[1],
            )
            for name, array in arrays.items()
        },
        ensemble=COMBINED[source.task],
    )


def _pack(
    folder: pathlib.Path,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any],
    file: storage.Path,
) -> None:
    """Packs the arrays of a folder, and those in memory, into one archive."""
    with storage.whole(file) as half, zipfile.ZipFile(half, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(METADATA, json.dumps(jsonable(metadata), indent=2))
        for name, array in arrays.items():
            path = folder / f"{name}.npy"
            if isinstance(array, np.memmap):
                array.flush()
            else:
                np.save(path, array)
            archive.write(path, path.name)
            path.unlink()
