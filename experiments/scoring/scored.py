"""The scores of a file, with what resamples of its examples need."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.prediction import archive
from experiments.runtime import keys
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


def rankings(
    frames: tuple[str, str],
    inside: Mapping[str, np.ndarray],
    outside: Mapping[str, np.ndarray],
    chosen: Iterable[str],
) -> list[Statistic]:
    """How well scores separate out-of-distribution from in-distribution examples.

    Args:
      frames: the names of the in-distribution set and of the other one, `ood/NAME`.
      inside, outside: the scores [B] of both sets, by name.
      chosen: names of scores; those that the sets lack are left out.

    Raises:
      ValueError: one of the sets has a score that the other lacks.
    """
    lacking = sorted(outside.keys() ^ inside.keys())
    if lacking:
        raise ValueError(
            f"{frames[1]}: the score {lacking[0]} is in one of it and the {frames[0]} set alone"
        )
    return [
        _ranking(frames, score, inside[score], outside[score])
        for score in dict.fromkeys(chosen)
        if score in outside
    ]


def _ranking(
    frames: tuple[str, str], score: str, inside: np.ndarray, outside: np.ndarray
) -> Statistic:
    of, name = resampling.ranking(inside, outside), name_of(frames[1])

    def values(w_in: np.ndarray, w_out: np.ndarray) -> dict[str, np.ndarray]:
        return {
            keys.join("ood", name, f"{metric}_{score}"): value
            for metric, value in of(w_in, w_out).items()
        }

    return Statistic(frames, values)


def name_of(of_set: str) -> str:
    """NAME of the set `ood/NAME`, whose parts may contain '/'."""
    return "/".join(keys.split(of_set)[1:])
