"""The scores of a file, with what resamples of its examples need."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.prediction import archive
from uncertainty.metrics import resampling


class Statistic(NamedTuple):
    """Metrics as functions of resamples."""

    frames: tuple[str, ...]  # whose examples are drawn
    values: Callable[..., Mapping[str, np.ndarray]]  # weights [R, B] of each -> key -> [R]


class Frame(NamedTuple):
    """Examples that are drawn together: a set, with the sets of the same examples."""

    examples: int
    y: np.ndarray | None
    group: np.ndarray | None


class Scored(NamedTuple):
    """The scores of a file, by itself or after a post-hoc method."""

    label: str
    plain: str  # the label of the file without post-hoc methods
    file: str
    task: str
    metrics: dict[str, float]
    arrays: dict[str, np.ndarray]
    statistics: list[Statistic]
    frames: dict[str, Frame]
    sets: dict[str, dict[str, Any]]  # as in sets.json: path -> name, examples, digest
    metadata: Mapping[str, Any]
    notes: tuple[str, ...]


def mean_of(key: str, values: np.ndarray) -> Statistic:
    """The mean of a number of each test example, [B]."""
    of = resampling.mean(values)
    return Statistic((archive.TEST,), lambda w: {key: of(w)})
