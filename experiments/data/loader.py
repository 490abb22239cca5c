"""Batches for training and for evaluation, and a thread that prepares them ahead."""

import math
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.data.assignment import Own
from experiments.data.examples import Source
from experiments.data.order import check_seed, indices, permutations, rows
from experiments.data.pipeline import Augmentation, pipeline
from uncertainty.build import ConfigError

Batch = dict[str, Any]  # arrays, and those of streams in dicts of their own


def batches(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    augment: Sequence[Mapping[str, Any]] = (),
    process_index: int = 0,
    process_count: int = 1,
    own: Sequence[Own] | None = None,
) -> Iterator[tuple[int, Batch]]:
    """(step, batch) from `start_step` on, without end; arrays are [B, ...], with `own` [P, B, ...].

    Args:
      source: the examples, and how they are normalised.
      seed: of order and augmentation; a batch depends on (seed, step) alone, or on (seed, p, step).
      batch_size: of the global batch; each process yields its share of it.
      start_step: the first step; resuming costs no more than starting.
      augment: names and fields, in order, see `pipeline`.
      process_index, process_count: the shares of the processes, in order, are the global batch.
      own: the examples of each particle, which have orders and augmentation of their own; None
        where particles share the batches.

    Raises:
      ConfigError: an augmentation that does not apply to these data; raised here, not at the first
        batch.
      ValueError: processes that cannot share the batch, an invalid seed.
    """
    check_seed(seed)
    share = rows(batch_size, process_index, process_count)
    augmentation = augmentation_of(source, augment)
    everyone = [Own(source)] if own is None else own
    particles = range(len(everyone))
    orders = [permutations(seed, one.count, p) for p, one in enumerate(everyone)]
    counts = [one.count for one in everyone]
    read, normalise = _reader(everyone), _normaliser(everyone)
    if augment:
        try:
            sample = source.raw(np.zeros((share.stop - share.start) * len(particles), int))
            augmentation.run(sample, seed, 0, batch_size, share, particles)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"augment: {error}") from error

    def chosen(step: int, p: int) -> np.ndarray:
        share = process_index, process_count
        at = indices(seed, step, batch_size, counts[p], *share, order=orders[p])
        return at if everyone[p].examples is None else everyone[p].examples[at]

    def generate() -> Iterator[tuple[int, Batch]]:
        step = start_step
        while True:
            batch = read([chosen(step, p) for p in particles])
            batch = augmentation.run(batch, seed, step, batch_size, share, particles)
            for key in ("x", *augmentation.views):
                batch[key] = normalise(batch[key])
            if own is not None:
                lead = len(particles), share.stop - share.start
                batch = {key: a.reshape(*lead, *a.shape[1:]) for key, a in batch.items()}
            yield step, batch
            step += 1

    return generate()


def _reader(everyone: Sequence[Own]) -> Callable[[Sequence[np.ndarray]], Batch]:
    """Reads the examples of all particles, one particle after the other.

    If they share one data set, this is a single gather.
    """
    source = everyone[0].source
    if len(everyone) == 1:
        return lambda chosen: source.raw(chosen[0])
    if all(one.source is source for one in everyone):
        return lambda chosen: source.raw(np.concatenate(chosen))

    def read(chosen: Sequence[np.ndarray]) -> Batch:
        parts = [one.source.raw(at) for one, at in zip(everyone, chosen, strict=True)]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    return read


def _normaliser(everyone: Sequence[Own]) -> Callable[[np.ndarray], np.ndarray]:
    """Normalises what `_reader` has read, each particle's as its own set says."""
    source = everyone[0].source
    if all(one.source is source for one in everyone):
        return source.normalise

    def normalise(x: np.ndarray) -> np.ndarray:
        parts = zip(everyone, np.split(x, len(everyone)), strict=True)
        return np.concatenate([one.source.normalise(part) for one, part in parts])

    return normalise


def augmentation_of(source: Source, augment: Sequence[Mapping[str, Any]]) -> Augmentation:
    """The augmentations of a config, for the examples of `source`.

    Raises:
      ConfigError: an augmentation that does not apply to them.
    """
    images = len(source.shape) == 3
    in_unit_range = source.in_unit_range or not images
    return pipeline(augment, source.classes, in_unit_range=in_unit_range, names=source.names)


