"""One page of all results, from `benchmarks/results` alone; nothing is run.

    python -m benchmarks.page [--html runs/benchmarks/index.html]
    python -m benchmarks.page --check   # status 1 if benchmarks/README.md is not up to date

The tables are also written between the marks of benchmarks/README.md.
"""

import argparse
import pathlib
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from benchmarks import growth, rows
from benchmarks.rows import Found, Row
from experiments.reports.figures import Entry
from experiments.reports.html import figure_part, page
from experiments.reports.style import GREY, looks, panels, styled, text
from experiments.runtime import storage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

README = pathlib.Path(__file__).parent / "README.md"
BLOCK = re.compile(r"(<!-- results -->\n).*?(<!-- end -->)", re.DOTALL)
DIRECTION = (
    "A ratio is the time of the reference over ours: above 1 ours is faster. A floor is this ratio "
    "for the operations that cannot be avoided, where the benchmark counts them. A goal is met "
    "where both the fastest block and the median reach it."
)
HEAD = ("ours", "against", "fastest", "median", "CPU", "floor", "goal", "measured on")


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def cells(row: Row) -> list[str]:
    goal = f"{number(row.goal)} {row.verdict()}".strip()
    ratios = map(number, row.ratios)
    where = ", ".join(filter(None, (row.date, row.machine)))
    return [row.ours, row.reference, *ratios, number(row.floor), goal, where]


def by_section(found: Found) -> dict[str, list[Row]]:
    sections: dict[str, list[Row]] = {}
    for row in found.rows:
        sections.setdefault(row.section, []).append(row)
    for failed in found.failed:
        sections.setdefault(failed.section, [])
    return sections


def summary(found: Found) -> str:
    """How many goals are met."""
    goals = [row.verdict() for row in found.rows if row.goal is not None]
    other = len(goals) - goals.count("met") - goals.count("missed")
    return (
        f"{len(found.rows)} comparisons, {len(goals)} with a goal: {goals.count('met')} met, "
        f"{other} by the fastest block or the median alone, {goals.count('missed')} missed."
    )


def markdown(found: Found) -> str:
    """The tables, for the README."""

    def line(parts: Sequence[str]) -> str:
        return "| " + " | ".join(part.replace("|", "\\|") for part in parts) + " |"

    lines = [DIRECTION, "", summary(found)]
    for section, own in by_section(found).items():
        lines += ["", f"**{section}**", ""]
        if own:
            lines += [line(["", *HEAD]), "| --- | --- | --- |" + " ---: |" * 4 + " --- | --- |"]
        for i, row in enumerate(own):
            same = i and row.job == own[i - 1].job and row.machine == own[i - 1].machine
            lines.append(line(["" if same else row.job, *cells(row)]))
        lines += [f"\nNot measured: {f.job}: {f.reason}" for f in found.failed
                  if f.section == section]  # fmt: skip
    if found.values:
        lines += ["", "**Without a reference**", "", line(["", "measured", "goal", "measured on"])]
        lines += ["| --- | ---: | ---: | --- |"]
        lines += [line([v.job, v.value, v.goal, f"{v.date}, {v.machine}"]) for v in found.values]
    return "\n".join(lines)


def html_table(own: Sequence[Row]) -> str:
    head = "".join(f"<th{_words(i)}>{escape(name)}</th>" for i, name in enumerate(("", *HEAD)))
    body = []
    for i, row in enumerate(own):
        same = i and row.job == own[i - 1].job and row.machine == own[i - 1].machine
        line = f"<th>{'' if same else escape(row.job)}</th>"
        for place, (name, cell) in enumerate(zip(HEAD, cells(row), strict=True), 1):
            failed = name == "goal" and row.verdict() == "missed"
            text = f"<strong>{escape(cell)}</strong>" if name == "fastest" else escape(cell)
            kind = ' class="failed"' if failed else _words(place)
            line += f'<td{kind} data-name="{name}">{text}</td>'
        body.append(f"<tr>{line}</tr>")
    return html(head, body)


def _words(place: int) -> str:
    return ' class="words"' if place in (1, 2) else ""


def html(head: str, body: Sequence[str]) -> str:
    return (
        f'<div class="wide"><table class="dense"><thead><tr>{head}</tr></thead><tbody>'
        f"{''.join(body)}</tbody></table></div>"
    )


# On a narrow screen a row is a small block of named numbers
STYLE = """<style>
.words { text-align: left !important; white-space: normal; min-width: 6.5rem; }
.dense tbody th { min-width: 13rem; }
.grid { display: grid; gap: 0 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(310px, 100%), 1fr)); }
.grid figure { margin: .75rem 0; }
@media screen and (max-width: 600px) {
  .dense { width: 100%; }
  .dense thead { display: none; }
  .dense tr { display: flex; flex-wrap: wrap; gap: 0 .9rem; padding: .35rem .3rem; }
  .dense th:empty, .dense td:empty { display: none; }
  .dense tbody th { flex-basis: 100%; padding: 0; }
  .dense td { padding: 0; white-space: normal; }
  .dense td::before { content: attr(data-name) " "; color: var(--faint); }
  .dense .words { min-width: 0; }
}
</style>"""


