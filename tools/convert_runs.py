"""Moves the cells of tables from files `results/<table>/runs/*.json` to lines of `runs.jsonl`.

    python -m tools.convert_runs results/uci results/rings

A folder has the name of its table, whose rows set the order of the lines. No number changes: every
line is compared with its file. `experiments.reproduce` reads both forms, and converts a folder when
it next writes to it.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from experiments.tables.cells import Cells
from experiments.tables.records import FILE, FOLDER
from experiments.tables.render import write_constraints


def convert(folder: pathlib.Path) -> int:
    """Converts the cells of one table; returns their number.

    Raises:
      ValueError: a line differs from its file.
    """
    before = [json.loads(path.read_bytes()) for path in sorted((folder / FOLDER).glob("*.json"))]
    cells = Cells(folder.name, str(folder.parent), "runs", {})
    cells.records.convert()
    lines = [json.loads(line) for line in (folder / FILE).read_text().splitlines()]
    for record in before:
        if record not in lines:
            raise ValueError(f"{folder}: {record['row']}, seed {record['seed']} has changed")
    write_constraints(cells)
    return len(before)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.convert_runs", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folders", nargs="+", type=pathlib.Path, help="results/<table>")
    for folder in parser.parse_args(argv).folders:
        print(f"{folder / FILE}: {convert(folder)} cells")
    return 0


if __name__ == "__main__":
    sys.exit(main())
