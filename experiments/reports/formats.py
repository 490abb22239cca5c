"""A study as Markdown, LaTeX, CSV and JSON."""

import csv
import dataclasses
import io
import json
import re
from typing import Any

from experiments.reports.layout import Layout, layout
from experiments.reports.study import Row, Study, machine, one_line, summarise, values_of
from experiments.runtime import storage
from experiments.runtime.workdir import jsonable, read_json

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "↑": r"$\uparrow$",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
} | {c: "\\" + c for c in "&%$#_{}"}
# At the start of a table row, `\\` would parse these as its argument; "--" would become a dash.
LATEX |= {c: f"{{{c}}}" for c in "[]*"}


def escape_latex(text: str) -> str:
    """Escapes plain text for LaTeX, so that every special character is printed literally."""
    escaped = "".join(LATEX.get(c, c) for c in one_line(text))
    return re.sub(r"([-',])(?=\1)", r"\1{}", escaped)


def escape_markdown(text: str) -> str:
    """Escapes plain text for Markdown, within table cells too."""
    return re.sub(r"([\\`*_|<>\[\]&$~#])", r"\\\1", one_line(text))


def code_span(text: str) -> str:
    """Text as a Markdown code span, with any backticks."""
    line = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " * ("`" in line)
    return f"{fence}{space}{line}{space}{fence}"


def to_markdown(study: Study) -> str:
    """A Markdown table with its notes; published values have a column beside ours."""
    shown = layout(study)
    header, rule = [""], ["---"]
    for head, compared in zip(shown.heads, shown.compared, strict=True):
        header += [escape_markdown(head.text)] + ["published"] * compared
        rule += ["---:"] * (1 + compared)
    rows = [header, rule]
    for head, cells in shown.lines:
        row = [escape_markdown(head.text) + "".join(f" [{m}]" for m in head.marks)]
        for cell, compared in zip(cells, shown.compared, strict=True):
            around = "**" * cell.best + "*" * cell.failed
            row.append(around + cell.ours() + around)
            if compared:
                row.append(f"{cell.published} [{cell.source}]" if cell.published else "")
        rows.append(row)
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    notes = "\n".join(f"- [{n}] {escape_markdown(note)}" for n, note in enumerate(shown.notes, 1))
    source = [escape_markdown(sentence) for sentence in origin(study, shown)]
    if study.command:
        source.append(f"Made by {code_span(study.command)}.")
    data = " ".join(map(escape_markdown, shown.data))
    warnings = [f"**Warning: {escape_markdown(text)}**" for text in shown.warnings]
    parts = [f"### {escape_markdown(study.title)}", data, *warnings, table, " ".join(source), notes]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_latex(study: Study) -> str:
    r"""A `table` for the booktabs package, with its notes below it."""
    shown = layout(study)
    top, under, rules, at = [""], [""], [], 2
    for column, compared in zip(shown.heads, shown.compared, strict=True):
        title = escape_latex(column.text)
        top.append(rf"\multicolumn{{2}}{{c}}{{{title}}}" if compared else title)
        under += ["ours", "published"] if compared else [""]
        rules += [rf"\cmidrule(lr){{{at}-{at + 1}}}"] * compared
        at += 1 + compared
    titles = [top, under] if any(shown.compared) else [top]
    lines = []
    for head, cells in shown.lines:
        row = [escape_latex(head.text) + _superscript(head.marks)]
        for cell, compared in zip(cells, shown.compared, strict=True):
            ours = cell.ours(r" \pm ")
            ours = rf"\mathbf{{{ours}}}" if cell.best else ours
            row.append(r"\emph{failed}" if cell.failed else f"${ours}$" if ours else "")
            if compared:
                published = f"${cell.published}$" + _superscript([cell.source])
                row.append(published if cell.published else "")
        lines.append(row)
    join = [" & ".join(row) + r" \\" for row in titles]
    head_text = "\n".join([join[0]] + [" ".join(rules)] * bool(rules) + join[1:])
    body = "\n".join(" & ".join(row) + r" \\" for row in lines)
    notes = [_superscript([n]) + escape_latex(note) for n, note in enumerate(shown.notes, 1)]
    above = [*shown.data, *(f"Warning: {text}" for text in shown.warnings)]
    source = [escape_latex(sentence) for sentence in above + origin(study, shown)]
    small = "\n".join([rf"\par\smallskip\footnotesize {note}" for note in notes])
    return f"""% Needs \\usepackage{{booktabs}}. Made by: {one_line(study.command) or "-"}
\\begin{{table}}
\\centering
\\caption{{{" ".join([escape_latex(study.title) + ".", *source])}}}
\\begin{{tabular}}{{l{"r" * (at - 2)}}}
\\toprule
{head_text}
\\midrule
{body}
\\bottomrule
\\end{{tabular}}
{small}
\\end{{table}}
"""


def to_csv(study: Study) -> str:
    """The table for spreadsheets and data frames: numbers in the units shown, not rounded.

    A line for each row: group, row, number of seeds, and for each column its mean, its standard
    error (empty with one seed) and, where any row has one, the published value. An empty cell has
    no number. `to_json` also has the values of each seed.
    """
    names = [f"{c.header} ({c.unit})" if c.unit else c.header for c in study.columns]
    # Two columns may show one header, such as the NLL of two data sets.
    names = [
        name if names.count(name) == 1 else f"{name} [{column.key}]"
        for name, column in zip(names, study.columns, strict=True)
    ]
    compared = [any(c.key in row.published for row in study.rows) for c in study.columns]
    head = ["group", "row", "seeds"]
    for name, published in zip(names, compared, strict=True):
        head += [name, f"{name}: standard error"] + [f"{name}: published"] * published
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(map(one_line, head))
    for row in study.rows:
        line: list[Any] = [one_line(row.group), one_line(row.label), len(row.results)]
        for column, published in zip(study.columns, compared, strict=True):
            entry = summarise(values_of(row, column.key))
            numbers = (entry.mean, entry.error) if entry else (None, None)
            line += [None if n is None else float(n * column.scale) for n in numbers]
            line += [row.published.get(column.key, (None,))[0]] * published
        writer.writerow(line)
    return stream.getvalue()


def to_json(study: Study) -> str:
    """All numbers of a study: per seed, mean, standard error, n, published with its source.

    `values`, `mean` and `standard_error` are in the metric's own unit, as in metrics.json;
    `published` is in the column's unit, as printed. An empty cell has mean null, and NaN is the
    string 'NaN', which `experiments.runtime.workdir.read_json` converts back.
    """
    rows = []
    for row in study.rows:
        cells = {}
        for column in study.columns:
            values = values_of(row, column.key)
            summary = summarise(values)
            cell = {
                "values": values,
                "mean": summary and summary.mean,
                "standard_error": summary and summary.error,
                "n": len(values),
            }
            if column.key in row.published:
                value, source = row.published[column.key]
                cell["published"] = {"value": value, "unit": column.unit, "source": source}
            cells[column.key] = cell
        fields = {
            k: v for k, v in dataclasses.asdict(row).items() if k not in ("published", "data")
        }
        rows.append(fields | {"cells": cells})
    shown = layout(study)
    above = {"data": shown.data, "warnings": shown.warnings}
    content = dataclasses.asdict(study) | above | {"rows": rows}
    if not study.exact:
        del content["exact"]
    return json.dumps(jsonable(content), indent=1, allow_nan=False) + "\n"


def read_study(path: str | storage.Path) -> Study:
    """Reads a study from `to_json`'s output, without the data that rows were evaluated on."""
    content = read_json(path)
    rows = [
        Row(
            published={
                key: (cell["published"]["value"], cell["published"]["source"])
                for key, cell in row["cells"].items()
                if "published" in cell
            },
            **{name: value for name, value in row.items() if name != "cells"},
        )
        for row in content["rows"]
    ]
    names = ("title", "columns", "command", "config", "seeds", "hardware")
    fields = {name: content[name] for name in names}
    return Study(rows=rows, exact=content.get("exact", False), **fields)


def says_the_same(study: Study, folder: str | storage.Path, name: str) -> bool:
    """Whether the files of `write_study` exist and have this content, up to command and failures.

    A file that cannot be read counts as different.
    """
    folder = storage.path(folder)
    if not all((folder / (name + suffix)).is_file() for suffix in FORMS):
        return False

    def numbers(content: dict[str, Any]) -> dict[str, Any]:
        rows = [{**row, "failed": ""} for row in content["rows"]]
        return {**content, "command": "", "rows": rows}

    try:
        former = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        return numbers(former) == numbers(json.loads(to_json(study)))
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def write_study(study: Study, folder: str | storage.Path, name: str) -> list[storage.Path]:
    """Writes the study in all `FORMS` into the folder, which is created; returns their paths."""
    folder = storage.path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, form in FORMS.items():
        storage.write(folder / (name + suffix), form(study))
    return [folder / (name + suffix) for suffix in FORMS]


# Suffix of a file -> its text; the last is read again by `says_the_same`.
FORMS = {".md": to_markdown, ".tex": to_latex, ".csv": to_csv, ".json": to_json}


def origin(study: Study, shown: Layout) -> list[str]:
    """Sentences on the number of seeds and the machine."""
    sentences = [shown.caption] if shown.caption else []
    where = machine(study.hardware)
    return sentences + ([where + "."] if where else [])


def _superscript(marks: Any) -> str:
    return rf"\textsuperscript{{{','.join(map(str, marks))}}}" if marks else ""
