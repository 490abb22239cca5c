"""Figures of conformal regions of several targets: outlines, and coverage by direction."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.reports.style import GREY, PALETTE, panels, styled, text, wrapped
from experiments.runtime import keys
from experiments.runtime.keys import named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKS = {  # of the methods of `evaluators/regions.py`
    "predicted": dict(color=GREY, linestyle="--"),
    "box": dict(color=PALETTE[2], linestyle="-"),
    "directional": dict(color=PALETTE[0], linestyle="-"),
}
Z = 1.959963984540054  # of 95 %


class Regions(NamedTuple):
    """The results of `evaluators/regions.py`."""

    y: np.ndarray  # [E, 2]
    mean: np.ndarray  # [E, 2]
    outlines: Mapping[str, np.ndarray]  # method -> [E, N, 2]
    inside: Mapping[str, float]  # method -> share of examples in its region, mean over seeds
    directions: np.ndarray  # [D, K]
    levels: np.ndarray  # [L]
    covered: np.ndarray  # [D, L], by the mixture's half-spaces of each level
    calibrated: np.ndarray | None  # [D], by those of the directional regions
    examples: int

    @property
    def nominal(self) -> float:
        """1 - alpha."""
        return 2 * float(self.levels[-1]) - 1


def read(
    scores: Mapping[str, np.ndarray], metrics: Sequence[Mapping[str, float]]
) -> Regions | None:
    """The Regions of one seed with means over all seeds; None if they were not evaluated.

    Args:
      scores: arrays of an evaluation.
      metrics: of each seed.
    """
    if "regions/levels" not in scores:
        return None
    outlines = {
        of[0]: value
        for key, value in scores.items()
        if (of := named(key, "regions")) and of[1] == "outline"
    }
    inside = {}
    for name in outlines:
        key = keys.join("regions", name, "coverage")
        if values := [seed[key] for seed in metrics if key in seed]:
            inside[name] = float(np.mean(values))
    return Regions(
        **{key: scores[f"regions/{key}"] for key in ("y", "mean", "directions", "levels")},
        outlines=outlines,
        inside=inside,
        covered=scores["regions/covered"],
        calibrated=scores.get("regions/directional/covered"),
        examples=int(scores["regions/examples"]),
    )


@styled
def outlines(methods: Mapping[str, Regions]) -> "Figure":
    """A row for each label, a panel for each example: its regions and what was observed."""
    names = list(dict.fromkeys(name for r in methods.values() for name in r.outlines))
    names.sort(key=lambda name: [*LOOKS, name].index(name))
    others = [name for name in names if name not in LOOKS]
    looks = LOOKS | {
        name: dict(color=PALETTE[3 + i % 2], linestyle=":") for i, name in enumerate(others)
    }
    columns = max(len(r.y) for r in methods.values())
    figure, axes = panels(len(methods), columns, 2.4, 2.2)
    handles: dict[str, Any] = {}
    for row, (label, r) in zip(axes, methods.items(), strict=True):
        for ax in row[len(r.y) :]:
            ax.remove()
        for e, ax in enumerate(row[: len(r.y)]):
            for name, corners in r.outlines.items():
                polygon = corners[e]
                if len(polygon) and np.isfinite(polygon).all():
                    closed = np.concatenate([polygon, polygon[:1]])
                    ax.plot(*closed.T, label=name.replace("_", " "), linewidth=1.4, **looks[name])
            ax.plot(*r.mean[e], "+", color="#333333", label="predictive mean")
            ax.plot(*r.y[e], "X", color=PALETTE[1], markersize=6, label="observed", zorder=3)
            ax.margins(0.08)
            ax.locator_params(nbins=4)
            of, titles = ax.get_legend_handles_labels()
            handles |= dict(zip(titles, of, strict=True))
        row[0].set_ylabel(f"{text(label, 24)}\nsecond target")
    for ax in axes[-1]:
        ax.set_xlabel("first target")
    order = [name.replace("_", " ") for name in names] + ["predictive mean", "observed"]
    order = [label for label in order if label in handles]
    figure.legend(
        [handles[label] for label in order], order, loc="outside upper center", ncols=len(order)
    )
    return figure


@styled
def coverage_by_direction(methods: Mapping[str, Regions]) -> "Figure":
    """A panel for each label: the share of examples in half-spaces, by their directions in %.

    Bands are where 95 % of the shares of calibrated predictions lie, l +- 1.96 sqrt(l (1 - l) / B).
    """
    figure, axes = wrapped(methods, 3.7, 3.1, most=3, sharey=True)
    for ax, (label, r) in zip(axes, methods.items(), strict=True):
        shares = ", ".join(f"{k.replace('_', ' ')} {100 * v:.1f} %" for k, v in r.inside.items())
        ax.set_title(f"{text(label, 44)}\n{text(f'inside: {shares}', 44)}")
        plane = r.directions.shape[1] == 2
        x = np.arange(len(r.directions))
        if plane:
            x = np.degrees(np.arctan2(r.directions[:, 1], r.directions[:, 0])) % 360
        order = np.argsort(x)
        x = x[order]
        if plane:  # once around
            order, x = np.append(order, order[0]), np.append(x, x[0] + 360)
        look = dict(linestyle="-" if plane else "none", markersize=3.5)
        for i, level in enumerate(r.levels):
            color = PALETTE[(2, 3, 0)[i % 3]]
            half = Z * np.sqrt(level * (1 - level) / r.examples)
            ax.axhspan(100 * (level - half), 100 * (level + half), color=color, alpha=0.15, lw=0)
            ax.axhline(100 * level, color=color, linestyle=":", linewidth=1)
            ax.plot(
                x, 100 * r.covered[order, i], color=color, marker="o",
                label=f"predicted, {100 * level:g} %", **look,
            )  # fmt: skip
        if r.calibrated is not None:
            ax.plot(
                x, 100 * r.calibrated[order], color="#333333", marker="x",
                label="directional region", **look,
            )  # fmt: skip
        if plane:
            ax.set_xticks([0, 90, 180, 270, 360])
        else:
            ax.locator_params(axis="x", integer=True)
        ax.set_xlabel("direction (degrees)" if plane else "number of the direction")
    axes[0].set_ylabel("examples in the half-space (%)")
    columns = 4 if len(methods) > 1 else 2
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns)
    return figure
