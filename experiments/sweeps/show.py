"""The results of a sweep: in the terminal, as files of its table, and as a page."""

import dataclasses
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from experiments.reports import datasets
from experiments.reports.study import Column, Row, Study, one_line, values_of
from experiments.runtime import storage
from experiments.runtime.workdir import write_json
from experiments.sweeps import selection as selection_lib
from experiments.sweeps.selection import Selection
from experiments.sweeps.spec import Select, Sweep
from experiments.tables.cells import Cells, name_of

SELECTED = "selected.json"


def selected(cells: Cells, select: Select, seeds: Sequence[int]) -> Selection:
    """The choice among the finished cells.

    Settings that were validated on different data are not compared: nothing is chosen then.
    """
    records = cells.finished()
    rows = [name_of(row) for row in cells.table["rows"]]
    validation = selection_lib.values_of(records, select.validation)
    validation = {row: validation.get(row, {}) for row in rows}
    test = selection_lib.values_of(records, select.key)
    of: dict[str, list[datasets.Evaluated]] = {}
    for (row, _), record in records.items():
        of.setdefault(row, []).append(
            datasets.evaluated(
                record["config"], record["metrics"], record.get("sets"), record.get("trained")
            )
        )
    if len(set(datasets.partition(list(of.values())))) > 1:
        return Selection(None, {row: "evaluated on other data than others" for row in rows})
    return selection_lib.choose(validation, test, seeds, select.better)


def column_of(study: Study, select: Select) -> Column:
    """The column of the metric on validation data."""
    (column,) = (column for column in study.columns if column.key == select.validation)
    return column


def arranged(study: Study, select: Select) -> Study:
    """The study with its rows from best to worst on validation data, without empty columns."""
    sign = -1.0 if select.better == "higher" else 1.0

    def place(row: Row) -> tuple[int, float]:
        values = values_of(row, select.validation)
        mean = float(np.mean(values)) if values else math.nan
        return (0, sign * mean) if math.isfinite(mean) else (1, 0.0)

    columns = [
        c
        for c in study.columns
        if c.key == select.validation or any(values_of(row, c.key) for row in study.rows)
    ]
    return dataclasses.replace(study, columns=columns, rows=sorted(study.rows, key=place))


SHOWN = 20  # rows in the terminal


def print_short(study: Study) -> None:
    """Prints the first rows and columns of an arranged study; its files have all."""
    from experiments.reports.tables import print_study

    columns, rows = study.columns[:4], study.rows[:SHOWN]
    keys = {column.key for column in columns}
    rows = [dataclasses.replace(r, published={}) for r in rows]
    print_study(dataclasses.replace(study, columns=columns, rows=rows))
    if len(study.rows) > SHOWN:
        print(f"The best {SHOWN} of {len(study.rows)} settings; table.md has all.")
    left = [c.header for c in study.columns if c.key not in keys]
    if left:
        print(f"In table.md too: {', '.join(left)}.")


def lines_of(study: Study, select: Select, chosen: Selection, sweep: Sweep) -> list[str]:
    """Sentences on the choice, and the command that trains it."""
    column = column_of(study, select)
    name = column.header.removeprefix("Validation ")
    unit = (column.scale, column.unit, column.digits)
    lines = selection_lib.sentences(chosen, name, unit)
    for row, reason in list(chosen.left_out.items())[:10]:
        lines.append(f"Not among those: {row}: {reason}.")
    if len(chosen.left_out) > 10:
        lines.append(f"Nor {len(chosen.left_out) - 10} others.")
    return [one_line(line) for line in lines]


def command_of(sweep: Sweep, settings: Mapping[str, Any]) -> str:
    """The command that trains a setting."""
    words = ["python", "-m", "experiments.train", "--config", sweep.config]
    words += ["--workdir", "runs/selected"]
    for field, value in {**sweep.set, **settings}.items():
        text = value if isinstance(value, str) else json.dumps(value)
        words.append(f"--config.{field}={text}")
    return shlex.join(words)


def write(
    cells: Cells, study: Study, sweep: Sweep, select: Select, chosen: Selection
) -> storage.Path:
    """Writes selected.json and report.html with its figures; returns the page."""
    from experiments.reports.figures import Entry
    from experiments.reports.html import figure_part, page, study_table
    from experiments.sweeps import figures

    settings = {
        name_of(row): {axis.field: row["set"][axis.field] for axis in sweep.axes}
        for row in cells.table["rows"]
    }
    lines = lines_of(study, select, chosen, sweep)
    command = command_of(sweep, settings[chosen.row]) if chosen.row else ""
    write_json(
        cells.results / SELECTED,
        dict(
            metric=select.key,
            better=select.better,
            selected=chosen.row,
            settings=settings.get(chosen.row or "", {}),
            best_on_test=chosen.best,
            regret=chosen.regret and chosen.regret._asdict(),
            selected_by_seed={str(seed): row for seed, row in chosen.by_seed.items()},
            regret_by_seed=chosen.regret_by_seed and chosen.regret_by_seed._asdict(),
            left_out=chosen.left_out,
            seeds=list(sweep.seeds),
            command=command,
        ),
    )
    column = column_of(study, select)
    records = cells.finished()
    found = figures.points(
        settings,
        selection_lib.values_of(records, select.validation),
        selection_lib.values_of(records, select.key),
        chosen.row,
        column.scale,
    )
    fields = [axis.field for axis in sweep.axes]
    name = column.header.removeprefix("Validation ")
    label = f"{name} ({column.unit})" if column.unit else name
    above = "".join(f"<p>{escape(line)}</p>" for line in lines)
    above += f"<p>To train it: <code>{escape(command)}</code></p>" * bool(command)
    sections = [("Selection", above)]
    folder = cells.results / "report_figures"
    if any(point.validation for point in found):
        entries = [Entry("Fields", "marginals", figures.marginals(found, fields, label), (
            f"{label} of each setting against each field, mean over seeds with standard errors: "
            "filled on validation data, by which the ringed one is selected, hollow on test data. "
            "A minimum at the edge asks for values beyond it."))]  # fmt: skip
        if len(fields) > 1:
            entries.append(Entry("Fields", "parallel",
                figures.parallel(found, fields, label, select.better), (
                "A line for each setting; the darker, the better on validation data; black is the "
                "selected one. Where dark lines spread over an axis, the field matters "
                "little.")))  # fmt: skip
        sections.append(("Fields", "\n".join(figure_part(entry, folder) for entry in entries)))
    sections.append(("All settings", study_table(study, by_row=True)))
    path = cells.results / "report.html"
    storage.write(path, page(study.title, study.hardware, study.command, sections))
    return path
