"""Figures of calibration, out-of-distribution detection and selective prediction.

Each function takes label -> one entry per seed, arrays with one number per example, and returns a
matplotlib Figure. Curves and histograms pool the examples of all seeds; numbers in legends and
titles are means over seeds, as in the tables.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.reports.style import GREY, Look, legend, looks, panels, styled, text, wrapped
from uncertainty.metrics.calibration import gap, reliability_bins, width_sums
from uncertainty.metrics.ranking import ranking
from uncertainty.metrics.selective import aurc, risk_coverage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pair = tuple[np.ndarray, np.ndarray]  # confidence [B], correct [B] of 0 and 1
Scores = tuple[np.ndarray, Mapping[str, np.ndarray]]  # in distribution [B], OOD set -> [B']


@styled
def reliability_diagram(
    methods: Mapping[str, Sequence[Pair]], bins: int = 15, style: Mapping[str, Look] | None = None
) -> "Figure":
    """Accuracy against confidence in bins of equal width, with the examples per bin below; in %.

    Bars are Wilson's (1927) intervals of 95 %, which are valid in bins of few examples; of several
    seeds, which share their examples, for the number of examples of one. Bins of fewer than `FEW`
    of these are faint, empty bins are left out.

    Args:
      methods: label -> (confidence, correct) of each seed.
      bins: number of bins in [0, 1].
      style: label -> look; by place if None.
    """
    style = style or looks(methods)
    figure, axes = panels(2, 1, 4.6, 2.5, sharex=True, height_ratios=(3, 1))
    curve, counts = axes[:, 0]
    curve.plot([0, 100], [0, 100], color=GREY, linestyle=":", linewidth=1, label="calibrated")
    for label, seeds in methods.items():
        count, mean, accuracy, edges = reliability_bins(
            *map(np.concatenate, zip(*seeds, strict=True)), bins
        )
        used = count > 0
        x, y, n = mean[used], accuracy[used], count[used] / len(seeds)
        error = np.maximum(np.stack([y, -y]) + np.array([[-1], [1]]) * wilson(y, n), 0)
        name = f"{text(label)}, ECE {100 * np.mean([ece(*seed, bins) for seed in seeds]):.2f} %"
        bars = dict(elinewidth=0.9, **style[label])
        curve.errorbar(100 * x, 100 * y, 100 * error, alpha=0.3, **bars | {"linestyle": "none"})
        y = np.where(n < FEW, np.nan, y)
        curve.errorbar(100 * x, 100 * y, 100 * error, label=name, **bars)
        counts.stairs(count, 100 * edges, color=style[label]["color"], linewidth=1.4)
    curve.set(ylabel="accuracy (%)", xlim=(0, 101), ylim=(-2, 102))
    legend(figure)
    counts.set(xlabel="confidence (%)", ylabel="examples", yscale="log", ylim=(0.7, None))
    return figure


def ece(confidence: np.ndarray, correct: np.ndarray, bins: int) -> float:
    """The library's expected calibration error, from confidences and correct answers."""
    return gap(*width_sums(confidence, correct, bins)[1:], len(confidence))


FEW = 20  # examples of a bin, fewer of which are faint
Z = 1.959963984540054  # of 95 %


