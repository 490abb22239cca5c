"""How well a score separates out-of-distribution from in-distribution examples.

Higher scores mean more out of distribution; equal scores are one threshold. All metrics follow from
sorting each side and merging the two.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.metrics._sorting import group_ends, merge


def ranking(scores_in: ArrayLike, scores_out: ArrayLike) -> dict[str, float]:
    """All ranking metrics from one sort of each side.

    Args:
      scores_in: [N] of in-distribution examples.
      scores_out: [N'] of out-of-distribution examples.

    Returns:
      auroc: P(out > in) + P(out = in) / 2.
      aupr_out, aupr_in: average precision sum_j (recall_j - recall_{j-1}) precision_j over the
        thresholds, with out- or in-distribution as the positive class; no interpolation.
      fpr95: out is positive: the fraction of `scores_in` at or above the highest threshold that at
        least 95% of `scores_out` reach (Hendrycks & Gimpel's side).
      fpr95_in: in is positive, as in ODIN and OpenOOD: the fraction of `scores_out` at or below the
        lowest threshold that keeps at least 95% of `scores_in`.

    Raises:
      ValueError: no scores, a shape other than [N], NaN.
    """
    scores_in, scores_out = _checked(scores_in=scores_in, scores_out=scores_out)
    N, N_out = len(scores_in), len(scores_out)
    values, out = merge(scores_in, scores_out)
    below_in, below_out = _at_or_below(values, out)
    step_in, step_out = np.diff(below_in), np.diff(below_out)
    # Scores at or above a threshold are those not at or below the previous one.
    above_in, above_out = N - below_in[:-1], N_out - below_out[:-1]
    return {
        "auroc": np.float64(_area(below_in, step_out) / (2 * N * N_out)),
        "aupr_out": np.sum(step_out * (above_out / (above_out + above_in))) / N_out,
        "aupr_in": np.sum(step_in * (below_in[1:] / (below_in[1:] + below_out[1:]))) / N,
        "fpr95": fpr_at_tpr(scores_in, scores_out),
        "fpr95_in": fpr_at_tpr(-scores_out, -scores_in),
    }


def auroc(scores_in: ArrayLike, scores_out: ArrayLike) -> float:
    """P(out > in) + P(out = in) / 2 of scores [N] and [N']; errors as in `ranking`."""
    scores_in, scores_out = _checked(scores_in=scores_in, scores_out=scores_out)
    below_in, below_out = _at_or_below(*merge(scores_in, scores_out))
    pairs = len(scores_in) * len(scores_out)
    return np.float64(_area(below_in, np.diff(below_out)) / (2 * pairs))


def fpr_at_tpr(negatives: ArrayLike, positives: ArrayLike, tpr: float = 0.95) -> float:
    """Fraction of negatives at or above the highest threshold that at least `tpr` positives reach.

    Args:
      negatives: [N] scores.
      positives: [N'] scores, higher means more positive.
      tpr: in (0, 1].
    """
    negatives, positives = _checked(negatives=negatives, positives=positives)
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr: a fraction in (0, 1] is expected; got {tpr}")
    n = len(positives)
    needed = math.ceil(tpr * n)
    needed -= (needed - 1) / n >= tpr  # the product may have been rounded up
    threshold = np.partition(positives, n - needed)[n - needed]
    return np.float64(np.count_nonzero(negatives >= threshold) / len(negatives))


def _checked(**scores: ArrayLike) -> list[np.ndarray]:
    arrays = {name: np.asarray(side) for name, side in scores.items()}
    for name, side in arrays.items():
        if side.ndim != 1 or not len(side):
            raise ValueError(f"{name}: shape [N] with N > 0 is expected; got {side.shape}")
        if np.isnan(side.min()):
            raise ValueError(f"{name}: NaN at example {np.isnan(side).argmax()}")
    dtype = np.result_type(*arrays.values(), np.float32)
    return [side.astype(dtype, copy=False) for side in arrays.values()]


def _at_or_below(values: np.ndarray, out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of in and out scores at or below each threshold, starting with 0."""
    ends = group_ends(values)
    below_out = np.cumsum(out, dtype=np.int64)[ends]
    return np.append(0, ends + 1 - below_out), np.append(0, below_out)


def _area(below_in: np.ndarray, step_out: np.ndarray) -> int:
    """Twice the number of pairs in < out, with ties as half: integers, so without rounding."""
    return int(np.dot(step_out, below_in[1:] + below_in[:-1]))
