"""Checks what the arrays of a file are, and makes predictions [M, B, ...] of them.

Names decide what an array is; its values have to agree. What is converted is noted, for the
terminal and the report; nothing is guessed.
"""

from collections.abc import Mapping

import numpy as np

from experiments.prediction import archive
from experiments.scoring.classes import classes
from experiments.scoring.files import File
from experiments.scoring.parts import Options, Part, check_finite
from experiments.scoring.targets import targets
from uncertainty.specs import nearest

# Arrays of each task, beside those of both.
READ = {"classification": (*archive.CLASSES, "epistemic"), "regression": archive.MOMENTS}


def task_of(file: File) -> str:
    """'classification' or 'regression', by the names in the test set.

    Raises:
      ValueError: neither, both, or no test set.
    """
    names = file.sets.get(archive.TEST)
    if names is None:
        raise ValueError(
            f"{file.path}: no test set (arrays with plain names, `log_p` and `y`); its sets are "
            f"{', '.join(file.sets) or 'none'}"
        )
    classes = [name for name in archive.CLASSES if name in names]
    moments = [name for name in (*archive.MOMENTS, "std") if name in names]
    if classes and moments:
        raise ValueError(
            f"{file.path}: {classes[0]} is of classes and {moments[0]} of regression; one of both "
            "is expected"
        )
    if not classes and not moments:
        valid = (*archive.CLASSES, *archive.MOMENTS)
        hints = [f"{name!r}: {nearest(name, valid)}" for name in names if name != "y"]
        raise ValueError(
            f"{file.path}: no predictions; {', '.join(valid[:-1])} or {valid[-1]} is expected. "
            + ("Found " + "; ".join(hints[:3]) if hints else "It has labels alone")
        )
    return "classification" if classes else "regression"


def checked(
    file: File,
    name: str,
    options: Options,
    notes: list[str],
    *,
    test: Part | None = None,
    labels: Mapping[str, np.ndarray] | None = None,
) -> Part:
    """The predictions of a set.

    Args:
      file: of predictions.
      name: of the set.
      options: how they are read.
      notes: gets a line for what was found and converted.
      test: the test set, for others.
      labels: `y` and `group` of a file of labels, for a test set that has none.

    Raises:
      ValueError: wrong values; the message names the file, the array, and where.
    """
    arrays = {key: read() for key, read in file.sets[name].items()}
    where = f"{file.path}: " + ("" if name == archive.TEST else f"{name}: ")
    if labels is not None:
        if "y" in arrays:
            raise ValueError(f"{where}has `y`, so --labels does not apply to it")
        arrays |= labels
    try:
        task = task_of(file)
        make = targets if task == "regression" else classes
        about = file.metadata.get("sets", {}).get(name, {})
        part, said = make(name, arrays, file, options, test)
        part = part._replace(
            group=_group(arrays.get("group"), part.examples),
            x=_inputs(arrays.get("x"), part.examples),
            scores=_scores(arrays, part.examples),
            batches=tuple(about.get("batches", ())),
        )
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(str(file.path)) else where + message) from (
            error
        )
    if sum(part.batches) != part.examples:
        part = part._replace(batches=())
    notes += said
    known = {*READ[task], *archive.UNITS, "y", "group", "x", "run", *about.get("arrays", ())}
    unread = [key for key in arrays if key not in known and not key.startswith(archive.SCORE)]
    if unread:
        notes.append(f"arrays that are not read: {', '.join(unread)}")
    return part


def _group(group: np.ndarray | None, count: int) -> np.ndarray | None:
    if group is None:
        return None
    group = group[:, 0] if group.ndim == 2 and group.shape[1] == 1 else group
    if group.shape != (count,):
        raise ValueError(f"group: {list(group.shape)}; [{count}] is expected, one for each example")
    if group.dtype.kind == "f" and np.isnan(group).any():
        raise ValueError(f"group: NaN at example {np.isnan(group).argmax()}")
    return group


def _inputs(x: np.ndarray | None, count: int) -> np.ndarray | None:
    """Inputs of one or two features, for figures; others are not needed."""
    return x if x is not None and x.shape in ((count, 1), (count, 2)) else None


def _scores(arrays: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    scores = {}
    for key, array in arrays.items():
        if key.startswith(archive.SCORE):
            if array.shape != (count,) or array.dtype.kind not in "fiu":
                raise ValueError(f"{key}: {list(array.shape)}; [{count}] numbers are expected")
            check_finite(key, array.astype(np.float64))
            scores[key.removeprefix(archive.SCORE)] = array
    return scores
