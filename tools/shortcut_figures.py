r"""Draws the figures of the tables of shortcuts from their `results/<table>/table.json`.

    python -m tools.shortcut_figures shortcuts shortcut_cues shortcut_strength shortcut_agreement \
        shortcut_availability

Writes `results/<table>/figure.png`: means over seeds with 95 % intervals by the t distribution.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.reports import shortcut_figures, style
from experiments.reports.formats import read_study
from experiments.reports.study import Row, Study
from experiments.runtime import project

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SETS = {
    "simplicity/standard/accuracy": "test set",
    "simplicity/simple_randomised/accuracy": "S-randomised",
    "simplicity/complex_randomised/accuracy": "Sᶜ-randomised",
}
LINES = {
    "simplicity/standard/accuracy": "test set, mixture",
    "simplicity/simple_randomised/best_member": "S-randomised, best member",
    "disambiguation/16/accuracy": "S-randomised, chosen by 16 labels",
    "simplicity/simple_randomised/accuracy": "S-randomised, mixture",
}


def interval(row: Row, key: str) -> tuple[float, float]:
    """Mean and half width of the 95 % interval over seeds, in %; NaN without results."""
    import scipy.stats

    values = np.array([100 * r[key] for r in row.results if key in r])
    if len(values) < 2:
        return float(values.mean()) if len(values) else np.nan, np.nan
    error = values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(scipy.stats.t.ppf(0.975, len(values) - 1) * error)


def grouped(study: Study) -> dict[str, dict[str, Row]]:
    """Group -> label -> row, of those with results."""
    groups: dict[str, dict[str, Row]] = {}
    for row in study.rows:
        if row.results:
            label = row.label.removeprefix(f"{row.group}: ")
            groups.setdefault(row.group, {})[label] = row
    return groups


@style.styled
def features(study: Study) -> "Figure":
    """A panel per data set, a row per method: accuracy on each of SETS."""
    groups = grouped(study)
    labels = list(dict.fromkeys(label for rows in groups.values() for label in rows))
    width = max(2.7, 6.0 / len(groups))
    figure, axes = style.panels(1, len(groups), width, 0.9 + 0.3 * len(labels), sharey=True)
    for ax, (group, rows) in zip(axes[0], groups.items(), strict=True):
        for i, (key, name) in enumerate(SETS.items()):
            shown = [(labels.index(label), *interval(row, key)) for label, row in rows.items()]
            places, mean, half = np.array(shown).T
            look = {"color": style.PALETTE[i], "marker": style.MARKERS[i], "linestyle": "none"}
            places = places + 0.2 * (i - 1)
            ax.errorbar(mean, places, xerr=half, label=name, elinewidth=1, **look)
        ax.set(title=style.text(group), xlabel="accuracy (%)", xlim=(-2, 105))
    axes[0, 0].set_yticks(range(len(labels)), [style.text(label) for label in labels])
    axes[0, 0].set_ylim(len(labels) - 0.5, -0.5)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=len(SETS))
    return figure


@style.styled
def curves(study: Study, xlabel: str, log: bool, most: int) -> "Figure":
    """A panel per group: LINES over the number that is the row's label."""
    groups = grouped(study)
    figure, axes = style.wrapped(groups, 3.1, 2.7, most=most, sharey=True)
    for ax, rows in zip(axes, groups.values(), strict=True):
        x = [float(label.replace(",", "")) for label in rows]
        for i, (key, name) in enumerate(LINES.items()):
            _curve(ax, x, [interval(row, key) for row in rows.values()], i, name)
        if log:
            ax.set_xscale("log")
        ax.set(xlabel=xlabel, ylim=(0, 103))
    for ax in axes[::most]:
        ax.set_ylabel("accuracy (%)")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=min(len(groups), len(LINES)))
    return figure


def _curve(
    ax: "Axes", x: Sequence[float], of: Sequence[tuple[float, float]], i: int, name: str
) -> None:
    mean, half = np.array(of).T
    look = {"color": style.PALETTE[i], "marker": style.MARKERS[i], "linestyle": style.LINES[i]}
    ax.plot(x, mean, label=name, **look)
    ax.fill_between(x, mean - half, mean + half, color=style.PALETTE[i], alpha=0.2, linewidth=0)


def cues(study: Study) -> "Figure":
    """Off-diagonal accuracies and the members' shares, a row per method."""
    metrics: Mapping = {row.label: row.results for row in study.rows if row.results}
    return shortcut_figures.cues(shortcut_figures.of_cues(metrics))


@style.styled
def availability(study: Study) -> "Figure":
    """A panel per method: accuracy by the shortcut alone over its amplification."""
    methods: dict[str, dict[str, dict[str, Row]]] = {}
    for group, rows in grouped(study).items():
        predictivity, amplification = re.findall(r"[\d.]+", group)
        for method, row in rows.items():
            lines = methods.setdefault(method, {})
            lines.setdefault(predictivity, {})[amplification] = row
    figure, axes = style.wrapped(methods, 2.5, 2.6, most=4, sharey=True)
    for ax, lines in zip(axes, methods.values(), strict=True):
        for i, (predictivity, of) in enumerate(lines.items()):
            y = [interval(row, "cues/shortcut/accuracy") for row in of.values()]
            _curve(ax, [float(a) for a in of], y, i, f"predictivity {predictivity}")
            ax.set_xscale("log", base=2)
            ax.set_xticks([float(a) for a in of], [*of])
        ax.axhline(50, color=style.GREY, linewidth=1, zorder=0)
        ax.set(xlabel="amplification of the shortcut", ylim=(40, 102))
    axes[0].set_ylabel("accuracy by the shortcut (%)")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3)
    return figure


FIGURES = {
    "shortcuts": features,
    "shortcut_cues": cues,
    "shortcut_strength": lambda study: curves(study, "strength of the repulsion", True, 4),
    "shortcut_availability": availability,
    "shortcut_agreement": lambda study: curves(study, "P(features agree)", False, 4),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.shortcut_figures", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("tables", nargs="+", choices=list(FIGURES), metavar="TABLE")
    for table in parser.parse_args(argv).tables:
        folder = project.ROOT / "results" / table
        try:
            study = read_study(folder / "table.json")
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(style.save_png(FIGURES[table](study), folder / "figure.png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
