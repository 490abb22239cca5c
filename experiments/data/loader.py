"""Batches for training and for evaluation, and a thread that prepares them ahead."""

import math
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.data import augment as augmentation
from experiments.data.order import check_seed, indices, rows
from experiments.data.source import Source
from uncertainty.build import ConfigError

Batch = dict[str, np.ndarray]


def batches(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    augment: Sequence[Mapping[str, Any]] = (),
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[tuple[int, Batch]]:
    """(step, batch) from `start_step` on, without end.

    Args:
      source: the examples.
      seed: of order and augmentation; what a step holds depends on (seed, step) alone.
      batch_size: of the global batch; a batch here has this process's share of it.
      start_step: the first step; going on from there costs no more than starting.
      augment: names and fields of `augment`'s functions, in order.

    Raises:
      ConfigError: an augmentation that this data cannot have; found here, not at the first batch.
      ValueError: processes that cannot share the batch, an invalid seed.
    """
    check_seed(seed)
    share = rows(batch_size, process_index, process_count)
    images = len(source.shape) == 3
    apply = augmentation.pipeline(
        augment, source.classes, in_unit_range=source.in_unit_range or not images
    )
    if augment:
        try:
            apply(source.raw(np.zeros(share.stop - share.start, int)), seed, 0, batch_size, share)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"augment: {error}") from error

    def generate() -> Iterator[tuple[int, Batch]]:
        step = start_step
        while True:
            chosen = indices(seed, step, batch_size, len(source), process_index, process_count)
            batch = apply(source.raw(chosen), seed, step, batch_size, share)
            batch["x"] = source.normalise(batch["x"])
            yield step, batch
            step += 1

    return generate()


def with_context(
    stream: Iterator[tuple[int, Batch]], other: Iterator[tuple[int, Batch]]
) -> Iterator[tuple[int, Batch]]:
    """Batches whose stream `context` has the inputs of `other` (see `inference/context.py`)."""
    for (step, batch), (_, points) in zip(stream, other, strict=False):
        yield step, {**batch, "context": {"x": points["x"]}}


def epoch(
    source: Source, batch_size: int, *, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """All examples once, in order, in batches of one shape.

    The last batch is filled up with copies of the last example; `mask` [B] bool is False there.
    With several processes each yields its share of every batch.

    Raises:
      ValueError: processes that cannot share the batch.
    """
    share = rows(batch_size, process_index, process_count)

    def generate() -> Iterator[Batch]:
        for start in range(0, len(source), batch_size):
            chosen = np.arange(start + share.start, start + share.stop)
            batch = source.gather(np.minimum(chosen, len(source) - 1))
            yield batch | {"mask": chosen < len(source)}

    return generate()


class Prefetch:
    """Iterates over (step, put(batch)) for an iterator of (step, batch).

    A thread works `depth` batches ahead, and is woken when half of them are taken: to wake it for
    each batch costs more than to make a small one. An exception of the iterator or of `put` is
    raised by `next` in its turn. `close`, leaving a `with` block, losing the last reference and the
    end of the program stop the thread.
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
        # A daemon, so that a program that fails elsewhere ends; it must not refer to self.
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
    """Waits for the batch in the making, at most."""
    stop.set()
    room.release()
    if thread is not threading.current_thread():
        thread.join()
