"""Draws accuracy against disagreement of pairs of kinds of members, a panel for each row.

    python -m tools.kinds_figure multi_symmetry --rows 'Fine|By'

Writes `results/<table>/kinds.png` from `results/<table>/table.json`: its columns
`kinds/<pair>/disagreement` and `kinds/<pair>/accuracy_<n>`.
"""

import argparse
import re
import sys
from collections.abc import Sequence

from experiments.reports import kinds_figures, style
from experiments.reports.formats import read_study
from experiments.runtime import project


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.kinds_figure", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("table", help="a folder of results/")
    parser.add_argument("--rows", default="", help="a regex; rows that it matches")
    args = parser.parse_args(argv)
    folder = project.ROOT / "results" / args.table
    try:
        study = read_study(folder / "table.json")
        metrics = {row.label: row.results for row in study.rows if re.search(args.rows, row.label)}
        if not (methods := kinds_figures.of_kinds(metrics)):
            raise ValueError(f"--rows: {args.rows!r} matches no row with pairs of kinds")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(style.save_png(kinds_figures.kinds(methods), folder / "kinds.png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
