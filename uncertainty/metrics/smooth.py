"""Smooth calibration error: no bins, one bandwidth that the data choose (Błasiok & Nakkiran 2024).

    r_s(t) = 1/B sum_b (correct_b - confidence_b) K_s(t, confidence_b),   SmoothECE_s = int |r_s| dt

K_s is the Gaussian of standard deviation s that is reflected at 0 and 1. SmoothECE_s falls with s,
and the value is its fixed point SmoothECE_s = s. It is continuous in the predictions, and within
constant factors of the distance to the nearest calibrated predictor.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import fft, optimize

from uncertainty.metrics._sorting import checked_pair

CELLS = 1 << 14


def smooth_ece(confidence: ArrayLike, correct: ArrayLike) -> float:
    """SmoothECE of confidences [B] and whether they were right, [B].

    Fixed points below the width of two cells (1e-4) are replaced by the value at that bandwidth.

    Raises:
      ValueError: confidence outside [0, 1] or NaN, wrong shapes.
    """
    error, least = at_bandwidth(confidence, correct), 2 / CELLS
    if (value := error(least)) <= least:
        return value
    if error(1.0) >= 1:  # up to rounding, of confidences of 1 that are all wrong
        return 1.0
    return optimize.brentq(lambda s: error(s) - s, least, 1.0, xtol=1e-8)


def at_bandwidth(confidence: ArrayLike, correct: ArrayLike) -> Callable[[float], float]:
    """The function s -> SmoothECE_s.

    The residuals lie on a grid of `CELLS` cells, between whose centres each is divided in
    proportion; the reflected Gaussian is diagonal in the cosine transform, exp(-(pi k s)^2 / 2).
    """
    confidence, correct = checked_pair(confidence, correct)
    if confidence.min() < 0 or confidence.max() > 1 + 1e-6:
        raise ValueError(
            f"confidence: between {confidence.min():.6g} and {confidence.max():.6g}, but [0, 1] is "
            "expected"
        )
    confidence = np.minimum(confidence.astype(np.float64), 1.0)
    residual = (correct - confidence) / len(confidence)
    place = np.clip(confidence * CELLS - 0.5, 0, CELLS - 1)
    cell = np.minimum(place.astype(np.intp), CELLS - 2)
    right = place - cell
    sums = np.bincount(cell, residual * (1 - right), CELLS)
    sums += np.bincount(cell + 1, residual * right, CELLS)
    waves = fft.dct(sums, type=2)
    squares = (np.pi * np.arange(CELLS)) ** 2 / 2

    def error(bandwidth: float) -> float:
        return float(np.abs(fft.idct(waves * np.exp(-squares * bandwidth**2), type=2)).sum())

    return error
