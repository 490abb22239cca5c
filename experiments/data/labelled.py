"""The labels or targets of examples: selected classes, label noise, or none."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.data import augment, labels
from experiments.data.examples import Source, targets
from experiments.data.order import LABELS, philox
from experiments.data.splits import Dataset
from uncertainty.build import ConfigError
from uncertainty.specs import check_fields


def labelled(
    source: Source,
    dataset: Dataset,
    like: Source | None,
    use: str,
    classes: Sequence[int] | None,
) -> Source:
    """The source with its labels or targets, according to their use (`labels`)."""
    label, like_labels = source.name, use == labels.ALIKE and like is not None
    if like_labels and like.task == "unlabelled":
        use, like_labels = labels.OPTIONAL, False
    stored = "y" in source.names
    if not stored and (classes is not None or use in (labels.OWN, labels.ALIKE)):
        raise ValueError(f"{label}: there are no labels")
    if classes is not None:
        source, dataset = _only_classes(source, dataset, classes)
    if use == labels.UNUSED:
        k = like.classes if like is not None else 1
        return _without_labels(source, k, k or 1)
    if not stored:
        return _without_labels(source, None, 0)
    if like_labels and like.classes is None and dataset.classes == 0:
        dataset = dataset._replace(classes=None)  # whole numbers may be regression targets
    y = source.y
    k, names = labels.classes_of(label, y, dataset, like, use)
    outputs, entries = k or 1, source.entries
    if source.in_memory:
        labels.check(label, y, k)
        outputs = k if k is not None else np.size(y) // len(y)
        entries = {**entries, "y": targets(y, k, source.y_mean, source.y_std)}
    if like_labels and outputs != like.outputs:
        raise ValueError(
            f"{label}: {outputs} targets, but the model was trained on {like.outputs} ({like.name})"
        )
    return dataclasses.replace(
        source, entries=entries, classes=k, outputs=outputs, class_names=names
    )


def _without_labels(source: Source, classes: int | None, outputs: int) -> Source:
    entries = source.entries
    if source.in_memory:
        entries = {key: array for key, array in entries.items() if key != "y"}
    return dataclasses.replace(
        source, entries=entries, classes=classes, outputs=outputs, labelled=False
    )


def _only_classes(
    source: Source, dataset: Dataset, classes: Sequence[int]
) -> tuple[Source, Dataset]:
    """The examples of `classes`, relabelled 0, 1, ... in the order given."""
    k = labels.number_of(source.name, source.y, dataset)
    labels.check(source.name, source.y, k)
    if not isinstance(classes, Sequence) or isinstance(classes, str) or not classes:
        raise ConfigError(f"classes: {classes!r}; a list of labels is needed")
    if k is None:
        raise ConfigError(f"classes: {list(classes)}, but the targets are real-valued")
    if not all(
        type(c) is not bool and isinstance(c, int | np.integer) and 0 <= c < k for c in classes
    ):
        raise ConfigError(f"classes: {list(classes)}; labels must be in [0, {k})")
    if len(set(classes)) != len(classes):
        raise ConfigError(f"classes: {list(classes)}; distinct labels are needed")
    names = dataset.class_names or tuple(map(str, np.arange(k)))
    relabelled = np.full(k, -1, np.int32)
    relabelled[list(classes)] = np.arange(len(classes))
    y = relabelled[source.y]
    entries = {key: array[y >= 0] for key, array in {**source.entries, "y": y}.items()}
    dataset = dataset._replace(classes=len(classes), class_names=tuple(names[c] for c in classes))
    return dataclasses.replace(source, entries=entries), dataset


def with_noise(source: Source, fields: Mapping[str, Any]) -> Source:
    """Each label redrawn once from its row of a transition matrix, see `augment.label_noise`."""
    if source.classes is None or source.y is None:
        raise ConfigError("label_noise: needs classes")
    if not isinstance(fields, Mapping):
        raise ConfigError(f"label_noise: {fields!r}; dict(transition=[[...]], seed=0)")
    check_fields(_label_noise, fields, "label_noise.", given=("y",))
    entries = {**source.entries, "y": _label_noise(source.y, **fields)}
    return dataclasses.replace(source, entries=entries)


def _label_noise(y: np.ndarray, transition: Any, seed: int = 0) -> np.ndarray:
    draw = augment.Draw(philox(seed, LABELS), size=len(y))
    return augment.label_noise({"y": y}, draw, transition=transition)["y"]
