"""Scaling of the variance of targets (Laves et al. 2020, "Well-calibrated regression uncertainty in
medical imaging with deep learning"; Levi et al. 2022, "Evaluating and calibrating uncertainty
prediction in regression tasks").

    N(m, v)  ->  N(c + s (m - c), s^2 v),   c = the mixture's mean,   s = argmin NLL

Of a single Gaussian s^2 is the mean of (y - m)^2 / v. A mixture is stretched as a whole about its
mean, which stays: noise and disagreement grow alike, and s is that of the mixture's own likelihood.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special


class VarianceScale(NamedTuple):
    """Mean and variance of members -> those of the stretched mixture."""

    scale: Any  # [K], s of each target
    at_bound: Any  # [K], bool: the optimum lies outside the allowed range

    def __call__(self, mean: Any, variance: Any) -> tuple[Any, Any]:
        """Calibrated means and variances, [M, B, K] each."""
        if np.shape(mean)[-1:] != np.shape(self.scale):
            raise ValueError(
                f"mean: {np.shape(mean)}; the scale is of {np.size(self.scale)} targets"
            )
        centre = mean.mean(0)
        return centre + self.scale * (mean - centre), self.scale**2 * variance


def variance_scale(
    mean: ArrayLike,
    variance: ArrayLike,
    y: ArrayLike,
    minimum: float = 0.01,
    maximum: float = 100.0,
) -> VarianceScale:
    """The factor of the standard deviation with the lowest NLL, of each target by itself.

    The likelihood of a mixture is not convex in s: the best of a grid is refined.

    Args:
      mean, variance: [M, B, K] of the members, of held-out examples.
      y: [B, K] targets, or [B] of a single one.
      minimum, maximum: the allowed range, with 1 inside.

    Raises:
      ValueError: wrong or not finite arrays, a variance that is not positive, or a wrong range.
    """
    if not 0 < minimum <= 1 <= maximum < np.inf:
        raise ValueError(
            f"minimum, maximum: {minimum!r}, {maximum!r}; 0 < minimum <= 1 <= maximum is needed"
        )
    mean, variance, y = _checked(mean, variance, y)
    low, high = np.log(minimum), np.log(maximum)
    columns = zip(np.moveaxis(mean, -1, 0), np.moveaxis(variance, -1, 0), y.T, strict=True)
    scales = [_log_scale(*column, low, high) for column in columns]
    bound = [not low < s < high for s in scales]
    return VarianceScale(np.exp(np.clip(scales, low, high)), np.array(bound))


def _log_scale(mean: np.ndarray, variance: np.ndarray, y: np.ndarray, low: float, high: float):
    """log s of one target; mean and variance [M, B], y [B]."""
    if len(mean) == 1:
        with np.errstate(divide="ignore"):
            return 0.5 * np.log(np.mean((y - mean[0]) ** 2 / variance[0]))
    centre = mean.mean(0)

    def nll(log_s: float) -> float:
        """Of the stretched mixture, by its density at c + (y - c) / s."""
        at = centre + (y - centre) * np.exp(-log_s)
        log_p = -0.5 * ((at - mean) ** 2 / variance + np.log(2 * np.pi * variance))
        return log_s - float(np.mean(special.logsumexp(log_p, 0))) + np.log(len(mean))

    grid = np.unique(np.append(np.linspace(low, high, 81), 0.0))
    best = int(np.argmin([nll(log_s) for log_s in grid]))
    if best in (0, len(grid) - 1):
        inside = grid[1 if best == 0 else -2]
        if nll(grid[best] + 1e-4 * (inside - grid[best])) >= nll(grid[best]):
            return grid[best]
    ends = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    return optimize.minimize_scalar(nll, bounds=ends, method="bounded", options=dict(xatol=1e-9)).x


def _checked(mean: Any, variance: Any, y: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean, variance, y = (np.asarray(a, np.float64) for a in (mean, variance, y))
    if mean.ndim != 3 or 0 in mean.shape:
        raise ValueError(f"mean: [members, examples, targets] is expected; got {mean.shape}")
    y = y[:, None] if y.ndim == 1 else y
    for name, values, shape in (("variance", variance, mean.shape), ("y", y, mean.shape[1:])):
        if values.shape != shape:
            raise ValueError(f"{name}: {shape} is expected; got {values.shape}")
    for name, values in (("mean", mean), ("variance", variance), ("y", y)):
        bad = ~np.isfinite(values) | ((values <= 0) & (name == "variance"))
        if bad.any():
            positive = "positive and " * (name == "variance")
            at = ", ".join(map(str, np.argwhere(bad)[0]))
            raise ValueError(f"{name}: {values[bad][0]} at [{at}]; {positive}finite is expected")
    return mean, variance, y
