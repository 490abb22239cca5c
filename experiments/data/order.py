"""The examples in the batch of a step: a pure function of (seed, step), or (seed, p, step).

Epochs are concatenated, each with its own permutation, and step s takes positions [s B, (s + 1) B)
of that endless sequence. So no example is dropped, every example is seen once an epoch, a batch may
straddle two epochs, and resuming needs only the step. Where particles have their own orders,
particle p uses the permutations of stage p; particles that share one order use that of particle 0.
"""

import functools
from collections.abc import Callable

import numpy as np

# Purposes of streams of random numbers.
ORDER, AUGMENT, LABELS, CORRUPT, SPLIT, BOOTSTRAP, FOLDS, PER_CLASS = range(8)


def philox(seed: int, purpose: int, *, step: int = 0, stage: int = 0) -> np.random.Philox:
    """The stream of random bits that belongs to (seed, purpose, step, stage) alone.

    Seed and purpose are the key; step and stage are the upper half of the 256-bit counter, whose
    lower half counts the draws: streams never overlap.
    """
    key = np.array([check_seed(seed), purpose], np.uint64)  # a list would go through float64
    return np.random.Philox(key=key, counter=np.array([0, 0, step, stage], np.uint64))


def check_seed(seed: int) -> int:
    """Raises ValueError unless `seed` is an integer in [0, 2^64)."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise ValueError(f"seed: {seed!r}; an integer in [0, 2^64) is needed")
    return int(seed)


def shuffled(n: int, seed: int, purpose: int, *, step: int = 0, stage: int = 0) -> np.ndarray:
    """A uniform permutation of range(n), int64 [n].

    It sorts raw Philox bits, which NumPy promises to keep, unlike those of `permutation`.
    """
    return np.argsort(philox(seed, purpose, step=step, stage=stage).random_raw(n), kind="stable")


def permutations(seed: int, n: int, particle: int = 0) -> Callable[[int], np.ndarray]:
    """epoch -> the order of the `n` examples in it, int64 [n], read-only; keeps the last two."""

    @functools.lru_cache(maxsize=2)
    def permutation(epoch: int) -> np.ndarray:
        order = shuffled(n, seed, ORDER, step=epoch, stage=particle)
        order.flags.writeable = False
        return order

    return permutation


def rows(batch_size: int, process_index: int = 0, process_count: int = 1) -> slice:
    """The positions in the global batch that belong to a process: equal, contiguous shares.

    Raises:
      ValueError: the processes do not divide the batch, or there is no such process.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size}; at least 1 is needed")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index: {process_index}; it must be in [0, {process_count})")
    if batch_size % process_count:
        raise ValueError(
            f"batch_size: {batch_size}; {process_count} processes cannot share it equally"
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


def indices(
    seed: int,
    step: int,
    batch_size: int,
    n: int,
    process_index: int = 0,
    process_count: int = 1,
    *,
    order: Callable[[int], np.ndarray] | None = None,
) -> np.ndarray:
    """The examples of one step that this process reads, int64 [batch_size / process_count].

    Args:
      seed: of the order of examples, in [0, 2^64).
      step: from 0.
      batch_size: of the global batch.
      n: number of examples.
      process_index, process_count: the shares of the processes, in order, are the global batch.
      order: `permutations` to reuse between steps, or those of another particle; by default those
        of (seed, n).

    Raises:
      ValueError: a batch that the processes cannot share, an empty set, a negative step or seed.
    """
    share = rows(batch_size, process_index, process_count)
    if n < 1 or step < 0:
        raise ValueError(f"n: {n}, step: {step}; n >= 1 and step >= 0 are needed")
    order = order or permutations(check_seed(seed), n)
    start, stop = step * batch_size + share.start, step * batch_size + share.stop
    parts = [
        order(epoch)[max(start - epoch * n, 0) : stop - epoch * n]
        for epoch in range(start // n, (stop - 1) // n + 1)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
