"""Conformalised quantile regression (Romano, Patterson & Candès 2019).

    s(x, y) = max(low(x) - y, y - high(x)),    C(x) = [low(x) - q, high(x) + q]

q is negative if the predicted interval is too wide.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.conformal import _quantile, _targets


class Cqr(NamedTuple):
    """Intervals of `cqr`."""

    quantile: np.ndarray  # [1], [G] by group; of each target [..., K]
    by: Any  # [], an index into `_quantile.BY`
    ids: Any = _quantile.NO_IDS  # [G], the groups of `quantile`, ascending

    def __call__(
        self, low: ArrayLike, high: ArrayLike, groups: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ends of the intervals, [B, K] each; both in the middle where they would cross."""
        low = _targets.checked("low", low)
        high = _targets.checked("high", high, low.shape)
        moved = _targets.limits(self.quantile, self.by, self.ids, groups, len(low))
        moved = np.maximum(moved, -(high - low) / 2)
        return low - moved, high + moved


def cqr(
    low: ArrayLike,
    high: ArrayLike,
    y: ArrayLike,
    alpha: float = 0.1,
    by: str = "none",
    groups: Any = None,
) -> Cqr:
    """Calibrates by how much the ends move, for each target apart.

    Args:
      low, high: [B, K] predicted quantiles of held-out examples, at alpha / 2 and 1 - alpha / 2.
      y: [B, K] their targets.
      alpha, by, groups: as for `split`.

    Raises:
      ValueError: see `split`; or a low end above the high one.
    """
    low = _targets.checked("low", low)
    high, y = _targets.checked("high", high, low.shape), _targets.checked("y", y, low.shape)
    if (low > high).any():
        raise ValueError(f"low, high: low is above high in {int((low > high).sum())} places")
    return Cqr(*_targets.fit(np.maximum(low - y, y - high), alpha, by, groups))
