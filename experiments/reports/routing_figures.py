"""The figure of which classes go to which experts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.reports.style import panels, styled, text
from experiments.runtime.keys import named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERS = ("mutual_information", "dropped", "load_min", "load_max")
WIDEST = 96  # columns of a panel


class Layer(NamedTuple):
    """The results of `evaluators/routing.py` for one layer."""

    share: np.ndarray  # [M, K, E], of one particle
    numbers: Mapping[str, float]  # of NUMBERS, means over seeds


def read(
    scores: Mapping[str, np.ndarray], metrics: Sequence[Mapping[str, float]]
) -> dict[str, Layer]:
    """Layers by name: the first particle of one seed, with means over all seeds; empty without
    experts.

    Args:
      scores: arrays of an evaluation.
      metrics: of each seed.
    """
    layers = {}
    for key in sorted(scores):
        if (of := named(key, "routing")) and of[1] == "share":
            stem = key.removesuffix("share")
            numbers = {}
            for name in NUMBERS:
                seeds = [seed[stem + name] for seed in metrics if stem + name in seed]
                if seeds:
                    numbers[name] = float(np.mean(seeds))
            layers[of[0]] = Layer(scores[key][0], numbers)
    return layers


@styled
def classes_by_experts(methods: Mapping[str, Mapping[str, Layer]]) -> "Figure":
    """A row per method and a panel per layer: the % of each class's processed tokens per expert.

    If all methods have a single layer, they are arranged in three columns. Experts of members are
    side by side, for as many members as fit. The colours of a method have one scale, from 0.
    """
    if not methods:
        raise ValueError("nothing to plot: no data was given")
    columns = max(map(len, methods.values()))
    matrices = {
        label: {name: _side_by_side(layer) for name, layer in layers.items()}
        for label, layers in methods.items()
    }
    experts = max(joined.shape[1] for row in matrices.values() for joined, _ in row.values())
    width = float(np.clip(0.16 * experts, 2.0, max(12 / columns, 2.0)))
    classes = max(joined.shape[0] for row in matrices.values() for joined, _ in row.values())
    height = float(np.clip(0.16 * classes, 1.2, 2.6)) + 0.75
    across = min(3, len(methods)) if columns == 1 else 1
    rows = -(-len(methods) // across)
    figure, axes = panels(rows, columns * across, width + 0.9 / columns, height)
    lines = axes.reshape(-1, columns)
    for ax in lines[len(methods) :].flat:
        ax.remove()
    for line, (label, row) in zip(lines, matrices.items(), strict=False):
        high = max(joined.max() for joined, _ in row.values())
        for ax, (name, (joined, block)) in zip(line, row.items(), strict=False):
            image = ax.imshow(
                joined, aspect="auto", vmin=0, vmax=high, cmap="viridis", interpolation="nearest"
            )
            for edge in range(block, joined.shape[1], block):
                ax.axvline(edge - 0.5, color="white", linewidth=1.5)
            _axes(ax, joined, block)
            ax.set_title(
                f"{text(label, 36)}\n{text(name)}" if across > 1 else text(name), fontsize=9
            )
            ax.set_xlabel("expert\n" + _numbers(methods[label][name].numbers), fontsize=7.5)
        side = "class" if across > 1 else text(label, 22) + "\nclass"
        line[0].set_ylabel(side, fontsize=8)
        for ax in line[len(row) :]:
            ax.remove()
        bar = figure.colorbar(image, ax=list(line[: len(row)]), pad=0.01, aspect=14)
        bar.set_label("% of the class's tokens", fontsize=7.5)
        bar.ax.tick_params(labelsize=7)
    return figure


def _side_by_side(layer: Layer) -> tuple[np.ndarray, int]:
    """[K, M' E], each member's rows in %, and E; M' is the number of members that fit."""
    M, _, E = layer.share.shape
    members = layer.share[: max(min(M, WIDEST // E), 1)]
    percent = 100 * members / np.maximum(members.sum(2, keepdims=True), 1e-12)
    return np.concatenate(list(percent), axis=1), E


def _axes(ax: object, joined: np.ndarray, block: int) -> None:
    """Classes down, experts of each member counted from 0 across."""
    K, N = joined.shape
    every = -(-N // 16)
    ticks = [i for i in range(N) if i % block % every == 0]
    ax.set_xticks(ticks, [str(i % block) for i in ticks])
    step = -(-K // 10)
    ax.set_yticks(range(0, K, step))
    ax.grid(visible=False)
    ax.spines[["top", "right"]].set_visible(True)
    ax.tick_params(labelsize=7, length=2, pad=2)


def _numbers(numbers: Mapping[str, float]) -> str:
    parts = []
    if "mutual_information" in numbers:
        parts.append(f"$I$ {numbers['mutual_information']:.2f} nats")
    if "dropped" in numbers:
        parts.append(f"dropped {100 * numbers['dropped']:.1f} %")
    caption = " · ".join(parts)
    if "load_max" in numbers:
        caption += f"\nload {numbers['load_min']:.2f} to {numbers['load_max']:.2f}"
    return caption
