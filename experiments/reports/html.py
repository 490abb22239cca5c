"""One self-contained HTML page about runs: tables, figures, captions and configs."""

import datetime
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from experiments.reports.figures import MARK, Entry, figures
from experiments.reports.glossary import definition, definitions
from experiments.reports.layout import layout, transpose
from experiments.reports.runs import Run, by_label, by_task, read_run, study_of
from experiments.reports.study import Study, machine, one_line, round_pair, summarise
from experiments.reports.style import save_png, svg_uri
from experiments.runtime import storage
from experiments.runtime.writers import hardware as this_machine

CSS = """
:root { color-scheme: light dark; --ink: #1d2125; --faint: #667079; --line: #d8dde2;
  --page: #ffffff; --soft: #f5f7f9; --accent: #0a63a8; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --faint: #98a2ab; --line: #3a4148; --page: #171717; --soft: #222426;
    --accent: #6cb6ee; }
  figure img { filter: invert(0.91) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1140px; padding: 2rem 1.25rem 4rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .9rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
h2 small { color: var(--faint); font-size: .8rem; font-weight: 400; margin-left: .4rem; }
a { color: var(--accent); text-decoration: none; }
.meta, .notes, figcaption, .caption { color: var(--faint); font-size: .875rem; }
.meta p, .notes li { margin: .15rem 0; }
nav { margin-top: 1rem; font-size: .9rem; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; }
code, pre { font: .82rem/1.45 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { overflow-wrap: anywhere; }
pre { background: var(--soft); padding: .8rem 1rem; overflow-x: auto; border-radius: 6px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums;
  border-top: 2px solid var(--ink); border-bottom: 2px solid var(--ink); }
th, td { padding: .3rem .75rem; text-align: right; white-space: nowrap; vertical-align: top; }
thead th { vertical-align: bottom; white-space: normal; border-bottom: 1px solid var(--ink);
  font-weight: 600; }
tbody th { text-align: left; font-weight: 500; white-space: normal; min-width: 9rem; }
.dense { font-size: .78rem; }
.dense th, .dense td { padding: .25rem .35rem; }
tbody tr:nth-child(even) { background: var(--soft); }
.published { display: block; color: var(--faint); font-size: .9em; font-weight: 400; }
sup { line-height: 0; }
.failed { color: #c0392b; }
figure { margin: 1.25rem 0 2rem; text-align: center; break-inside: avoid; }
figure img { max-width: 100%; height: auto; }
figure img.panels { min-width: 40rem; }
figcaption { text-align: left; max-width: 46rem; margin: .5rem auto 0; }
details { margin: .5rem 0; }
summary { cursor: pointer; }
dl { margin: .5rem 0; font-size: .875rem; }
dd { margin: 0 0 .35rem 1rem; color: var(--faint); }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  h2 { break-after: avoid; }
  tr { break-inside: avoid; }
  .wide { overflow: visible; }
  figure img.panels { min-width: 0; }
  .dense { font-size: 6pt; }
  .dense th, .dense td { padding: .2rem; }
  .dense tbody th { min-width: 6rem; }
}
"""


