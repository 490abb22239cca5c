"""A data set before normalisation: its entries, and splits such as 'train[:80%]+validation'."""

import re
from collections.abc import Callable, Collection, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from uncertainty.build import ConfigError, nearest

# x [N, ...], y [N] or [N, K] if there are labels, and further entries [N, ...]
Arrays = Mapping[str, Any]
UNBOUNDED = "unbounded"
Range = tuple[float, float] | str | None


class Dataset(NamedTuple):
    """What a loader returns: `read(split)` gives the entries as stored."""

    read: Callable[[str], Arrays]  # or `records.Records` of a set that stays on disk
    classes: int | None  # None: y is real-valued; 0: counted from the labels
    standardise: bool = False  # the default of `load`
    # The stored values of images that become 0 and 1; 'unbounded': no scaling. None: 0 and 255 for
    # bytes; other types have to be in [0, 1].
    range: Range = None
    class_names: tuple[str, ...] | None = None  # if the set has them
    reading: Mapping[str, Any] = {}  # fields that determine how it is read, for other sets to use


def dataset(
    names: Collection[str],
    get: Callable[[str], Arrays],
    classes: int | None,
    standardise: bool = False,
    range: Range = None,
) -> Dataset:
    """A Dataset of the splits `names`; `get(name)` reads one of them."""
    return Dataset(lambda split: take(names, get, split), classes, standardise, range)


_PART = re.compile(r"\s*([\w-]+)\s*(?:\[\s*([^\[\]:]*?)\s*:\s*([^\[\]:]*?)\s*\])?\s*")
_END = re.compile(r"-?\d[\d_]*(\.\d*)?%|-?\.\d+%|-?\d[\d_]*")


def take(names: Collection[str], get: Callable[[str], Arrays], split: str) -> Arrays:
    """The examples of a split, see `positions`, with the entries common to all its parts.

    Raises:
      ConfigError: as `positions`.
    """
    arrays: dict[str, Arrays] = {}

    def size(name: str) -> int:
        arrays[name] = get(name)
        return len(arrays[name]["x"])

    parts = [
        {key: array[start:stop] for key, array in arrays[name].items()}
        for name, start, stop in positions(split, names, size)
    ]
    if len(parts) == 1:
        return parts[0]
    common = [key for key in parts[0] if all(key in part for part in parts)]
    return {key: np.concatenate([part[key] for part in parts]) for key in common}


def positions(
    split: str, names: Collection[str], size: Callable[[str], int]
) -> list[tuple[str, int, int]]:
    """(name, start, stop) of each part of a split in the syntax of tfds.

    A part is a name or a slice of it, and a split a sum of parts: 'train', 'train[:50_000]',
    'train[80%:]', 'train[-500:]', 'train[:12.5%]+test'; 'all' is the sum of all splits. Percentages
    are rounded to the closest example (half to even), as in tfds, but exactly. So 'train[:-1%]' and
    'train[-1%:]' never overlap, where tfds reads all of a small set for the second.

    Args:
      split: the split to read.
      names: of all splits.
      size: the number of examples of a split.

    Raises:
      ConfigError: invalid syntax, an unknown split, or a slice that is out of range or empty.
    """
    return [
        interval
        for part in str(split).split("+")
        for interval in (
            [(name, 0, size(name)) for name in names]
            if part.strip() == "all" and "all" not in names
            else [_position(part, names, size)]
        )
    ]


def within(split: str, name: str) -> bool:
    """Whether a split is made of one of the splits that have names, or of parts of it, alone."""
    parts = [_PART.fullmatch(part) for part in str(split).split("+")]
    return all(part is not None and part[1] == name for part in parts)


def _position(
    part: str, names: Collection[str], size: Callable[[str], int]
) -> tuple[str, int, int]:
    match = _PART.fullmatch(part)
    ends = [text for text in match.groups()[1:] if text] if match else []
    if not match or not all(map(_END.fullmatch, ends)):
        shards = " (only tfds has shards)" if "shard" in part else ""
        raise ConfigError(
            f"split: {part!r}; write 'train', 'train[:100]', 'train[80%:]' or 'all'{shards}"
        )
    name, start, stop = match.groups()
    if name not in names:
        raise ConfigError(f"split: {name!r} does not exist; {nearest(name, names)}")
    n = size(name)
    first, last = (_end(start, n) if start else 0), (_end(stop, n) if stop else n)
    beyond = any(text.endswith("%") and abs(Fraction(text[:-1])) > 100 for text in ends)
    if beyond or not (0 <= first <= n and 0 <= last <= n):
        raise ConfigError(f"split: {part!r} goes beyond the {n} examples of {name!r}")
    if first >= last and n:
        raise ConfigError(
            f"split: the split is empty: {part!r} selects none of the {n} examples of {name!r}"
        )
    return name, first, last


def _end(text: str, n: int) -> int:
    """The position that one end of a slice names; negative ones count from the end."""
    digits = text.removeprefix("-").replace("_", "")
    count = round(Fraction(digits[:-1]) * n / 100) if digits.endswith("%") else int(digits)
    return n - count if text.startswith("-") else count


RESERVED = ("x", "y", "mask")  # reserved: every reader of a batch uses them
# Stored type -> type in a batch: devices compute in 32 bits.
NARROWED = {"int64": np.int32, "uint64": np.uint32, "float64": np.float32, "float16": np.float32}


def check_names(names: Any, field: str = "entries") -> tuple[str, ...]:
    """Raises ConfigError unless `names` are distinct and not reserved."""
    if isinstance(names, str) or not isinstance(names, Collection):
        raise ConfigError(f"{field}: {names!r}; a list of names such as ['group']")
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*", name) or name in RESERVED:
            raise ConfigError(
                f"{field}: {name!r}; a name has letters, digits and _, and is not "
                f"{', '.join(RESERVED)}"
            )
    if len(set(names)) != len(names):
        raise ConfigError(f"{field}: {list(names)}; distinct names are needed")
    return tuple(names)


def carried_dtype(label: str, name: str, dtype: Any) -> np.dtype:
    """The type of an entry in a batch.

    Raises:
      ValueError: text, complex numbers or objects.
    """
    dtype = np.dtype(dtype)
    if dtype.kind not in "biuf":
        hint = (
            "; np.unique(a, return_inverse=True)[1] converts names to integers"
            if dtype.kind in "US"
            else ""
        )
        raise ValueError(
            f"{label}: {name} is {dtype}; booleans, integers or real numbers are needed{hint}"
        )
    return np.dtype(NARROWED.get(dtype.name, dtype))


def carried(label: str, name: str, values: np.ndarray) -> np.ndarray:
    """An entry, converted to its type in a batch.

    Raises:
      ValueError: text, complex numbers or objects, or integers beyond 32 bits.
    """
    dtype = carried_dtype(label, name, values.dtype)
    if dtype.kind in "iu" and values.size and dtype != values.dtype:
        least, most, limits = int(values.min()), int(values.max()), np.iinfo(dtype)
        if least < limits.min or most > limits.max:
            raise ValueError(
                f"{label}: {name} has integers from {least} to {most}; {dtype} holds "
                f"{limits.min} to {limits.max}"
            )
    return np.asarray(values, dtype)
