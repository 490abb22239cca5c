"""Whether two data sets have examples in common."""

import collections
import hashlib
import logging

import numpy as np

from experiments.data.examples import Source

logger = logging.getLogger(__name__)
MOST = 0.5  # of the examples; sets of few features have equal rows by chance
SAMPLE = 512  # examples that are read of a set on disk


def share(source: Source, other: Source) -> float | None:
    """The share of a set's examples whose stored x, in regression also y, is in another one.

    All examples of sets in memory are compared. Of a set on disk a random sample is: with a
    fraction f of the sample of the other set in this one, the share is f len(other) / len(source).
    Of two sets on disk, samples of which would hardly meet, it is 1 for equal ones and else None.
    """
    if source.x.dtype != other.x.dtype or source.shape != other.shape or not len(other):
        return 0.0
    if source.in_memory and other.in_memory:
        # A regression may have targets of its own at equal inputs, such as those of a grid.
        with_y = source.task == other.task == "regression"
        theirs = set(_hashes(other, with_y))
        return float(np.mean([h in theirs for h in _hashes(source, with_y)]))
    if source.in_memory:
        of_all = set(_hashes(source))
        found = float(np.mean([h in of_all for h in _hashes(other)]))
        return min(1.0, found * len(other) / len(source))
    if other.in_memory:
        theirs = set(_hashes(other))
        return float(np.mean([h in theirs for h in _hashes(source)]))
    same = source.title == other.title or source.digest() == other.digest()
    return 1.0 if same else None


def _hashes(source: Source, with_y: bool = False) -> list[bytes]:
    """Of the stored x, and y, of all examples in memory, or of a sample of those on disk."""
    if source.in_memory:
        x = source.x
    else:
        rng = np.random.default_rng(0)
        count = min(SAMPLE, len(source))
        x = source.x.gather(np.sort(rng.choice(len(source), count, replace=False)))["x"]
    hashes = [hashlib.blake2b(np.ascontiguousarray(row), digest_size=12) for row in x]
    if with_y and source.y is not None:
        for one, target in zip(hashes, source.y, strict=True):
            one.update(np.ascontiguousarray(target))
    return [one.digest() for one in hashes]


def mostly_repeated(source: Source) -> bool:
    """Whether most examples of a set in memory are there several times, as rows of a few discrete
    features are, so that other examples of the same distribution are mostly equal to some too."""
    if not source.in_memory:
        return False
    hashes = _hashes(source, source.task == "regression")
    counts = collections.Counter(hashes)
    return float(np.mean([counts[h] > 1 for h in hashes])) > MOST


def require_apart(field: str, source: Source, other: Source, used: str) -> None:
    """Refuses a set of held-out examples that is, or lies within, another set.

    Fewer than half in common, as equal rows of a table may be, are logged. So are more where
    examples of the other set are mostly equal to each other, see `mostly_repeated`.

    Args:
      field: of the held-out examples, for the message.
      source: the held-out examples.
      other: the examples that have to be others.
      used: what they are used for.

    Raises:
      ValueError: more than half of the examples are in the other set.
    """
    same = share(source, other)
    about = "" if source.in_memory and other.in_memory else "about "
    most = same is not None and same > MOST
    if most and (source.digest() == other.digest() or not mostly_repeated(other)):
        raise ValueError(
            f"{field}: {about}{same:.0%} of the {len(source):,} examples of {source.title} are in "
            f"{other.title}, {used}; take examples that are held out from both"
        )
    if same:
        logger.warning(
            "%s: %s%.1f %% of the examples of %s are in %s, %s",
            field,
            about,
            100 * same,
            source.title,
            other.title,
            used,
        )