def write_report(
    path: str | storage.Path,
    runs: Sequence[Run | Mapping[str, Any] | str | os.PathLike],
    title: str = "Report",
    study: Study | None = None,
    command: str = "",
    problems: list[str] | None = None,
    sections: Sequence[tuple[str, str]] = (),
) -> storage.Path:
    """Writes the page and, in `<its name>_figures/` beside it, every figure as a PNG.

    The page is self-contained: style and figures (SVG) are embedded.

    Args:
      path: of the HTML file; its folder is created.
      runs: runs, or arguments of `load_run`: workdirs, or dicts with 'workdir' and optionally
        'label' and 'name'. Runs that share a label are seeds of one method.
      title: the heading.
      study: the table; by default a row per label with the usual metrics, and a table for each
        task.
      command: that made the report; by default the study's.
      problems: lines on what is not shown, printed at the top; damaged files, and figures that need
        them, add further lines. Without it a damaged file raises ValueError.
      sections: headings and their HTML, after the table.

    Raises:
      ValueError: no runs; a workdir without a required file; runs that share a label but differ in
        more than the seed; `path` is a folder.
    """
    path = storage.path(path)
    if path.parent == path or path.is_dir():
        raise ValueError(f"{path} is a folder; give a file, such as {path / 'report.html'}")
    loaded = [run for run in (read_run(run, problems) for run in runs) if run]
    if not loaded and study is None:
        raise ValueError("a report needs at least one run, or a study")
    groups = by_label(loaded)
    studies = [study] if study else [study_of(of, "Summary") for of in by_task(loaded).values()]
    command = command or studies[0].command
    storage.require_writable(path.parent)
    folder = path.parent / f"{path.stem}_figures"

    entries = figures(groups, *studies, problems=problems)
    shown = []
    for section, group in itertools.groupby(entries, lambda entry: entry.section):
        parts = [figure_part(entry, folder) for entry in group]
        shown.append((section, "\n".join(parts)))
    if groups:
        shown.append(("Runs" if any(map(_configured, loaded)) else "All metrics", _runs(groups)))
    lines = "".join(f'<p class="failed">{escape(one_line(line))}</p>' for line in problems or ())
    summary = lines + "\n".join(map(study_table, studies))
    summary += definitions(column for one in studies for column in one.columns)
    parts = [("Summary", summary), *sections, *shown]
    storage.write(path, page(title, studies[0].hardware, command, parts))
    return path


def study_table(study: Study, by_row: bool = False) -> str:
    """The study as an HTML table with its notes, published values below ours.

    With many more columns than rows it is transposed, one line per metric, unless it has to have
    a line for each row.
    """
    shown = layout(study)
    if not by_row and len(shown.heads) > max(7, len(shown.lines)):
        shown = transpose(shown)
    head = ["<th></th>"]
    for column, compared in zip(shown.heads, shown.compared, strict=True):
        name = "&nbsp;".join(
            escape(column.text).rsplit(" ", 1)
        )  # keeps the arrow on the last word's line
        below = '<span class="published">published</span>' * compared
        head.append(f"<th>{name}{_marks(column.marks)}{below}</th>")
    body = []
    for line, cells in shown.lines:
        row = [f"<th>{escape(line.text)}{_marks(line.marks)}</th>"]
        for cell in cells:
            ours = f"<strong>{cell.ours()}</strong>" if cell.best else cell.ours()
            if cell.published:
                number = cell.published + _marks([cell.source])
                ours += f'<span class="published">{number}</span>'
            row.append(f"<td{' class=failed' * cell.failed}>{ours}</td>")
        body.append(f"<tr>{''.join(row)}</tr>")
    notes = "".join(f"<li>{escape(note)}</li>" for note in shown.notes)
    dense = ' class="dense"' * (len(head) > 8)
    above = "".join(f'<p class="caption">{escape(text)}</p>' for text in shown.data)
    above += "".join(f'<p class="failed">Warning: {escape(text)}</p>' for text in shown.warnings)
    return (
        f'{above}<div class="wide"><table{dense}><thead><tr>{"".join(head)}</tr></thead>\n<tbody>'
        + "\n".join(body)
        + f'</tbody></table></div>\n<p class="caption">{escape(shown.caption)} '
        + "Bold: best mean of each metric.</p>"
        + (f'<ol class="notes">{notes}</ol>' if notes else "")
    )


def figure_part(entry: Entry, folder: storage.Path) -> str:
    """Writes the PNG of a figure and returns its part of the page."""
    save_png(entry.figure, folder / f"{entry.name}.png")
    entry.figure.set_layout_engine("none")  # it is laid out already
    many = ' class="panels"' * bool(entry.figure.get_figwidth() > 6.5)
    return (
        f'<figure id="{entry.name}"><div class="wide"><img{many} src="{svg_uri(entry.figure)}" '
        f'alt="{escape(entry.name.replace("_", " "))}"></div>\n'
        f"<figcaption>{escape(entry.caption)}</figcaption></figure>"
    )


