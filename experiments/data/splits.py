"""A data set before it is normalised, and the names of its parts: 'train[:80%]+validation'."""

import re
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np

from uncertainty.build import ConfigError, nearest

Arrays = tuple[Any, Any]  # x [N, ...], y [N] or [N, K]


class Dataset(NamedTuple):
    """What a loader returns: `read(split)` gives the arrays, as they are stored."""

    read: Callable[[str], Arrays]
    classes: int | None  # None: y is real-valued; 0: as many as the labels show
    standardise: bool = False  # what `load` does unless the spec says otherwise


def dataset(
    names: Collection[str],
    get: Callable[[str], Arrays],
    classes: int | None,
    standardise: bool = False,
) -> Dataset:
    """A Dataset of the splits `names`; `get(name)` reads one of them."""
    return Dataset(lambda split: take(names, get, split), classes, standardise)


_PART = re.compile(r"\s*([\w-]+)\s*(?:\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\])?\s*")


def take(names: Collection[str], get: Callable[[str], Arrays], split: str) -> Arrays:
    """The examples of a split in the syntax of tfds: a name, a slice of it, or a sum of those.

    'train', 'train[:50000]', 'train[80%:]', 'train[-500:]', 'train[:10%]+test'. Percentages are
    rounded to the closest example, as in tfds.

    Raises:
      ConfigError: another syntax, an unknown split, or a slice that ends beyond it.
    """
    parts = [_part(names, get, part) for part in str(split).split("+")]
    if len(parts) == 1:
        return parts[0]
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def _part(names: Collection[str], get: Callable[[str], Arrays], part: str) -> Arrays:
    match = _PART.fullmatch(part)
    if not match:
        raise ConfigError(f"split: {part!r} is not like 'train', 'train[:100]' or 'train[80%:]'")
    name, start, stop = match.groups()
    if name not in names:
        raise ConfigError(f"split: {name!r} does not exist; {nearest(name, names)}")
    x, y = get(name)
    wanted = slice(_position(start, len(x)), _position(stop, len(x)))
    for end in (wanted.start, wanted.stop):
        if end is not None and abs(end) > len(x):
            raise ConfigError(f"split: {part!r} goes beyond the {len(x)} examples of {name!r}")
    return x[wanted], y[wanted]


def _position(text: str | None, n: int) -> int | None:
    if text is None:
        return None
    return round(int(text[:-1]) * n / 100) if text.endswith("%") else int(text)
