"""The figure of paired differences with their intervals."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.reports.study import Column
from experiments.reports.style import GREY, lines, looks, styled, text, wrapped
from experiments.scoring.compare import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def differences(
    pairs: Sequence[tuple[str, str]],
    columns: Sequence[Column],
    intervals: Mapping[tuple[str, str], Interval],
) -> "Figure":
    """A panel for each column, a line for each pair; right of 0 is a larger value.

    Args:
      pairs: label, and the baseline's.
      columns: that have a better direction and a finite interval of some pair.
      intervals: of differences, by label and key.
    """
    style = looks(label for label, _ in pairs)
    labels = [text(f"{label} − {baseline}", 36) for label, baseline in pairs]
    places, height = lines(labels)
    titles = [column.title for column in columns]
    figure, axes = wrapped(titles, 2.4, 0.9 + 0.23 * height, sharey=True)
    for ax, column in zip(axes, columns, strict=True):
        ax.axvline(0, color=GREY, linewidth=1)
        for place, (label, _) in zip(places, pairs, strict=True):
            interval = intervals.get((label, column.key))
            if interval is None or not np.isfinite([interval.low, interval.high]).all():
                continue
            value, low, high = (
                column.scale * end for end in (interval.estimate, interval.low, interval.high)
            )
            look = {key: value for key, value in style[label].items() if key != "linestyle"}
            ax.plot([low, high], [place, place], color=look["color"], linewidth=1.6)
            ax.plot(value, place, **look)
        ax.set_yticks(places, labels)
        ax.set_ylim(height - 0.5, -0.5)
        ax.margins(x=0.15)
        ax.locator_params(axis="x", nbins=3)
        ax.grid(axis="y", visible=False)
    return figure
