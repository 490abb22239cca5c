"""Draws metrics of a table against a cost, one panel for each metric.

    python -m tools.cost_figure cifar10_epinets --cost cost/total_predict_flops_per_example \\
        --metrics joint/halves/dyadic_nll halves/nll

Writes `results/<table>/cost.png` from `results/<table>/table.json`: means over seeds with their
standard errors. Rows of one label in several groups, such as a method on several networks, are one
line.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

from experiments.reports import style
from experiments.reports.formats import read_study
from experiments.reports.study import Study, Summary, summarise, values_of
from experiments.runtime import project


class Point(NamedTuple):
    cost: float
    metric: Summary


def points(study: Study, cost: str, metric: str) -> dict[str, list[Point]]:
    """Label -> points by cost, in the columns' units; rows without either value are left out.

    Raises:
      ValueError: the table has no such column, or no row has both.
    """
    columns = {column.key: column for column in study.columns}
    if unknown := [key for key in (cost, metric) if key not in columns]:
        raise ValueError(f"{unknown[0]!r} is no column; there are {list(columns)}")
    of: dict[str, list[Point]] = {}
    for row in study.rows:
        each = []
        for key in (cost, metric):
            scale = columns[key].scale
            each.append(summarise([scale * value for value in values_of(row, key)]))
        if each[0] and each[1]:
            label = row.label.removeprefix(f"{row.group}: ")
            of.setdefault(label, []).append(Point(each[0].mean, each[1]))
    if not of:
        raise ValueError(f"no row has {cost!r} and {metric!r}")
    return {label: sorted(of_label) for label, of_label in of.items()}


@style.styled
def figure(study: Study, cost: str, metrics: Sequence[str]):
    """A panel for each metric; labels have their colours and markers in all."""
    from matplotlib import ticker

    columns = {column.key: column for column in study.columns}
    every = {metric: points(study, cost, metric) for metric in metrics}
    looks = style.looks(label for of in every.values() for label in of)
    for i, look in enumerate(looks.values()):  # no two of one colour have one marker
        look["marker"] = style.MARKERS[(i + i // len(style.PALETTE)) % len(style.MARKERS)]
    costs = [point.cost for of in every.values() for line in of.values() for point in line]
    fig, axes = style.panels(1, len(metrics), 3.1, 3.2)
    for ax, (metric, of) in zip(axes[0], every.items(), strict=True):
        for label, line in of.items():
            ax.errorbar(
                [point.cost for point in line],
                [point.metric.mean for point in line],
                [point.metric.error or 0.0 for point in line],
                label=style.text(label),
                elinewidth=0.9,
                **looks[label],
            )
        ax.set(xlabel=style.text(columns[cost].title), title=style.text(columns[metric].title))
        if max(costs) > 3 * min(costs):
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter(ticker.ScalarFormatter())
            ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5))
    return fig


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.cost_figure", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("table", help="a folder of results/")
    parser.add_argument("--cost", required=True, help="the column of the horizontal axis")
    parser.add_argument("--metrics", nargs="+", required=True, help="a column for each panel")
    args = parser.parse_args(argv)
    folder = project.ROOT / "results" / args.table
    try:
        made = figure(read_study(folder / "table.json"), args.cost, args.metrics)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(style.save_png(made, folder / "cost.png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
