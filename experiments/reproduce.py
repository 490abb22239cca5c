"""Reproduces a table: runs every row and seed, and prints the results beside published numbers.

    python -m experiments.reproduce digits
    python -m experiments.reproduce small_images --rows 'Fashion' --seeds 0,1 \\
        --set evaluators.ood.sets.kmnist.name=npz --set evaluators.ood.sets.kmnist.path=DIR
    python -m experiments.reproduce digits --fresh
    python -m experiments.reproduce digits --set steps=100
    python -m experiments.reproduce digits --check

Tables are the files of `configs/tables`. A finished cell (row and seed) is a line of
`results/<table>/runs.jsonl`, which is read instead of running the cell again; the project comes
with many finished cells. So repeating an interrupted command resumes it, and cells may come from
several machines. `--fresh` runs every cell again, in `runs/<table>/fresh/<n>`; each record is
replaced when its new run is finished, and the same command resumes an interrupted round. Settings
that change results make another table, in its own folder: `results/<table>/<settings>`. Evaluators,
test sets and the file of pretrained parameters make none: cells that are finished with others stay
as they are, with a warning, and the table's command has a setting only if a cell was made with it.

`--check` runs the cells in `runs/check` and compares them with the table's records, which are not
changed; the exit status is 1 if a number differs by more than its errors
(experiments/tables/check.py has the test). It takes `--rows` and `--seeds`, but no setting that
changes results.

A cell that fails is reported and does not stop the others; the exit status is then 1. The table's
files change only if its records do. A cell in which evaluators failed, for example without their
data, is evaluated again once the fields of those evaluators have changed.
"""

import argparse
import logging
import pathlib
import shutil
import sys
from collections.abc import Sequence

from experiments.experiment import config as config_lib
from experiments.runtime import project, storage
from experiments.runtime.program import code_of
from experiments.runtime.progress import setup_logging
from experiments.runtime.termination import Interrupted, status
from experiments.tables import check, launch
from experiments.tables.cells import Cells, name_of
from experiments.tables.render import render
from experiments.tables.run import (
    Outcome,
    reproduce,
    rows_of,
    run_cell,
    seeds_of,
    seeds_of_table,
)
from experiments.tables.summary import seeds_in_words
from uncertainty.build import ConfigError

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    setup_logging()
    try:
        overrides = config_lib.assignments(args.set)
        bring(args.table, args.results)
        cells = Cells(args.table, args.results, args.workdir, overrides, args.round)
        launch.check(args)
        if args.cell:
            return run_cell(cells, args.rows, args.seeds, args.cell)
        rows_of(cells, args.rows)
        cells.check_columns()
        if args.check:
            return run_check(cells, args)
        outcome = run(cells, args)
        report, problems = render(cells, outcome, report=not args.no_report)
    except Interrupted as message:
        logger.warning("%s. The same command resumes.", message)
        return message.code
    except KeyboardInterrupt:
        logger.warning("interrupted. The same command resumes from the last checkpoint.")
        return status("SIGINT")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return code_of(error)
    print_failures(outcome)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    source = f"{outcome.read} read from {cells.records.path}"
    advice = "; --fresh runs all again" * (outcome.read > 0 and not args.fresh)
    print(f"cells:  {source}, {outcome.ran} run, {outcome.failed()} failed{advice}")
    print(f"table:  {cells.results}/table.md, .tex, .csv, .json")
    if report:
        print(f"report: {report}")
    return 1 if outcome.failures or problems else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.reproduce", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    runs, results = project.default("runs"), project.default("results")
    add = parser.add_argument
    add("table", help="a file of configs/tables")
    add("--rows", default="", help="run only rows that match this regex")
    add("--seeds", type=seeds_of, help="run only these seeds, such as 0,1,2")
    text = "sets a config field in every row"
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help=text)
    add("--fresh", action="store_true", help="run all cells again")
    text = "check that results here agree with the table's within errors; status 1 if not"
    add("--check", action="store_true", help=text)
    add("--no-report", action="store_true", help="write no HTML page")
    add("--workdir", default=runs, help=f"where the runs go (default: {runs})")
    add("--results", default=results, help=f"where the table goes (default: {results})")
    add("--isolate", action="store_true", help="each cell in its own process")
    launch.add_arguments(parser)
    add("--cell", help=argparse.SUPPRESS)  # file for the reason of a failure
    add("--round", help=argparse.SUPPRESS)  # folder of a round of --fresh
    return parser.parse_args(argv)


