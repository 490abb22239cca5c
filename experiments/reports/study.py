"""A table over seeds: what it holds, how a cell is summarised and rounded.

A cell is the mean over seeds with its standard error, s / sqrt(n), where s is the sample standard
deviation (ddof = 1). One seed has no error. `layout` turns a study into text once, so that the
terminal, Markdown, LaTeX and HTML renderers show the same digits, bold cells and footnotes.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.reports import datasets
from experiments.reports.text import one_line

# shown = stored * scale; every other unit is shown as stored
SCALE = {"%": 100.0, "K": 1e-3, "M": 1e-6}
BETTER = {"higher": "↑", "lower": "↓", None: ""}


@dataclasses.dataclass(frozen=True)
class Column:
    key: str  # the name in metrics.json
    header: str
    unit: str = ""
    better: str | None = None  # 'higher', 'lower', or None where there is no best value
    digits: int = 2  # decimals where no standard error sets them

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
    group: str = ""  # the best value is sought among the rows of a group, such as of a data set
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
    config: Any = None  # whatever json can write: a dict, or one per row
    seeds: Sequence[int] = ()
    # What `writers.hardware` gives: 'devices', 'processor', 'cores', 'date', versions.
    hardware: Mapping[str, Any] = dataclasses.field(default_factory=dict)

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
    # Equal values have no error, whatever rounding leaves of their mean.
    error = float(array.std(ddof=1) / math.sqrt(n)) if np.ptp(array) else 0.0
    return Summary(mean, error, n)


def values_of(row: Row, key: str) -> list[float]:
    """The values of one metric over the row's seeds, leaving out seeds that lack it."""
    return [float(r[key]) for r in row.results if r.get(key) is not None]


