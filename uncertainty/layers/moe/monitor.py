"""What routers count, as a few numbers of each layer."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from uncertainty import rules
from uncertainty.types import Collections, Monitor

COMMON = {"backbone", "feed_forward", "router"}  # parts of a path that all layers have


def counted(counts: Any) -> dict[str, float]:
    """What routers counted in the last step of training, by `routing/<layer>/<name>`.

    `dropped`, `load_max` and `load_min` of each, see `balance`.

    Args:
      counts: the collection 'routing' of a State, on the host: of each router `load`
        [P, ..., M, E] and `dropped` [P, ..., M].
    """
    layers: dict[str, dict[str, np.ndarray]] = {}
    for path, leaf in zip(rules.paths(counts), jax.tree.leaves(counts), strict=True):
        layers.setdefault(name_of(path), {})[path.rpartition("/")[2]] = leaf
    return {
        f"routing/{layer}/{key}": value
        for layer, of in layers.items()
        for key, value in balance(of["load"], of["dropped"]).items()
    }


def text(found: Mapping[str, float]) -> str:
    """'dropped 3% load 0.41-1.9': of what `counted` finds, the mean and the extremes of layers."""
    dropped, least, most = (
        [value for key, value in found.items() if key.endswith(name)]
        for name in ("/dropped", "/load_min", "/load_max")
    )
    return f"dropped {np.mean(dropped):.0%} load {min(least):.2g}-{max(most):.2g}"


def name_of(path: str) -> str:
    """'block01' of 'backbone/block01/feed_forward/router/load': what tells a layer from others."""
    return "/".join(part for part in path.split("/")[:-1] if part not in COMMON) or "experts"


def balance(load: np.ndarray, dropped: np.ndarray | None) -> dict[str, float]:
    """Of loads [P, ..., E] and, where there is one, of the share of the choices that found no room:

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
    found = counted(collections["routing"])
    return found, text(found)


ROUTING = Monitor(("routing",), _run)
