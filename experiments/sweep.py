"""Runs a grid or a random search over fields of a config x seeds, and selects on validation data.

    python -m experiments.sweep --config configs/digits/mlp.py --workdir runs/rates \\
        --sweep 'optimiser.learning_rate=[3e-4, 1e-3, 3e-3]' --sweep 'inference.size=[1, 5]'
    python -m experiments.sweep --config configs/digits/mlp.py --workdir runs/random --random 16 \\
        --sweep 'optimiser.learning_rate=log(1e-4, 1e-1)' --sweep 'batch_size=[32, 64]'
    python -m experiments.sweep --file sweep.toml --workdir runs/sweep

A cell is a setting with one seed. Finished cells are lines of WORKDIR/runs.jsonl, so repeating the
command resumes it, also with further values, fields or seeds; a cell that fails is reported and
does not stop the others (exit status 1). Settings that differ only in what particles may differ in
(learning rate, decay, prior scale, label smoothing) are trained as particles of one program; with
`--isolate`, or `--together 1`, each is trained by itself.

The setting with the best `--select` on `data.validation` in the mean over seeds is selected; test
data are evaluated, and never selected on. WORKDIR then has table.md, .tex, .csv, .json,
selected.json and report.html. docs/sweeps.md has more, on SLURM and Kubernetes too.
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence

from experiments.experiment import config as config_lib
from experiments.reports.study import Study
from experiments.runtime import storage
from experiments.runtime.program import code_of
from experiments.runtime.progress import setup_logging
from experiments.runtime.termination import Interrupted, status
from experiments.sweeps import spec
from experiments.sweeps.spec import Sweep
from experiments.tables import launch
from experiments.tables.cells import Cells, name_of
from experiments.tables.run import Outcome, reproduce, rows_of, run_cell, seeds_of
from experiments.tables.summary import seeds_in_words
from uncertainty.build import ConfigError

logger = logging.getLogger(__name__)

MOST = 64  # particles of one program


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    setup_logging()
    try:
        sweep = asked(args)
        launch.check(args)
        workdir = storage.path(args.workdir)
        table, select = spec.table_of(sweep)
        table["command"] = command_of(sweep, args)
        cells = Cells("sweep", workdir, workdir / "runs", {}, table=table)
        if args.cell:
            return run_cell(cells, args.rows, args.seeds, args.cell)
        for row in table["rows"]:
            if args.dry_run:
                print(name_of(row))
        if args.dry_run:
            print(f"{len(table['rows'])} settings x {len(sweep.seeds)} seeds")
            return 0
        cells.check_columns()
        spec.note(sweep, workdir)
        outcome = run(cells, sweep, args)
        problems = show(cells, outcome.study, sweep, select, report=args.shard.count == 1)
    except Interrupted as message:
        logger.warning("%s. The same command resumes.", message)
        return message.code
    except KeyboardInterrupt:
        logger.warning("interrupted. The same command resumes.")
        return status("SIGINT")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return code_of(error)
    for reason, rows in outcome.failures.items():
        where = "; ".join(f"{name}, {seeds_in_words(seeds)}" for name, seeds in rows.items())
        print(f"error: {where}: {reason}", file=sys.stderr)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"cells:  {outcome.read} read, {outcome.ran} run, {outcome.failed()} failed")
    print(f"table:  {cells.results}/table.md, .tex, .csv, .json; {cells.results}/selected.json")
    if args.shard.count == 1:
        print(f"report: {cells.results}/report.html")
    return 1 if outcome.failures or problems else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.sweep", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--config", help="configs/FILE.py or configs/FILE.py:OPTIONS")
    add("--workdir", required=True, help="of runs and results; gs:// and s3:// too")
    add("--file", help="TOML or JSON: config, set, sweep, random, random_seed, seeds, select")
    text = f"a field that varies: FIELD={spec.space.FORMS}"
    add("--sweep", action="append", default=[], metavar="FIELD=VALUES", help=text)
    text = "sets a field in all cells"
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help=text)
    add("--random", type=int, metavar="N", help="draw N settings; by default the grid of all")
    add("--random-seed", type=int, metavar="S", help="of the draws (default: 0)")
    add("--seeds", type=seeds_of, help="of each setting, such as 0,1,2 (default: 0,1,2)")
    text = "the metric on validation data to select by (default: the task's NLL)"
    add("--select", metavar="KEY[:higher|lower]", help=text)
    text = f"most particles of one program; 1 trains each setting by itself (default: {MOST})"
    add("--together", type=int, default=MOST, metavar="P", help=text)
    add("--isolate", action="store_true", help="each cell in its own process")
    add("--dry-run", action="store_true", help="list the settings, and run none")
    launch.add_arguments(parser)
    add("--rows", default="", help="run only settings whose label matches this regex")
    add("--cell", help=argparse.SUPPRESS)  # file for the reason of a failure
    return parser.parse_args(argv)


def asked(args: argparse.Namespace) -> Sweep:
    """The sweep of the flags and of `--file`."""
    content = spec.read(args.file) if args.file else {}
    given = dict(
        config=args.config,
        set={k: config_lib.value_of(v, k) for k, v in config_lib.assignments(args.set).items()},
        sweep=_axes(args.sweep),
        random=args.random,
        random_seed=args.random_seed,
        seeds=args.seeds,
        select=args.select,
    )
    return spec.joined(content, given)


def _axes(items: Sequence[str]) -> dict[str, str]:
    axes: dict[str, str] = {}
    for item in items:
        for field, value in config_lib.assignments([item]).items():
            if field in axes:
                raise ConfigError(f"--sweep {field}: given twice")
            axes[field] = value
    return axes


def command_of(sweep: Sweep, args: argparse.Namespace) -> str:
    """The command that makes the table from the file in its workdir."""
    words = ["--file", f"{args.workdir}/{spec.FILE}", "--workdir", str(args.workdir)]
    return shlex.join(["python", "-m", "experiments.sweep", *words])


def run(cells: Cells, sweep: Sweep, args: argparse.Namespace) -> Outcome:
    """Runs the cells here or by a launcher."""
    workdir = storage.path(args.workdir)
    again = launch.python("sweep")
    again += ["--file", str(workdir.absolute() / spec.FILE), "--workdir", str(workdir.absolute())]
    again += ["--together", str(args.together)] + ["--isolate"] * args.isolate
    again += ["--rows", args.rows] if args.rows else []
    rows = rows_of(cells, args.rows)
    if args.launcher:
        jobs = [(row, seed) for row in rows for seed in sweep.seeds]
        return launch.launched(cells, again, args, jobs)
    logger.info("results and runs go to %s", workdir)
    if not args.isolate and args.together > 1:
        from experiments.sweeps.together import train_together

        cells.claims.begin()
        first = len(sweep.seeds) * args.shard.index // args.shard.count
        seeds = [*sweep.seeds[first:], *sweep.seeds[:first]]
        train_together(cells, rows, seeds, args.together)
    alone = [word for word in again if word != "--isolate"]
    return reproduce(
        cells, rows=args.rows, isolate=alone if args.isolate else None, shard=args.shard
    )


def show(
    cells: Cells, shown: Study, sweep: Sweep, select: spec.Select, report: bool = True
) -> list[str]:
    """Prints the table and the choice, and writes their files; lines on what cannot be shown."""
    from experiments.reports import formats
    from experiments.sweeps import show as show_lib
    from experiments.tables.render import write_constraints

    shown = show_lib.arranged(shown, select)
    show_lib.print_short(shown)
    chosen = show_lib.selected(cells, select, sweep.seeds)
    print("\n".join(show_lib.lines_of(shown, select, chosen, sweep)))
    if not cells.records.any_damaged():
        formats.write_study(shown, cells.results, "table")
        write_constraints(cells)
        if report:
            show_lib.write(cells, shown, sweep, select, chosen)
    return cells.records.damaged()


if __name__ == "__main__":
    sys.exit(main())
