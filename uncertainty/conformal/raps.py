"""Regularised adaptive prediction sets (Angelopoulos et al. 2021).

    s(x, y) = sum_{k : p_k > p_y} p(k | x) + u p(y | x) + penalty max(0, place(y) - free)

place 1 is the most probable class. The tail of small probabilities, which is mostly noise, makes
sets of `aps` long; the penalty ends them.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.conformal import _classes, _quantile


class Raps(NamedTuple):
    """Sets of `raps` and `aps`."""

    quantile: np.ndarray  # [1], [K] by class, [G] by group
    by: Any  # [], an index into `_quantile.BY`
    randomised: Any  # []
    allow_empty: Any  # []
    penalty: Any  # []
    free: Any  # []
    ids: Any = _quantile.NO_IDS  # [G], the groups of `quantile`, ascending

    def __call__(self, log_p: ArrayLike, u: Any = None, groups: Any = None) -> np.ndarray:
        """Whether each class is in the set, [B, K]; a randomised method needs u [B] in [0, 1]."""
        p = _classes.probabilities(log_p)
        u = _classes.uniform(u, len(p), bool(self.randomised))
        scores = _scores(p, u, float(self.penalty), int(self.free))
        filled = None if self.allow_empty else p
        return _classes.sets(scores, self.quantile, self.by, self.ids, groups, filled)


def _scores(p: np.ndarray, u: np.ndarray, penalty: float, free: int) -> np.ndarray:
    sums, place = _classes.cumulative(p, u)
    return sums + penalty * np.maximum(place - free, 0)


def raps(
    log_p: ArrayLike,
    labels: ArrayLike,
    alpha: float = 0.1,
    by: str = "none",
    groups: Any = None,
    randomised: bool = True,
    allow_empty: bool = True,
    penalty: float = 0.01,
    free: int = 5,
    u: Any = None,
) -> Raps:
    """Calibrates the score at which sets stop.

    Args:
      log_p, labels, alpha, by, groups, randomised, allow_empty, u: as for `aps`.
      penalty: lambda, of each place after the first `free`.
      free: k_reg; from 1.

    Raises:
      ValueError: see `aps`; or a negative penalty.
    """
    if penalty < 0 or free < 0:
        raise ValueError(f"penalty, free: {penalty!r}, {free!r}; numbers from 0 are expected")
    p = _classes.probabilities(log_p)
    scores = _scores(p, _classes.uniform(u, len(p), randomised), penalty, free)
    quantile, ids = _classes.fit(scores, labels, alpha, by, groups)
    flags = np.int64(_quantile.BY.index(by)), np.bool_(randomised), np.bool_(allow_empty)
    return Raps(quantile, *flags, np.float64(penalty), np.int64(free), ids)
