"""Draws the AUROC of every OOD score of a table's rows, one panel per set.

    python -m tools.ood_figure cifar10_frozen --rows 'Released last layer' 'Dense' 'GP'

Writes `results/<table>/ood.png` from `results/<table>/table.json`: the mean over seeds of each
column `ood/<set>/auroc_<score>`.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from experiments.reports import style
from experiments.reports.formats import read_study
from experiments.reports.study import Study
from experiments.runtime import keys, project


def values(study: Study, rows: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Set -> row -> score -> mean AUROC, named as in the headers 'AUROC <set>, <score>'.

    Scores of which a row has none are left out.

    Raises:
      ValueError: there is no such row, or the table has no such columns.
    """
    found = {row.label: row for row in study.rows}
    if unknown := [name for name in rows if name not in found]:
        raise ValueError(f"--rows: {unknown[0]!r}; there are {list(found)}")
    of: dict[str, dict[str, dict[str, float]]] = {}
    for column in study.columns:
        name = keys.named(column.key, "ood")
        if name is None or not name[1].startswith("auroc_"):
            continue
        for row in rows:
            results = [r[column.key] for r in found[row].results if column.key in r]
            if results:
                of_set, _, score = column.header.removeprefix("AUROC ").partition(", ")
                of.setdefault(of_set, {}).setdefault(row, {})[score] = float(np.mean(results))
    if not of:
        raise ValueError("the table has no column ood/<set>/auroc_<score>")
    return of


@style.styled
def figure(of: dict[str, dict[str, dict[str, float]]]):
    """A dot for each row and score, in one panel per set; scores in the order of the table."""
    names = [score for rows in of.values() for scores in rows.values() for score in scores]
    order = list(dict.fromkeys(names))
    looks = style.looks(row for rows in of.values() for row in rows)
    fig, axes = style.panels(1, len(of), 2.3, 0.24 * len(order) + 0.9, sharey=True)
    for ax, (name, rows) in zip(axes[0], of.items(), strict=True):
        for row, scores in rows.items():
            places = [order.index(score) for score in scores]
            look = {**looks[row], "linestyle": "none"}
            ax.plot(list(scores.values()), places, label=style.text(row), **look)
        ax.axvline(0.5, color=style.GREY, linewidth=0.8)
        ax.set(title=style.text(name), xlabel="AUROC", xlim=(0.38, 1.01))
    axes[0, 0].set_yticks(range(len(order)), [style.text(score) for score in order])
    axes[0, 0].invert_yaxis()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return fig


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.ood_figure", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("table", help="a folder of results/")
    parser.add_argument("--rows", nargs="+", required=True, help="labels of the rows to draw")
    args = parser.parse_args(argv)
    folder = project.ROOT / "results" / args.table
    try:
        of = values(read_study(folder / "table.json"), args.rows)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(style.save_png(figure(of), folder / "ood.png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
