"""A study as Markdown, LaTeX and JSON."""

import dataclasses
import json
import math
import pathlib
import re
from typing import Any

import numpy as np

from experiments.reports.study import Layout, Study, Summary, layout, summarise, values_of

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
} | {c: "\\" + c for c in "&%$#_{}"}


def escape_latex(text: str) -> str:
    """Plain text for LaTeX: every special character is printed as itself."""
    return "".join(LATEX.get(c, c) for c in text)


def escape_markdown(text: str) -> str:
    """Plain text for a cell of a Markdown table: no character is markup."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))


def to_markdown(study: Study) -> str:
    """A Markdown table with its notes; a published value stands in a column beside ours."""
    shown = layout(study)
    header, rule = [""], ["---"]
    for title, compared in zip(shown.titles, shown.compared, strict=True):
        header += [escape_markdown(title)] + ["published"] * compared
        rule += ["---:"] * (1 + compared)
    rows = [header, rule]
    for line in shown.lines:
        row = [escape_markdown(line.label) + "".join(f" [{m}]" for m in line.marks)]
        for i, (cell, compared) in enumerate(zip(line.cells, shown.compared, strict=True)):
            ours = f"**{cell.ours()}**" if cell.best else cell.ours()
            row.append("*failed*" if line.failed and i == 0 else ours)
            if compared:
                row.append(f"{cell.published} [{cell.source}]" if cell.published else "")
        rows.append(row)
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    notes = "\n".join(f"- [{n}] {escape_markdown(note)}" for n, note in enumerate(shown.notes, 1))
    origin = _origin(study, shown)
    if study.command:
        origin.append(f"Made by `{study.command}`.")
    parts = [f"### {escape_markdown(study.title)}", table, " ".join(origin), notes]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_latex(study: Study) -> str:
    r"""A `table` for the booktabs package, with its notes below it."""
    shown = layout(study)
    top, under, rules, at = [""], [""], [], 2
    for title, compared in zip(shown.titles, shown.compared, strict=True):
        title = escape_latex(title)
        top.append(rf"\multicolumn{{2}}{{c}}{{{title}}}" if compared else title)
        under += ["ours", "published"] if compared else [""]
        rules += [rf"\cmidrule(lr){{{at}-{at + 1}}}"] * compared
        at += 1 + compared
    head = [top, under] if any(shown.compared) else [top]
    lines = []
    for line in shown.lines:
        row = [escape_latex(line.label) + _superscript(line.marks)]
        for i, (cell, compared) in enumerate(zip(line.cells, shown.compared, strict=True)):
            math_text = cell.ours(r" \pm ")
            math_text = rf"\mathbf{{{math_text}}}" if cell.best else math_text
            ours = f"${math_text}$" if math_text else ""
            row.append(r"\emph{failed}" if line.failed and i == 0 else ours)
            if compared:
                published = f"${cell.published}$" + _superscript([cell.source])
                row.append(published if cell.published else "")
        lines.append(row)
    join = [" & ".join(row) + r" \\" for row in head]
    head_text = "\n".join([join[0]] + [" ".join(rules)] * bool(rules) + join[1:])
    body = "\n".join(" & ".join(row) + r" \\" for row in lines)
    notes = [_superscript([n]) + escape_latex(note) for n, note in enumerate(shown.notes, 1)]
    origin = [escape_latex(sentence) for sentence in _origin(study, shown)]
    small = "\n".join([rf"\par\smallskip\footnotesize {note}" for note in notes])
    return f"""% Needs \\usepackage{{booktabs}}. Made by: {" ".join(study.command.split()) or "-"}
\\begin{{table}}
\\centering
\\caption{{{" ".join([escape_latex(study.title) + ".", *origin])}}}
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


def to_json(study: Study) -> str:
    """All numbers of a study: per seed, mean, standard error, n, published with its source.

    `values`, `mean` and `standard_error` are in the metric's own unit, as in metrics.json;
    `published` is in the column's unit, as it was printed. What is not finite becomes null.
    """
    rows = []
    for row in study.rows:
        cells = {}
        for column in study.columns:
            values = values_of(row, column.key)
            summary = summarise(values) or Summary(math.nan, None, 0)
            cell = {"values": values, "mean": summary.mean, "standard_error": summary.error}
            cell["n"] = summary.n
            if column.key in row.published:
                value, source = row.published[column.key]
                cell["published"] = {"value": value, "unit": column.unit, "source": source}
            cells[column.key] = cell
        fields = {k: v for k, v in dataclasses.asdict(row).items() if k != "published"}
        rows.append(fields | {"cells": cells})
    content = dataclasses.asdict(study) | {"rows": rows}
    return json.dumps(_finite(content), indent=1, allow_nan=False, default=str) + "\n"


def write_study(study: Study, folder: str | pathlib.Path, name: str) -> list[pathlib.Path]:
    """Writes `name`.md, .tex and .json into the folder, which is made; returns their paths."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {".md": to_markdown(study), ".tex": to_latex(study), ".json": to_json(study)}
    for suffix, text in texts.items():
        (folder / (name + suffix)).write_text(text, encoding="utf-8")
    return [folder / (name + suffix) for suffix in texts]


def _origin(study: Study, shown: Layout) -> list[str]:
    sentences = [shown.caption] if shown.caption else []
    where = ", ".join(part for part in (study.hardware, study.date) if part)
    return sentences + ([where + "."] if where else [])


def _superscript(marks: Any) -> str:
    return rf"\textsuperscript{{{','.join(map(str, marks))}}}" if marks else ""


def _finite(tree: Any) -> Any:
    """The tree with numbers that JSON cannot write replaced by None, and NumPy's by Python's."""
    if isinstance(tree, dict):
        return {str(k): _finite(v) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(v) for v in tree]
    if isinstance(tree, np.generic | np.ndarray):
        return _finite(tree.tolist())
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