def forms(
    source: Source, augment: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and type of the entries of one example as `batches` gives it; reads none.

    Raises:
      ConfigError: an augmentation that does not apply to them.
    """
    augmentation = augmentation_of(source, augment)
    batch = {key: np.zeros((2, *shape), dtype) for key, (shape, dtype) in source.forms().items()}
    try:
        batch = augmentation.run(batch, 0, 0, 2)
        for key in ("x", *augmentation.views):
            batch[key] = source.normalise(batch[key])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"augment: {error}") from error
    return {key: (array.shape[1:], array.dtype) for key, array in batch.items()}


def epoch(
    source: Source, batch_size: int, *, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """All examples once, in order, in batches of one shape.

    The last batch is padded with copies of the last example; `mask` [B] bool is False there.
    Without labels y is 0. With several processes each yields its share of every batch.

    Raises:
      ValueError: processes that cannot share the batch.
    """
    share = rows(batch_size, process_index, process_count)

    def generate() -> Iterator[Batch]:
        for start in range(0, len(source), batch_size):
            indices = np.arange(start + share.start, start + share.stop)
            batch = source.gather(np.minimum(indices, len(source) - 1))
            batch.setdefault("y", np.zeros(len(indices), np.int32))
            yield batch | {"mask": indices < len(source)}

    return generate()


class Prefetch:
    """Iterates over (step, put(batch)) for an iterator of (step, batch).

    A thread works `depth` batches ahead, and is woken when half of them are taken: waking it for
    each batch costs more than making a small one. An exception of the iterator or of `put` is
    raised by the matching `next`. `close`, leaving a `with` block, losing the last reference and
    the end of the program stop the thread.
    """

    def __init__(
        self,
        iterator: Iterator[tuple[int, Batch]],
        put: Callable[[Batch], Any],
        depth: int = 2,
    ):
        if depth < 1:
            raise ValueError(f"depth: {depth}; at least 1 is needed")
        self._ready: queue.SimpleQueue = queue.SimpleQueue()
        self._room, self._stop = threading.Semaphore(depth), threading.Event()
        self._half, self._taken = max(depth // 2, 1), 0
        arguments = (iterator, put, self._ready, self._room, self._stop)
        # A daemon, so that it does not keep a failed program alive; it must not refer to self.
        thread = threading.Thread(target=_work, args=arguments, name="prefetch", daemon=True)
        self.close = weakref.finalize(self, _close, thread, self._room, self._stop)
        thread.start()

    def __iter__(self) -> "Prefetch":
        return self

    def __next__(self) -> tuple[int, Any]:
        if self._stop.is_set():
            raise StopIteration
        item, error = self._ready.get()
        if error is not None:
            self.close()
            raise error
        self._taken += 1
        if self._taken == self._half:
            self._room.release(self._half)
            self._taken = 0
        return item

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prefetch(
    iterator: Iterator[tuple[int, Batch]], put: Callable[[Batch], Any], depth: int = 2
) -> Prefetch:
    """`batches` ahead of time and on the devices: `put` is called in a thread, on each batch."""
    return Prefetch(iterator, put, depth)


def depth(source: Source, batch_size: int, most: int = 32, memory: int = 64 << 20) -> int:
    """How many batches to make ahead: `most`, or as many as fit in `memory` bytes; at least 2."""
    return max(2, min(most, memory // (4 * batch_size * math.prod(source.shape))))


def _work(iterator, put, ready, room, stop) -> None:
    try:
        while True:
            room.acquire()
            if stop.is_set():
                return
            step, batch = next(iterator)
            ready.put(((step, put(batch)), None))
    except BaseException as error:  # StopIteration too: `next` raises it there
        ready.put((None, error))


def _close(thread: threading.Thread, room: threading.Semaphore, stop: threading.Event) -> None:
    """Waits at most for the batch that is being made."""
    stop.set()
    room.release()
    if thread is not threading.current_thread():
        thread.join()
