"""A published table, made again: every row and seed, then ours beside the published numbers.

    python -m experiments.reproduce digits
    python -m experiments.reproduce small_images --rows 'Fashion' --seeds 0,1 \\
        --set evaluators.ood.sets.kmnist.name=npz --set evaluators.ood.sets.kmnist.path=DIR

Tables are the files of `configs/tables`. A cell (row and seed) that is done is kept in
`results/<table>/runs`, so an interrupted command goes on where it was, and cells may come from
several machines. A cell that fails is reported and does not stop the others.
"""

import argparse
import ast
import importlib
import logging
import pathlib
import pkgutil
import re
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import configs.tables
from experiments import config as config_lib
from experiments import evaluate, train, writers
from experiments.progress import Progress, setup_logging
from experiments.reports import formats, html
from experiments.reports.study import Study
from experiments.reports.tables import print_study
from experiments.workdir import read_json, same_but_for, write_json
from uncertainty.build import ConfigError, nearest

logger = logging.getLogger(__name__)


def table_of(name: str) -> dict[str, Any]:
    """The table of `configs/tables/<name>.py`.

    Raises:
      ConfigError: there is no such table.
    """
    names = [m.name for m in pkgutil.iter_modules(configs.tables.__path__)]
    if name not in names:
        raise ConfigError(f"table: no {name!r}; {nearest(name, names)}")
    return importlib.import_module(f"configs.tables.{name}").get_table()


def name_of(row: Mapping[str, Any]) -> str:
    """`group: label`, or the label alone."""
    return ": ".join(filter(None, [row.get("group", ""), row["label"]]))


def slug(row: Mapping[str, Any]) -> str:
    """A file name for a row."""
    return re.sub(r"[^a-z0-9]+", "-", name_of(row).lower()).strip("-")


