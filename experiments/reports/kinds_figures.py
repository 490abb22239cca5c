"""The figure of pairs of kinds of members: what they gain by how much they differ."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.reports.style import MARKERS, PALETTE, styled, text, wrapped
from experiments.runtime.keys import named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pairs = dict[str, np.ndarray]  # pair of kinds -> disagreement and accuracy of two in %, [seeds, 2]


def of_kinds(metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Pairs]:
    """The labels that were evaluated by `kinds`, by the smallest number of members of a mixture.

    Args:
      metrics: label -> of each seed.
    """
    tested: dict[str, Pairs] = {}
    for label, seeds in metrics.items():
        found: dict[str, set[int]] = {}
        for key in seeds[0] if seeds else ():
            name = named(key, "kinds")
            if name and (match := re.fullmatch(r"accuracy_(\d+)", name[1])):
                found.setdefault(name[0], set()).add(int(match[1]))
        pairs: Pairs = {}
        for pair, counts in found.items():
            keys = (f"kinds/{pair}/disagreement", f"kinds/{pair}/accuracy_{min(counts)}")
            values = [[seed[k] for k in keys] for seed in seeds if all(k in seed for k in keys)]
            if values:
                pairs[pair] = 100 * np.array(values)
        if pairs:
            tested[label] = pairs
    return tested


@styled
def kinds(methods: Mapping[str, Pairs]) -> "Figure":
    """A panel per method: the accuracy of mixtures of two against their disagreement.

    Pairs of one kind are hollow; small points are seeds.
    """
    names = list(dict.fromkeys(pair for pairs in methods.values() for pair in pairs))
    figure, axes = wrapped(methods, 2.9, 2.6, most=4)
    shown = {}
    for ax, pairs in zip(axes, methods.values(), strict=True):
        for pair, values in pairs.items():
            i = names.index(pair)
            color = PALETTE[i % len(PALETTE)]
            first, _, second = pair.partition("+")
            look = dict(color=color, marker=MARKERS[i % len(MARKERS)], linestyle="none")
            ax.plot(*values.T, alpha=0.35, markersize=3, **look)
            face = "white" if first == second else color
            (shown[pair],) = ax.plot(
                *values.mean(0)[:, None], markersize=8, markerfacecolor=face, **look
            )
        ax.set(xlabel="disagreement (%)", ylabel="accuracy of two (%)")
    figure.legend(
        [shown[name] for name in names],
        [text(name) for name in names],
        loc="outside upper center",
        ncols=min(len(names), 7),
    )
    return figure
