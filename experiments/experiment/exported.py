"""Writes the members' predictions of a run as one NumPy archive, see docs/predictions.md.

with np.load("predictions.npz") as file:
    log_p, y = file["log_p"], file["y"]          # [members, examples, classes], [examples]
    outside = file["ood/svhn/log_p"]             # of another set
    about = json.loads(file["metadata.json"])    # axes, class names, the data, the runs
p = np.exp(log_p).mean(axis=0)                   # what the ensemble predicts
"""

import contextlib
import hashlib
import json
import pathlib
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from experiments.evaluators import Evaluator, Predicted
from experiments.evaluators.regression import as_stored
from experiments.experiment.results import reported
from experiments.prediction import archive
from experiments.prediction.held_out import require_held_out
from experiments.prediction.predictions import Predictions
from experiments.prediction.predictor import Predictor
from experiments.prediction.reading import Data, described, key_of_data
from experiments.runtime import storage
from experiments.runtime.workdir import jsonable


def export_all(
    predict: Predictor,
    evaluators: Mapping[str, Evaluator],
    file: storage.Path,
    *,
    validation: Data | None = None,
    noted: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Writes every set that the evaluators' numbers follow from, and the validation set.

    Each array is written to a disk batch by batch, so predictions are not held in memory.

    Args:
      predict: of one run or of several.
      evaluators: by their names in the config.
      file: NAME.npz, replaced as a whole if it exists; its folder is created.
      validation: the first run's validation data; refused if more than half are training examples
        of a further run, as methods are fitted to what this file has.
      noted: further metadata, such as the members' `runs`, in order.

    Returns:
      What failed -> the reason.
    """
    failures: dict[str, str] = {}
    written: dict[str, str] = {}  # set -> which data it is
    about: dict[str, Any] = {}
    with _folder(file) as folder:
        sets = list(_sets(predict, evaluators, validation, failures))
        sets.sort(key=lambda item: item[1].name != archive.TEST)
        for evaluator, predicted in sets:
            name, key = predicted.name, f"{key_of_data(predicted.data)} {predicted.labels}"
            inside = name == archive.INSIDE
            if written.get(archive.TEST if inside else name) == key:
                continue
            with reported(f"predictions of {evaluator}: {name}", failures):
                if name in written:
                    raise ValueError("another evaluator has other data of this name")
                if name == archive.VALIDATION:
                    source = predict.source(predicted.data, predicted.labels)
                    require_held_out("data.validation", source, predict.runs)
                about[name] = export(predict, predicted, folder)
                written[name] = key
        if folder is not None and about:
            _pack(folder, _metadata(predict, about) | dict(noted or {}), file)
    return failures


def _sets(
    predict: Predictor,
    evaluators: Mapping[str, Evaluator],
    validation: Data | None,
    failures: dict[str, str],
) -> Iterator[tuple[str, Predicted]]:
    for key, evaluator in evaluators.items():
        with reported(f"predictions of {key}", failures):
            for predicted in evaluator.predicted(predict):
                yield key, predicted
    if validation is not None:
        yield "data.validation", Predicted(archive.VALIDATION, validation)


@contextlib.contextmanager
def _folder(file: storage.Path) -> Iterator[pathlib.Path | None]:
    """A temporary folder beside the file, on this machine; None where nothing is written."""
    if jax.process_index():
        yield None
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = str(file.parent) if isinstance(file, pathlib.Path) else None
    with tempfile.TemporaryDirectory(dir=beside, prefix=f".{file.stem}.") as made:
        yield pathlib.Path(made)


def export(predict: Predictor, predicted: Predicted, folder: pathlib.Path | None) -> dict[str, Any]:
    """Writes the arrays of a set as `folder`/SET/NAME.npy; returns its metadata."""
    source = predict.source(predicted.data, predicted.labels)
    arrays: dict[str, np.ndarray] = {}  # on disk
    batches: list[int] = []

    def write(part: Predictions, start: int) -> None:
        if start == 0:  # restarts if members have to be left out
            arrays.clear()
            batches.clear()
        batches.append(len(part.y))
        for name, (value, axis) in _arrays_of(part).items() if folder else ():
            if start == 0:
                shape = (*value.shape[:axis], len(source), *value.shape[axis + 1 :])
                path = folder / f"{archive.joined(predicted.name, name)}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                arrays[name] = np.lib.format.open_memmap(path, "w+", value.dtype, shape)
            at = (slice(None),) * axis + (slice(start, start + value.shape[axis]),)
            arrays[name][at] = value
        if start == 0 and folder:
            path = folder / f"{archive.joined(predicted.name, 'run')}.npy"
            np.save(path, part.run)
            arrays["run"] = part.run

    predict.over(source, write)
    if folder and source.shape in ((1,), (2,)):
        arrays["x"] = source.gather(np.arange(len(source)))["x"]
        np.save(folder / f"{archive.joined(predicted.name, 'x')}.npy", arrays["x"])
    for array in arrays.values():
        if isinstance(array, np.memmap):
            array.flush()
    whole = source.transform is None
    return dict(
        **(described(source) if whole else dict(name=source.title, examples=len(source))),
        batches=batches,  # sums over these are those of the evaluation, to the last bit
        arrays={
            name: dict(
                shape=array.shape,
                dtype=str(array.dtype),
                axes=_axes(name, array),
                meaning=archive.ARRAYS.get(name, ("", "an entry of the data set"))[1],
            )
            for name, array in arrays.items()
        },
    )


def _axes(name: str, array: np.ndarray) -> list[str]:
    axes = archive.ARRAYS.get(name, ("examples", ""))[0].split()
    return [*axes, "outputs"] if name == "y" and array.ndim == 2 else axes


def _arrays_of(part: Predictions) -> dict[str, tuple[np.ndarray, int]]:
    """The arrays of a batch for the file, each with its axis of examples."""
    source, y = part.source, part.y
    arrays: dict[str, tuple[np.ndarray, int]]
    if part.log_p is None:
        y = y[:, None] if y.ndim == 1 else y
        mean, variance, y = as_stored(source, part.mean, part.variance, y)
        arrays = dict(mean=(mean, 1), variance=(variance, 1))
    else:
        latents = dict(log_p=part.log_p, logits=part.mean, epistemic=part.epistemic)
        arrays = {
            name: (np.asarray(value, np.float32), 1)
            for name, value in latents.items()
            if value is not None
        }
    if source.labelled:
        arrays["y"] = (y, 0)
    for name, value in part.entries.items():
        if name == "group" or not (value.dtype.hasobject or _reserved(name)):
            arrays[name] = (value, 0)
    return arrays


def _reserved(name: str) -> bool:
    return (
        "/" in name or name.startswith(archive.SCORE) or name in {*archive.ARRAYS, *archive.UNITS}
    )


def _metadata(predict: Predictor, sets: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `metadata.json`."""
    source = predict.runs[0].experiment.source
    return dict(
        format=archive.FORMAT,
        task=source.task,
        ensemble=archive.ENSEMBLE[source.task],
        normalised=all(run.likelihood.normalised for run in predict.runs),
        class_names=source.class_names,
        order="examples are in the order of the data set",
        sets=sets,
    )


def digest(config: Mapping[str, Any]) -> str:
    """A text that is equal for equal configs."""
    text = json.dumps(jsonable(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _pack(folder: pathlib.Path, metadata: Mapping[str, Any], file: storage.Path) -> None:
    """Packs the arrays of a folder into one archive."""
    with storage.whole(file) as half, zipfile.ZipFile(half, "w", zipfile.ZIP_STORED) as packed:
        packed.writestr(archive.METADATA, json.dumps(jsonable(metadata), indent=2))
        for name in metadata["sets"]:
            for array in metadata["sets"][name]["arrays"]:
                path = folder / f"{archive.joined(name, array)}.npy"
                packed.write(path, path.relative_to(folder).as_posix())
                path.unlink()
