"""Methods beside the true posterior: functions of one input, or entropy over a plane."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.reports.style import PALETTE, styled, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REFERENCE = "NUTS"
INK = "#333333"


class Shown(NamedTuple):
    """The results of `evaluators/posterior.py` for a method or the reference."""

    x: np.ndarray  # [B, D]
    mean: np.ndarray  # of f, [B, K]
    band: np.ndarray  # quantiles of f, [2, B, K]
    train_x: np.ndarray  # [N, D]
    train_y: np.ndarray  # [N] or [N, K]
    w1: float  # mean over seeds
    axes: np.ndarray | None = None  # of the plane, [2, G]
    entropy: np.ndarray | None = None  # on it, [G, G] with the second input along the first axis


def read(
    scores: Mapping[str, np.ndarray], metrics: Sequence[Mapping[str, float]]
) -> tuple[Shown, Shown] | None:
    """A method and the reference, for one seed; None if there is no figure for them.

    Args:
      scores: arrays of an evaluation.
      metrics: of each seed.
    """
    if "posterior/train_x" not in scores:
        return None
    common = {name: scores[f"posterior/{name}"] for name in ("x", "train_x", "train_y")}
    planes = [{}, {}]
    if common["x"].shape[1] == 2:
        if "posterior/reference_map" not in scores or "map/entropy" not in scores:
            return None
        planes = [
            dict(axes=scores["map/axes"], entropy=scores[name])
            for name in ("map/entropy", "posterior/reference_map")
        ]
    elif common["x"].shape[1] != 1 or scores["posterior/mean"].shape[1] != 1:
        return None
    w1 = float(np.mean([seed["posterior/w1"] for seed in metrics if "posterior/w1" in seed]))
    method, reference = (
        Shown(
            mean=scores[f"posterior/{prefix}mean"],
            band=scores[f"posterior/{prefix}band"],
            w1=distance,
            **plane,
            **common,
        )
        for prefix, distance, plane in zip(("", "reference_"), (w1, 0.0), planes, strict=True)
    )
    return method, reference


@styled
def posteriors(methods: Mapping[str, Shown], reference: Shown) -> "Figure":
    """A panel for the reference and one for each method, on the same scales."""
    if not methods:
        raise ValueError("nothing to plot: no data was given")
    panels = {REFERENCE: reference, **methods}
    plane = reference.axes is not None
    size = (1.62, 1.56) if plane else (1.9, 1.6)
    figure, axes = wrapped(
        panels,
        *size,
        most=4 if len(panels) < 6 else 5,
        fill=20 if plane else 28,
        sharex=True,
        sharey=True,
    )
    for ax, m in zip(axes, panels.values(), strict=True):
        draw = _plane if plane else _curve
        mappable = draw(ax, m, reference)
        ax.tick_params(labelsize=7, length=2, pad=2)
        ax.title.set_fontsize(8)
        below = "reference" if m is reference else f"$W_1$ {m.w1:.3f}"
        ax.text(
            0.03,
            0.03,
            below,
            transform=ax.transAxes,
            fontsize=7,
            zorder=5,
            bbox=dict(facecolor="white", edgecolor="none", alpha=0.8, pad=1),
        )
    if plane:
        figure.set_layout_engine("compressed", w_pad=0.03, h_pad=0.03)  # panels are squares
        bar = figure.colorbar(mappable, ax=axes, aspect=30, pad=0.01, label="entropy (nats)")
        bar.set_ticks(np.arange(0, np.log(reference.mean.shape[1]), 0.4))
        bar.ax.tick_params(labelsize=7)
    else:
        low, high = reference.band.min(), reference.band.max()
        margin = 0.15 * (high - low)
        axes[0].set(xlim=reference.x[[0, -1], 0], ylim=(low - margin, high + margin))
        for ax in axes:
            ax.label_outer()
            place = ax.get_subplotspec()
            ax.set_xlabel("x" if place.is_last_row() else "", fontsize=8)
            ax.set_ylabel("f(x)" if place.is_first_col() else "", fontsize=8)
        handles, labels = axes[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    return figure


def _curve(ax: "Axes", m: Shown, reference: Shown) -> None:
    x = m.x[:, 0]
    if m is reference:
        ax.fill_between(x, *m.band[..., 0], color="#999999", alpha=0.35, linewidth=0)
        ax.plot(x, m.mean[:, 0], color=INK, linewidth=1)
    else:
        ax.fill_between(
            x,
            *m.band[..., 0],
            color=PALETTE[0],
            alpha=0.3,
            linewidth=0,
            label="95 % of the particles' functions",
        )
        ax.plot(x, m.mean[:, 0], color=PALETTE[0], linewidth=1.2, label="their mean")
        look = {"color": INK, "linewidth": 0.7, "linestyle": "--"}
        ax.plot(x, reference.band[0, :, 0], **look, label=f"the same for {REFERENCE}")
        ax.plot(x, reference.band[1, :, 0], **look)
        ax.plot(x, reference.mean[:, 0], color=INK, linewidth=0.7)
    ax.plot(
        m.train_x[:, 0],
        m.train_y.ravel(),
        ".",
        color=INK,
        markersize=1.8,
        zorder=3,
        label="training data" if m is not reference else None,
    )


def _plane(ax: "Axes", m: Shown, reference: Shown) -> object:
    levels = np.linspace(0, np.log(m.mean.shape[1]) + 1e-6, 12)
    mappable = ax.contourf(*m.axes, np.maximum(m.entropy, 0), levels, cmap="viridis")
    mappable.set_rasterized(True)
    look = {"s": 1.5, "c": "white", "linewidths": 0, "rasterized": True}
    ax.scatter(*m.train_x.T, **look)
    ax.set(aspect="equal")
    ax.grid(visible=False)
    return mappable
