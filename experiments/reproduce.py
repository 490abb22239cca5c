"""A published table, made again: every row and seed, then ours beside the published numbers.

    python -m experiments.reproduce digits
    python -m experiments.reproduce small_images --rows 'Fashion' --seeds 0,1 \\
        --set evaluators.ood.sets.kmnist.name=npz --set evaluators.ood.sets.kmnist.path=DIR

Tables are the files of `configs/tables`. A cell (row and seed) that is done is kept in
`results/<table>/runs`, so an interrupted command goes on where it was, and cells may come from
several machines. A cell that fails is reported and does not stop the others; the exit status is
then 1. A cell some of whose evaluators failed, for want of data say, is evaluated again once
their fields have changed.
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
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import config as config_lib
from experiments.cells import Cells, name_of, slug
from experiments.progress import Progress, setup_logging
from experiments.reports import formats, html
from experiments.reports.study import Study, machine
from experiments.reports.tables import print_study
from experiments.termination import Interrupted, graceful_termination, status
from uncertainty.build import ConfigError

logger = logging.getLogger(__name__)


def reproduce(
    cells: Cells,
    *,
    rows: str = "",
    seeds: Sequence[int] | None = None,
    isolate: Sequence[str] | None = None,
) -> Study:
    """Runs the cells that are not done and returns the Study of the whole table.

    Args:
      cells: of the table.
      rows: a regex; only rows whose name it is found in are run. All are shown.
      seeds: of these seeds only; by default the table's.
      isolate: the command that runs one cell in a process of its own, or None for this process.

    Raises:
      ConfigError: `rows` finds no row.
      Interrupted: SIGTERM or SIGINT came.
    """
    seeds = tuple(cells.table["seeds"] if seeds is None else seeds)
    try:
        wanted = [row for row in cells.table["rows"] if re.search(rows, name_of(row))]
    except re.error as error:
        raise ConfigError(f"rows: {rows!r} is not a regular expression: {error}") from None
    if not wanted:
        names = [name_of(row) for row in cells.table["rows"]]
        raise ConfigError(f"rows: {rows!r} matches none of {names}")
    jobs = [(row, seed) for seed in seeds for row in wanted]
    errors: dict[str, str] = {}
    with Progress(len(jobs), cells.name, unit="cell", show=isolate is None) as progress:
        for i, (row, seed) in enumerate(jobs):
            name = f"{name_of(row)}, seed {seed}"
            progress.update(i, name)
            try:
                if cells.done(row, seed):
                    continue
                if isolate is None:
                    cells.run(row, seed)
                else:
                    logger.info("%s (%d of %d)", name, i + 1, len(jobs))
                    run_alone([*isolate, "--rows", f"^{re.escape(name_of(row))}$",
                               "--seeds", str(seed)])  # fmt: skip
            except Interrupted:
                raise
            except Exception as error:  # one row must not take the others with it
                logger.error("%s: %s", name, error)
                logger.debug("%s", traceback.format_exc())
                former = errors.get(name_of(row))
                errors[name_of(row)] = "; ".join(filter(None, [former, f"seed {seed}: {error}"]))
        progress.update(len(jobs), "")
    return study(cells, errors)


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


def study(cells: Cells, errors: Mapping[str, str]) -> Study:
    """The Study of all finished cells: the metrics that its columns show."""
    rows, found_seeds, ran_on = [], set(), []
    shown = [column["key"] for column in cells.table["columns"]]
    for row in cells.table["rows"]:
        found = (cells.results / "runs").glob(f"{slug(row)}-seed*.json")
        seeds = sorted(int(path.stem.rpartition("-seed")[2]) for path in found)
        records = [r for r in (cells.record(row, seed) for seed in seeds) if r is not None]
        notes = {f"{k}: {v}" for r in records for k, v in r["failures"].items()}
        found_seeds |= {r["seed"] for r in records}
        ran_on += [r["hardware"] for r in records]
        machines = collections.Counter(machine({**r["hardware"], "date": ""}) for r in records)
        if len(machines) > 1:
            counts = ", ".join(f"{where} ({n})" for where, n in sorted(machines.items()))
            notes.add(f"Its runs, and so its times, are of several machines: {counts}")
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
                failed=errors.get(name_of(row), ""),
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
    parser.add_argument("table", help="a file of configs/tables")
    parser.add_argument("--rows", default="", help="run only the rows that this regex finds")
    parser.add_argument("--seeds", type=seeds_of, help="run only these, such as 0,1,2")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE",
                        help="a config field, in every row")  # fmt: skip
    parser.add_argument("--workdir", default="runs", help="where the runs go (default: runs)")
    parser.add_argument("--results", default="results", help="where the table goes")
    parser.add_argument("--isolate", action="store_true", help="each cell in its own process")
    parser.add_argument("--cell", help=argparse.SUPPRESS)  # where to leave the reason of a failure
    args = parser.parse_args(argv)
    setup_logging()
    try:
        overrides = config_lib.assignments(args.set)
        cells = Cells(args.table, args.results, args.workdir, overrides)
        if args.cell:
            return run_cell(cells, args)
        command = [sys.executable, "-m", "experiments.reproduce", args.table]
        command += ["--workdir", args.workdir, "--results", args.results]
        command += [word for item in args.set for word in ("--set", item)]
        made = reproduce(cells, rows=args.rows, seeds=args.seeds,
                         isolate=command if args.isolate else None)  # fmt: skip
        report = render(cells, made)
    except Interrupted as message:
        logger.warning("%s. The same command resumes.", message)
        return message.code
    except KeyboardInterrupt:
        logger.warning("interrupted. The same command resumes from the last checkpoint.")
        return status("SIGINT")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"table:  {cells.results}/table.md, .tex, .json")
    if report:
        print(f"report: {report}")
    return 1 if any(row.failed for row in made.rows) else 0


def render(cells: Cells, made: Study) -> pathlib.Path | None:
    """Prints the table, writes it as Markdown, LaTeX and JSON, and a report of the runs.

    Returns:
      The report; None where no run of the table is on this disk.
    """
    print_study(made)
    formats.write_study(made, cells.results, "table")
    runs = []
    for row in cells.table["rows"]:
        for seed in made.seeds:
            directory = cells.run_directory(row, seed)
            here = (directory / "evaluation" / "test" / "metrics.json").is_file()
            if here and cells.record(row, seed) is not None:
                runs.append(dict(workdir=directory, label=name_of(row)))
    if not runs:
        return None
    report = cells.workdir / "report.html"
    return html.write_report(report, runs, cells.table["title"], made, command=made.command)


if __name__ == "__main__":
    sys.exit(main())
