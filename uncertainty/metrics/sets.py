"""Coverage and size of prediction sets of classes, and of intervals of targets.

A set that has the label is a hit. Coverage alone says little, as constant sets have it too: what
differs between methods is the size, and how coverage is spread over classes, groups and sizes.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

# The sizes of a stratum: 0 and 1, 2 and 3, 4 to 10, 11 to 100, 101 to 1000, more.
STRATA = (2, 4, 11, 101, 1001)


def evaluate_sets(
    chosen: ArrayLike, labels: ArrayLike, alpha: float, groups: Any = None
) -> dict[str, float]:
    """Coverage, size, and coverage within classes, strata of size and groups.

    Args:
      chosen: [B, K] bool, whether a class is in an example's set.
      labels: [B] integers.
      alpha: the share of misses that the sets were made for.
      groups: [B] integers from 0, if there are groups.

    Returns:
      coverage, size (mean), empty, single and whole (shares of the examples whose set has none, one
      and all of the classes);
      class_coverage_gap (Ding et al. 2023), the mean over classes with examples of
      |coverage_k - (1 - alpha)|, and worst_class_coverage;
      size_coverage_violation (SSCV; Angelopoulos et al. 2021), the largest |coverage_s - (1 -
      alpha)| over strata s of the sizes `STRATA`;
      with groups group_coverage_gap and worst_group_coverage.

    Raises:
      ValueError: wrong shapes, or labels that are no class.
    """
    chosen, labels = np.asarray(chosen, bool), np.asarray(labels)
    if chosen.ndim != 2 or labels.shape != chosen.shape[:1] or not len(labels):
        raise ValueError(
            f"chosen, labels: [B, K] and [B] are expected; got {chosen.shape} and {labels.shape}"
        )
    B, K = chosen.shape
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= K:
        raise ValueError(f"labels: integers from 0 to {K - 1} are expected")
    hit, size = chosen[np.arange(B), labels], chosen.sum(1)
    of_class = coverage_within(hit, labels)
    of_size = coverage_within(hit, np.searchsorted(STRATA, size, side="right"))
    values = {
        "coverage": hit.mean(),
        "size": size.mean(),
        "empty": (size == 0).mean(),
        "single": (size == 1).mean(),
        "whole": (size == K).mean(),
        "class_coverage_gap": np.abs(of_class - (1 - alpha)).mean(),
        "worst_class_coverage": of_class.min(),
        "size_coverage_violation": np.abs(of_size - (1 - alpha)).max(),
    }
    if groups is not None:
        of_group = coverage_within(hit, np.asarray(groups))
        values["group_coverage_gap"] = np.abs(of_group - (1 - alpha)).mean()
        values["worst_group_coverage"] = of_group.min()
    return {name: float(value) for name, value in values.items()}


def coverage_within(hit: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The share of hits in each group that has examples, in the order of the groups."""
    _, index = np.unique(groups, return_inverse=True)
    return np.bincount(index, hit) / np.bincount(index)


def coverage_range(calibration: int, test: int, alpha: float, level: float = 0.95) -> np.ndarray:
    """The central range, [2], of the coverage that a valid conformal method has on a test set.

    With k = ceil((n + 1)(1 - alpha)) of n calibration scores without ties, the hits among m
    exchangeable test examples are beta-binomial, m trials with Beta(k, n + 1 - k) (Vovk 2012;
    Angelopoulos & Bates 2023, section 3.2).

    Args:
      calibration: n.
      test: m.
      alpha: the share of misses.
      level: the probability of the range.
    """
    missed = int(np.floor((calibration + 1) * alpha + 1e-9))
    if missed == 0:
        return np.ones(2)  # sets have everything
    hits = stats.betabinom(test, calibration + 1 - missed, missed)
    return np.array(hits.ppf([(1 - level) / 2, (1 + level) / 2])) / test
