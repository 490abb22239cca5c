"""Writes one HTML page that compares finished runs.

    python -m experiments.report runs/single runs/ensemble --output report.html
    python -m experiments.report Single=runs/a/seed_0 Single=runs/a/seed_1 Ensemble=runs/b

Runs that share a label are seeds of one method: tables show their mean and standard error. The best
value is not marked across runs that were evaluated on different data. Regression and classification
have separate tables. A run that cannot be read is reported and left out; the exit status is then 1.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence


def parse(argument: str) -> dict[str, str]:
    """'LABEL=WORKDIR' or 'WORKDIR', as arguments of `load_run`; see `arguments.labelled`."""
    from experiments.runtime.arguments import labelled  # late: with JAX

    label, workdir = labelled(argument)
    return {"workdir": workdir} | ({} if label is None else {"label": label})


def check_distinct(workdirs: Sequence[str]) -> None:
    """Raises ValueError for a run that is given twice, which would count as two seeds."""
    from experiments.runtime import storage

    resolved = [storage.path(workdir).resolve() for workdir in workdirs]
    for workdir, path in zip(workdirs, resolved, strict=True):
        if resolved.count(path) > 1:
            raise ValueError(f"{workdir}: given twice")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="[LABEL=]WORKDIR", help="finished runs")
    parser.add_argument("--output", default="report.html", help="default: %(default)s")
    parser.add_argument("--title", default="Report", help="default: %(default)s")
    parser.add_argument("--name", default="test", help="the evaluation; default: %(default)s")
    options = parser.parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "experiments.report", *words])

    from experiments.reports.html import write_report
    from experiments.reports.runs import read_run

    problems: list[str] = []
    parsed: list[dict[str, str]] = []
    runs: list = []
    for argument in options.runs:
        try:
            parsed.append({**parse(argument), "name": options.name})
        except (ValueError, OSError) as error:
            problems.append(str(error))
    try:
        runs = [run for run in (read_run(run, problems) for run in parsed) if run]
        check_distinct([run["workdir"] for run in parsed])
        path = write_report(options.output, runs, options.title, command=command, problems=problems)
    except (ValueError, OSError) as error:
        problems += [str(error)] * (bool(runs) or not problems)
        path = None
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if path is None:
        return 1
    count = f"{len(runs)} run{'s' * (len(runs) != 1)}"
    print(f"{path}: {count}; PNGs in {path.parent / (path.stem + '_figures')}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
