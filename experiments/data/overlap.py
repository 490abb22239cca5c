"""Whether two data sets have examples in common."""

import hashlib
import logging

import numpy as np

from experiments.data.examples import Source

logger = logging.getLogger(__name__)
MOST = 0.5  # of the examples; sets of few features have equal rows by chance


def share(source: Source, other: Source) -> float | None:
    """The share of a set's examples whose stored x is in another one; None for sets on disk."""
    if not (source.in_memory and other.in_memory):
        return None
    if source.x.dtype != other.x.dtype or source.shape != other.shape or not len(other):
        return 0.0
    theirs = set(_hashes(other.x))
    return float(np.mean([h in theirs for h in _hashes(source.x)]))


def _hashes(x: np.ndarray) -> list[bytes]:
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
    if same is None:
        if source.title != other.title:
            return
        same = 1.0
    if same > MOST:
        raise ValueError(
            f"{field}: {same:.0%} of the {len(source):,} examples of {source.title} are in "
            f"{other.title}, {used}; take examples that are held out from both"
        )
    if same > 0:
        logger.warning(
            "%s: %.1f %% of the examples of %s are in %s, %s",
            field,
            100 * same,
            source.title,
            other.title,
            used,
        )
