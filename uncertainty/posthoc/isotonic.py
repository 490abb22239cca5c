"""Isotonic regression of each class against the rest (Zadrozny & Elkan 2002), normalised.

    q_k = f_k(p_k) / sum_j f_j(p_j),   f_k = argmin over rising f of sum_b ([y_b = k] - f(p_bk))^2

f is linear between the blocks of the fit, and constant outside.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from uncertainty.posthoc import _arrays


class Isotonic(NamedTuple):
    """log p -> the normalised values of K rising functions."""

    knots: Any  # [K, N] probabilities, ascending; shorter ones repeat the last
    values: Any  # [K, N]
    floor: Any  # []

    def __call__(self, log_p: Any) -> Any:
        """Calibrated log-probabilities, [..., B, K]."""
        log_p = _arrays.as_floats(log_p)
        xp = _arrays.namespace(log_p)
        p = xp.exp(log_p)
        of_classes = zip(self.knots, self.values, strict=True)
        q = [xp.interp(p[..., k], x, y) for k, (x, y) in enumerate(of_classes)]
        return _arrays.from_probabilities(xp.maximum(xp.stack(q, -1), self.floor))


def isotonic(log_p: ArrayLike, labels: ArrayLike, floor: float | None = None) -> Isotonic:
    """Fits the K functions by pool adjacent violators.

    Args:
      log_p: [B, K] log-probabilities of held-out examples.
      labels: [B] integers.
      floor: the least value of f. By default 1 / (B + K): isotonic fits have zeros, and one label
        of a class with the probability 0 makes the NLL infinite.

    Raises:
      ValueError: wrong arrays (see `_arrays.checked`), or a floor that is no small probability.
    """
    log_p, labels = _arrays.checked(log_p, labels)
    B, K = log_p.shape
    floor = 1 / (B + K) if floor is None else floor
    if not 0 <= floor < 1 / K:
        raise ValueError(f"floor: {floor!r}; from 0 to below 1 / {K} classes")
    curves = [_curve(np.exp(log_p[:, k]), labels == k) for k in range(K)]
    most = max(len(x) for x, _ in curves)
    padded = [[np.pad(a, (0, most - len(a)), "edge") for a in curve] for curve in curves]
    knots, values = np.stack([x for x, _ in padded]), np.stack([y for _, y in padded])
    return Isotonic(knots, values, np.float64(floor))


def _curve(p: np.ndarray, is_class: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the blocks of the fit, and their values."""
    x, index, count = np.unique(p, return_inverse=True, return_counts=True)
    fitted = optimize.isotonic_regression(np.bincount(index, is_class) / count, weights=count)
    starts, stops = fitted.blocks[:-1], fitted.blocks[1:] - 1
    ends = np.unique(np.concatenate([starts, stops]))
    return x[ends], fitted.x[ends]