def round_pair(mean: float, error: float | None, digits: int) -> tuple[str, str]:
    """`(mean, error)` as text, both rounded to the same place.

    The error keeps two significant digits if it begins with 1 or 2, and one otherwise, but no more
    than `digits` + 2 decimals (rounded up, so that none is shown as 0); without an error, or with
    one of 0, the mean gets `digits` decimals.
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
    shown = max(decimals, 0)
    return f"{round(mean, decimals):z.{shown}f}", f"{round(error, decimals):.{shown}f}"


def published_text(value: float, digits: int) -> str:
    """A published value with at least `digits` decimals, and never rounded."""
    text = f"{value:.{digits}f}"
    return text if float(text) == float(value) else repr(float(value))


class Cell(NamedTuple):
    mean: str = ""
    error: str = ""
    best: bool = False
    failed: bool = False
    published: str = ""
    source: int = 0  # number of a note; 0 for none

    def ours(self, plus_minus: str = " ± ") -> str:
        return self.mean + (plus_minus + self.error if self.error else "")


class Head(NamedTuple):
    text: str
    marks: tuple[int, ...] = ()  # numbers of notes


class Layout(NamedTuple):
    heads: tuple[Head, ...]  # of the columns
    compared: tuple[bool, ...]  # whether a column has any published value
    lines: tuple[tuple[Head, tuple[Cell, ...]], ...]
    notes: tuple[str, ...]  # numbered from 1
    caption: str
    data: tuple[str, ...] = ()  # sentences on the sets, to stand above the table
    warnings: tuple[str, ...] = ()  # of what is not to be compared, likewise


def machine(hardware: Mapping[str, Any]) -> str:
    """Processor, devices and day in words: 'Intel Xeon, 2 cores; 1 x NVIDIA H100; 2025-01-31'."""
    processor = str(hardware.get("processor", ""))
    if "cores" in hardware:
        processor += f", {hardware['cores']} core{'s' * (hardware['cores'] != 1)}"
    parts = (processor.strip(", "), hardware.get("devices", ""), hardware.get("date", ""))
    return "; ".join(str(part) for part in parts if part)


def layout(study: Study) -> Layout:
    """Every text of the table, and which cells are best, for the renderers to arrange."""
    notes: list[str] = []

    def mark(text: str) -> int:
        text = one_line(text)
        if text not in notes:
            notes.append(text)
        return notes.index(text) + 1

    summaries = [[summarise(values_of(r, c.key)) for c in study.columns] for r in study.rows]
    most = max([len(study.seeds), *(len(row.results) for row in study.rows)])
    numbers = comparable(study)
    lines = []
    for row, entries, number in zip(study.rows, summaries, numbers, strict=True):
        marks = [mark(row.note)] if row.note else []
        n = len(row.results)
        if row.failed:
            marks.append(mark(f"Failed{f' ({n} of {_seeds(most)} shown)' * bool(n)}: {row.failed}"))
        elif 0 < n < most:
            marks.append(mark(f"{n} of {_seeds(most)}."))
        rivals = [
            s
            for r, s, other in zip(study.rows, summaries, numbers, strict=True)
            if (r.group, other) == (row.group, number)
        ]
        cells = []
        for i, (column, entry) in enumerate(zip(study.columns, entries, strict=True)):
            cell = Cell("failed", failed=True) if row.failed and not n and i == 0 else Cell()
            if entry:
                best = _best(column, [s[i] for s in rivals])
                cell = _cell(column, entry)._replace(best=entry.mean == best)
                if entry.n < n:
                    marks.append(mark(f"{column.header}: {entry.n} of {_seeds(n)}."))
            if column.key in row.published:
                value, source = row.published[column.key]
                text = published_text(value, column.digits)
                cell = cell._replace(published=text, source=mark(source))
            cells.append(cell)
        lines.append((Head(one_line(row.label), tuple(marks)), tuple(cells)))
    seeds = max((len(row.results) for row in study.rows), default=0)
    captions = ("", "One seed: no standard error.", f"Mean ± standard error over {_seeds(seeds)}.")
    heads = tuple(Head(one_line(column.title)) for column in study.columns)
    shown = _arranged(heads, lines, tuple(notes), captions[min(seeds, 2)])
    return shown._replace(data=_data(study), warnings=_warnings(study, numbers))


def comparable(study: Study) -> list[int]:
    """A number for each row; rows of a group with one number were evaluated on the same data."""
    numbers = [0] * len(study.rows)
    for group in dict.fromkeys(row.group for row in study.rows):
        places = [i for i, row in enumerate(study.rows) if row.group == group]
        found = datasets.partition([study.rows[i].data for i in places])
        for i, number in zip(places, found, strict=True):
            numbers[i] = number
    return numbers


def _data(study: Study) -> tuple[str, ...]:
    """On what the rows were evaluated, once for all groups or once for each."""
    found = {}
    for row in study.rows:
        found.setdefault(row.group, []).extend(row.data)
    texts = {group: datasets.described(runs) for group, runs in found.items()}
    texts = {group: text for group, text in texts.items() if text}
    if len(set(texts.values())) == 1:
        return (one_line(f"Evaluated on {next(iter(texts.values()))}."),)
    return tuple(
        one_line(f"{f'{group}: e' if group else 'E'}valuated on {text}.")
        for group, text in texts.items()
    )


def _warnings(study: Study, numbers: Sequence[int]) -> tuple[str, ...]:
    found = []
    for group in dict.fromkeys(row.group for row in study.rows):
        parts: dict[int, list[Row]] = {}
        for row, number in zip(study.rows, numbers, strict=True):
            if row.group == group:
                parts.setdefault(number, []).append(row)
        if len(parts) > 1:
            words = "; ".join(
                f"{', '.join(row.label for row in rows)}: "
                + (datasets.described([run for row in rows for run in row.data]) or "unknown data")
                for rows in parts.values()
            )
            found.append(f"Different data: no best is marked across these rows. {words}.")
    for row in study.rows:
        if paths := datasets.changed(row.data):
            found.append(
                f"{row.label}: its seeds were evaluated on different examples of "
                f"{', '.join(sorted(paths))}, though their configs read the same."
            )
    return tuple(map(one_line, found))


def _cell(column: Column, entry: Summary) -> Cell:
    error = entry.error and entry.error * column.scale
    if error == 0 and column.better is None:
        error = None  # a cost that no seed changes
    return Cell(*round_pair(entry.mean * column.scale, error, column.digits))


def transpose(shown: Layout) -> Layout:
    """The same table with a line per metric and a column per row of the study."""
    lines = [
        (head, tuple(cells[i] for _, cells in shown.lines)) for i, head in enumerate(shown.heads)
    ]
    made = _arranged(tuple(head for head, _ in shown.lines), lines, shown.notes, shown.caption)
    return made._replace(data=shown.data, warnings=shown.warnings)


def _arranged(
    heads: tuple[Head, ...],
    lines: Sequence[tuple[Head, tuple[Cell, ...]]],
    notes: tuple[str, ...],
    caption: str,
) -> Layout:
    compared = tuple(any(cells[i].published for _, cells in lines) for i in range(len(heads)))
    return Layout(heads, compared, tuple(lines), notes, caption)


def _seeds(n: int) -> str:
    return f"{n} seed" + ("s" if n != 1 else "")


def _best(column: Column, summaries: Sequence[Summary | None]) -> float | None:
    means = [s.mean for s in summaries if s and math.isfinite(s.mean)]
    if column.better is None or len(set(means)) < 2:
        return None
    return max(means) if column.better == "higher" else min(means)
