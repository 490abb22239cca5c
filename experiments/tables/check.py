"""Checks that results here agree with the committed ones within errors.

Each row and column of a table is compared separately. Its *difference* is that of the means, in
units of the combined standard error; a two-sided t test gives its p-value:

- paired, if at least three seeds were run here and all of them are among the committed ones: of
  the differences d of the k seeds t = mean(d) / (std(d) / sqrt(k)), with k - 1 degrees of freedom;
- otherwise of two samples with one variance, t = (a - b) / (s sqrt(1/k + 1/n)) with k + n - 2
  degrees of freedom, all n committed seeds and s pooled, so that even one seed can be checked.

A number *differs* if its p-value is significant among all numbers of the table by Holm's (1979)
step-down rule, and its mean is off by more than the committed standard error. The first condition
keeps the probability of any false alarm at LEVEL, however many numbers there are; the second
accepts changes of rounding that pairs detect but the table does not show.

Numbers that do not depend on the seed, such as the number of parameters, have no error and have to
be displayed as in the table. With one seed on both sides no error is known; costs alone are then
compared in this way. Measured times are not compared. A number that is missing or not finite here
differs if the committed one is finite.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy import stats

from experiments.reports.study import Column, Summary, round_pair, summarise
from experiments.runtime import keys

LEVEL = 0.01  # the probability that any number of a table is reported to differ by chance
PAIRED = 3  # the least seeds for a paired test: with fewer their spread is too uncertain
TIMES = ("seconds", "ms")

Values = Mapping[int, float]  # by seed


class Comparison(NamedTuple):
    """The comparison of one row and column."""

    row: str
    column: Column
    here: str  # as in the table
    committed: str
    error: float | None = None  # of the committed mean
    off: float = 0.0  # difference of the means
    errors: float | None = None  # the difference in combined standard errors
    p: float | None = None  # None where nothing varies
    reason: str = ""  # why it differs regardless of p
    differs: bool = False


def is_time(key: str) -> bool:
    """Whether a metric is a measured time, judged by its name."""
    return any(word in TIMES for word in keys.split(key)[-1].split("_"))


def compare(row: str, column: Column, here: Values, committed: Values) -> Comparison | None:
    """Compares one number; None if there is nothing to compare with, or no error of a number
    that may depend on the seed.

    Args:
      row: its name.
      column: of the table.
      here, committed: value by seed.
    """
    if not committed or is_time(column.key):
        return None
    ours, theirs = summarise(list(here.values())), summarise(list(committed.values()))
    compared = Comparison(row, column, _shown(column, ours), _shown(column, theirs), theirs.error)
    if not math.isfinite(theirs.mean):
        return compared
    if ours is None or not math.isfinite(ours.mean):
        return compared._replace(reason="no finite number here")
    if len(here) == len(committed) == 1 and keys.split(column.key)[0] != "cost":
        return None
    if not ours.error and not theirs.error:
        alike = [round_pair(s.mean * column.scale, None, column.digits) for s in (ours, theirs)]
        return compared._replace(reason="it does not depend on the seed" * (alike[0] != alike[1]))
    if len(here) >= PAIRED and here.keys() <= committed.keys():
        d = np.array([value - committed[seed] for seed, value in here.items()])
        off, spread, freedom = d.mean(), d.std(ddof=1) / math.sqrt(len(d)), len(d) - 1
    else:
        both = [np.array(list(values.values())) for values in (here, committed)]
        squares = sum(((v - v.mean()) ** 2).sum() for v in both)
        off, freedom = ours.mean - theirs.mean, len(here) + len(committed) - 2
        spread = math.sqrt(squares / freedom * (1 / len(here) + 1 / len(committed)))
    t = abs(off) / spread if spread else math.inf if off else 0.0
    p = 2 * float(stats.t.sf(t, freedom))
    return compared._replace(off=float(off), errors=float(t), p=p)


def comparisons(
    table: Mapping[str, Any],
    rows: Sequence[str],
    here: Mapping[tuple[str, int], Mapping[str, Any]],
    committed: Mapping[tuple[str, int], Mapping[str, Any]],
) -> list[Comparison]:
    """Every row and column that both have; rows without a cell here are left out.

    Args:
      table: with its columns.
      rows: their names.
      here, committed: records by row and seed.
    """

    def by_seed(records: Mapping, row: str, key: str) -> dict[int, float]:
        values = {s: r["metrics"].get(key) for (name, s), r in records.items() if name == row}
        return {seed: float(value) for seed, value in values.items() if value is not None}

    run_rows = [row for row in rows if any(row == name for name, _ in here)]
    columns = [Column(**column) for column in table["columns"]]
    both = [
        (row, c, by_seed(here, row, c.key), by_seed(committed, row, c.key))
        for row in run_rows
        for c in columns
    ]
    return [c for c in (compare(*each) for each in both) if c]


def decide(compared: Sequence[Comparison], level: float = LEVEL) -> list[Comparison]:
    """Marks the comparisons that differ, by Holm's rule over all of them."""
    tested = sorted((c.p, i) for i, c in enumerate(compared) if c.p is not None)
    significant = set()
    for rank, (p, i) in enumerate(tested):
        if p > level / (len(tested) - rank):
            break
        significant.add(i)
    far = {i for i in significant if abs(compared[i].off) > (compared[i].error or 0.0)}
    return [c._replace(differs=bool(c.reason) or i in far) for i, c in enumerate(compared)]


def print_check(compared: Sequence[Comparison], console: Console | None = None) -> None:
    """Prints a line for each row of the table, and one for each number that differs."""
    console = console or Console()
    table = Table(title="Numbers made here against the committed ones", title_justify="left")
    for name, justify in (
        ("row", "left"),
        ("numbers", "right"),
        ("differ", "right"),
        ("largest difference, in combined standard errors", "left"),
    ):
        table.add_column(name, justify=justify)
    for row in dict.fromkeys(c.row for c in compared):
        of = [c for c in compared if c.row == row]
        number = sum(c.differs for c in of)
        largest = max((c for c in of if c.errors is not None), key=lambda c: c.errors, default=None)
        worst = f"{largest.errors:.1f}: {largest.column.header}" if largest else ""
        style = "bold red" if number else ""
        table.add_row(Text(row), str(len(of)), Text(str(number), style=style), Text(worst))
    console.print(table)
    for c in compared:
        if c.differs:
            why = c.reason or f"{c.errors:.1f} combined standard errors, p = {c.p:.2g}"
            line = f"differs: {c.row}, {c.column.header}: {c.here}, committed {c.committed} ({why})"
            console.print(Text(line, style="red"), soft_wrap=True)


def _shown(column: Column, summary: Summary | None) -> str:
    if summary is None:
        return "none"
    error = summary.error and summary.error * column.scale
    mean, error = round_pair(summary.mean * column.scale, error, column.digits)
    return mean + (f" ± {error}" if error else "")