@styled
def growth_figure(points: Sequence[dict[str, Any]], label: str) -> "Figure":
    """Time above memory over the values of an axis, logarithmic, beside proportional growth."""
    from matplotlib import ticker

    sides = list(dict.fromkeys(name for point in points for name in point["sides"]))
    figure, axes = panels(2, 1, 3.5, 2.15, sharex=True)
    for ax, key, title in zip(
        axes[:, 0], ("wall_ms", "megabytes"), ("time, ms", "memory, MB"), strict=True
    ):
        for name, look in looks(sides).items():
            own = [(p["value"], p["sides"][name][key]) for p in points if name in p["sides"]]
            ax.plot(*zip(*own, strict=True), label=text(name), **look)
        x = [point["value"] for point in points]
        first = min(side[key] for side in points[0]["sides"].values())
        proportional = [first * value / x[0] for value in x]
        ax.plot(x, proportional, ":", color=GREY, linewidth=1, label="proportional", zorder=1)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_ylabel(title)
        low, high = ax.get_ylim()
        steps = (1, 2, 5) if high / low < 200 else (1,)
        ax.yaxis.set_major_locator(ticker.LogLocator(subs=steps))
        ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:,g}"))
        ax.yaxis.set_minor_formatter(ticker.NullFormatter())
    ticks = x if len(x) < 7 else x[::2]
    ax.set_xticks(ticks, [f"{value:,}" for value in ticks])
    ax.set_xlabel(label)
    ax.minorticks_off()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def growth_part(record: dict[str, Any], folder: storage.Path) -> str:
    figures, failed = [], []
    for axis, (label, _) in growth.AXES.items():
        points = [p for p in record["points"] if p["axis"] == axis and "sides" in p]
        failed += [p for p in record["points"] if p["axis"] == axis and "error" in p]
        if points:
            figure = growth_figure(points, label)
            entry = Entry("Growth", f"growth_{axis}", figure, growth.CAPTIONS[axis])
            figures.append(figure_part(entry, folder))
    lines = "".join(
        f'<p class="failed">{escape(p["axis"])} = {p["value"]}: {escape(p["error"])}</p>'
        for p in failed
    )
    where = ", ".join(rows.where(record))
    above = f'<p class="caption">{escape(where)}; logarithmic axes.</p>'
    return f'{above}<div class="grid">{"".join(figures)}</div>{lines}'


def write_html(path: storage.Path, found: Found) -> None:
    """Writes the page, and its figures as PNG beside it."""
    folder = path.parent / f"{path.stem}_figures"
    sections = []
    for section, own in by_section(found).items():
        failed = [f for f in found.failed if f.section == section]
        notes = "".join(f"<li>{escape(f'Not measured: {f.job}: {f.reason}')}</li>" for f in failed)
        sections.append(
            (section, html_table(own) * bool(own) + f'<ul class="notes">{notes}</ul>' * bool(notes))
        )
    if found.values:
        names = ("measured", "goal", "measured on")
        lines = []
        for v in found.values:
            three = zip(names, (v.value, v.goal, f"{v.date}, {v.machine}"), strict=True)
            line = "".join(f'<td data-name="{n}">{escape(text)}</td>' for n, text in three)
            lines.append(f"<tr><th>{escape(v.job)}</th>{line}</tr>")
        head = "".join(f"<th>{name}</th>" for name in ("", *names))
        sections.append(("Without a reference", html(head, lines)))
    if found.growth:
        sections.append(("Growth", growth_part(found.growth, folder)))
    about = f"{STYLE}<p>{escape(DIRECTION)}</p><p>{escape(summary(found))}</p>"
    sections = [("Summary", about), *sections]
    path.parent.mkdir(parents=True, exist_ok=True)
    command = "python -m benchmarks.page"
    storage.write(path, page("Benchmarks", found.newest, command, sections, "Newest result from"))


def rendered(readme: str, found: Found) -> str:
    """The README with up-to-date tables."""
    return BLOCK.sub(lambda m: f"{m[1]}\n{markdown(found)}\n\n{m[2]}", readme)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=pathlib.Path, default=rows.RESULTS, help="folder")
    parser.add_argument("--html", default="runs/benchmarks/index.html")
    parser.add_argument("--check", action="store_true", help="only report a stale README")
    arguments = parser.parse_args(argv)
    found = rows.read(arguments.results)
    readme = README.read_text(encoding="utf-8")
    stale = rendered(readme, found) != readme and arguments.results == rows.RESULTS
    if arguments.check:
        print(f"{README}: is not up to date; run `make docs`" if stale else "up to date")
        return int(stale)
    if stale:
        README.write_text(rendered(readme, found), encoding="utf-8")
        print(f"{README}: written")
    path = storage.path(arguments.html)
    write_html(path, found)
    print(f"{path}: written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
