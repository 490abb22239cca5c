"""A table over seeds: its data, and how cells are summarised and rounded.

A cell is the mean over seeds with its standard error, s / sqrt(n), where s is the sample standard
deviation (ddof = 1). One seed has no error. `layout.py` turns a study into text.
"""

import dataclasses
import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.reports import datasets

# shown = stored * scale; every other unit is shown as stored
SCALE = {"%": 100.0, "K": 1e-3, "M": 1e-6}
BETTER = {"higher": "↑", "lower": "↓", None: ""}


@dataclasses.dataclass(frozen=True)
class Column:
    key: str  # the name in metrics.json
    header: str
    unit: str = ""
    better: str | None = None  # 'higher', 'lower', or None if no value is best
    digits: int = 2  # decimals without a standard error

    def __post_init__(self) -> None:
        if self.better not in BETTER:
            raise ValueError(
                f"column {self.key!r}: better={self.better!r}, expected 'higher', 'lower' or None"
            )

    @property
    def scale(self) -> float:
        return SCALE.get(self.unit, 1.0)

    @property
    def title(self) -> str:
        unit = f" ({self.unit})" if self.unit else ""
        arrow = BETTER[self.better]
        return f"{self.header}{unit}{' ' + arrow if arrow else ''}"


@dataclasses.dataclass
class Row:
    label: str
    results: list[dict[str, float]] = dataclasses.field(default_factory=list)  # one per seed
    # key -> (value in the column's unit, where it was published)
    published: dict[str, tuple[float, str]] = dataclasses.field(default_factory=dict)
    group: str = ""  # the best value is marked within each group of rows, such as a data set
    note: str = ""
    failed: str = ""  # why the row, or some of its seeds, has no results
    data: list[datasets.Evaluated] = dataclasses.field(default_factory=list)  # one per seed


@dataclasses.dataclass
class Study:
    """Rows x columns over seeds. `columns` and `rows` may be given as plain dicts."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    command: str = ""
    config: Any = None  # any JSON value: a dict, or one per row
    seeds: Sequence[int] = ()  # of a row that has all of them; () if rows have others
    # From `writers.hardware`: 'devices', 'processor', 'cores', 'date', versions.
    hardware: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    exact: bool = False  # numbers without chance, so that nothing is said of seeds

    def __post_init__(self) -> None:
        self.columns = [Column(**c) if isinstance(c, dict) else c for c in self.columns]
        self.rows = [Row(**r) if isinstance(r, dict) else r for r in self.rows]
        keys = {column.key for column in self.columns}
        for row in self.rows:
            for key, entry in row.published.items():
                if key not in keys:
                    raise ValueError(
                        f"row {row.label!r}: published {key!r} is not a column; "
                        f"the columns are {sorted(keys)}"
                    )
                if len(entry) != 2 or not str(entry[1]).strip():
                    raise ValueError(
                        f"row {row.label!r}: published {key!r} = {entry!r}, "
                        "expected (value, source) with a source"
                    )


class Summary(NamedTuple):
    mean: float
    error: float | None  # None for one seed
    n: int


def summarise(values: Sequence[float]) -> Summary | None:
    """Mean and standard error over seeds; None without values.

    The error is None for a single value, and for values that are not all finite.
    """
    if not len(values):
        return None
    array = np.asarray(values, np.float64)
    n = array.size
    mean = float(array.mean())
    if n == 1 or not np.isfinite(array).all():
        return Summary(mean, None, n)
    # Equal values have error 0, also if the mean is rounded.
    error = float(array.std(ddof=1) / math.sqrt(n)) if np.ptp(array) else 0.0
    return Summary(mean, error, n)


def numbers(metrics: Any) -> dict[str, float]:
    """The metrics of an evaluation that have a value.

    Raises:
      ValueError: it is not a dict of numbers.
    """
    if not isinstance(metrics, Mapping):
        raise ValueError("it holds no metrics")
    for key, value in metrics.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{key} = {str(value)[:40]!r} is not a number")
    return {key: value for key, value in metrics.items() if value is not None}


def values_of(row: Row, key: str) -> list[float]:
    """The values of one metric over the row's seeds, without seeds that lack it."""
    return [float(r[key]) for r in row.results if r.get(key) is not None]


def round_pair(mean: float, error: float | None, digits: int) -> tuple[str, str]:
    """`(mean, error)` as text, both rounded to the same place.

    The error has two significant digits if it starts with 1 or 2, and one otherwise, but at most
    `digits` + 2 decimals (rounded up, so that it is never shown as 0). Without an error, or with
    error 0, the mean has `digits` decimals.
    """
    if not math.isfinite(mean):
        return str(mean), ""
    if error is None:
        return f"{mean:z.{digits}f}", ""
    if error == 0:
        return f"{mean:z.{digits}f}", f"{0:.{digits}f}"
    exponent = math.floor(math.log10(error))
    decimals = (1 if error / 10.0**exponent < 3 else 0) - exponent
    if decimals > digits + 2:
        decimals = digits + 2
        error = max(error, 10.0**-decimals)
    places = max(decimals, 0)
    return f"{round(mean, decimals):z.{places}f}", f"{round(error, decimals):.{places}f}"


def published_text(value: float, digits: int) -> str:
    """A published value with at least `digits` decimals, never rounded."""
    text = f"{value:.{digits}f}"
    return text if float(text) == float(value) else repr(float(value))


def machine(hardware: Mapping[str, Any]) -> str:
    """Processor, devices and day in words: 'Intel Xeon, 2 cores; 1 x NVIDIA H100; 2025-01-31'."""
    processor = str(hardware.get("processor", ""))
    if "cores" in hardware:
        processor += f", {hardware['cores']} core{'s' * (hardware['cores'] != 1)}"
    parts = (processor.strip(", "), hardware.get("devices", ""), hardware.get("date", ""))
    return "; ".join(str(part) for part in parts if part)


def one_line(text: object) -> str:
    """Text on one line, without unprintable characters: controls, surrogates, unassigned codes."""
    joined = " ".join(str(text).split())
    if joined.isascii() and joined.isprintable():
        return joined
    return "".join("\ufffd" if _hidden(c) else c for c in joined)


def _hidden(c: str) -> bool:
    return unicodedata.category(c) in ("Cc", "Cs", "Cn", "Co")
