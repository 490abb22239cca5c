"""A published table, made again: every row and seed, then ours beside the published numbers.

    python -m experiments.reproduce digits
    python -m experiments.reproduce small_images --rows 'Fashion' --seeds 0,1 \\
        --set evaluators.ood.sets.kmnist.name=npz --set evaluators.ood.sets.kmnist.path=DIR
    python -m experiments.reproduce digits --fresh
    python -m experiments.reproduce digits --set steps=100

Tables are the files of `configs/tables`. A cell (row and seed) that is done is kept in
`results/<table>/runs` and is read, not run again: where results come with the project, all may be.
So an interrupted command is resumed by giving it again, and cells may come from several machines.
`--fresh` runs every cell anew, in `runs/<table>/fresh/<n>`; each record stays until the new one
takes its place, and the same command resumes an interrupted round. Settings that change numbers
make another table, in a folder of its own: `results/<table>/<settings>`.

A cell that fails is reported and does not stop the others; the exit status is then 1. The table's
files change with the records alone. A cell some of whose evaluators failed, for want of data say,
is evaluated again once their fields have changed.
"""

import argparse
import collections
import logging
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.experiment import config as config_lib
from experiments.reports.datasets import evaluated
from experiments.reports.study import Study, machine
from experiments.reports.text import one_line
from experiments.runtime import project
from experiments.runtime.progress import Progress, setup_logging
from experiments.runtime.termination import Interrupted, graceful_termination, status
from experiments.tables.cells import Cells, name_of
from uncertainty.build import ConfigError

logger = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """What became of a table's cells."""

    study: Study  # of all finished cells
    read: int  # cells that were done before
    ran: int
    failures: dict[str, dict[str, list[int]]]  # reason -> row -> seeds

    def failed(self) -> int:
        """The number of cells that failed, counting each once."""
        return len(
            {(r, s) for rows in self.failures.values() for r, of in rows.items() for s in of}
        )


def reproduce(
    cells: Cells,
    *,
    rows: str = "",
    seeds: Sequence[int] | None = None,
    isolate: Sequence[str] | None = None,
) -> Outcome:
    """Runs the cells that are not done.

    Args:
      cells: of the table.
      rows: a regex; only rows whose name it is found in are run. All are shown.
      seeds: of these seeds only; by default the table's.
      isolate: the command that runs one cell in a process of its own, or None for this process.

    Raises:
      ConfigError: `rows` finds no row, or a column is one that nothing fills.
      Interrupted: SIGTERM or SIGINT came.
    """
    jobs = [(row, seed) for seed in seeds_of_table(cells, seeds) for row in rows_of(cells, rows)]
    cells.check_columns()
    failures: dict[str, dict[str, list[int]]] = {}
    read = ran = 0
    with Progress(len(jobs), cells.name, unit="cell", show=isolate is None) as progress:
        for i, (row, seed) in enumerate(jobs):
            name = f"{name_of(row)}, seed {seed}"
            progress.update(i, f"{read} read, {ran} run, {i - read - ran} failed · {name}")
            try:
                if cells.done(row, seed):
                    read += 1
                    continue
                if isolate is None:
                    cells.run(row, seed)
                else:
                    logger.info("%s (%d of %d)", name, i + 1, len(jobs))
                    run_alone([*isolate, "--rows", f"^{re.escape(name_of(row))}$",
                               "--seeds", str(seed)])  # fmt: skip
                ran += 1
            except Interrupted:
                raise
            except Exception as error:  # one row must not take the others with it
                reason = one_line(error) or type(error).__name__
                level = logging.DEBUG if reason in failures else logging.ERROR
                logger.log(level, "%s: %s", name, reason)
                logger.debug("%s", traceback.format_exc())
                failures.setdefault(reason, {}).setdefault(name_of(row), []).append(seed)
        progress.update(len(jobs), f"{read} read, {ran} run, {len(jobs) - read - ran} failed")
    return Outcome(study(cells, failures), read, ran, failures)


def rows_of(cells: Cells, pattern: str) -> list[dict[str, Any]]:
    """The rows whose name a regex is found in.

    Raises:
      ConfigError: it finds none, or is none.
    """
    try:
        wanted = [row for row in cells.table["rows"] if re.search(pattern, name_of(row))]
    except re.error as error:
        raise ConfigError(f"rows: {pattern!r} is not a regular expression: {error}") from None
    if not wanted:
        names = [name_of(row) for row in cells.table["rows"]]
        raise ConfigError(f"rows: {pattern!r} matches none of {names}")
    return wanted


