"""Adaptive prediction sets (Romano, Sesia & Candès 2020).

    s(x, y) = sum_{k : p_k > p_y} p(k | x) + u p(y | x)

u is uniform for each example, or 1. The most probable classes until their sum reaches q: if p is
the truth, coverage holds at each x (exactly, with random u). With u = 1 the sets are larger, and
never split a class at random.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.conformal import _classes


class Aps(NamedTuple):
    """Sets of `aps`."""

    quantile: np.ndarray  # [1], [K] by class, [G + 1] by group
    by_class: Any  # []
    randomised: Any  # []
    allow_empty: Any  # []

    def __call__(self, log_p: ArrayLike, u: Any = None, groups: Any = None) -> np.ndarray:
        """Whether each class is in the set, [B, K]; a randomised method needs u [B] in [0, 1]."""
        p = _classes.probabilities(log_p)
        scores, _ = _classes.cumulative(p, _classes.uniform(u, len(p), bool(self.randomised)))
        filled = None if self.allow_empty else p
        return _classes.sets(scores, self.quantile, self.by_class, groups, filled)


def aps(
    log_p: ArrayLike,
    labels: ArrayLike,
    alpha: float = 0.1,
    by: str = "none",
    groups: Any = None,
    randomised: bool = True,
    allow_empty: bool = True,
    u: Any = None,
) -> Aps:
    """Calibrates the sum at which sets stop.

    Args:
      log_p, labels, alpha, by, groups, allow_empty: as for `lac`.
      randomised: whether u is uniform; else 1.
      u: [B] uniform draws of the calibration examples, for randomised sets.

    Raises:
      ValueError: see `lac`; or no u.
    """
    p = _classes.probabilities(log_p)
    scores, _ = _classes.cumulative(p, _classes.uniform(u, len(p), randomised))
    quantile = _classes.fit(scores, labels, alpha, by, groups)
    return Aps(quantile, np.bool_(by == "class"), np.bool_(randomised), np.bool_(allow_empty))
