"""Figures of training, of corruption by severity, and of a study's means with their errors."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.reports.study import Study, summarise, values_of
from experiments.reports.style import (
    GREY,
    Look,
    legend,
    lines,
    looks,
    panels,
    styled,
    text,
    wrapped,
)
from experiments.reports.tables import pretty
from experiments.runtime import keys

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 300  # most points of a training curve; more are averaged in windows
# Groups of a clean test set whose metrics have the names of corrupted ones.
CLEAN = ("classification", "calibration", "regression")


def smooth(steps: np.ndarray, values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Means over windows, and the last step of each; the last window may be shorter."""
    starts = np.arange(0, len(values), window)
    counts = np.diff(np.append(starts, len(values)))
    return steps[starts + counts - 1], np.add.reduceat(values, starts) / counts


@styled
def training_curves(
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    style: Mapping[str, Look] | None = None,
) -> "Figure":
    """Training loss by step, a panel per method: each member thin, the ensemble bold.

    Args:
      histories: label -> lines of metrics.jsonl: 'step', 'loss' (mean over members), and for
        ensembles 'loss/<m>' and 'ensemble_loss'; 'validation/*nll' is drawn as points.
      style: label -> look; by place if None.
    """
    style = style or looks(histories)
    figure, axes = wrapped(histories, 3.4, 2.6, most=3, sharey=True)
    smoothed = []
    for ax, (label, history) in zip(axes, histories.items(), strict=True):
        color = style[label]["color"]
        window = -(-sum("loss" in line for line in history) // POINTS) or 1

        def line(key: str, history: Any = history, window: int = window, ax: Any = ax, **look: Any):
            steps, values = series(history, key)
            if len(values):
                smoothed.append(smooth(steps, values, window))
                ax.plot(*smoothed[-1], **look)

        members = sorted({k for entry in history for k in entry if k.startswith("loss/")})
        if len(members) > 1:
            for i, key in enumerate(members):
                look = {"label": f"{len(members)} members"} if i == 0 else {}
                line(key, color=color, alpha=0.35, linewidth=0.6, **look)
            line("loss", color="black", linewidth=1, linestyle="--", label="their mean")
            line("ensemble_loss", color=color, linewidth=2, label="ensemble")
        else:
            line("loss", color=color, linewidth=1.6, label="training")
        for key in sorted({k for e in history for k in e if k.startswith("validation/")}):
            if key.endswith("/nll"):
                steps, values = series(history, key)
                ax.plot(steps, values, "o", color="black", markersize=3, label="validation NLL")
                break
        ax.set_xlabel("step" if window == 1 else f"step (means of {window} logged steps)")
        if ax.get_legend_handles_labels()[0]:
            for handle in ax.legend(loc="upper right").legend_handles:
                handle.set_alpha(1)  # thin pale lines are hard to see in the legend
    values = np.concatenate([v for _, v in smoothed]) if smoothed else np.ones(1)
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > 8 * values.min():
        for ax in axes:
            plain_log(ax)
    axes[0].set_ylabel("loss (nats)")
    return figure


def plain_log(ax: Any) -> None:
    """A logarithmic y axis with ticks such as 0.2, 0.5, 1, 2."""
    from matplotlib import ticker

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    ax.yaxis.set_minor_formatter(ticker.NullFormatter())


def series(history: Sequence[Mapping[str, float]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """`(steps [n], values [n])` of the lines that have the key."""
    lines = [line for line in history if line.get(key) is not None]
    return np.array([x["step"] for x in lines]), np.array([x[key] for x in lines], np.float64)


def by_severity(metrics: Mapping[str, float], name: str) -> dict[int, float]:
    """Mean over kinds of 'corruption/<kind>/<severity>/<name>' for each severity.

    Severity 0 is the test set itself, if it has the metric.
    """
    by_severity: dict[int, list[float]] = {}
    for key, value in metrics.items():
        if (place := severity_of(key)) and place[1] == name:
            by_severity.setdefault(place[0], []).append(value)
    clean = [metrics.get(f"{group}/{name}") for group in CLEAN]
    if by_severity and any(v is not None for v in clean):
        by_severity[0] = [v for v in clean if v is not None]
    return {severity: float(np.mean(by_severity[severity])) for severity in sorted(by_severity)}


def severity_of(key: str) -> tuple[int, str] | None:
    """`(severity, metric)` of a key 'corruption/<kind>/<severity>/<metric>'; None for others."""
    parts = keys.split(key)
    if len(parts) != 4 or parts[0] != "corruption" or not parts[2].isdecimal():
        return None
    return int(parts[2]), parts[3]


@styled
def corruption_curves(
    methods: Mapping[str, Sequence[Mapping[str, float]]],
    metrics: Mapping[str, tuple[str, float]],
    style: Mapping[str, Look] | None = None,
) -> "Figure":
    """Metrics against the severity of corruption, mean over kinds; bars are errors over seeds.

    Args:
      methods: label -> metrics of each seed.
      metrics: last part of a key, such as 'nll' -> (label of the axis, factor).
      style: label -> look; by place if None.
    """
    style = style or looks(methods)
    figure, axes = panels(1, len(metrics), 2.9, 2.6)
    for ax, (name, (title, factor)) in zip(axes[0], metrics.items(), strict=True):
        for label, seeds in methods.items():
            curves = [by_severity(seed, name) for seed in seeds]
            severities = sorted(set.union(set(), *curves))
            cells = [summarise([c[s] * factor for c in curves if s in c]) for s in severities]
            means = [cell.mean for cell in cells]
            errors = [cell.error or 0.0 for cell in cells]
            if severities:
                ax.errorbar(severities, means, errors, label=text(label), **style[label])
        ax.set(xlabel="severity (0: none)", ylabel=title)
        ax.set_xticks(sorted({int(x) for line in ax.lines for x in line.get_xdata()}))
    legend(figure)
    return figure


SETS = {"conformal": "sets", "intervals": "intervals", "regions": "regions"}


def shifted_sets(methods: Mapping[str, Sequence[Mapping[str, float]]]) -> list[tuple[str, str]]:
    """(group, label) of every kind of set whose coverage under corruption is known."""
    found: dict[tuple[str, str], None] = {}
    for seeds in methods.values():
        for key in (key for metrics in seeds for key in metrics):
            if place := _coverage_of(key):
                found[place[:2]] = None
    return list(found)


def _coverage_of(key: str) -> tuple[str, str, int] | None:
    """('conformal', 'lac', 3) of 'conformal/lac/severity_3/coverage'; None for others."""
    group, *names = keys.split(key)
    if group not in SETS or len(names) != 3 or names[2] != "coverage":
        return None
    severity = names[1].removeprefix("severity_")
    return (group, names[0], int(severity)) if severity.isdecimal() else None


@styled
def coverage_curves(
    methods: Mapping[str, Sequence[Mapping[str, float]]],
    style: Mapping[str, Look] | None = None,
) -> "Figure":
    """Coverage against the severity of corruption, a panel for each kind of set.

    Args:
      methods: label -> metrics of each seed.
      style: label -> look; by place if None.
    """
    style = style or looks(methods)
    kinds = shifted_sets(methods)
    titles = [f"{pretty(name)} {SETS[group]}" for group, name in kinds]
    figure, axes = wrapped(titles, 2.9, 2.6, most=3, sharey=True)
    for ax, (group, name) in zip(axes, kinds, strict=True):
        ends: list[list[float]] = [[], []]
        for label, seeds in methods.items():
            covered: dict[int, list[float]] = {}
            for metrics in seeds:
                clean = f"{group}/{keys.join(name)}"
                for i, end in enumerate(("low", "high")):
                    ends[i] += [metrics[k] for k in (f"{clean}/expected_{end}",) if k in metrics]
                at = {key: _coverage_of(key) for key in metrics}
                places = {key: of[2] for key, of in at.items() if of and of[:2] == (group, name)}
                if places:
                    for key, severity in {f"{clean}/coverage": 0, **places}.items():
                        if key in metrics:
                            covered.setdefault(severity, []).append(100 * metrics[key])
            if covered:
                cells = [summarise(covered[severity]) for severity in sorted(covered)]
                means, errors = [c.mean for c in cells], [c.error or 0.0 for c in cells]
                ax.errorbar(sorted(covered), means, errors, label=text(label), **style[label])
        if ends[0]:
            ax.axhspan(100 * min(ends[0]), 100 * max(ends[1]), color=GREY, alpha=0.25, linewidth=0)
        ax.set(xlabel="severity (0: none)")
        ax.set_xticks(sorted({round(x) for line in ax.lines for x in line.get_xdata()}))
    axes[0].set_ylabel("coverage (%)")
    legend(figure)
    return figure


@styled
def comparison(study: Study, style: Mapping[str, Look] | None = None) -> "Figure":
    """Mean and standard error of every row; diamonds are published values.

    One panel for each column that has values and a better direction; rows without values are left
    out.
    """
    style = style or looks(row.label for row in study.rows)
    columns = [
        c for c in study.columns if c.better and any(values_of(r, c.key) for r in study.rows)
    ]
    rows = [r for r in study.rows if r.published or any(values_of(r, c.key) for c in columns)]
    labels = [text(row.label, 32) for row in rows]
    titles = [c.title for c in columns]
    places, height = lines(labels)
    figure, axes = wrapped(titles, 2.4, 0.9 + 0.23 * height, sharey=True)
    for ax, column in zip(axes, columns, strict=True):
        for place, row in zip(places, rows, strict=True):
            cell = summarise([v * column.scale for v in values_of(row, column.key)])
            if cell and math.isfinite(cell.mean):
                look = {**style[row.label], "linestyle": "none"}
                ax.errorbar(cell.mean, place, xerr=cell.error or 0.0, **look)
            if column.key in row.published:
                look = {"facecolor": "none", "edgecolor": "black", "marker": "D", "s": 28}
                ax.scatter(row.published[column.key][0], place, zorder=3, **look)
        ax.set_yticks(places, labels)
        ax.set_ylim(height - 0.5, -0.5)
        ax.margins(x=0.15)
        ax.locator_params(axis="x", nbins=3)
        ax.grid(axis="y", visible=False)
    return figure
