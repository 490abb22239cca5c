"""The one sort that ranking, selective prediction and equal-mass bins share."""

from typing import Any

import numpy as np


def merge(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of both, ascending, and for each whether it is from b.

    Sorting each side alone needs no indices, which is several times faster than an argsort; a
    stable argsort of two runs is then a single merge.
    """
    values = np.concatenate([np.sort(a), np.sort(b)])
    order = np.argsort(values, kind="stable")
    return values[order], order >= len(a)


def group_ends(values: np.ndarray) -> np.ndarray:
    """The last place of every run of equal values."""
    return np.append(np.flatnonzero(values[1:] != values[:-1]), len(values) - 1)


def checked_pair(confidence: Any, correct: Any) -> tuple[np.ndarray, np.ndarray]:
    """confidence [B] of floats and correct [B] of bools.

    Raises:
      ValueError: different or wrong shapes, no examples, NaN, `correct` other than 0 and 1.
    """
    confidence, correct = np.asarray(confidence), np.asarray(correct)
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence):
        raise ValueError(
            "confidence, correct: two equal shapes [B] with B > 0 are expected; "
            f"got {confidence.shape} and {correct.shape}"
        )
    if np.isnan(confidence.min()):
        raise ValueError(f"confidence: NaN at example {np.isnan(confidence).argmax()}")
    if correct.dtype != bool and not ((correct == 0) | (correct == 1)).all():
        b = ((correct != 0) & (correct != 1)).argmax()
        raise ValueError(f"correct: {correct[b]} at example {b}, but 0 or 1 is expected")
    return confidence, correct.astype(bool)


def most_confident_first(
    confidence: np.ndarray, correct: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Confidence in descending order, and the expected errors among the first 1, ..., B examples.

    The expectation is over a random order of equal confidences: errors grow linearly within a tie.
    """
    values, wrong = merge(confidence[np.flatnonzero(correct)], confidence[np.flatnonzero(~correct)])
    values = values[::-1]
    errors = np.cumsum(wrong[::-1], dtype=np.int64).astype(np.float64)
    tied = np.flatnonzero(values[1:] == values[:-1])  # each tie without its last place
    if len(tied):
        new = np.append(True, np.diff(tied) > 1)
        first, last = tied[new], tied[np.append(new[1:], True)] + 1
        before = np.where(first > 0, errors[first - 1], 0.0)
        slope = (errors[last] - before) / (last - first + 1)
        tie = np.cumsum(new) - 1
        errors[tied] = before[tie] + slope[tie] * (tied - first[tie] + 1)
    return values, errors
