"""Figures of calibration, out-of-distribution detection and selective prediction.

Each takes label -> arrays with one entry per example and returns a matplotlib Figure.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from experiments.reports.style import GREY, Look, looks, panels, styled, wrapped
from uncertainty.metrics.calibration import reliability_bins
from uncertainty.metrics.ranking import auroc
from uncertainty.metrics.selective import aurc, risk_coverage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pair = tuple[np.ndarray, np.ndarray]


@styled
def reliability_diagram(
    methods: Mapping[str, Pair], bins: int = 15, style: Mapping[str, Look] | None = None
) -> "Figure":
    """Accuracy against confidence in bins of equal width, with the examples per bin below.

    Bars are binomial standard errors, sqrt(a (1 - a) / n); empty bins are left out.

    Args:
      methods: label -> (confidence [B], correct [B] of 0 and 1).
      bins: number of bins in [0, 1].
      style: label -> look; by place if None.
    """
    style = style or looks(methods)
    figure, axes = panels(2, 1, 4.6, 2.4, sharex=True, height_ratios=(3, 1))
    curve, counts = axes[:, 0]
    curve.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, label="calibrated")
    for label, (confidence, correct) in methods.items():
        count, mean, accuracy, edges = reliability_bins(confidence, correct, bins)
        used = count > 0
        n, x, y = count[used], mean[used], accuracy[used]
        ece = float((n * abs(x - y)).sum() / n.sum())
        curve.errorbar(
            x, y, np.sqrt(y * (1 - y) / n), label=f"{label}, ECE {100 * ece:.2f} %", **style[label]
        )
        counts.stairs(count, edges, color=style[label]["color"], linewidth=1.4)
    curve.set(ylabel="accuracy", xlim=(0, 1.01), ylim=(-0.02, 1.02))
    curve.legend()
    counts.set(xlabel="confidence", ylabel="examples", yscale="log", ylim=(0.7, None))
    return figure


@styled
def confidence_histogram(
    methods: Mapping[str, Pair], bins: int = 30, style: Mapping[str, Look] | None = None
) -> "Figure":
    """Number of right and wrong predictions by confidence, a panel per method, log scale."""
    style = style or looks(methods)
    figure, axes = wrapped(methods, 2.6, 2.2, sharey=True)
    edges = np.linspace(0, 1, bins + 1)
    for ax, (label, (confidence, correct)) in zip(axes, methods.items(), strict=True):
        right = np.asarray(correct, bool)
        color = style[label]["color"]
        ax.hist(confidence[right], edges, color=color, alpha=0.45, label="right")
        ax.hist(confidence[~right], edges, histtype="step", color="black", label="wrong")
        ax.set(yscale="log", xlabel="confidence", ylim=(0.7, None))
        ax.legend(loc="upper left")
    axes[0].set_ylabel("examples")
    return figure


@styled
def ood_histograms(
    methods: Mapping[str, tuple[np.ndarray, Mapping[str, np.ndarray]]],
    score: str = "entropy (nats)",
    style: Mapping[str, Look] | None = None,
    bins: int = 40,
) -> "Figure":
    """Density of a score on the test set and on every OOD set; rows are methods, columns sets.

    The vertical axis is in square roots, so that a peak at zero leaves the rest visible.

    Args:
      methods: label -> (scores of the test set [B], OOD set -> scores [B']); higher means more
        likely out of distribution.
      score: what is on the horizontal axis.
      style: label -> look; by place if None.
      bins: number of bins, the same in every panel.
    """
    from matplotlib.ticker import MaxNLocator

    style = style or looks(methods)
    sets = list(dict.fromkeys(name for _, out in methods.values() for name in out))
    everything = np.concatenate([v for i, out in methods.values() for v in (i, *out.values())])
    low, high = everything.min(), everything.max()
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    figure, axes = panels(len(methods), len(sets), 2.9, 2.1, sharex=True, sharey="row")
    for row, (label, (inside, outside)) in zip(axes, methods.items(), strict=True):
        for ax, name in zip(row, sets, strict=True):
            if name not in outside:
                ax.remove()
                continue
            ax.hist(inside, edges, density=True, color=GREY, alpha=0.4, label="test set")
            color = style[label]["color"]
            ax.hist(outside[name], edges, density=True, color=color, alpha=0.5, label=name)
            area = auroc(inside, outside[name])
            ax.set_title(f"{label}\n{name}: AUROC {100 * area:.1f} %")
            ax.legend()
            ax.set_yscale("function", functions=(np.sqrt, np.square))
            ax.yaxis.set_major_locator(MaxNLocator(5))
        row[0].set_ylabel("density")
    for ax in axes[-1]:
        ax.set_xlabel(score)
    return figure


@styled
def risk_coverage_curves(
    methods: Mapping[str, Pair], style: Mapping[str, Look] | None = None
) -> "Figure":
    """Error rate among the most confident examples against how many of them are kept.

    Args:
      methods: label -> (confidence [B], correct [B] of 0 and 1). Of more than 2,000 examples as
        many points are drawn.
      style: label -> look; by place if None.
    """
    style = style or looks(methods)
    figure, axes = panels(1, 1, 4.6, 3.0)
    ax = axes[0, 0]
    for label, (confidence, correct) in methods.items():
        coverage, risk = risk_coverage(confidence, correct)
        area = aurc(confidence, correct)
        drawn = np.unique(np.linspace(0, len(risk) - 1, min(len(risk), 2000)).astype(int))
        look = {k: v for k, v in style[label].items() if k != "marker"}
        name = f"{label}, AURC {100 * area:.2f} %"
        ax.plot(100 * coverage[drawn], 100 * risk[drawn], label=name, **look)
    ax.set(xlabel="coverage (%)", ylabel="error among kept (%)", xlim=(0, 100), ylim=(0, None))
    ax.legend()
    return figure
