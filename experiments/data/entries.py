"""What an example has beside x and y: names, and arrays [N, ...] that batches can carry."""

import re
from collections.abc import Collection
from typing import Any

import numpy as np

from uncertainty.build import ConfigError

RESERVED = ("x", "y", "mask")  # which mean something to everything that reads a batch
# As stored -> as batches carry it: devices compute in 32 bits.
NARROWED = {"int64": np.int32, "uint64": np.uint32, "float64": np.float32, "float16": np.float32}


def check_names(names: Any, field: str = "entries") -> tuple[str, ...]:
    """Raises ConfigError unless `names` are distinct names that no other entry has."""
    if isinstance(names, str) or not isinstance(names, Collection):
        raise ConfigError(f"{field}: {names!r}; a list of names such as ['group']")
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*", name) or name in RESERVED:
            raise ConfigError(f"{field}: {name!r}; a name of letters, digits and _ that is not "
                              f"{', '.join(RESERVED)}")  # fmt: skip
    if len(set(names)) != len(names):
        raise ConfigError(f"{field}: {list(names)}; distinct names are needed")
    return tuple(names)


def carried_dtype(label: str, name: str, dtype: Any) -> np.dtype:
    """The type that batches have an entry in.

    Raises:
      ValueError: text, complex numbers or objects.
    """
    dtype = np.dtype(dtype)
    if dtype.kind not in "biuf":
        hint = "; np.unique(a, return_inverse=True)[1] makes whole numbers of names" \
            if dtype.kind in "US" else ""  # fmt: skip
        raise ValueError(f"{label}: {name} is {dtype}; booleans, integers or real numbers are "
                         f"needed{hint}")  # fmt: skip
    return np.dtype(NARROWED.get(dtype.name, dtype))


def carried(label: str, name: str, values: np.ndarray) -> np.ndarray:
    """An entry in the type that batches have it in.

    Raises:
      ValueError: text, complex numbers or objects, or integers beyond 32 bits.
    """
    dtype = carried_dtype(label, name, values.dtype)
    if dtype.kind in "iu" and values.size and dtype != values.dtype:
        least, most, limits = int(values.min()), int(values.max()), np.iinfo(dtype)
        if least < limits.min or most > limits.max:
            raise ValueError(f"{label}: {name} has integers from {least} to {most}; {dtype} holds "
                             f"{limits.min} to {limits.max}")  # fmt: skip
    return np.asarray(values, dtype)
