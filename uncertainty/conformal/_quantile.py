"""The conformal quantile, of all scores or of those of each group."""

import math
from typing import Any

import numpy as np

BY = ("none", "class", "group")


def check_alpha(alpha: float) -> None:
    """Raises ValueError unless 0 < alpha < 1."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: {alpha!r}; the share of misses, between 0 and 1, is expected")


def quantile(scores: np.ndarray, alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest of n scores; infinite where n has no such rank."""
    n = len(scores)
    rank = n + 1 - math.floor((n + 1) * alpha + 1e-9)  # 1e-9: a whole product may round down
    return math.inf if rank > n else float(np.partition(scores, rank - 1)[rank - 1])


def quantiles(scores: np.ndarray, alpha: float, groups: np.ndarray | None, G: int) -> np.ndarray:
    """`quantile` of all scores [B] as [1]; with groups [B] that of each one of G, [G]."""
    if groups is None:
        return np.array([quantile(scores, alpha)])
    return np.array([quantile(scores[groups == g], alpha) for g in range(G)])


def of_groups(quantile: np.ndarray, groups: Any, examples: int) -> np.ndarray:
    """The quantile of each example, [B]; infinite for groups without calibration examples.

    Raises:
      ValueError: there are quantiles of groups and no groups, or the other way round.
    """
    if len(quantile) == 1:
        return np.full(examples, quantile[0])
    groups = checked_groups(groups, examples, "groups")
    return np.append(quantile, math.inf)[np.minimum(groups, len(quantile))]


def checked_groups(groups: Any, examples: int, field: str) -> np.ndarray:
    """Groups [B] as integers from 0.

    Raises:
      ValueError: another shape or type, or negative ones.
    """
    if groups is None:
        raise ValueError(f"{field}: missing; by='group' needs the group of each example")
    groups = np.asarray(groups)
    if groups.shape != (examples,) or groups.dtype.kind not in "iu" or groups.min() < 0:
        raise ValueError(
            f"{field}: {examples} integers from 0 are expected; got {groups.dtype} {groups.shape}"
        )
    return groups.astype(np.intp)
