"""Writes the tables of README.md and docs/ from the JSON files of results.

    python -m tools.docs           (or make docs)
    python -m tools.docs --check   # status 1 if a file is not up to date

The text between two comments is replaced:

    <!-- table: results/uci/table.json
    rows: Boston
    columns: regression/nll; regression/rmse = RMSE in 1,000 $
    -->
    <!-- end -->

Between `<!-- glossary -->` and `<!-- end -->` are the definitions of all metrics.

`rows` is a regular expression that is searched in the names of rows; `columns` are keys of columns,
each with an optional new header. Both default to all. `transposed: yes` makes a line of each
column. Bold marks the best of all rows, shown or not.
"""

import argparse
import os
import pathlib
import re
import sys
from collections.abc import Sequence

from experiments.reports.formats import escape_markdown, origin, read_study
from experiments.reports.glossary import to_markdown
from experiments.reports.layout import layout
from experiments.runtime import project, storage

BLOCK = re.compile(r"(<!-- table: (?P<path>\S+)\n(?P<fields>.*?)-->\n).*?(<!-- end -->)", re.DOTALL)

GLOSSARY = re.compile(r"(<!-- glossary -->\n).*?(<!-- end -->)", re.DOTALL)


def files(root: pathlib.Path = project.ROOT) -> list[pathlib.Path]:
    """All files that may have such tables."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def rendered(text: str, file: pathlib.Path, root: pathlib.Path = project.ROOT) -> str:
    """The text of a file with up-to-date tables.

    Raises:
      ValueError: a comment names a row, column or field that does not exist.
    """

    def replaced(match: re.Match) -> str:
        try:
            lines = (line.partition(":") for line in match["fields"].strip().splitlines())
            fields = {name.strip(): value.strip() for name, _, value in lines}
            return f"{match[1]}\n{table(match['path'], file, root, **fields)}\n\n{match[4]}"
        except (ValueError, TypeError, OSError) as error:
            raise ValueError(f"{file}: table {match['path']}: {error}") from error

    text = GLOSSARY.sub(lambda match: f"{match[1]}\n{to_markdown()}\n\n{match[2]}", text)
    return BLOCK.sub(replaced, text)


def table(
    path: str,
    file: pathlib.Path,
    root: pathlib.Path,
    rows: str = "",
    columns: str = "",
    transposed: str = "no",
) -> str:
    """The Markdown of one table, with a line that gives its origin."""
    if transposed not in ("yes", "no"):
        raise ValueError(f"transposed: {transposed!r}; yes or no")
    study = read_study(root / path)
    shown = layout(study)
    keys = [column.key for column in study.columns]
    selected = [part.partition("=") for part in columns.split(";")] if columns else []
    headers = {key.strip(): header.strip() for key, _, header in selected} or dict.fromkeys(
        keys, ""
    )
    if unknown := headers.keys() - set(keys):
        raise ValueError(f"no column {sorted(unknown)}; there are {keys}")
    places = [keys.index(key) for key in headers]
    lines = [(head, cells) for head, cells in shown.lines if re.search(rows, head.text)]
    if not lines:
        raise ValueError(f"rows: {rows!r} matches none of {[h.text for h, _ in shown.lines]}")
    head, rule = [""], ["---"]
    compared = {i for i in places if any(cells[i].published for _, cells in lines)}
    for i, header in zip(places, headers.values(), strict=True):
        head += [escape_markdown(header or shown.heads[i].text), *(["published"] * (i in compared))]
        rule += ["---:"] * (1 + (i in compared))
    text = [head, rule]
    for name, cells in lines:
        row = [escape_markdown(name.text)]
        for i in places:
            bold = "**" * cells[i].best
            row += [bold + cells[i].ours() + bold, *([cells[i].published] * (i in compared))]
        text.append(row)
    if transposed == "yes":
        first, *rest = zip(head, *text[2:], strict=True)
        text = [list(first), ["---", *["---:"] * len(lines)], *map(list, rest)]
    full_table = os.path.relpath(root / path, file.parent).replace(".json", ".md")
    numbers = sorted({cells[i].source for _, cells in lines for i in places if cells[i].source})
    published = [f"Published: {'; '.join(shown.notes[n - 1] for n in numbers)}."] if numbers else []
    sentences = map(escape_markdown, [*origin(study, shown), *published])
    source = " ".join([*sentences, f"[All columns]({full_table})."])
    return "\n".join("| " + " | ".join(row) + " |" for row in text) + f"\n\n{source}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.docs", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--check", action="store_true", help="only report stale files, with status 1"
    )
    check = parser.parse_args(argv).check
    stale = []
    for file in files():
        text = file.read_text(encoding="utf-8")
        try:
            updated = rendered(text, file)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        if updated != text:
            stale.append(file)
            if not check:
                storage.write(file, updated)
    for file in stale:
        print(f"{file}: {'is not up to date; run `make docs`' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
