"""Whether two data sets have examples in common."""

import hashlib
import logging

import numpy as np

from experiments.data.examples import Source

logger = logging.getLogger(__name__)
MOST = 0.5  # of the examples; sets of few features have equal rows by chance
SAMPLE = 512  # examples that are read of a set on disk


def share(source: Source, other: Source) -> float | None:
    """The share of a set's examples whose stored x is in another one.

    All examples of sets in memory are compared. Of a set on disk a random sample is: with a
    fraction f of the sample of the other set in this one, the share is f len(other) / len(source).
    Of two sets on disk, samples of which would hardly meet, it is 1 for equal ones and else None.
    """
    if source.x.dtype != other.x.dtype or source.shape != other.shape or not len(other):
        return 0.0
    if source.in_memory:
        mine = _hashes(source)
        if other.in_memory:
            theirs = set(_hashes(other))
            return float(np.mean([h in theirs for h in mine]))
        of_all = set(mine)
        found = float(np.mean([h in of_all for h in _hashes(other)]))
        return min(1.0, found * len(other) / len(source))
    if other.in_memory:
        theirs = set(_hashes(other))
        return float(np.mean([h in theirs for h in _hashes(source)]))
    same = source.title == other.title or source.digest() == other.digest()
    return 1.0 if same else None


def _hashes(source: Source) -> list[bytes]:
    """Of the stored x of all examples in memory, or of a sample of those on disk."""
    if source.in_memory:
        x = source.x
    else:
        rng = np.random.default_rng(0)
        count = min(SAMPLE, len(source))
        x = source.x.gather(np.sort(rng.choice(len(source), count, replace=False)))["x"]
    return [hashlib.blake2b(np.ascontiguousarray(row), digest_size=12).digest() for row in x]


def require_apart(field: str, source: Source, other: Source, used: str) -> None:
    """Refuses a set of held-out examples that is, or lies within, another set.

    Fewer than half in common, as equal rows of a table may be, are logged.

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
    if same is not None and same > MOST:
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
