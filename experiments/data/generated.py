"""What data sets that are generated, or put together, have in common."""

import functools
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from experiments.data.splits import Arrays, Dataset, dataset

# The splits in which simple features, or all others, are those of another example.
RANDOMISED = ("simple_randomised", "complex_randomised")


def lazily(names: Sequence[str], make: Callable[[str], Arrays], classes: int | None) -> Dataset:
    """A Dataset of generated splits, each made when it is read first."""
    return dataset(names, functools.cache(make), classes)


def rng_of(seed: int, name: str) -> np.random.Generator:
    """The random numbers of a split."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def with_agreement(
    rng: np.random.Generator, y: np.ndarray, agreement: float, classes: int = 2
) -> np.ndarray:
    """Classes that equal y [N] with this probability, and are any other one uniformly otherwise."""
    other = (y + rng.integers(1, max(classes, 2), len(y))) % classes
    return np.where(rng.random(len(y)) < agreement, y, other)


def check_probability(field: str, value: float) -> None:
    """Raises ValueError unless `value` is in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{field}: {value}; a probability, from 0 to 1")


def check_sizes(**sizes: int) -> None:
    """Raises ValueError for a number of examples below 1."""
    for field, value in sizes.items():
        if value < 1:
            raise ValueError(f"{field}: {value} examples; at least 1")
