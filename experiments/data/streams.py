"""The data of a training run: training examples, validation data, and further streams.

The top level of a batch has the entries of the training data, [B, ...], or [P, B, ...] where
particles have their own examples (`assignment`). Each further stream is a nested dict, which all
particles share: `batch["context"]["x"]` [B', ...].
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.data import assignment
from experiments.data.examples import Source
from experiments.data.loader import Batch, batches, depth, forms
from uncertainty.build import ConfigError


class Stream(NamedTuple):
    """Further examples in each batch, in their own order."""

    source: Source
    batch_size: int  # of the global batch
    augment: Sequence[Mapping[str, Any]] = ()


class Data(NamedTuple):
    """The data of a config; without examples if it only records how they were read."""

    train: Source
    seed: int
    batch_size: int
    augment: Sequence[Mapping[str, Any]] = ()
    validation: Source | None = None
    streams: Mapping[str, Stream] = {}
    particles: Any = assignment.SHARED  # `data.particles`
    sets: Sequence[Source] = ()  # the data sets that `particles` names

    @property
    def sources(self) -> dict[str, Source]:
        """What training reads besides the training data: streams, and the sets of particles."""
        streams = {name: stream.source for name, stream in self.streams.items()}
        return streams | {f"particles.{i}": source for i, source in enumerate(self.sets)}

    @property
    def own_examples(self) -> bool:
        """Whether each particle has its own examples, so that batches lead with P."""
        return assignment.parse(self.particles)[0] != assignment.SHARED

    @property
    def all_see_all(self) -> bool:
        """Whether every particle sees every example of the training data."""
        return assignment.parse(self.particles)[0] in (assignment.SHARED, "shuffled")

    @property
    def num_examples(self) -> int | None:
        """N of a particle's posterior: the number of its examples, counted as often as drawn.

        None if particles differ in it, so that a prior would have no common weight.
        """
        counts = assignment.counts(self.particles, self._sources(), self.seed)
        return counts.pop() if len(counts) == 1 else None

    @property
    def pixels(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Mean and std by which training images in [0, 1] are normalised, [C] or [H, W, C].

        None if they are not in [0, 1], or if particles have sets that differ in it.
        """
        sources = self._sources()
        if not all(source.in_unit_range for source in sources):
            return None
        each = [
            tuple(
                _of_channels(np.full(source.shape, default, np.float32) if a is None else a)
                for a, default in ((source.mean, 0), (source.std, 1))
            )
            for source in sources
        ]
        same = all(np.array_equal(a, b) for one in each for a, b in zip(one, each[0], strict=True))
        return each[0] if same else None

    def _sources(self) -> Sequence[Source]:
        return self.sets or (self.train,)

    def batches(
        self, start: int, size: int, process_index: int = 0, process_count: int = 1
    ) -> Iterator[tuple[int, Batch]]:
        """(step, batch) of training from step `start` on, this process's share, without end.

        Args:
          start: the first step.
          size: P.
          process_index, process_count: which share.

        Raises:
          ConfigError: augmentations that do not apply to these data, or a batch that the processes
            cannot divide.
        """
        share = dict(start_step=start, process_index=process_index, process_count=process_count)
        main = batches(
            self.train,
            seed=self.seed,
            batch_size=self.batch_size,
            augment=self.augment,
            own=assignment.own_of(self.particles, self._sources(), self.seed, range(size)),
            **share,
        )
        further = {
            name: batches(
                stream.source,
                seed=seed_of(self.seed, name),
                batch_size=stream.batch_size,
                augment=stream.augment,
                **share,
            )
            for name, stream in self.streams.items()
        }
        return main if not further else _joined(main, further)

    def shapes(self, size: int) -> Batch:
        """The shapes and types of a global batch for P = `size` particles; reads no example.

        Raises:
          ConfigError: augmentations that do not apply to these examples.
        """
        lead = (size,) if self.own_examples else ()
        batch = _shapes(self.train, self.augment, (*lead, self.batch_size), "data")
        augmented, stored = batch["x"].shape[len(lead) + 1 :], tuple(self.train.shape)
        if augmented != stored:
            raise ConfigError(
                f"data.augment: makes inputs of shape {augmented} of those of {stored}, which "
                "evaluation has; both must be the same"
            )
        for name, stream in self.streams.items():
            field = f"data.streams.{name}"
            batch[name] = _shapes(stream.source, stream.augment, (stream.batch_size,), field)
        return batch

    def depth(self, size: int) -> int:
        """How many batches of P = `size` particles to make ahead, see `loader.depth`."""
        return depth(self.train, self.batch_size * (size if self.own_examples else 1))


def _joined(
    main: Iterator[tuple[int, Batch]], further: Mapping[str, Iterator[tuple[int, Batch]]]
) -> Iterator[tuple[int, Batch]]:
    for step, batch in main:
        yield step, batch | {name: next(stream)[1] for name, stream in further.items()}


def _shapes(
    source: Source, augment: Sequence[Mapping[str, Any]], lead: tuple[int, ...], field: str
) -> dict[str, jax.ShapeDtypeStruct]:
    try:
        entry_forms = forms(source, augment)
    except ConfigError as error:
        raise ConfigError(f"{field}.{error}") from error
    return {
        key: jax.ShapeDtypeStruct((*lead, *shape), dtype)
        for key, (shape, dtype) in entry_forms.items()
    }


def _of_channels(value: np.ndarray) -> np.ndarray:
    """A value of each pixel and channel, [H, W, C], or [C] where it is that of all pixels."""
    return value[0, 0] if (value == value[:1, :1]).all() else value


def seed_of(seed: int, name: str) -> int:
    """The seed of a stream's order and augmentation: streams of different names are independent."""
    if name == "context":  # the order of runs from before streams had names
        return (seed + 0x636F6E74) % 2**64
    both = [zlib.crc32(text.encode()) for text in (name, f"stream {name}")]
    return (seed + (both[0] << 32) + both[1]) % 2**64


def check_streams(streams: Mapping[str, Stream], train: Source) -> None:
    """Raises ConfigError if a stream has the name of an entry."""
    for name in streams:
        if name in train.names:
            raise ConfigError(
                f"data.streams.{name}: {train.name} has an entry of this name; choose another"
            )


def same_entries(sets: Sequence[Source], train: Source, field: str) -> None:
    """Raises ConfigError if the data sets of particles differ in their entries."""
    for i, source in enumerate(sets):
        theirs, ours = source.forms(), train.forms()
        if theirs != ours:
            name = next(k for k in sorted({*theirs, *ours}) if theirs.get(k) != ours.get(k))
            raise ConfigError(
                f"{field}[{i}]: {name!r} of {source.name} is "
                f"{_named(theirs.get(name))}, of {train.name} "
                f"{_named(ours.get(name))}"
            )


def _named(form: tuple[tuple[int, ...], np.dtype] | None) -> str:
    return "missing" if form is None else f"{form[1]} {list(form[0])}"
