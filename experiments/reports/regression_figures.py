"""Figures of regression: predictions over one input and against the targets, and intervals."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.reports.style import GREY, Look, legend, looks, panels, styled, text, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Prediction(NamedTuple):
    """The Gaussians N(mean, variance) of each member and example for one target."""

    y: np.ndarray | None  # [B]
    mean: np.ndarray  # [M, B]
    variance: np.ndarray  # [M, B]
    x: np.ndarray | None = None  # [B]
    grid: "Prediction | None" = None  # where the band is drawn; by default at x

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of the mixture over members, [B]: noise plus disagreement."""
        return self.mean.mean(0), self.variance.mean(0) + self.mean.var(0)

    def cdf(self) -> np.ndarray:
        """The mixture's cumulative probability at the target, [B]: uniform if calibrated."""
        from scipy.special import ndtr

        return ndtr((self.y - self.mean) / np.sqrt(self.variance)).mean(0)


@styled
def predictive_band(
    methods: Mapping[str, Prediction], style: Mapping[str, Look] | None = None
) -> "Figure":
    """The predictive mean with bands of one and two standard deviations over a 1-D input.

    Thin lines are the members' means.
    """
    style = style or looks(methods)
    figure, axes = wrapped(methods, 3.6, 2.7, most=3, sharey=True)
    for ax, (label, p) in zip(axes, methods.items(), strict=True):
        predictions = p.grid or p
        order = np.argsort(predictions.x, kind="stable")
        x, (mean, variance) = predictions.x[order], (m[order] for m in predictions.moments())
        color = style[label]["color"]
        for width, alpha in ((2, 0.18), (1, 0.3)):
            around = mean - width * np.sqrt(variance), mean + width * np.sqrt(variance)
            look = {"color": color, "alpha": alpha, "linewidth": 0}
            ax.fill_between(x, *around, label=f"± {width} s.d.", **look)
        if len(predictions.mean) > 1:
            ax.plot(x, predictions.mean.T[order], color=color, linewidth=0.6, alpha=0.6)
        ax.plot(x, mean, color=color, label="mean", zorder=2.5)
        ax.plot(p.x, p.y, ".", color="#333333", markersize=2.5, label="test points", zorder=2.2)
        ax.set_xlabel("x")
    axes[0].set_ylabel("y")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


@styled
def interval_calibration(
    methods: Mapping[str, Prediction], style: Mapping[str, Look] | None = None
) -> "Figure":
    """The observed against the nominal coverage of the mixture's central intervals."""
    style = style or looks(methods)
    figure, axes = panels(1, 1, 4.2, 3.2)
    ax = axes[0, 0]
    ax.plot([0, 100], [0, 100], color=GREY, linestyle=":", linewidth=1, label="calibrated")
    levels = np.linspace(0.05, 0.95, 19)
    for label, p in methods.items():
        observed = (np.abs(2 * p.cdf() - 1)[:, None] <= levels).mean(0)
        ax.plot(100 * levels, 100 * observed, label=text(label), **style[label])
    ax.set(xlabel="central interval (%)", ylabel="targets inside (%)", xlim=(0, 100))
    ax.set_ylim(0, 100)
    legend(figure)
    return figure


POINTS = 2000  # most that are drawn


@styled
def predicted_against_true(
    methods: Mapping[str, Prediction], style: Mapping[str, Look] | None = None
) -> "Figure":
    """The predictive mean against the target, with one standard deviation, in units of y.

    Of more than `POINTS` examples every k-th is drawn; the RMSE is that of all.
    """
    style = style or looks(methods)
    figure, axes = wrapped(methods, 2.9, 2.8, most=3, sharex=True, sharey=True)
    for ax, (label, p) in zip(axes, methods.items(), strict=True):
        mean, variance = p.moments()
        some = slice(None, None, -(-len(mean) // POINTS))
        look = dict(color=style[label]["color"], linestyle="none", marker=".", markersize=3)
        bars = np.sqrt(variance[some])
        ax.errorbar(p.y[some], mean[some], bars, elinewidth=0.5, capsize=0, alpha=0.5, **look)
        ends = [min(p.y.min(), mean.min()), max(p.y.max(), mean.max())]
        ax.plot(ends, ends, color=GREY, linestyle=":", linewidth=1)
        rmse = np.sqrt(np.mean((mean - p.y) ** 2))
        ax.set_title(f"{text(label, 32)}\nRMSE {rmse:.3g}")
        ax.set_xlabel("target (units of y)")
    axes[0].set_ylabel("predictive mean (units of y)")
    return figure


@styled
def sharpness(
    methods: Mapping[str, Prediction], style: Mapping[str, Look] | None = None, bins: int = 30
) -> "Figure":
    """How wide predictions are: the predictive standard deviations of all examples, in units of y.

    The dashed line of a method is its RMSE: calibrated predictions are as wide as they err.
    """
    style = style or looks(methods)
    figure, axes = panels(1, 1, 4.6, 2.8)
    ax = axes[0, 0]
    widths = {label: np.sqrt(p.moments()[1]) for label, p in methods.items()}
    low, high = (f(w) for f, w in ((min, map(np.min, widths.values())),
                                   (max, map(np.max, widths.values()))))  # fmt: skip
    edges = np.linspace(low, high if high > low * (1 + 1e-9) else low + 1, bins + 1)
    for label, p in methods.items():
        color, mean = style[label]["color"], p.moments()[0]
        name = f"{text(label)}, mean {widths[label].mean():.3g}"
        ax.hist(widths[label], edges, histtype="step", linewidth=1.4, color=color, label=name)
        ax.axvline(np.sqrt(np.mean((mean - p.y) ** 2)), color=color, linestyle="--", linewidth=0.9)
    ax.set(xlabel="predictive standard deviation (units of y)", ylabel="examples")
    legend(figure)
    return figure
