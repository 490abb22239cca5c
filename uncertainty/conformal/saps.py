"""Sorted adaptive prediction sets (Huang et al. 2024, "Conformal prediction for deep classifier via
label ranking").

    s(x, y) = u max_k p(k | x)                             if y is the most probable class
    s(x, y) = max_k p(k | x) + (place(y) - 2 + u) penalty  else

All probabilities but the largest are replaced by their places, as they are the least calibrated.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.conformal import _classes, _quantile


class Saps(NamedTuple):
    """Sets of `saps`."""

    quantile: np.ndarray  # [1], [K] by class, [G] by group
    by: Any  # [], an index into `_quantile.BY`
    randomised: Any  # []
    allow_empty: Any  # []
    penalty: Any  # []
    ids: Any = _quantile.NO_IDS  # [G], the groups of `quantile`, ascending

    def __call__(self, log_p: ArrayLike, u: Any = None, groups: Any = None) -> np.ndarray:
        """Whether each class is in the set, [B, K]; a randomised method needs u [B] in [0, 1]."""
        p = _classes.probabilities(log_p)
        scores = _scores(p, _classes.uniform(u, len(p), bool(self.randomised)), float(self.penalty))
        filled = None if self.allow_empty else p
        return _classes.sets(scores, self.quantile, self.by, self.ids, groups, filled)


def _scores(p: np.ndarray, u: np.ndarray, penalty: float) -> np.ndarray:
    _, place = _classes.ranks(p)
    largest, u = p.max(-1, keepdims=True), u[:, None]
    return np.where(place == 1, u * largest, largest + (place - 2 + u) * penalty)


def saps(
    log_p: ArrayLike,
    labels: ArrayLike,
    alpha: float = 0.1,
    by: str = "none",
    groups: Any = None,
    randomised: bool = True,
    allow_empty: bool = True,
    penalty: float = 0.2,
    u: Any = None,
) -> Saps:
    """Calibrates the score at which sets stop.

    Args:
      log_p, labels, alpha, by, groups, randomised, allow_empty, u: as for `aps`.
      penalty: lambda, the weight of a place; the paper tunes it on held-out examples.

    Raises:
      ValueError: see `aps`; or a penalty that is not positive.
    """
    if not penalty > 0:
        raise ValueError(f"penalty: {penalty!r}; a positive number is expected")
    p = _classes.probabilities(log_p)
    scores = _scores(p, _classes.uniform(u, len(p), randomised), penalty)
    quantile, ids = _classes.fit(scores, labels, alpha, by, groups)
    flags = np.int64(_quantile.BY.index(by)), np.bool_(randomised), np.bool_(allow_empty)
    return Saps(quantile, *flags, np.float64(penalty), ids)
