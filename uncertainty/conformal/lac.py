"""Least ambiguous set-valued classifiers (Sadinle, Lei & Wasserman 2019).

    s(x, y) = 1 - p(y | x)

The classes whose probability passes one threshold. If p is the truth these are the smallest sets,
on average, of their coverage; coverage is too low where examples are hard, too high where easy.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.conformal import _classes, _quantile


class Lac(NamedTuple):
    """Sets of `lac`."""

    quantile: np.ndarray  # [1], [K] by class, [G] by group
    by: Any  # [], an index into `_quantile.BY`
    allow_empty: Any  # []
    ids: Any = _quantile.NO_IDS  # [G], the groups of `quantile`, ascending
    least: Any = None  # like quantile, the least log p of a class in a set; older files have none

    def __call__(self, log_p: ArrayLike, u: Any = None, groups: Any = None) -> np.ndarray:
        """Whether each class is in the set, [B, K]; u is not used."""
        p = _classes.probabilities(log_p)
        filled = None if self.allow_empty else p
        scores, limit = 1 - p, self.quantile
        if self.least is not None:
            scores, limit = _scores(log_p), -self.least
        return _classes.sets(scores, limit, self.by, self.ids, groups, filled)


def _scores(log_p: ArrayLike) -> np.ndarray:
    """-log p, which orders as 1 - p does, where that is 1 too: for all p below 1e-16.

    Of p = 0 it is the largest float, as infinity means that no score has the quantile's rank.
    """
    return np.minimum(-np.asarray(log_p, np.float64), np.finfo(np.float64).max)


def lac(
    log_p: ArrayLike,
    labels: ArrayLike,
    alpha: float = 0.1,
    by: str = "none",
    groups: Any = None,
    allow_empty: bool = True,
) -> Lac:
    """Calibrates the threshold.

    Args:
      log_p: [B, K] log-probabilities of held-out examples.
      labels: [B] integers.
      alpha: the share of labels that the sets may miss.
      by: 'none'; 'class' or 'group' for a threshold and coverage of each.
      groups: [B] integers from 0, for 'group'.
      allow_empty: whether sets may be empty; else they have the most probable class, and coverage
        can only rise.

    Raises:
      ValueError: wrong arrays, an alpha outside (0, 1), or an unknown `by`.
    """
    _classes.probabilities(log_p)  # checks them
    limit, ids = _classes.fit(_scores(log_p), labels, alpha, by, groups)
    quantile = np.where(np.isinf(limit), np.inf, 1 - np.exp(-limit))
    return Lac(quantile, np.int64(_quantile.BY.index(by)), np.bool_(allow_empty), ids, -limit)
