"""Least ambiguous set-valued classifiers (Sadinle, Lei & Wasserman 2019).

    s(x, y) = 1 - p(y | x)

The classes whose probability passes one threshold. If p is the truth these are the smallest sets,
on average, of their coverage; coverage is too low where examples are hard, too high where easy.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.conformal import _classes


class Lac(NamedTuple):
    """Sets of `lac`."""

    quantile: np.ndarray  # [1], [K] by class, [G + 1] by group
    by_class: Any  # []
    allow_empty: Any  # []

    def __call__(self, log_p: ArrayLike, u: Any = None, groups: Any = None) -> np.ndarray:
        """Whether each class is in the set, [B, K]; u is not used."""
        p = _classes.probabilities(log_p)
        filled = None if self.allow_empty else p
        return _classes.sets(1 - p, self.quantile, self.by_class, groups, filled)


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
    quantile = _classes.fit(1 - _classes.probabilities(log_p), labels, alpha, by, groups)
    return Lac(quantile, np.bool_(by == "class"), np.bool_(allow_empty))
