"""Figures of a sweep: the metric against each field, and all fields beside one another."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.reports.curves import plain_log
from experiments.reports.study import Summary, summarise
from experiments.reports.style import GREY, PALETTE, panels, styled, text, wrapped
from experiments.sweeps.space import as_json, text_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Point(NamedTuple):
    """A setting with its results."""

    setting: Mapping[str, Any]
    validation: Summary | None
    test: Summary | None
    selected: bool = False


def points(
    settings: Mapping[str, Mapping[str, Any]],
    validation: Mapping[str, Mapping[int, float]],
    test: Mapping[str, Mapping[int, float]],
    selected: str | None,
    scale: float = 1.0,
) -> list[Point]:
    """The points of the settings, by row."""

    def mean(values: Mapping[int, float] | None) -> Summary | None:
        finite = [scale * v for v in (values or {}).values() if math.isfinite(v)]
        return summarise(finite)

    return [
        Point(setting, mean(validation.get(row)), mean(test.get(row)), row == selected)
        for row, setting in settings.items()
    ]


class Scale(NamedTuple):
    """A field as an axis of a figure."""

    places: dict[str, float]  # of each value, as JSON
    ticks: list[tuple[float, str]]  # of values that are not numbers; empty for numbers
    log: bool

    def at(self, value: Any) -> float:
        return self.places[as_json(value)]


def scale_of(values: Sequence[Any]) -> Scale:
    """Numbers as they are, logarithmic if all are positive and span a factor of ten; others in the
    order in which they come."""
    different = {as_json(value): value for value in values}
    numbers = list(different.values())
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers):
        places = {key: float(value) for key, value in different.items()}
        low, high = min(places.values()), max(places.values())
        return Scale(places, [], low > 0 and high >= 10 * low)
    places = {key: float(i) for i, key in enumerate(different)}
    return Scale(places, [(places[k], text_of(v)) for k, v in different.items()], False)


@styled
def marginals(found: Sequence[Point], fields: Sequence[str], name: str) -> "Figure":
    """The metric against each field: all settings, on validation (filled) and test data (hollow).

    The line joins the best setting on validation data of each value, if a value has several.
    """
    from matplotlib.transforms import ScaledTranslation

    shown = [p for p in found if p.validation]
    figure, axes = wrapped([field for field in fields], 3.3, 2.8, most=3, sharey=True)
    means = np.array([s.mean for p in shown for s in (p.validation, p.test) if s])
    aside = ScaledTranslation(6 / 72, 0, figure.dpi_scale_trans)
    log = bool(means.size) and means.min() > 0 and means.max() > 8 * np.median(means)
    for ax, field in zip(axes, fields, strict=True):
        scale = scale_of([p.setting[field] for p in found])
        groups: dict[float, list[float]] = {}
        for p in shown:
            x = scale.at(p.setting[field])
            groups.setdefault(x, []).append(p.validation.mean)
            for entry, color, face in (
                (p.validation, PALETTE[0], PALETTE[0]),
                (p.test, PALETTE[1], "none"),
            ):
                if entry:
                    look = dict(color=color, markerfacecolor=face, marker="o", linestyle="none")
                    if face == "none":  # beside the other
                        look["transform"] = ax.transData + aside
                    ax.errorbar(x, entry.mean, entry.error or 0.0, elinewidth=0.9, **look)
            if p.selected:
                ax.plot(x, p.validation.mean, "o", markersize=11, color="black", fillstyle="none")
        if any(len(of) > 1 for of in groups.values()) and len(groups) < len(shown):
            best = sorted((x, min(of)) for x, of in groups.items())
            if not scale.ticks:
                ax.plot(*zip(*best, strict=True), color=PALETTE[0], linewidth=0.8, alpha=0.6)
        _scaled(ax, scale)
        if log:
            plain_log(ax)
    axes[0].set_ylabel(name)
    looks = [("validation", PALETTE[0], PALETTE[0], 4.5), ("test", PALETTE[1], "none", 4.5),
             ("selected", "black", "none", 11)]  # fmt: skip
    handles = [
        axes[0].plot([], [], "o", color=c, markerfacecolor=f, markersize=s, label=label)[0]
        for label, c, f, s in looks
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def _scaled(ax: Any, scale: Scale) -> None:
    from matplotlib import ticker

    if scale.ticks:
        ax.set_xticks([x for x, _ in scale.ticks], [text(label, 14) for _, label in scale.ticks])
        ax.margins(x=0.2)
    elif scale.log:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(ticker.LogFormatterSciNotation())
        ax.xaxis.set_minor_formatter(ticker.NullFormatter())
        ax.margins(x=0.1)
    else:
        ax.margins(x=0.1)
        ax.xaxis.set_major_locator(ticker.MaxNLocator(5))


@styled
def parallel(found: Sequence[Point], fields: Sequence[str], name: str, better: str) -> "Figure":
    """Parallel coordinates: a line for each setting through its value of each field to its metric.

    Colours are ranks on validation data, the selected setting is black.
    """
    import matplotlib

    shown = [p for p in found if p.validation]
    figure, axes = panels(1, 1, max(4.6, 1.9 * (len(fields) + 1)), 3.4)
    ax = axes[0, 0]
    columns = [_unit(scale_of([p.setting[f] for p in found]), [p.setting[f] for p in shown])
               for f in fields]  # fmt: skip
    results = [p.validation.mean for p in shown]
    end = _unit(scale_of(results), results)
    sign = -1 if better == "higher" else 1
    order = np.argsort(np.argsort(sign * np.array(results))) / max(len(shown) - 1, 1)
    colors = matplotlib.colormaps["viridis_r"]
    for i in sorted(range(len(shown)), key=lambda i: (shown[i].selected, -order[i])):
        y = [column.heights[i] for column in (*columns, end)]
        look = dict(color="black", linewidth=2.2) if shown[i].selected else dict(
            color=colors(0.1 + 0.8 * (1 - order[i])), linewidth=1.0, alpha=0.8)  # fmt: skip
        ax.plot(range(len(y)), y, **look)
    for x, column in enumerate((*columns, end)):
        ax.axvline(x, color=GREY, linewidth=0.9, zorder=0)
        for height, label in column.labels:
            ax.annotate(text(label, 16), (x, height), xytext=(4, 2), textcoords="offset points",
                        fontsize=7.5, bbox=dict(facecolor="white", edgecolor="none", alpha=0.7,
                                                pad=0.5))  # fmt: skip
    names = [*fields, f"validation {name}"]
    ax.set_xticks(range(len(names)), [text(n.replace(".", ".\n"), 24) for n in names])
    ax.set_yticks([])
    ax.set_ylim(-0.06, 1.08)
    ax.set_xlim(-0.15, len(names) - 0.55)
    ax.grid(visible=False)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    return figure


class Column(NamedTuple):
    heights: list[float]  # in [0, 1]
    labels: list[tuple[float, str]]


def _unit(scale: Scale, values: Sequence[Any]) -> Column:
    """Values and labels of an axis that is one unit high."""
    move = math.log if scale.log else float
    places = [move(place) for place in scale.places.values()]
    low, width = min(places), (max(places) - min(places)) or 1.0
    heights = [(move(scale.at(value)) - low) / width for value in values]
    if scale.ticks:
        return Column(heights, [((move(x) - low) / width, label) for x, label in scale.ticks])
    numbers = sorted(scale.places.values())
    if len(numbers) > 6:  # ends and the middle
        middle = (low + width / 2, low, low + width)
        numbers = [math.exp(m) if scale.log else m for m in middle]
    return Column(heights, [((move(n) - low) / width, f"{n:.3g}") for n in numbers])
