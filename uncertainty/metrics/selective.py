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


def augrc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Area under the generalised risk-coverage curve (Traub et al. 2024): mean_k errors_k / B.

    errors_k are those among the k most confident examples. Every error counts once for each
    coverage at which it is accepted, so unlike in `aurc` the few most confident ones have no larger
    weight. 0 without errors; about r / 2 at an error rate r if the order is random.
    """
    _, errors = most_confident_first(*checked_pair(confidence, correct))
    return float(errors.mean() / len(errors))


def accuracy_rejection(confidence: ArrayLike, correct: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The accuracy of the rest if the least confident share is rejected (Nadeem et al. 2009).

    Ties as in `risk_coverage`.

    Returns:
      rejected: shares 0, 1 / B, ..., (B - 1) / B, [B].
      accuracy: [B].
    """
    coverage, risk = risk_coverage(confidence, correct)
    return 1 - coverage[::-1], 1 - risk[::-1]


def coverage_at_risk(confidence: ArrayLike, correct: ArrayLike, risk: float = 0.01) -> float:
    """The largest coverage with an error rate of at most `risk`, 0 if there is none.

    It is read from the same examples that it is about, so on others the rate may be above `risk`:
    a threshold with a guarantee needs held-out examples (Geifman & El-Yaniv 2017).

    Raises:
      ValueError: a risk outside [0, 1].
    """
    if not 0 <= risk <= 1:
        raise ValueError(f"risk: {risk!r}; a rate from 0 to 1 is expected")
    coverage, rates = risk_coverage(confidence, correct)
    allowed = np.flatnonzero(rates <= risk + 1e-12)
    return float(coverage[allowed[-1]]) if len(allowed) else 0.0


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
