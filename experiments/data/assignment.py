"""Which examples a particle sees: pure functions of (seed, p) and the data.

Each returns the examples of particle p as positions int64 [N_p] in its data set; an example that is
drawn twice appears twice. They are arranged in epochs like all data (`order.py`), with a
permutation for each particle and epoch. The number of particles has no influence: the first five of
ten see what the five particles of a smaller run see.

| data.particles | particle p sees |
| --- | --- |
| 'shared' | the same batches as all others |
| 'shuffled' | all N examples, in an order of its own |
| dict(name='bootstrap') | N drawn with replacement, once |
| dict(name='folds', size=K) | all but fold p mod K of K equal parts at random |
| dict(name='folds', size=K, use='fold') | only fold p mod K |
| dict(name='per_class', size=n) | n of each class, drawn without replacement, once |
| dict(name='sets', sets=[spec, ...]) | data set p mod len(sets), in an order of its own |
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.data.examples import Source
from experiments.data.order import BOOTSTRAP, FOLDS, PER_CLASS, philox, shuffled
from uncertainty.build import ConfigError, nearest
from uncertainty.specs import check_fields

SHARED, SETS = "shared", "sets"


class Own(NamedTuple):
    """The examples of one particle."""

    source: Source
    examples: np.ndarray | None = None  # positions in the source; None: all, each once

    @property
    def count(self) -> int:
        """N, the number of examples of this particle."""
        return len(self.source if self.examples is None else self.examples)


def all_of(source: Source, seed: int, p: int) -> None:
    """'shuffled': every example."""


def bootstrap(source: Source, seed: int, p: int) -> np.ndarray:
    """N draws with replacement, Efron (1979)."""
    n = len(source)
    bits = philox(seed, BOOTSTRAP, stage=p).random_raw(n)
    return (bits % np.uint64(n)).astype(np.int64)  # of 2^64 values: the bias is below n / 2^64


def folds(source: Source, seed: int, p: int, *, size: int, use: str = "others") -> np.ndarray:
    """All but fold p mod `size`, or that fold alone, in the order of the set.

    Args:
      size: number of folds; their sizes differ by one example at most.
      use: 'others' or 'fold'.

    Raises:
      ValueError: too few folds or too many, another use.
    """
    n = len(source)
    _check_size("size", size, 2, n)
    if use not in ("others", "fold"):
        raise ValueError(f"use: {use!r}; 'others' (all but the particle's fold) or 'fold'")
    fold = np.empty(n, np.int64)
    fold[shuffled(n, seed, FOLDS)] = np.arange(n) % size
    return np.flatnonzero((fold == p % size) == (use == "fold"))


def per_class(source: Source, seed: int, p: int, *, size: int) -> np.ndarray:
    """`size` examples of each class, in the order of the set.

    Raises:
      ValueError: data without classes or on disk, a class with fewer examples.
    """
    if source.classes is None or source.y is None:
        raise ValueError(f"name: 'per_class', but {source.name} has no labels of classes in memory")
    counts = np.bincount(source.y, minlength=source.classes)
    least = int(counts.argmin())
    _check_size("size", size, 1, int(counts[least]), f" of class {least}")
    order = shuffled(len(source), seed, PER_CLASS, stage=p)
    y = source.y[order]
    return np.sort(np.concatenate([order[y == k][:size] for k in range(source.classes)]))


def _check_size(field: str, size: Any, least: int, most: int, what: str = "") -> None:
    if type(size) is not int or not least <= size <= most:
        raise ValueError(
            f"{field}: {size!r}; a whole number from {least} to {most}, the number of "
            f"examples{what}"
        )


KINDS = {"shuffled": all_of, "bootstrap": bootstrap, "folds": folds, "per_class": per_class}
_GIVEN = ("source", "seed", "p")


def parse(spec: Any, field: str = "data.particles") -> tuple[str, dict[str, Any]]:
    """The name and the fields of `data.particles`; no data is read.

    Raises:
      ConfigError: an unknown name or field.
    """
    fields = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    name, valid = fields.pop("name", None), (SHARED, *KINDS, SETS)
    if name not in valid:
        raise ConfigError(f"{field}: {name!r}; {nearest(str(name), valid)}")
    if name in KINDS:
        check_fields(KINDS[name], fields, f"{field}.", given=_GIVEN)
    elif set(fields) != ({"sets"} if name == SETS else set()):
        raise ConfigError(
            f"{field}: {fields}; {SHARED!r} has no fields, and {SETS!r} has `sets`, "
            "a list of data sets"
        )
    if name == SETS:
        sets = fields["sets"]
        if (
            not isinstance(sets, list | tuple)
            or not all(isinstance(s, Mapping) for s in sets)
            or not sets
        ):
            raise ConfigError(
                f"{field}.sets: {sets!r}; a list of data sets such as "
                "[{'name': 'digits', 'split': 'train'}]"
            )
    return name, fields


def own_of(
    spec: Any,
    sources: Sequence[Source],
    seed: int,
    particles: Iterable[int],
    field: str = "data.particles",
) -> list[Own] | None:
    """What each of `particles` sees; None where they share the batches.

    Args:
      spec: `data.particles`.
      sources: the training data, or those of 'sets'.
      seed: of the config.
      particles: p of each, range(P).
      field: where the spec stands in the config.

    Raises:
      ConfigError: what these data do not allow.
    """
    name, fields = parse(spec, field)
    if name == SHARED:
        return None
    if name == SETS:
        return [Own(sources[p % len(sources)]) for p in particles]
    (source,) = sources
    try:
        return [Own(source, KINDS[name](source, seed, p, **fields)) for p in particles]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{field}.{error}") from error


def counts(spec: Any, sources: Sequence[Source], seed: int) -> set[int]:
    """The numbers of examples that particles have; a single number where they share the batches.

    Raises:
      ConfigError: what these data do not allow.
    """
    name, _ = parse(spec)
    # The first fold is the largest, the last the smallest; those between have one of the two sizes.
    some = {SETS: range(len(sources)), "folds": (0, -1)}.get(name, (0,))
    own = own_of(spec, sources, seed, some)
    return {len(sources[0])} if own is None else {one.count for one in own}