def _marks(marks: Sequence[int]) -> str:
    return f"<sup>{','.join(map(str, marks))}</sup>" if marks else ""


def _runs(groups: Mapping[str, Sequence[Run]]) -> str:
    """All metrics, then each method's config, folded."""
    keys = sorted({key for runs in groups.values() for run in runs for key in run.metrics})
    rows = []
    for key in keys:
        cells = [
            summarise([r.metrics[key] for r in g if key in r.metrics]) for g in groups.values()
        ]
        texts = [
            " ± ".join(filter(None, round_pair(c.mean, c.error, 5))) if c else "" for c in cells
        ]
        rows.append(
            f'<tr><th title="{escape(definition(key))}">{escape(one_line(key))}</th>'
            f"{''.join(f'<td>{t}</td>' for t in texts)}</tr>"
        )
    head = "".join(f"<th>{escape(one_line(label))}</th>" for label in groups)
    parts = [
        "<details><summary>All metrics, as stored: mean ± standard error</summary>"
        f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    ]
    for label, runs in groups.items():
        if not _configured(runs[0]):
            continue
        seeds = [str(run.config["seed"]) for run in runs if "seed" in run.config]
        text = json.dumps(runs[0].config, indent=2, default=str)
        where = [str(run.workdir) for run in runs if run.workdir]
        missing = sorted({f"{run.workdir}: no {file}" for run in runs for file in run.missing})
        name = f"{one_line(label)}: config"
        if seeds:
            name += f" (seed{'s' * (len(seeds) > 1)} {', '.join(seeds)})"
        lines = "<br>".join(escape(one_line(line)) for line in where + missing)
        parts.append(
            f'<details><summary>{escape(name)}</summary><p class="meta">{lines}</p>'
            f"<pre>{escape(text)}</pre></details>"
        )
    return "\n".join(parts)


def _configured(run: Run) -> bool:
    """False for predictions in a file, of which no config is known."""
    return bool(run.config.keys() - {"seed"})


def page(
    title: str,
    hardware: Mapping[str, Any],
    command: str,
    sections: Sequence[tuple[str, str]],
    ran: str = "",
) -> str:
    """The text of a page.

    Args:
      title: the heading.
      hardware: of the results, from `writers.hardware`; empty for this machine's.
      command: that made the page.
      sections: headings and their HTML; what follows `MARK` in a heading is small.
      ran: what happened there; 'Run on' by default.
    """
    there = dict(hardware) or this_machine()
    names = ("python", "jax", "flax", "optax", "numpy")
    versions = ", ".join(f"{name} {there[name]}" for name in names if name in there)
    ran = ran or ("Run on" if hardware else "Report made on")
    where = f"{ran} {machine(there | {'date': ''})}"
    meta = [f"{datetime.datetime.now():%-d %B %Y}", where, versions]
    lines = "".join(f"<p>{escape(one_line(m))}</p>" for m in meta if m)
    if command:
        lines += f"<p><code>{escape(one_line(command))}</code></p>"
    parts = [(*name.partition(MARK)[::2], content) for name, content in sections]
    ids = {name: name.lower().replace(" ", "-") for name, _, _ in parts}
    links = "".join(f'<a href="#{ids[name]}">{escape(name)}</a>' for name, _, _ in parts)
    body = "\n".join(
        f'<section id="{ids[name]}"><h2>{escape(name)}'
        + f" <small>{escape(one_line(data))}</small>" * bool(data)
        + f"</h2>\n{content}</section>"
        for name, data, content in parts
    )
    title = escape(one_line(title))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{CSS}</style></head>\n<body>\n"
        f'<header><h1>{title}</h1><div class="meta">{lines}</div>'
        f"<nav>{links}</nav></header>\n<main>{body}</main>\n</body></html>\n"
    )
