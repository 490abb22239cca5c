"""Split conformal regression (Lei et al. 2018): intervals of one width, or in units of a scale.

s(x, y) = |y - mean(x)| / scale(x),    C(x) = mean(x) +- q scale(x)
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.conformal import _quantile, _targets


class Split(NamedTuple):
    """Intervals of `split`."""

    quantile: np.ndarray  # [1], [G] by group; of each target [..., K]
    by: Any  # [], an index into `_quantile.BY`
    ids: Any = _quantile.NO_IDS  # [G], the groups of `quantile`, ascending

    def __call__(
        self, mean: ArrayLike, scale: ArrayLike | None = None, groups: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ends of the intervals, [B, K] each, from what was given to the fit."""
        mean, scale = _checked(mean, scale)
        width = _targets.limits(self.quantile, self.by, self.ids, groups, len(mean)) * scale
        return mean - width, mean + width


def _checked(mean: ArrayLike, scale: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    mean = _targets.checked("mean", mean)
    scale = np.ones_like(mean) if scale is None else _targets.checked("scale", scale, mean.shape)
    if not (scale > 0).all():
        raise ValueError("scale: positive numbers are expected")
    return mean, scale


def split(
    mean: ArrayLike,
    y: ArrayLike,
    scale: ArrayLike | None = None,
    alpha: float = 0.1,
    by: str = "none",
    groups: Any = None,
) -> Split:
    """Calibrates the width, for each target apart.

    Args:
      mean: [B, K] predictions of held-out examples.
      y: [B, K] their targets.
      scale: [B, K] positive, such as the predicted standard deviation; 1 by default.
      alpha: the share of targets that the intervals may miss.
      by: 'none', or 'group' for a width and coverage of each group.
      groups: [B] integers from 0, for 'group'.

    Raises:
      ValueError: wrong or not finite arrays, an alpha outside (0, 1), or an unknown `by`.
    """
    mean, scale = _checked(mean, scale)
    y = _targets.checked("y", y, mean.shape)
    return Split(*_targets.fit(np.abs(y - mean) / scale, alpha, by, groups))
