"""The conformal quantile, of all scores or of those of each group."""

import math
from typing import Any

import numpy as np

BY = ("none", "class", "group")
NO_IDS = np.zeros(0, np.int64)


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


def numbered(groups: Any, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """The different groups, ascending, [G], and the place of each example's among them, [B].

    Raises:
      ValueError: wrong groups.
    """
    ids, places = np.unique(checked_groups(groups, examples, "groups"), return_inverse=True)
    return ids, places.reshape(-1)


def of_groups(quantile: np.ndarray, ids: Any, groups: Any, examples: int) -> np.ndarray:
    """The quantile of each example, [B]; infinite for groups without calibration examples.

    Args:
      quantile: [G].
      ids: the groups that it is of, ascending, [G]; none for 0, 1, ..., as older files have it.
      groups: of the examples, [B].
      examples: B.

    Raises:
      ValueError: wrong groups.
    """
    groups = checked_groups(groups, examples, "groups")
    ids = np.asarray(ids) if np.size(ids) else np.arange(len(quantile))
    places = np.minimum(np.searchsorted(ids, groups), len(ids) - 1)
    return np.where(ids[places] == groups, quantile[places], math.inf)


def checked_groups(groups: Any, examples: int, field: str) -> np.ndarray:
    """Groups [B] as integers from 0.

    Raises:
      ValueError: another shape or type, or negative ones.
    """
    if groups is None:
        raise ValueError(f"{field}: missing; by='group' needs the group of each example")
    groups = np.asarray(groups)
    if groups.shape != (examples,) or groups.dtype.kind not in "iu":
        raise ValueError(
            f"{field}: {examples} integers from 0 are expected; got {groups.dtype} {groups.shape}"
        )
    if (groups < 0).any():
        b = (groups < 0).argmax()
        raise ValueError(f"{field}: {groups[b]} at example {b}; integers from 0 are expected")
    return groups.astype(np.intp)