def bring(table: str, results: str) -> None:
    """Copies a table's finished cells that an installed copy comes with, unless there are some."""
    own, here = project.own(f"results/{table}"), pathlib.Path(results) / table
    if results == "results" == project.default(results) and own.is_dir() and not here.exists():
        logger.info("%s: the finished cells that come with the project", here)
        shutil.copytree(own, here)


def run(cells: Cells, args: argparse.Namespace) -> Outcome:
    """Runs the selected cells."""
    if args.fresh:
        cells.begin_round()
    logger.info("results go to %s, runs to %s", cells.results, cells.round or cells.workdir)
    command = [sys.executable, "-m", "experiments.reproduce", args.table]
    command += ["--workdir", str(args.workdir), "--results", str(args.results)]
    command += ["--round", str(cells.round)] if cells.round else []
    command += [word for item in args.set for word in ("--set", item)]
    if args.launcher:
        jobs = [(row, seed) for row in rows_of(cells, args.rows)
                for seed in seeds_of_table(cells, args.seeds)]  # fmt: skip
        chosen = ["--rows", args.rows] if args.rows else []
        chosen += ["--seeds", ",".join(map(str, args.seeds))] if args.seeds else []
        chosen += ["--isolate"] * args.isolate + ["--no-report"]
        outcome = launch.launched(cells, [*command, *chosen], args, jobs)
    else:
        isolate = command if args.isolate else None
        outcome = reproduce(
            cells, rows=args.rows, seeds=args.seeds, isolate=isolate, shard=args.shard
        )
    if cells.round and not outcome.failures:
        cells.end_round()
    return outcome


def run_check(committed: Cells, args: argparse.Namespace) -> int:
    """Runs cells in a separate folder and compares them with the table's records.

    Raises:
      ConfigError: a setting changes results, or none of the rows has a record.
    """
    if committed.variant:
        settings = ", ".join(f"{name}={value}" for name, value in committed.overrides.items())
        raise ConfigError(
            f"--check compares with the table's own numbers, which --set {settings} "
            "changes; leave it out"
        )
    theirs = committed.finished()
    rows = [name_of(row) for row in rows_of(committed, args.rows)]
    if not any(row in rows for row, _ in theirs):
        raise ConfigError(f"--check: {committed.records.path} has no record of these rows")
    args.results = args.workdir = str(storage.path(args.workdir) / "check")
    cells = Cells(args.table, args.results, args.workdir, committed.overrides)
    outcome = run(cells, args)
    print_failures(outcome)
    seeds = seeds_of_table(cells, args.seeds)
    ours = {cell: record for cell, record in cells.finished().items() if cell[1] in seeds}
    compared = check.decide(check.comparisons(cells.table, rows, ours, theirs))
    check.print_check(compared)
    differing = sum(c.differs for c in compared)
    print(
        f"check:  {len(compared)} numbers compared, {differing} differ; "
        f"{outcome.read} cells read from {cells.records.path}, {outcome.ran} run, "
        f"{outcome.failed()} failed"
    )
    return 1 if differing or outcome.failures else 0


def print_failures(outcome: Outcome) -> None:
    for reason, rows in outcome.failures.items():
        where = "; ".join(f"{name}, {seeds_in_words(seeds)}" for name, seeds in rows.items())
        print(f"error: {where}: {reason}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
