"""The scores of files as a terminal table, an HTML report, JSON and CSV."""

import csv
import io
import json
from collections.abc import Sequence
from html import escape
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.reports.figures import Entry
from experiments.reports.html import figure_part, write_report
from experiments.reports.runs import Run, study_of
from experiments.reports.study import Column, Study, one_line, round_pair
from experiments.reports.tables import print_metrics, print_study
from experiments.runtime import storage
from experiments.runtime.workdir import jsonable
from experiments.scoring.compare import Comparison, Interval, by_label, of
from experiments.scoring.forest import differences
from experiments.scoring.scored import Scored


def runs_of(scored: Sequence[Scored]) -> list[Run]:
    """The scores as runs of a report; files of one row are its seeds."""
    runs = []
    known = {  # sets whose data are identified in every file
        name
        for name in {name for one in scored for name in one.sets}
        if all(one.sets[name]["data"] for one in scored if name in one.sets)
    }
    for label, files in by_label(scored).items():
        for seed, one in enumerate(files):
            config = {"seed": seed} if len(files) > 1 else {}
            same = one.sets["test"]["digest"]  # of corrupted sets with the test set's examples
            data = {
                name: {**noted, "digest": noted["digest"] + noted["data"] * (name in known)}
                for name, noted in one.sets.items()
                if not name.startswith("corruption.") or noted["digest"] != same
            }
            runs.append(Run(label, config, one.metrics, one.arrays, sets=data))
    return runs


def study(runs: Sequence[Run], task: str, title: str, command: str) -> Study:
    """The table of all rows of a task."""
    made = study_of([run for run in runs if run.evaluated().task == task], title)
    made.command = command
    return made


def show(
    scored: Sequence[Scored],
    studies: Sequence[Study],
    comparison: Comparison,
    sentence: str,
    console: Console | None = None,
) -> None:
    """Prints what was read, the table or the one evaluation, and the differences."""
    console = console or Console()
    for line in notes_of(scored):
        console.print(Text(line, style="dim"))
    if len(scored) == 1:
        print_metrics(scored[0].metrics, console, title=scored[0].label)
        _print_intervals(console, studies[0], comparison, scored[0].label)
    else:
        for each in studies:
            print_study(each, console)
            _print_differences(console, each, comparison)
    for note in comparison.notes:
        console.print(Text(f"Note: {one_line(note)}", style="bold"))
    if comparison.intervals:
        console.print(Text(sentence, style="dim"))


def notes_of(scored: Sequence[Scored]) -> list[str]:
    """A line for each thing that was found or converted in a file, with the file's label."""
    return [
        one_line(f"{label}: {note}") for label, files in _notes(scored).items() for note in files
    ]


def _notes(scored: Sequence[Scored]) -> dict[str, list[str]]:
    """By file, each once: rows of post-hoc methods share those of their file."""
    notes: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for one in scored:
        label = first.setdefault(one.file, one.label)
        several = len(by_label(scored)[label]) > 1
        label = f"{label} ({one.file})" if several else label
        known = notes.setdefault(label, [])
        prefix = "" if one.label == first[one.file] else f"{one.label}: "
        base = next(o for o in scored if o.file == one.file).notes
        known += [note for note in one.notes if note not in known and not prefix]
        known += [f"{prefix}{note}" for note in one.notes if prefix and note not in base]
    return notes


def _of_files(scored: Sequence[Scored], above: Sequence[str]) -> str:
    """The notes of each file below its label and name, as HTML."""
    parts = [f'<p class="meta">{escape(one_line(note))}</p>' for note in above]
    for label, notes in _notes(scored).items():
        listed = "".join(f"<li>{escape(one_line(note))}</li>" for note in notes)
        parts.append(f'<p>{escape(one_line(label))}</p><ul class="notes">{listed}</ul>')
    return "\n".join(parts)


def texts(interval: Interval, column: Column) -> tuple[str, str]:
    """The estimate and its interval in the column's unit."""
    scale = column.scale
    if interval.low != interval.low:
        return f"{interval.estimate * scale:.{column.digits}f}", "not finite"
    width = (interval.high - interval.low) * scale / 4
    digits = column.digits
    wide = width >= 0.5 * 10.0 ** -(digits + 2)  # narrower ones are 0 to all digits
    mean, _ = round_pair(interval.estimate * scale, width if wide else None, digits)
    places = len(mean.partition(".")[2])
    low, high = (f"{end * scale:z.{places}f}" for end in (interval.low, interval.high))
    return f"{float(mean):z.{places}f}", f"[{low}, {high}]"


def columns_of(study: Study, comparison: Comparison) -> list[Column]:
    """The columns of a study for which there are intervals."""
    keys = {interval.key for interval in comparison.intervals}
    return [column for column in study.columns if column.key in keys]


def _print_intervals(console: Console, study: Study, comparison: Comparison, label: str) -> None:
    values = of(comparison.intervals, baseline=False)
    columns = columns_of(study, comparison)
    if not columns:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head, justify in (("Metric", "left"), ("Value", "right"), ("Interval", "right")):
        table.add_column(head, justify=justify)  # type: ignore[arg-type]
    for column in columns:
        table.add_row(Text(column.title), *texts(values[label, column.key], column))
    console.print(table)


