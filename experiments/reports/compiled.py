"""A page on compiled programs: memory by kind, lower bounds of time, collectives, advice."""

import collections
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.reports.figures import Entry
from experiments.reports.html import figure_part, page
from experiments.reports.style import GREY, PALETTE, panels, styled, text, wrapped
from experiments.runtime import storage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GIB = 2**30
KINDS = ("parameters", "optimiser", "other", "batch", "padding", "temporaries", "outputs", "code")
COLORS = (*PALETTE[:-1], GREY, "#c8c8c8")  # without black, which marks the limit
TIMES = {"compute": "matrix products", "memory": "traffic with HBM", "links": "collectives"}


class Shown(NamedTuple):
    """A program on the page."""

    label: str
    facts: Sequence[tuple[str, str]]  # for its table
    memory: Mapping[str, float] = {}  # kind -> bytes a chip
    limit: float | None = None  # bytes a chip
    times: Mapping[str, float] = {}  # of TIMES -> seconds of a step
    collectives: Sequence[Mapping[str, Any]] = ()
    failed: str = ""
    advice: Sequence[str] = ()


@styled
def memory_figure(programs: Sequence[Shown]) -> "Figure":
    """Bytes a chip of each program, by kind, against the limit of the chip."""
    figure, axes = panels(1, 1, 7.6, 0.9 + 0.32 * len(programs))
    ax = axes[0, 0]
    used = [kind for kind in KINDS if any(p.memory.get(kind) for p in programs)]
    left = [0.0] * len(programs)
    for kind in used:
        sizes = [p.memory.get(kind, 0) / GIB for p in programs]
        color = COLORS[KINDS.index(kind)]
        ax.barh(range(len(programs)), sizes, left=left, label=kind, color=color, height=0.62)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    for i, program in enumerate(programs):
        if program.limit:
            label = "HBM" if i == 0 else None
            ax.plot([program.limit / GIB] * 2, [i - 0.45, i + 0.45], color="black", label=label)
    _rows(ax, programs, "GiB a chip")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return figure


@styled
def times_figure(programs: Sequence[Shown]) -> "Figure":
    """The time of a step at the published peaks, by what limits it; logarithmic."""
    figure, axes = panels(1, 1, 7.6, 0.9 + 0.42 * len(programs))
    ax = axes[0, 0]
    for i, (kind, name) in enumerate(TIMES.items()):
        places = [row + (i - 1) * 0.26 for row in range(len(programs))]
        values = [1e3 * p.times.get(kind, 0) or math.nan for p in programs]
        ax.barh(places, values, height=0.24, label=name, color=PALETTE[i])
    ax.set_xscale("log")
    _rows(ax, programs, "ms a step at the peaks")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


class Bounds(NamedTuple):
    """Lower bounds of a step on a slice."""

    label: str
    chips: int
    times: Mapping[str, float]  # of TIMES -> seconds
    compiled: bool  # otherwise arithmetic


@styled
def sizes_figure(found: Sequence[Bounds]) -> "Figure":
    """The time of a step at the published peaks over the chips of a slice, a panel for each label
    with several sizes; filled markers are compiled programs."""
    count = collections.Counter(each.label for each in found)
    labels = [label for label in count if count[label] > 1]
    figure, axes = wrapped(labels, 3.0, 2.6, sharex=True, sharey=True)
    for ax, label in zip(axes, labels, strict=True):
        mine = sorted((each for each in found if each.label == label), key=lambda e: e.chips)
        for (kind, name), color, marker in zip(TIMES.items(), PALETTE, "osD", strict=False):
            points = [(e.chips, 1e3 * e.times[kind], e.compiled) for e in mine
                      if e.times.get(kind)]  # fmt: skip
            ax.plot([c for c, _, _ in points], [t for _, t, _ in points], color=color, label=name)
            for chips, ms, compiled in points:
                face = color if compiled else "white"
                ax.plot(chips, ms, marker, color=color, markerfacecolor=face)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        chips = sorted({each.chips for each in found})
        ax.set_xticks(chips, [str(c) for c in chips])
        ax.minorticks_off()
        ax.set_xlabel("chips")
    axes[0].set_ylabel("ms a step at the peaks")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def _rows(ax: Any, programs: Sequence[Shown], label: str) -> None:
    ax.set_yticks(range(len(programs)), [text(p.label, 44) for p in programs])
    ax.set_ylim(len(programs) - 0.4, -0.6)
    ax.set_xlabel(label)
    ax.grid(axis="y", visible=False)


