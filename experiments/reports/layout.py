"""A study as text: every cell, head and footnote, for the renderers to arrange.

`layout` makes it once, so that the terminal, Markdown, LaTeX and HTML show the same digits, bold
cells and notes. The terminal uses rich. The others are about forty lines each: neither pandas nor
tabulate nor rich writes pairs of ours and published, footnotes with sources, and text escaped for
LaTeX and Markdown.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from experiments.reports import datasets
from experiments.reports.study import (
    Column,
    Row,
    Study,
    Summary,
    one_line,
    published_text,
    round_pair,
    summarise,
    values_of,
)


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
    data: tuple[str, ...] = ()  # sentences on the data sets, shown above the table
    warnings: tuple[str, ...] = ()  # about rows that cannot be compared, shown there too


def layout(study: Study) -> Layout:
    """Every text of the table, with the best cells marked, for the renderers to arrange."""
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
    shown = _arranged(heads, lines, tuple(notes), "" if study.exact else captions[min(seeds, 2)])
    return shown._replace(data=_data(study), warnings=_warnings(study, numbers))


def comparable(study: Study) -> list[int]:
    """A number for each row, equal for rows of a group that were evaluated on the same data."""
    numbers = [0] * len(study.rows)
    for group in dict.fromkeys(row.group for row in study.rows):
        places = [i for i, row in enumerate(study.rows) if row.group == group]
        parts = datasets.partition([study.rows[i].data for i in places])
        for i, number in zip(places, parts, strict=True):
            numbers[i] = number
    return numbers


def _data(study: Study) -> tuple[str, ...]:
    """Sentences on the data of the rows, one for all groups or one for each."""
    runs: dict[str, list[datasets.Evaluated]] = {}
    for row in study.rows:
        runs.setdefault(row.group, []).extend(row.data)
    texts = {}
    for group, of in runs.items():
        if text := datasets.described(of):
            trained = datasets.trained_words(of)
            texts[group] = f"trained on {trained}; " * bool(trained) + f"evaluated on {text}."
    if len(set(texts.values())) == 1:
        texts = {"": next(iter(texts.values()))}
    return tuple(
        one_line(f"{group}: {text}" if group else f"{text[:1].upper()}{text[1:]}")
        for group, text in texts.items()
    )


def _warnings(study: Study, numbers: Sequence[int]) -> tuple[str, ...]:
    """Each sentence once, with the groups or the rows of which it is true."""
    groups: dict[str, list[str]] = {}
    for group in dict.fromkeys(row.group for row in study.rows):
        parts: dict[int, list[Row]] = {}
        for row, number in zip(study.rows, numbers, strict=True):
            if row.group == group:
                parts.setdefault(number, []).append(row)
        if len(parts) > 1:
            of = groups.setdefault(_apart(list(parts.values())), [])
            of.append(f'"{group}"' if group else "")
    sentences = [
        "Different data: no best is marked across these rows. "
        + f"{', '.join(of)}: " * any(of)
        + f"{words}."
        for words, of in groups.items()
    ]
    rows: dict[str, list[Row]] = {}
    for row in study.rows:
        for text in datasets.mismatches(row.data):
            rows.setdefault(text, []).append(row)
        if paths := datasets.changed(row.data):
            text = f"the seeds were evaluated on different examples of {', '.join(sorted(paths))}"
            rows.setdefault(f"{text}, though their configs read the same", []).append(row)
    sentences += [f"{_named(of, study.rows)}: {text}." for text, of in rows.items()]
    return tuple(map(one_line, sentences))


def _apart(parts: Sequence[Sequence[Row]]) -> str:
    """The data in which parts of a group differ; parts whose data read the same stand together."""
    most = max(parts, key=len)
    others = most if len(most) > 3 else None  # not named one by one
    paths = {
        path
        for a, b in itertools.combinations(parts, 2)
        for x, y in itertools.product(a, b)
        for path in datasets.differing(x.data, y.data)
    }
    alike: dict[str, list[str]] = {}
    for rows in sorted(parts, key=lambda rows: rows is others):
        runs = [run for row in rows for run in row.data]
        text = datasets.described(runs, paths) or datasets.described(runs) or "unknown data"
        if "task" in paths:
            text = f"{runs[0].task}, {text}"
        names = "the other rows" if rows is others else ", ".join(map(_short, rows))
        alike.setdefault(text, []).append(names)
    return "; ".join(
        f"{'; '.join(labels)}: " + "different examples of " * (len(labels) > 1) + text
        for text, labels in alike.items()
    )


def _named(rows: Sequence[Row], of: Sequence[Row]) -> str:
    """'All rows' of a table, 'A, all rows; B: row 1, row 2' of groups A and B."""
    if 1 < len(rows) == len(of):
        return "All rows"
    words = []
    for group in dict.fromkeys(row.group for row in rows):
        own = [row for row in rows if row.group == group]
        if group and 1 < len(own) == sum(row.group == group for row in of):
            words.append(f"{group}, all rows")
        else:
            words.append(f"{group}: " * bool(group) + ", ".join(map(_short, own)))
    return "; ".join(words)


def _short(row: Row) -> str:
    """The label without the group that it begins with."""
    return row.label.removeprefix(f"{row.group}: ")


def _cell(column: Column, entry: Summary) -> Cell:
    error = entry.error and entry.error * column.scale
    if error == 0 and column.better is None:
        error = None  # a cost that does not depend on the seed
    return Cell(*round_pair(entry.mean * column.scale, error, column.digits))


def transpose(shown: Layout) -> Layout:
    """The transposed table: a line per metric and a column per row of the study."""
    lines = [
        (head, tuple(cells[i] for _, cells in shown.lines)) for i, head in enumerate(shown.heads)
    ]
    transposed = _arranged(
        tuple(head for head, _ in shown.lines), lines, shown.notes, shown.caption
    )
    return transposed._replace(data=shown.data, warnings=shown.warnings)


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
