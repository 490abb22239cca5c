"""Reads data sets in the way of the model's training data, and describes them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.data import labels as labels_lib
from experiments.data.derived import key_of
from experiments.data.source import Source, load
from uncertainty.build import ConfigError

Data = Mapping[str, Any] | Source  # the spec of a data set, or its examples


class Reader:
    """Reads the data that a model is evaluated on; the last source stays in memory.

    Attributes:
      like: the training data.
    """

    def __init__(self, like: Source):
        self.like = like
        self._last: dict[tuple[str, str], Source] = {}
        self._noted: dict[str, dict[str, Any]] = {}

    def source(self, data: Data, labels: str = labels_lib.ALIKE) -> Source:
        """The examples of a spec, read as the training data were.

        Args:
          data: spec of a data set, or a source.
          labels: see `data.source.load`.

        Raises:
          ConfigError: inputs of another shape than the model was trained on, or see `load`.
        """
        key, shape = key_of_data(data), tuple(self.like.shape)
        if isinstance(data, Source):
            source = data
            if tuple(source.shape) != shape:
                raise ConfigError(
                    f"{source.name}: inputs of shape {tuple(source.shape)}, but the model was "
                    f"trained on {shape}"
                )
        else:
            if (key, labels) not in self._last:
                self._last.clear()  # frees its memory before the next one is read
                self._last[key, labels] = load(data, like=self.like, labels=labels)
            source = self._last[key, labels]
        if source.transform is None and key not in self._noted:
            self._noted[key] = described(source)
        return source

    def noted(self, data: Data) -> dict[str, Any] | None:
        """`described` for a set that was read; None for others."""
        return self._noted.get(key_of_data(data))


def key_of_data(data: Data) -> str:
    """A text that is equal for equal specs, and different for any two sources."""
    return key_of(data) if isinstance(data, Mapping) else f"{data.name} {id(data)}"


def described(source: Source) -> dict[str, Any]:
    """The description of a data set that is stored beside its metrics."""
    noted = dict(name=source.title, examples=len(source), digest=source.digest())
    return noted | ({"notes": list(source.notes)} if source.notes else {})


def check_alike(sources: Mapping[str, Source]) -> None:
    """Checks that runs can be joined: the same task and classes, and inputs and targets read alike.

    Args:
      sources: name of the run -> its training data.

    Raises:
      ConfigError: the message names the run and what differs from the first.
    """
    (first, source), *others = sources.items()
    expected = how_read(source)
    for name, other in others:
        for key, value in how_read(other).items():
            if expected[key] != value:
                raise ConfigError(
                    f"workdir: {name} cannot be joined with {first}: `{key}` of its training data "
                    f"is {value:.60}, and there {expected[key]:.60}"
                )


def how_read(source: Source) -> dict[str, str]:
    """The properties that have to be equal for members to predict the same examples, as text."""
    fields = dict(
        task=source.task,
        shape=source.shape,
        dtype=str(source.x.dtype),
        classes=source.classes,
        outputs=source.outputs,
        class_names=source.class_names,
        range=source.range,
        mean=source.mean,
        std=source.std,
        y_mean=source.y_mean,
        y_std=source.y_std,
        reading=sorted(source.reading.items()),
    )
    return {key: repr(np.asarray(value).tolist()) for key, value in fields.items()}