def _print_differences(console: Console, study: Study, comparison: Comparison) -> None:
    of_pairs = of(comparison.intervals, baseline=True)
    for label, baseline in _pairs(study, comparison):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
        table.title = Text(f"{one_line(label)} minus {one_line(baseline)}", style="bold")
        for head, justify in (("Metric", "left"), ("Difference", "right"), ("Interval", "right")):
            table.add_column(head, justify=justify)  # type: ignore[arg-type]
        for column in columns_of(study, comparison):
            if (label, column.key) in of_pairs:
                interval = of_pairs[label, column.key]
                style = {1: "green", -1: "red"}.get(verdict(interval, column), "")
                table.add_row(
                    Text(column.title), *(Text(text, style) for text in texts(interval, column))
                )
        console.print(table)


def verdict(interval: Interval, column: Column) -> int:
    """1 for better than the baseline, -1 for worse, 0 if the interval has 0 or is not finite."""
    if column.better is None or not (interval.low > 0 or interval.high < 0):
        return 0
    return 1 if (interval.low > 0) == (column.better == "higher") else -1


def _pairs(study: Study, comparison: Comparison) -> list[tuple[str, str]]:
    rows = {row.label for row in study.rows}
    pairs = [(i.label, i.baseline) for i in comparison.intervals if i.baseline]
    return [pair for pair in dict.fromkeys(pairs) if pair[0] in rows]


def section(study: Study, comparison: Comparison, sentence: str) -> str:
    """The intervals of a study as HTML: values of each row, then differences from a baseline."""
    parts = []
    columns = columns_of(study, comparison)
    values = of(comparison.intervals, baseline=False)
    of_pairs = of(comparison.intervals, baseline=True)
    pairs = _pairs(study, comparison)
    for title, rows, cells in (
        ("Values", [row.label for row in study.rows], values),
        *(
            (f"Differences from {name}", [a for a, b in pairs if b == name], of_pairs)
            for name in dict.fromkeys(b for _, b in pairs)
        ),
    ):
        head = "".join(f"<th>{escape(one_line(label))}</th>" for label in rows)
        body = []
        for column in columns:
            if not any((label, column.key) in cells for label in rows):
                continue
            row = [f"<th>{escape(column.title)}</th>"]
            for label in rows:
                interval = cells.get((label, column.key))
                if interval is None:
                    row.append("<td></td>")
                    continue
                estimate, ends = texts(interval, column)
                clear = cells is of_pairs and verdict(interval, column)
                estimate = f"<strong>{estimate}</strong>" if clear else estimate
                row.append(f'<td>{estimate}<span class="published">{ends}</span></td>')
            body.append(f"<tr>{''.join(row)}</tr>")
        dense = ' class="dense"' * (len(rows) > 7)
        parts.append(
            f'<p class="caption">{escape(one_line(title))}</p>'
            f'<div class="wide"><table{dense}><thead><tr><th></th>{head}</tr></thead>\n'
            f"<tbody>{''.join(body)}</tbody></table></div>"
        )
    bold = " Bold: of metrics with an arrow, differences whose interval does not contain 0."
    sentence += bold * bool(pairs)
    return "\n".join(parts) + f'<p class="caption">{escape(sentence)}</p>'


def drawn(study: Study, comparison: Comparison, folder: storage.Path, name: str) -> str:
    """The figure of the differences of a study as HTML; empty if there are none."""
    intervals = of(comparison.intervals, baseline=True)
    pairs = _pairs(study, comparison)
    columns = [
        column
        for column in columns_of(study, comparison)
        if column.better
        and any(
            interval.low == interval.low  # not NaN
            for (label, key), interval in intervals.items()
            if key == column.key and (label, interval.baseline) in pairs
        )
    ]
    if not columns:
        return ""
    entry = Entry(
        "Intervals",
        name,
        differences(pairs, columns, intervals),
        "Paired differences with their intervals. An interval that does not reach the line at 0 is "
        "a difference that resampling the test examples does not undo; the arrow says which side "
        "is better.",
    )
    return figure_part(entry, folder / "report_figures")


def write(
    folder: storage.Path,
    scored: Sequence[Scored],
    studies: Sequence[Study],
    comparison: Comparison,
    sentence: str,
    *,
    title: str,
    command: str,
    settings: dict[str, Any],
) -> list[storage.Path]:
    """Writes report.html, scores.json, scores.csv and, with resamples, intervals.csv."""
    sections = [
        (
            "Intervals",
            "\n".join(
                drawn(s, comparison, folder, f"differences{i or ''}")
                + section(s, comparison, sentence)
                for i, s in enumerate(studies)
            ),
        )
    ]
    about = [("Predictions", _of_files(scored, comparison.notes))]
    page = write_report(
        folder / "report.html",
        runs_of(scored),
        title,
        command=command,
        sections=[*(sections if comparison.intervals else []), *about],
    )
    content = dict(
        command=command,
        settings=settings,
        files=[
            dict(label=s.label, file=s.file, task=s.task, sets=s.sets, metrics=s.metrics,
                 notes=s.notes)
            for s in scored
        ],
        compared=comparison.sets,
        notes=comparison.notes,
        intervals=[interval._asdict() for interval in comparison.intervals],
    )  # fmt: skip
    paths = [page, folder / "scores.json", folder / "scores.csv"]
    storage.write(paths[1], json.dumps(jsonable(content), indent=1, allow_nan=False) + "\n")
    rows = [(s.label, s.file, key, repr(value)) for s in scored for key, value in s.metrics.items()]
    storage.write(paths[2], _csv(("label", "file", "metric", "value"), rows))
    if comparison.intervals:
        paths.append(folder / "intervals.csv")
        each = [
            (i.label, i.baseline or "", i.key, *map(repr, (i.estimate, i.low, i.high)))
            for i in comparison.intervals
        ]
        head = ("label", "minus", "metric", "estimate", "low", "high")
        storage.write(paths[-1], _csv(head, each))
    return paths


def _csv(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()
