"""The routers' counts, summarised by a few numbers per layer."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from uncertainty import rules
from uncertainty.types import Collections, Monitor

COMMON = {"backbone", "feed_forward", "router"}  # parts of paths that all layers share


def counted(counts: Any) -> dict[str, float]:
    """The routers' counts in the last step of training, as `routing/<layer>/<name>`.

    `dropped`, `load_max` and `load_min` for each layer, see `balance`.

    Args:
      counts: the collection 'routing' of a State, on the host: for each router `load` [P, ..., M,
        E] and `dropped` [P, ..., M].
    """
    layers: dict[str, dict[str, np.ndarray]] = {}
    for path, leaf in zip(rules.paths(counts), jax.tree.leaves(counts), strict=True):
        layers.setdefault(name_of(path), {})[path.rpartition("/")[2]] = leaf
    return {
        f"routing/{layer}/{key}": value
        for layer, of in layers.items()
        for key, value in balance(of["load"], of["dropped"]).items()
    }


def text(values: Mapping[str, float]) -> str:
    """'dropped 3% load 0.41-1.9': mean and extremes over layers of the values of `counted`."""
    dropped, least, most = (
        [value for key, value in values.items() if key.endswith(name)]
        for name in ("/dropped", "/load_min", "/load_max")
    )
    return f"dropped {np.mean(dropped):.0%} load {min(least):.2g}-{max(most):.2g}"


def name_of(path: str) -> str:
    """'block01' for 'backbone/block01/feed_forward/router/load': the distinctive part of a path."""
    return "/".join(part for part in path.split("/")[:-1] if part not in COMMON) or "experts"


def balance(load: np.ndarray, dropped: np.ndarray | None) -> dict[str, float]:
    """Summaries of loads [P, ..., E] and, if given, of the share of dropped choices:

    dropped             its mean
    load_max, load_min  load of the busiest and the least busy expert over the mean load, extremes
                        within a particle, as means over particles
    """
    load = np.asarray(load, np.float64).reshape(len(load), -1)
    load = load / np.maximum(load.mean(1, keepdims=True), np.finfo(float).tiny)
    known = {} if dropped is None else {"dropped": float(np.mean(dropped))}
    return known | {
        "load_max": float(load.max(1).mean()),
        "load_min": float(load.min(1).mean()),
    }


def _run(collections: Collections) -> tuple[dict[str, float], str]:
    values = counted(collections["routing"])
    return values, text(values)


ROUTING = Monitor(("routing",), _run)
