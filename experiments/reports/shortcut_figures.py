"""Figures of which features the members use, where several tell the class."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.reports.style import GREY, MARKERS, PALETTE, panels, styled, text
from experiments.runtime.keys import named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SETS = {
    "standard": "test set",
    "simple_randomised": "simple features of others",
    "complex_randomised": "complex features of others",
}
Metrics = Mapping[str, Sequence[Mapping[str, float]]]  # label -> of each seed


class Randomised(NamedTuple):
    """The accuracies of `evaluators/simplicity.py` in %, by the names of SETS."""

    mixture: Mapping[str, float]
    members: Mapping[str, np.ndarray]  # [M], of the first seed


class Cues(NamedTuple):
    """The results of `evaluators/cues.py` in %, means over seeds, by cue."""

    accuracy: Mapping[str, float]
    share: Mapping[str, float]  # 'none' too


def randomised(
    metrics: Metrics, arrays: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Randomised]:
    """The labels that were evaluated by `simplicity`.

    Args:
      metrics: of each seed.
      arrays: of the first seed.
    """
    tested = {}
    for label, seeds in metrics.items():
        mean = {name: _mean(seeds, f"simplicity/{name}/accuracy") for name in SETS}
        if None in mean.values():
            continue
        members = {
            name: 100 * arrays[label].get(f"simplicity/{name}/members", np.zeros(0))
            for name in SETS
        }
        tested[label] = Randomised({k: v for k, v in mean.items() if v is not None}, members)
    return tested


def of_cues(metrics: Metrics) -> dict[str, Cues]:
    """The labels that were evaluated by `cues`, with the cues in the order of the evaluation."""
    tested = {}
    for label, seeds in metrics.items():
        names = [of[0] for key in seeds[0] if (of := named(key, "cues")) and of[1] == "share"]
        both = [
            {name: _mean(seeds, f"cues/{name}/{kind}") for name in names}
            for kind in ("accuracy", "share")
        ]
        if names:
            tested[label] = Cues(*({k: v for k, v in b.items() if v is not None} for b in both))
    return tested


@styled
def simplicity(methods: Mapping[str, Randomised]) -> "Figure":
    """A row per method: the accuracy on each of SETS, members as faint points."""
    figure, axes = panels(1, 1, 6.4, 0.9 + 0.42 * len(methods))
    ax = axes[0, 0]
    for i, (name, label) in enumerate(SETS.items()):
        rows = np.arange(len(methods)) + 0.22 * (i - 1)
        look = {"color": PALETTE[i], "marker": MARKERS[i], "linestyle": "none"}
        ax.plot([m.mixture[name] for m in methods.values()], rows, label=label, zorder=3, **look)
        for row, m in zip(rows, methods.values(), strict=True):
            values = m.members[name]
            if len(values) > 1:
                ax.plot(values, np.full(len(values), row), alpha=0.25, markersize=4, **look)
    _rows(ax, methods)
    ax.set_xlabel("accuracy (%)")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


@styled
def cues(methods: Mapping[str, Cues]) -> "Figure":
    """A row per method: off-diagonal accuracies, and bars of the members' shares."""
    names = list(dict.fromkeys(name for m in methods.values() for name in m.share))
    figure, axes = panels(1, 2, 4.6, 1.0 + 0.34 * len(methods), sharey=True)
    left = np.zeros(len(methods))
    rows = np.arange(len(methods))
    for i, name in enumerate(names):
        color = GREY if name == "none" else PALETTE[i % len(PALETTE)]
        share = np.array([m.share.get(name, 0.0) for m in methods.values()])
        axes[0, 1].barh(rows, share, 0.7, left=left, color=color, label=text(name))
        left += share
        accuracy = [m.accuracy.get(name, np.nan) for m in methods.values()]
        if name != "none":
            marker = MARKERS[i % len(MARKERS)]
            axes[0, 0].plot(accuracy, rows, color=color, marker=marker, linestyle="none")
    for ax in axes[0]:
        _rows(ax, methods)
    axes[0, 0].set_xlabel("accuracy where only this cue tells (%)")
    axes[0, 1].set_xlabel("members that use the cue (%)")
    axes[0, 1].grid(visible=False)
    handles = axes[0, 1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=min(len(names), 6))
    return figure


def _rows(ax: "Axes", methods: Mapping[str, object]) -> None:
    ax.set_yticks(range(len(methods)), [text(label, 28) for label in methods])
    ax.set(ylim=(len(methods) - 0.5, -0.5), xlim=(-2, 102))


def _mean(seeds: Sequence[Mapping[str, float]], key: str) -> float | None:
    """100 times the mean over seeds; None if one lacks the metric."""
    values = [seed.get(key) for seed in seeds]
    return None if None in values else 100 * float(np.mean([v for v in values if v is not None]))
