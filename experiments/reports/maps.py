"""The figure of predictions and uncertainties over a plane of inputs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.reports.style import PALETTE, panels, styled, text
from experiments.runtime.keys import named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS = {  # uncertainty -> label of its colour bar
    "entropy": "entropy (nats)",
    "noise_std": "noise / its largest",  # the scale of u differs between methods
    "epistemic_std": "epistemic (s.d. of u)",
}


class Map(NamedTuple):
    """The results of `evaluators/uncertainty_map.py`."""

    axes: np.ndarray  # [2, G]
    p: np.ndarray  # [G, G, K], of the mixture; the second input runs along the first axis
    x: np.ndarray  # [N, 2]
    y: np.ndarray  # [N]
    uncertainties: Mapping[str, np.ndarray]  # name in ROWS -> [G, G]
    ood: Mapping[str, np.ndarray]  # name -> [N', 2]
    groups: Mapping[str, Mapping[str, float]]  # name -> uncertainty -> its mean


def read(scores: Mapping[str, np.ndarray], metrics: Sequence[Mapping[str, float]]) -> Map | None:
    """The Map of one seed with means over all seeds; None if it was not evaluated.

    Args:
      scores: arrays of an evaluation.
      metrics: of each seed.
    """
    if "map/axes" not in scores:
        return None
    ood = {}
    for key, value in scores.items():
        if (of := named(key, "map")) and of[1] == "x":
            ood[of[0]] = value
    groups: dict[str, dict[str, float]] = {}
    for key in metrics[0]:
        if (of := named(key, "map")) and of[1] in ROWS:
            values = [seed[key] for seed in metrics if key in seed]
            groups.setdefault(of[0], {})[of[1]] = float(np.mean(values))
    return Map(
        **{name: scores[f"map/{name}"] for name in ("axes", "p", "x", "y")},
        uncertainties={name: scores[f"map/{name}"] for name in ROWS if f"map/{name}" in scores},
        ood=ood,
        groups={name: groups[name] for name in sorted(groups, key=lambda name: name in ood)},
    )


@styled
def maps(methods: Mapping[str, Map]) -> "Figure":
    """A column per method: the probabilities of the classes with the data, and each uncertainty.

    An uncertainty has one scale for all methods, from 0, except the noise, which is relative to
    each method's largest. Means over groups of examples are below each panel, those of OOD sets
    last. An uncertainty is 0 for methods without it; one that no method has is left out.
    """
    if not methods:
        raise ValueError("nothing to plot: no data was given")
    rows = [name for name in ROWS if any(name in m.uncertainties for m in methods.values())]
    bar = 0.8 / len(methods)  # inches
    figure, axes = panels(1 + len(rows), len(methods), 1.38 + bar, 1.6)
    figure.set_layout_engine("compressed", w_pad=0.02, h_pad=0.02)  # panels are squares
    for i, (label, m) in enumerate(methods.items()):
        axes[0, i].set_title(text(label, 16))
        _probabilities(axes[0, i], m)
        for ax in axes[:, i]:
            ax.set(xlim=m.axes[0, [0, -1]], ylim=m.axes[1, [0, -1]], aspect="equal")
            ax.grid(visible=False)
            ax.spines[["top", "right"]].set_visible(True)
            ax.locator_params(nbins=4)
            look = {"labelleft": i == 0, "labelbottom": ax is axes[-1, i]}
            ax.tick_params(labelsize=7, length=2, pad=2, **look)
    for line, name in zip(axes[1:], rows, strict=True):
        _uncertainty(line, methods, name)
    return figure


def _probabilities(ax: "Axes", m: Map) -> None:
    """The colours of the classes mixed by their probabilities, the data, and OOD points in black.

    Probabilities are rounded to 1/8, which gives bands.
    """
    from matplotlib.colors import to_rgb

    colors = np.array([to_rgb(PALETTE[k % len(PALETTE)]) for k in range(m.p.shape[-1])])
    p = np.round(8 * m.p) / 8
    mixed = p @ colors / p.sum(-1, keepdims=True)
    half = (m.axes[:, 1] - m.axes[:, 0]) / 2  # pixels are centred on grid points
    ends = np.stack([m.axes[:, 0] - half, m.axes[:, -1] + half], axis=1).ravel()
    ax.imshow(0.45 + 0.55 * mixed, origin="lower", extent=ends, interpolation="nearest")
    look = {"s": 2, "linewidths": 0, "rasterized": True}
    subset = thinned(np.arange(len(m.x)), 400)
    ax.scatter(*m.x[subset].T, c=colors[m.y[subset]], **look)
    for x in m.ood.values():
        ax.scatter(*thinned(x, 100).T, c="black", **look)


def _uncertainty(line: Sequence["Axes"], methods: Mapping[str, Map], name: str) -> None:
    """One uncertainty of every method, with its colour bar."""
    from matplotlib.ticker import MaxNLocator

    of_method = {
        label: m.uncertainties[name] for label, m in methods.items() if name in m.uncertainties
    }
    if name == "noise_std":
        of_method = {label: value / value.max() for label, value in of_method.items()}
    high = max(float(value.max()) for value in of_method.values())
    levels = MaxNLocator(10).tick_values(0, high or 1.0)
    if name == "entropy":
        levels = np.linspace(0, np.log(max(m.p.shape[-1] for m in methods.values())) + 1e-6, 12)
    for ax, (label, m) in zip(line, methods.items(), strict=True):
        value = of_method.get(label, np.zeros(m.p.shape[:2]))
        mappable = ax.contourf(*m.axes, value, levels, cmap="viridis")
        mappable.set_rasterized(True)
        for x in m.ood.values():
            look = {"c": "white", "edgecolors": "black", "linewidths": 0.3, "rasterized": True}
            ax.scatter(*thinned(x, 40).T, s=4, **look)
        means = [f"{text(group)} {of[name]:.2f}" for group, of in m.groups.items() if name in of]
        lines = ["  ".join(means[i : i + 2]) for i in range(0, len(means), 2)]
        below = "\n".join(lines) if label in of_method else "none"
        ax.set_xlabel(below, fontsize=6.5, labelpad=2)
    bar = ax.figure.colorbar(mappable, ax=list(line), aspect=12, pad=0.01, label=ROWS[name])
    bar.set_ticks([tick for tick in MaxNLocator(5).tick_values(0, high) if tick <= levels[-1]])
    bar.ax.tick_params(labelsize=7)


def thinned(x: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the examples x [N, ...], evenly spaced."""
    return x[np.linspace(0, len(x) - 1, min(len(x), most)).astype(int)]