def seeds_of_table(cells: Cells, seeds: Sequence[int] | None) -> tuple[int, ...]:
    """Those asked for, once each, or the table's."""
    return tuple(dict.fromkeys(cells.table["seeds"] if seeds is None else seeds))


def run_alone(command: Sequence[str]) -> None:
    """Runs one cell in a process of its own, to which SIGTERM and SIGINT are passed on.

    Raises:
      RuntimeError: it failed; the message is its own, where it could leave one.
      Interrupted: it was told to stop.
    """
    with tempfile.NamedTemporaryFile("r") as reason, graceful_termination() as stop:
        process = subprocess.Popen([*command, "--cell", reason.name])
        while process.poll() is None:
            time.sleep(0.05)
            if stop.requested:
                process.terminate()
        message = reason.read()
    if stop.requested:
        raise Interrupted(message or f"stopped by {stop.signal}", stop.signal)
    if process.returncode:
        raise RuntimeError(message or f"its process ended with status {process.returncode}")


def study(cells: Cells, failures: dict[str, dict[str, list[int]]]) -> Study:
    """The Study of all finished cells: the metrics that its columns show.

    Args:
      cells: of the table.
      failures: reason -> row -> seeds; gets those of records that cannot be read.
    """
    rows, found_seeds, ran_on = [], set(), []
    shown = [column["key"] for column in cells.table["columns"]]
    for row in cells.table["rows"]:
        records = []
        for seed in cells.seeds(row):
            try:
                records.append(cells.record(row, seed))
            except ValueError as error:
                known = failures.setdefault(one_line(error), {}).setdefault(name_of(row), [])
                known += [seed] * (seed not in known)
        records = [record for record in records if record is not None]
        notes = {f"{k}: {v}" for r in records for k, v in r["failures"].items()}
        found_seeds |= {r["seed"] for r in records}
        ran_on += [r["hardware"] for r in records]
        machines = collections.Counter(machine({**r["hardware"], "date": ""}) for r in records)
        if len(machines) > 1:
            counts = ", ".join(f"{where} ({n})" for where, n in sorted(machines.items()))
            notes.add(f"Its runs, and so its times, are of several machines: {counts}")
        reasons = {why: of[name_of(row)] for why, of in failures.items() if name_of(row) in of}
        rows.append(
            dict(
                label=name_of(row),
                group=row.get("group", ""),
                results=[
                    {key: r["metrics"][key] for key in shown if key in r["metrics"]}
                    for r in records
                ],
                published=row.get("published", {}),
                note="; ".join(filter(None, [row.get("note", ""), *sorted(notes)])),
                failed="; ".join(f"{_seeds(of)}: {why}" for why, of in reasons.items()),
                data=[evaluated(r["config"], r["metrics"], r.get("sets")) for r in records],
            )
        )
    known = sorted({name for h in ran_on for name in h})
    overrides = [f"--set={name}={value}" for name, value in cells.overrides.items()]
    return Study(
        title=cells.table["title"],
        columns=cells.table["columns"],
        rows=rows,
        command=shlex.join(["python", "-m", "experiments.reproduce", cells.name, *overrides]),
        config={name_of(row): row["config"] for row in cells.table["rows"]},
        seeds=sorted(found_seeds),
        hardware={name: _joined([h[name] for h in ran_on if name in h]) for name in known},
    )


def _seeds(seeds: Sequence[int]) -> str:
    """'seed 3', 'seeds 0 to 4' or 'seeds 0, 2, 5'."""
    first, last = min(seeds), max(seeds)
    if first == last:
        return f"seed {first}"
    if len(seeds) > 2 and sorted(seeds) == list(range(first, last + 1)):
        return f"seeds {first} to {last}"
    return f"seeds {', '.join(map(str, sorted(seeds)))}"


def _joined(values: list[Any]) -> Any:
    """The one value, or each of several in words."""
    found = sorted(set(values))
    return found[0] if len(found) == 1 else " or ".join(map(str, found))


def seeds_of(text: str) -> list[int]:
    """'0,1' as [0, 1]."""
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 0,1,2") from None