def wilson(rate: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Ends of Wilson's interval of 95 % for a rate over n examples: [2, ...]."""
    middle = rate + Z**2 / (2 * n)
    half = Z * np.sqrt(rate * (1 - rate) / n + Z**2 / (4 * n**2))
    return np.stack([middle - half, middle + half]) / (1 + Z**2 / n)


@styled
def confidence_histogram(
    methods: Mapping[str, Sequence[Pair]], bins: int = 30, style: Mapping[str, Look] | None = None
) -> "Figure":
    """Numbers of right and wrong predictions by confidence in %, a panel per method, log scale."""
    style = style or looks(methods)
    figure, axes = wrapped(methods, 2.6, 2.2, sharey=True)
    edges = np.linspace(0, 100, bins + 1)
    for ax, (label, seeds) in zip(axes, methods.items(), strict=True):
        confidence, correct = map(np.concatenate, zip(*seeds, strict=True))
        confidence, right = 100 * confidence, np.asarray(correct, bool)
        color = style[label]["color"]
        ax.hist(confidence[right], edges, color=color, alpha=0.45, label="right")
        ax.hist(confidence[~right], edges, histtype="step", color="black", label="wrong")
        ax.set(yscale="log", xlabel="confidence (%)", ylim=(0.7, None))
        ax.legend(loc="upper left")
    axes[0].set_ylabel("examples")
    return figure


@styled
def ood_histograms(
    methods: Mapping[str, Sequence[Scores]],
    score: str = "entropy (nats)",
    style: Mapping[str, Look] | None = None,
    bins: int = 40,
) -> "Figure":
    """Density of a score in distribution and on every OOD set; rows are methods, columns sets.

    The vertical axis has a square-root scale, so that a peak at zero leaves the rest visible.

    Args:
      methods: label -> (scores of the in-distribution set, OOD set -> scores) of each seed; higher
        means more likely out of distribution.
      score: label of the horizontal axis.
      style: label -> look; by place if None.
      bins: number of bins, the same in every panel.
    """
    from matplotlib.ticker import MaxNLocator

    style = style or looks(methods)
    sets = list(
        dict.fromkeys(name for seeds in methods.values() for _, out in seeds for name in out)
    )
    ends = [
        (v.min(), v.max())
        for seeds in methods.values()
        for i, out in seeds
        for v in (i, *out.values())
    ]
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    figure, axes = panels(len(methods), len(sets), 2.9, 2.3, sharex=True, sharey="row")
    for row, (label, seeds) in zip(axes, methods.items(), strict=True):
        for ax, name in zip(row, sets, strict=True):
            pairs = [(inside, out[name]) for inside, out in seeds if name in out]
            if not pairs:
                ax.remove()
                continue
            inside, outside = map(np.concatenate, zip(*pairs, strict=True))
            ax.hist(inside, edges, density=True, color=GREY, alpha=0.4, label="in distribution")
            color = style[label]["color"]
            ax.hist(outside, edges, density=True, color=color, alpha=0.5, label=text(name))
            ranks = [ranking(*pair) for pair in pairs]
            area, precision, fpr = (
                100 * np.mean([of[key] for of in ranks]) for key in ("auroc", "aupr_out", "fpr95")
            )
            title = text(f"{name}: AUROC {area:.1f} %", 36)
            title += f"\nAUPR {precision:.1f} %, FPR95 {fpr:.1f} %"
            ax.set_title(f"{text(label, 36)}\n{title}")
            ax.legend()
            ax.set_yscale("function", functions=(np.sqrt, np.square))
            ax.yaxis.set_major_locator(MaxNLocator(5))
        row[0].set_ylabel("density")
    for ax in axes[-1]:  # a panel has room for 36 characters
        ax.set_xlabel(text(score).replace(" (", "\n(") if len(score) > 36 else text(score))
    return figure


@styled
def risk_coverage_curves(
    methods: Mapping[str, Sequence[Pair]], style: Mapping[str, Look] | None = None
) -> "Figure":
    """Error rate among the most confident examples against how many of them are kept.

    The horizontal axis begins at the last multiple of 10 % before the first error.

    Args:
      methods: label -> (confidence, correct) of each seed. At most 2,000 points are drawn.
      style: label -> look; by place if None.
    """
    style = style or looks(methods)
    figure, axes = panels(1, 1, 4.6, 3.0)
    ax = axes[0, 0]
    first = 90.0
    for label, seeds in methods.items():
        coverage, risk = risk_coverage(*map(np.concatenate, zip(*seeds, strict=True)))
        points = np.unique(np.linspace(0, len(risk) - 1, min(len(risk), 2000)).astype(int))
        look = {k: v for k, v in style[label].items() if k != "marker"}
        name = f"{text(label)}, AURC {100 * np.mean([aurc(*seed) for seed in seeds]):.2g} %"
        ax.plot(100 * coverage[points], 100 * risk[points], label=name, **look)
        if risk.any():
            first = min(first, 100 * coverage[(risk > 0).argmax()])
    ax.set(xlabel="coverage (%)", ylabel="error among kept (%)", ylim=(0, None))
    ax.set_xlim(first // 10 * 10, 100)
    legend(figure)
    return figure
