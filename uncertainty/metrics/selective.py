"""Selective prediction: the error rate among a model's most confident predictions."""

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.metrics._sorting import checked_pair, most_confident_first


def risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Coverage k / B and the error rate among the k most confident examples, k = 1, ..., B.

    Ties: the expected value over a random order of equal confidences.

    Args:
      confidence: [B], of any scale.
      correct: [B] of 0 and 1.

    Returns:
      coverage: [B].
      risk: [B].

    Raises:
      ValueError: wrong shapes, NaN, `correct` other than 0 and 1.
    """
    _, errors = most_confident_first(*checked_pair(confidence, correct))
    k = np.arange(1, len(errors) + 1)
    return k / len(errors), errors / k


def aurc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Area under the risk-coverage curve: the mean risk over all k (Geifman et al., 2019)."""
    return risk_coverage(confidence, correct)[1].mean()


def excess_aurc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """`aurc` minus its minimum over all orders of the same answers; 0 if errors come last.

    Difference from the paper (Geifman et al., 2019): the minimum is exact for B examples, where
    they use its limit r + (1 - r) log(1 - r) at the error rate r.
    """
    return excess(*checked_pair(confidence, correct), aurc(confidence, correct))


def excess(confidence: np.ndarray, correct: np.ndarray, area: float) -> float:
    """`excess_aurc`, given the area."""
    B, right = len(correct), np.count_nonzero(correct)
    j = np.arange(1, B - right + 1)
    return np.float64(max(area - np.sum(j / (right + j)) / B, 0.0))
