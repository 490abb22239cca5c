"""Quality against cost: a point for every row of a study."""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from experiments.reports.study import Study, summarise, values_of
from experiments.reports.style import MARKERS, PALETTE, panels, styled, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLOPS = {  # key -> label of the axis
    "cost/predict_flops_per_example": "prediction, FLOPs per example",
    "cost/train_flops_per_example": "training, FLOPs per example",
}
QUALITY = "classification/nll"


def costed(study: Study, quality: str = QUALITY) -> dict[str, str]:
    """The keys of FLOPS for which at least two rows have a value and `quality`."""
    rows = [row for row in study.rows if values_of(row, quality)]
    return {k: v for k, v in FLOPS.items() if sum(bool(values_of(r, k)) for r in rows) > 1}


@styled
def quality_against_cost(
    study: Study, costs: Mapping[str, str], quality: str = QUALITY, title: str = "NLL (nats)"
) -> "Figure":
    """Means of `quality` with standard errors against each cost (logarithmic).

    Args:
      study: its rows' `results` have both.
      costs: key -> label of the axis.
      quality: a key.
      title: label of the vertical axis.
    """
    from matplotlib import ticker

    figure, axes = panels(1, len(costs), 4.2, 3.8, sharey=True)
    # Each colour and marker is used once; curves in other figures also differ in line style.
    shapes = [(c, m) for m, c in itertools.product(MARKERS, PALETTE)]
    for ax, (key, name) in zip(axes[0], costs.items(), strict=True):
        for row, (color, marker) in zip(study.rows, itertools.cycle(shapes), strict=False):
            cost, y = (summarise(values_of(row, k)) for k in (key, quality))
            if cost and y:
                ax.errorbar(
                    cost.mean,
                    y.mean,
                    y.error or 0.0,
                    label=text(row.label),
                    color=color,
                    marker=marker,
                    linestyle="none",
                    elinewidth=0.9,
                )
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        ax.xaxis.set_major_formatter(ticker.EngFormatter())
        ax.xaxis.set_minor_formatter(ticker.NullFormatter())
        ax.margins(x=0.1)
        ax.set_xlabel(name)
    axes[0, 0].set_ylabel(title)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    return figure