def run_cell(cells: Cells, args: argparse.Namespace) -> int:
    """Runs the one cell of `--rows` and `--seeds`; why it failed goes to the file `--cell`."""
    (row,) = [r for r in cells.table["rows"] if re.search(args.rows, name_of(r))]
    try:
        cells.run(row, *args.seeds)
    except Exception as error:
        pathlib.Path(args.cell).write_text(str(error))
        logger.debug("%s", traceback.format_exc())
        return 1
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.reproduce", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    runs, results = project.default("runs"), project.default("results")
    parser.add_argument("table", help="a file of configs/tables")
    parser.add_argument("--rows", default="", help="run only the rows that this regex finds")
    parser.add_argument("--seeds", type=seeds_of, help="run only these, such as 0,1,2")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE",
                        help="a config field, in every row")  # fmt: skip
    parser.add_argument("--fresh", action="store_true", help="run all cells anew, none is read")
    parser.add_argument("--workdir", default=runs, help=f"where the runs go (default: {runs})")
    parser.add_argument("--results", default=results,
                        help=f"where the table goes (default: {results})")  # fmt: skip
    parser.add_argument("--isolate", action="store_true", help="each cell in its own process")
    parser.add_argument("--cell", help=argparse.SUPPRESS)  # where to leave the reason of a failure
    parser.add_argument("--round", help=argparse.SUPPRESS)  # where a round of --fresh is
    args = parser.parse_args(argv)
    setup_logging()
    try:
        overrides = config_lib.assignments(args.set)
        cells = Cells(args.table, args.results, args.workdir, overrides, args.round)
        if args.cell:
            return run_cell(cells, args)
        rows_of(cells, args.rows)
        cells.check_columns()
        if args.fresh:
            cells.begin_round()
        logger.info("results go to %s, runs to %s", cells.results, cells.round or cells.workdir)
        command = [sys.executable, "-m", "experiments.reproduce", args.table]
        command += ["--workdir", args.workdir, "--results", args.results]
        command += ["--round", str(cells.round)] if cells.round else []
        command += [word for item in args.set for word in ("--set", item)]
        made = reproduce(cells, rows=args.rows, seeds=args.seeds,
                         isolate=command if args.isolate else None)  # fmt: skip
        if cells.round and not made.failures:
            cells.end_round()
        report, problems = render(cells, made)
    except Interrupted as message:
        logger.warning("%s. The same command resumes.", message)
        return message.code
    except KeyboardInterrupt:
        logger.warning("interrupted. The same command resumes from the last checkpoint.")
        return status("SIGINT")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for reason, rows in made.failures.items():
        where = "; ".join(f"{name}, {_seeds(seeds)}" for name, seeds in rows.items())
        print(f"error: {where}: {reason}", file=sys.stderr)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    read = f"{made.read} read from {cells.results / 'runs'}"
    advice = "; --fresh runs all anew" * (made.read > 0 and not args.fresh)
    print(f"cells:  {read}, {made.ran} run, {made.failed()} failed{advice}")
    print(f"table:  {cells.results}/table.md, .tex, .json")
    if report:
        print(f"report: {report}")
    return 1 if made.failures or problems else 0


def render(cells: Cells, made: Outcome) -> tuple[pathlib.Path | None, list[str]]:
    """Prints the table, writes it as Markdown, LaTeX and JSON, and a report of the runs.

    Files that say the same already, but for the command and what failed this time, are left as
    they are, and so they are while a record is damaged.

    Returns:
      The report, None where no run of the table is on this disk; and what it cannot show.
    """
    from experiments.reports import formats, html
    from experiments.reports.tables import print_study

    print_study(made.study)
    written = (cells.results / "table.md").is_file()
    if written and cells.damaged():
        logger.warning("the files of the table are left as they are: a record is damaged")
    elif not formats.says_the_same(made.study, cells.results, "table"):
        formats.write_study(made.study, cells.results, "table")
    runs, problems = [], []
    for row in cells.table["rows"]:
        for seed in made.study.seeds:
            try:
                directory = cells.run_directory(row, seed)
                here = (directory / "evaluation" / "test" / "metrics.json").is_file()
                if here and cells.record(row, seed) is not None:
                    runs.append(dict(workdir=directory, label=name_of(row)))
            except ValueError:  # is among the failures
                continue
    runs = [run for run in (html.read_run(run, problems) for run in runs) if run]
    if not runs:
        return None, problems
    report = html.write_report(
        cells.workdir / "report.html", runs, cells.table["title"], made.study,
        command=made.study.command, problems=problems,
    )  # fmt: skip
    return report, problems


if __name__ == "__main__":
    sys.exit(main())
