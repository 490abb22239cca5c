"""Prints a table and writes its files: Markdown, LaTeX, CSV, JSON, constraints and a report."""

import logging
from typing import Any

from experiments.runtime import storage
from experiments.tables import constraints
from experiments.tables.cells import Cells, name_of
from experiments.tables.run import Outcome

logger = logging.getLogger(__name__)


def render(
    cells: Cells, outcome: Outcome, report: bool = True
) -> tuple[storage.Path | None, list[str]]:
    """Prints the table, writes it as Markdown, LaTeX, CSV and JSON, and a report of the runs.

    Files that would differ only in the command and in current failures are not rewritten; none is
    rewritten while a record is damaged.

    Args:
      cells: of the table.
      outcome: of running them.
      report: whether to write the HTML page too.

    Returns:
      The report, or None if it is not wanted or no run is on this disk; and lines on what cannot be
      shown.
    """
    from experiments.reports import formats, html  # late: with figures, rich and matplotlib
    from experiments.reports.tables import print_study

    print_study(outcome.study)
    written = (cells.results / "table.md").is_file()
    if written and cells.records.any_damaged():
        logger.warning("the files of the table are not rewritten: a record is damaged")
    else:
        if not formats.says_the_same(outcome.study, cells.results, "table"):
            formats.write_study(outcome.study, cells.results, "table")
        write_constraints(cells)
    problems = cells.records.damaged()
    runs = runs_here(cells, outcome, problems) if report else []
    if not runs:
        return None, problems
    path = html.write_report(
        cells.workdir / "report.html",
        runs,
        cells.table["title"],
        outcome.study,
        command=outcome.study.command,
        problems=problems,
    )
    return path, problems


def runs_here(cells: Cells, outcome: Outcome, problems: list[str]) -> list[Any]:
    """The finished runs on this disk; adds a line to `problems` for each that cannot be read."""
    from experiments.reports.runs import read_run

    runs = []
    for row in cells.table["rows"]:
        for seed in outcome.study.seeds:
            try:
                directory = cells.run_directory(row, seed)
                here = (directory / "evaluation" / "test" / "metrics.json").is_file()
                if here and cells.record(row, seed) is not None:
                    run = read_run(dict(workdir=directory, label=name_of(row)), problems)
                    runs += [run] if run else []
            except ValueError:  # reported among the failures
                continue
    return runs


def write_constraints(cells: Cells) -> None:
    """Writes constraints.txt beside the table, if it has changed."""
    path = cells.results / "constraints.txt"
    text = constraints.text_of(cells.finished().values())
    if cells.finished() and not (path.is_file() and path.read_text(encoding="utf-8") == text):
        storage.write(path, text)
