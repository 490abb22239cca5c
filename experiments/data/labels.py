"""Labels and targets: their kind, the number of classes, and whether they match the model's."""

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.data.splits import Dataset
from uncertainty.build import ConfigError

if TYPE_CHECKING:
    from experiments.data.examples import Source

logger = logging.getLogger(__name__)

# How `source.load` uses them; OPTIONAL: the set's own labels, if it has any.
OWN, ALIKE, UNUSED, OPTIONAL = "own", "alike", "unused", "optional"


def classes_of(
    label: str, y: np.ndarray | None, dataset: Dataset, like: "Source | None", use: str
) -> tuple[int | None, tuple[str, ...] | None]:
    """K (None for regression) and the names of the classes.

    Raises:
      ConfigError: they do not match the model's, but could with other fields of the spec.
      ValueError: they cannot match the model's, or are labels that do not define K.
    """
    names = dataset.class_names
    if like is None or use in (OWN, OPTIONAL):
        return number_of(label, y, dataset), names
    real = dataset.classes is None
    if real != (like.classes is None):
        kinds = ("labels of classes", "real-valued targets")
        raise ValueError(
            f"{label}: {kinds[real]}, but the model was trained on {kinds[not real]} ({like.name})"
        )
    if dataset.classes and dataset.classes != like.classes:
        raise ConfigError(
            f"classes: {label} has {dataset.classes} classes, but the model was trained on "
            f"{like.classes} ({like.name}); select the model's classes, in its order: classes=(...)"
        )
    if names and like.class_names and names != like.class_names:
        if set(names) >= set(like.class_names):
            raise ConfigError(
                f"classes: {label} has {', '.join(names[:5])}, ... in this order, but the training "
                f"data {', '.join(like.class_names[:5])}, ...; name them in that order: "
                "classes=(...)"
            )
        logger.warning(
            "%s calls its classes %s, ..., the training data %s, ...; assumed to be the same",
            label,
            ", ".join(names[:3]),
            ", ".join(like.class_names[:3]),
        )
    return like.classes, like.class_names or names


def number_of(label: str, y: np.ndarray | None, dataset: Dataset) -> int | None:
    """K, counted from the labels if the set does not define it.

    Raises:
      ValueError: labels that are not integers, or that do not begin at 0.
    """
    if dataset.classes != 0:
        return dataset.classes
    _check_kind(label, y)
    if not len(y):
        return 1
    least, most = int(y.min()), int(y.max())
    if least < 0:
        raise ValueError(
            f"{label}: label {least} of example {int(y.argmin())}, but classes are counted from 0; "
            "targets of regression are stored as floats"
        )
    if least > 0:
        raise ValueError(
            f"{label}: labels run from {least} to {most}, but classes are counted from 0; subtract "
            f"{least}, or give num_classes={most + 1} if class 0 has no example here (targets of "
            "regression are stored as floats)"
        )
    return most + 1


def check(
    label: str, y: np.ndarray, classes: int | None, indices: np.ndarray | None = None
) -> None:
    """Raises ValueError, naming the first example, unless labels are integers in [0, K).

    Args:
      label: of the set, for messages.
      y: labels [N] or targets.
      classes: K; None for regression, whose targets have to be numeric.
      indices: of the examples in their set; by default their positions in `y`.
    """
    if classes is None:
        if np.asarray(y).dtype.kind not in "biuf":
            raise ValueError(f"{label}: targets are {y.dtype}; real numbers are needed")
        return
    _check_kind(label, y)
    bad = np.flatnonzero((y < 0) | (y >= classes))
    if len(bad):
        first = bad[0] if indices is None else indices[bad[0]]
        raise ValueError(f"{label}: label {y[bad[0]]} of example {first} is not in [0, {classes})")


def _check_kind(label: str, y: Any) -> None:
    if y.ndim == 1 and y.dtype.kind in "iu":
        return
    hint = ""
    if y.dtype.kind in "US":
        hint = "; np.unique(y, return_inverse=True)[1] converts names"
    elif y.ndim == 2 and y.shape[1] > 1:
        hint = "; y.argmax(1) converts one column per class"
    elif y.ndim == 2:
        hint = "; y[:, 0] converts one column"
    raise ValueError(
        f"{label}: labels are {y.dtype} {list(y.shape)}; integers [N] are needed{hint}"
    )
