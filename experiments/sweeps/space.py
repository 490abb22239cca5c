"""What a sweep varies: fields of a config with values or ranges, as a grid or drawn at random."""

import itertools
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.experiment import config as config_lib
from uncertainty.build import ConfigError, nearest

RANGES = ("log", "uniform", "integers")
FORMS = "[value, ...], log(low, high), uniform(low, high) or integers(low, high)"
DIGITS = 3  # significant digits of what is drawn, so that a label is the whole value


class Axis(NamedTuple):
    """A field of a config and what it may be.

    Attributes:
      field: its dotted name.
      values: to try; empty for a range.
      kind, low, high: of a range.
    """

    field: str
    values: tuple[Any, ...] = ()
    kind: str = ""
    low: float = math.nan
    high: float = math.nan

    def draw(self, rng: np.random.Generator) -> Any:
        """A value: of a list each with equal probability; of a range with `DIGITS` digits."""
        if self.values:
            return self.values[rng.integers(len(self.values))]
        if self.kind == "integers":
            return int(rng.integers(int(self.low), int(self.high), endpoint=True))
        if self.kind == "log":
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = rng.uniform(self.low, self.high)
        return float(f"{value:.{DIGITS}g}")


def axis(field: str, value: Any) -> Axis:
    """The axis of `--sweep FIELD=VALUE`, or of a file's `sweep`.

    Args:
      field: dotted name.
      value: a list; a range as text, such as 'log(1e-4, 1e-2)', or as a dict, {'log': [1e-4,
        1e-2]}; or text that is one of these.

    Raises:
      ConfigError: another form, a list that is empty or has a value twice, or a range that is not.
    """
    where = f"--sweep {field}"
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*", value, re.DOTALL)
        if found and found[1] not in RANGES:
            raise ConfigError(f"{where}: no range {found[1]!r}; {nearest(found[1], RANGES)}")
        value = {found[1]: f"[{found[2]}]"} if found else config_lib.value_of(value, where)
    if isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in RANGES:
        ((kind, ends),) = value.items()
        return _range(where, field, kind, ends)
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where}: {value!r}; {FORMS} is needed")
    if not value:
        raise ConfigError(f"{where}: {value!r} is empty; at least one value is needed")
    texts = [as_json(one) for one in value]
    for text, one in zip(texts, value, strict=True):
        if texts.count(text) > 1:
            raise ConfigError(f"{where}: {one!r} is there twice")
    return Axis(field, tuple(value))


def _range(where: str, field: str, kind: str, ends: Any) -> Axis:
    ends = config_lib.value_of(ends, where) if isinstance(ends, str) else ends
    numbers = isinstance(ends, list | tuple) and len(ends) == 2
    numbers = numbers and all(
        isinstance(end, int | float) and not isinstance(end, bool) and math.isfinite(end)
        for end in ends
    )
    if not numbers or not ends[0] < ends[1]:
        raise ConfigError(f"{where}: {kind}({ends}); (low, high) with low < high is needed")
    if kind == "log" and ends[0] <= 0:
        raise ConfigError(f"{where}: log({ends[0]}, {ends[1]}); low has to be positive")
    if kind == "integers" and not all(float(end).is_integer() for end in ends):
        raise ConfigError(f"{where}: integers({ends[0]}, {ends[1]}); whole numbers are needed")
    return Axis(field, (), kind, *ends)


def settings(axes: Sequence[Axis], count: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """The settings of a sweep: each a dict from the fields to their values.

    Args:
      axes: the fields.
      count: settings to draw, those that are drawn twice once; None for the grid of all values.
      seed: of the draws. Each is a function of (seed, its number, field): more draws begin with the
        same ones, and so does a sweep with one more field in the fields that it had.

    Raises:
      ConfigError: no axes, a field twice, a range in a grid, or fewer than one draw.
    """
    if not axes:
        raise ConfigError(f"--sweep: missing; FIELD={FORMS}")
    fields = [axis.field for axis in axes]
    for field in fields:
        if fields.count(field) > 1:
            raise ConfigError(f"--sweep {field}: given twice")
        if field == "seed":
            raise ConfigError("--sweep seed: use --seeds, over which numbers are averaged")
    if count is None:
        for one in axes:
            if not one.values:
                raise ConfigError(
                    f"--sweep {one.field}: a range needs --random N; a grid needs a list of values"
                )
        grid = itertools.product(*(axis.values for axis in axes))
        return [dict(zip(fields, values, strict=True)) for values in grid]
    if count < 1:
        raise ConfigError(f"--random: {count}; at least 1")
    drawn = {}
    for i in range(count):
        one = {
            axis.field: axis.draw(np.random.default_rng([seed, i, zlib.crc32(axis.field.encode())]))
            for axis in axes
        }
        drawn[as_json(one)] = one
    return list(drawn.values())


def labels(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """'learning_rate=0.001, size=4' for each setting: the last parts of the fields' names."""
    short = dict(_short(list(settings[0]))) if settings else {}
    return [", ".join(f"{short[k]}={text_of(v)}" for k, v in one.items()) for one in settings]


def _short(fields: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each field and as many of its last parts as tell it from the others."""
    for field in fields:
        parts = field.split(".")
        for n in range(1, len(parts) + 1):
            last = ".".join(parts[-n:])
            if sum(f".{other}".endswith(f".{last}") for other in fields) == 1:
                break
        yield field, last


def text_of(value: Any) -> str:
    """A value in a label: a single rule by its number, long ones by their name or a checksum."""
    if isinstance(value, list | tuple) and len(value) == 1:
        (only,) = value
        if isinstance(only, list | tuple) and len(only) == 2 and isinstance(only[0], str):
            return text_of(only[1])
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value).replace("e+", "e")  # a file name would take the plus for a minus
    if isinstance(value, str):
        return value
    text = re.sub(r'["\s]', "", as_json(value))
    if len(text) <= 40:
        return text
    name = value.get("name", "") if isinstance(value, Mapping) else ""
    return f"{name}#{zlib.crc32(text.encode()):08x}"


def as_json(value: Any) -> str:
    """Text that is equal for equal values: 1 and 1.0 differ, a tuple is a list."""
    return json.dumps(value, sort_keys=True, default=str)