class Cells:
    """The cells of a table: which are to be run, and what the finished ones found.

    Args:
      name: the table.
      results: where finished cells and the rendered table are kept.
      workdir: where the runs are, with their checkpoints.
      overrides: dotted config fields to set in every row that has them.
    """

    def __init__(self, name: str, results: str, workdir: str, overrides: Mapping[str, Any]):
        self.name, self.table = name, table_of(name)
        self.results = pathlib.Path(results) / name
        self.workdir = pathlib.Path(workdir) / name
        self.overrides = overrides

    def config(self, row: Mapping[str, Any], seed: int) -> dict[str, Any]:
        config = config_lib.load(row["config"], {"seed": seed, **self.overrides})
        return config_lib.plain(config)

    def file(self, row: Mapping[str, Any], seed: int) -> pathlib.Path:
        return self.results / "runs" / f"{slug(row)}-seed{seed}.json"

    def run_directory(self, row: Mapping[str, Any], seed: int) -> pathlib.Path:
        return self.workdir / slug(row) / f"seed{seed}"

    def record(self, row: Mapping[str, Any], seed: int) -> dict[str, Any] | None:
        """What a finished cell found; None if there is none, or its config was another one."""
        path = self.file(row, seed)
        if not path.is_file():
            return None
        record = read_json(path)
        if not same_but_for(record["config"], self.config(row, seed), config_lib.MAY_CHANGE):
            logger.warning("%s is of another config and is not used", path)
            return None
        return record

    def run(self, row: Mapping[str, Any], seed: int) -> None:
        """Trains and evaluates one cell and records it."""
        config = self.config(row, seed)
        directory = self.run_directory(row, seed)
        experiment = train.train(config, directory)
        metrics, failures = evaluate.evaluate(experiment, directory, show=False)
        self.file(row, seed).parent.mkdir(parents=True, exist_ok=True)
        write_json(
            self.file(row, seed),
            dict(
                row=name_of(row),
                seed=seed,
                metrics=metrics,
                failures=failures,
                config_file=row["config"],
                config=config,
                hardware=writers.hardware(),
            ),
        )


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
      rows: a regex; only rows whose label it is found in are run. All are shown.
      seeds: of these seeds only; by default the table's.
      isolate: the command that runs one cell in a process of its own, or None for this process.
    """
    seeds = tuple(cells.table["seeds"] if seeds is None else seeds)
    wanted = [row for row in cells.table["rows"] if re.search(rows, name_of(row))]
    if not wanted:
        names = [name_of(row) for row in cells.table["rows"]]
        raise ConfigError(f"rows: {rows!r} matches none of {names}")
    jobs = [(row, seed) for seed in seeds for row in wanted]
    errors: dict[str, str] = {}
    with Progress(len(jobs), cells.name) as progress:
        for i, (row, seed) in enumerate(jobs):
            progress.update(i, f"{name_of(row)}, seed {seed}")
            if cells.record(row, seed) is not None:
                continue
            try:
                if isolate is None:
                    cells.run(row, seed)
                else:
                    command = [*isolate, "--rows", f"^{re.escape(name_of(row))}$", "--seeds"]
                    subprocess.run([*command, str(seed), "--cell"], check=True)
            except (train.Interrupted, KeyboardInterrupt):
                raise
            except Exception as error:  # one row must not take the others with it
                logger.error("%s, seed %d: %s", name_of(row), seed, error)
                logger.debug("%s", traceback.format_exc())
                errors[name_of(row)] = f"seed {seed}: {error}"
        progress.update(len(jobs), "")
    return study(cells, errors)


def study(cells: Cells, errors: Mapping[str, str]) -> Study:
    """The Study of all finished cells."""
    rows, found_seeds, hardware = [], set(), {}
    for row in cells.table["rows"]:
        found = (cells.results / "runs").glob(f"{slug(row)}-seed*.json")
        seeds = sorted(int(path.stem.rpartition("-seed")[2]) for path in found)
        records = [r for r in (cells.record(row, seed) for seed in seeds) if r is not None]
        notes = {f"{k}: {v}" for r in records for k, v in r["failures"].items()}
        found_seeds |= {r["seed"] for r in records}
        for r in records:
            hardware = r["hardware"]
        rows.append(
            dict(
                label=row["label"],
                group=row.get("group", ""),
                results=[r["metrics"] for r in records],
                published=row.get("published", {}),
                note="; ".join(filter(None, [row.get("note", ""), *sorted(notes)])),
                failed=errors.get(name_of(row), ""),
            )
        )
    return Study(
        title=cells.table["title"],
        columns=cells.table["columns"],
        rows=rows,
        command=f"python -m experiments.reproduce {cells.name}",
        config={name_of(row): row["config"] for row in cells.table["rows"]},
        seeds=sorted(found_seeds),
        hardware=hardware,
    )


def overrides_of(items: Sequence[str]) -> dict[str, Any]:
    """`a.b=value` pairs; a value is Python's literal where it is one, else text."""
    result = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"--set {item!r}: field=value is needed")
        try:
            result[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            result[key] = text
    return result


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.reproduce", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("table", help="a file of configs/tables")
    parser.add_argument("--rows", default="", help="run only the rows that this regex finds")
    parser.add_argument("--seeds", help="run only these, such as 0,1,2")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE",
                        help="a config field, in every row")  # fmt: skip
    parser.add_argument("--workdir", default="runs", help="where the runs go (default: runs)")
    parser.add_argument("--results", default="results", help="where the table goes")
    parser.add_argument("--isolate", action="store_true", help="each cell in its own process")
    parser.add_argument("--cell", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    setup_logging()
    try:
        overrides = overrides_of(args.set)
        cells = Cells(args.table, args.results, args.workdir, overrides)
        seeds = [int(seed) for seed in args.seeds.split(",")] if args.seeds else None
        if args.cell:
            (row,) = [r for r in cells.table["rows"] if re.search(args.rows, name_of(r))]
            for seed in seeds:
                cells.run(row, seed)
            return 0
        command = [sys.executable, "-m", "experiments.reproduce", args.table]
        command += ["--workdir", args.workdir, "--results", args.results]
        command += [word for item in args.set for word in ("--set", item)]
        made = reproduce(cells, rows=args.rows, seeds=seeds,
                         isolate=command if args.isolate else None)  # fmt: skip
    except train.Interrupted as message:
        logger.warning("%s. The same command goes on from there.", message)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report = render(cells, made)
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
            if (directory / "evaluation" / "test" / "metrics.json").is_file():
                runs.append(dict(workdir=directory, label=name_of(row)))
    if not runs:
        return None
    report = cells.workdir / "report.html"
    return html.write_report(report, runs, cells.table["title"], made, command=made.command)


if __name__ == "__main__":
    sys.exit(main())