def write_page(
    path: storage.Path,
    title: str,
    programs: Sequence[Shown],
    command: str,
    hardware: Mapping[str, Any],
    above: str = "",
) -> None:
    """Writes the page, and its figures as PNG beside it.

    Args:
      path: of the HTML file.
      title: the heading.
      programs: in order.
      command: that made it.
      hardware: of the machine and versions.
      above: HTML above the table of all programs.
    """
    folder = path.parent / f"{path.stem}_figures"
    sections = [("Programs", above + facts_table(programs))]
    with_memory = [p for p in programs if p.memory]
    if with_memory:
        sections.append(("Memory", figure_part(Entry(
            "Memory", "memory", memory_figure(with_memory),
            "Memory of a chip by kind: arguments of the program, with the padding of their layout; "
            "temporaries (activations and gradients among them), results that take no argument's "
            "place, and code. The black mark is the chip's HBM.",
        ), folder)))  # fmt: skip
    with_times = [p for p in programs if p.times]
    if with_times:
        sections.append(("Time", figure_part(Entry(
            "Time", "time", times_figure(with_times),
            "A step at the published peaks: matrix products and convolutions at the rate of "
            "bfloat16, traffic with HBM at its bandwidth, and bytes of collectives over all links "
            "of a chip. A step hardly takes less than the longest of the three.",
        ), folder)))  # fmt: skip
    moved = collectives_table(programs)
    if moved:
        sections.append(("Collectives", moved))
    advised = "".join(
        f"<h3>{escape(p.label)}</h3><ul>{''.join(f'<li>{escape(a)}</li>' for a in p.advice)}</ul>"
        for p in programs
        if p.advice
    )
    if advised:
        sections.append(("Advice", advised))
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write(path, page(title, hardware, command, sections, "Compiled for"))


def facts_table(programs: Sequence[Shown]) -> str:
    """One line for each program; all have the same facts, but those that failed have none."""
    names = list(dict.fromkeys(name for p in programs for name, _ in p.facts))
    head = "".join(f"<th>{escape(name)}</th>" for name in ["", *names])
    body = []
    for program in programs:
        facts = dict(program.facts)
        cells = "".join(f"<td>{escape(facts.get(name, ''))}</td>" for name in names)
        if program.failed:
            style = "text-align:left;white-space:normal;overflow-wrap:anywhere"
            span = f'class="failed" colspan="{max(len(names), 1)}" style="{style}"'
            cells = f"<td {span}>{escape(program.failed)}</td>"
        body.append(f"<tr><th>{escape(program.label)}</th>{cells}</tr>")
    dense = ' class="dense"' * (len(names) > 7)
    return (f'<div class="wide"><table{dense}><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table></div>")  # fmt: skip


def collectives_table(programs: Sequence[Shown]) -> str:
    """A line for each kind of collective of each program; empty if there are none."""
    rows = [
        f"<tr><th>{escape(p.label)}</th><td>{escape(each['kind'])}</td>"
        f"<td>{escape(' x '.join(each['axes']))}</td><td>{each['count']:,}</td>"
        f"<td>{each['runs']:,}</td><td>{each['bytes'] / 2**20:,.2f}</td>"
        f"<td>{each['sent'] / 2**20:,.2f}</td></tr>"
        for p in programs
        for each in p.collectives
    ]
    if not rows:
        return ""
    names = ("", "kind", "mesh axes", "operations", "runs", "MiB of results", "MiB sent a chip")
    head = "".join(f"<th>{name}</th>" for name in names)
    return (f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}'
            "</tbody></table></div>")  # fmt: skip
