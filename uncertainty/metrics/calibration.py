"""Calibration errors in bins, of all examples, classes and groups; bins of reliability diagrams."""

import difflib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.metrics._arrays import (
    bin_classes,
    bin_edges,
    bin_index,
    checked,
    checked_bins,
    over,
    places,
    probabilities,
    top,
    top_label,
)
from uncertainty.metrics._sorting import checked_pair, most_confident_first

KINDS = ("width", "mass")


class Bins(NamedTuple):
    """Confidence and accuracy in bins of confidence; NaN means where a bin is empty."""

    count: np.ndarray  # type: ignore[assignment]  # [bins]; tuples have a method of this name
    confidence: np.ndarray  # [bins], mean
    accuracy: np.ndarray  # [bins], mean
    edges: np.ndarray  # [bins + 1]


def reliability_bins(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 15, kind: str = "width"
) -> Bins:
    """Confidence against accuracy.

    Args:
      confidence: [B] in [0, 1].
      correct: [B] of 0 and 1.
      bins: their number.
      kind: 'width', bin j = [j / bins, (j + 1) / bins) and the last with its right edge, where
        j / bins is the nearest number in the precision of `confidence`, so that .29, in float64 or
        in float32, is in [.29, .30) of 100 bins; or 'mass',
        examples in order of confidence cut into bins whose sizes differ by at most one, the larger
        ones first (Nixon et al., 2019). If examples tie across a cut, each bin gets its expected
        share of the right ones, so the order of the examples does not matter.

    Raises:
      ValueError: confidence outside [0, 1] or NaN, wrong shapes, an unknown kind.
    """
    confidence, correct = checked_pair(confidence, correct)
    low, high = confidence.min(), confidence.max()
    if low < 0 or high > 1 + 1e-6:
        raise ValueError(f"confidence: between {low:.6g} and {high:.6g}, but [0, 1] is expected")
    bins = _checked_bins(bins, kind)
    if kind == "width":
        count, total, right = width_sums(confidence, correct, bins)
        edges = bin_edges(bins)
    else:
        descending, errors = most_confident_first(confidence.astype(np.float64), correct)
        count, total, right, edges = mass_sums(descending, errors, bins)
    n = np.where(count > 0, count, np.nan)
    return Bins(count, total / n, right / n, edges)


def _checked_bins(bins: int, kind: str) -> int:
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, 1, 0) or KINDS
        raise ValueError(f"kind: {kind!r}, but {KINDS} are expected; did you mean {near[0]!r}?")
    return checked_bins(bins)


def width_sums(confidence: np.ndarray, correct: np.ndarray, bins: int) -> np.ndarray:
    """Number, confidence and right answers in bins of equal width, [3, bins]."""
    index = bin_index(confidence, bins)
    return np.stack([np.bincount(index, weights, bins) for weights in (None, confidence, correct)])


def mass_sums(descending: np.ndarray, errors: np.ndarray, bins: int) -> tuple[np.ndarray, ...]:
    """Number, confidence and right answers in bins of equal mass, and the edges between them.

    Args:
      descending, errors: as from `most_confident_first`.
      bins: their number.
    """
    B = len(descending)
    ascending, errors = descending[::-1], np.append(0.0, errors)
    ends = np.cumsum([B // bins + (j < B % bins) for j in range(bins)])
    starts = np.append(0, ends[:-1])
    total = np.array([ascending[i:j].sum() for i, j in zip(starts, ends, strict=True)])
    wrong = errors[B - starts] - errors[B - ends]
    edges = ascending[np.append(np.minimum(starts, B - 1), B - 1)]
    return ends - starts, total, ends - starts - wrong, edges


def gap(total: np.ndarray, right: np.ndarray, examples: int) -> float:
    """sum_j n_j / B |confidence_j - accuracy_j| from sums over the bins."""
    return np.abs(total - right).sum() / examples


def ece(log_p: ArrayLike, labels: ArrayLike, bins: int = 15, kind: str = "width") -> float:
    """Expected calibration error of the mixture's most probable class.

        sum_j n_j / B |mean confidence_j - accuracy_j|

    over bins of equal width (Guo et al., 2017; values on an edge go to the lower bin there and to
    the upper bin here, as in np.histogram with the edges j / bins) or, with kind='mass', of equal
    mass: see `reliability_bins`. Confidences are float64, the (mean) exponential of log_p, which
    for log(.29) may differ from the edge .29 by rounding.
    """
    log_p, labels = checked(log_p, labels)
    bins = _checked_bins(bins, kind)

    def chunk(_: slice, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        index, confidence = top(x)
        return width_sums(confidence, index == y, bins)

    if kind == "width":
        _, total, right = over(chunk, log_p, labels)
    else:
        _, total, right, _ = mass_sums(*most_confident_first(*top_label(log_p, labels)), bins)
    return gap(total, right, len(labels))


def classwise_ece(log_p: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Mean over the classes of the calibration error of each one against the rest.

    mean_k sum_j n_jk / B |mean p_jk - frequency_jk|, bins of equal width (Kull et al., 2019).
    """
    return float(classwise(log_p, labels, bins).mean())


def classwise(log_p: ArrayLike, labels: ArrayLike, bins: int = 15) -> np.ndarray:
    """The calibration error of each class against the rest, [K]; `classwise_ece` is their mean."""
    log_p, labels = checked(log_p, labels)
    bins = checked_bins(bins)

    def chunk(_: slice, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return bin_classes(probabilities(x), places(y, x.shape[2]), bins)

    _, probability, label = over(chunk, log_p, labels)
    return np.abs(probability - label).sum(1) / len(labels)


def classwise_intervals(
    log_p: ArrayLike,
    labels: ArrayLike,
    bins: int = 15,
    level: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> np.ndarray:
    """Bootstrap intervals of `classwise`, [2, K].

    Examples are resampled, and the interval is the basic one, [2 e - q_high, 2 e - q_low] cut at 0:
    the error of a resample is too large by about as much as that of the sample itself, since noise
    in a bin adds to both, which percentiles alone would count twice (Davison & Hinkley 1997,
    section 5.2).

    Args:
      log_p, labels, bins: as for `ece`.
      level: of the intervals.
      resamples: of the bootstrap.
      seed: of its draws.

    Raises:
      ValueError: fewer than 2 resamples, or a level outside (0, 1).
    """
    if resamples < 2 or not 0 < level < 1:
        raise ValueError(f"resamples, level: {resamples!r}, {level!r}; at least 2, and in (0, 1)")
    log_p, labels = checked(log_p, labels)
    bins = checked_bins(bins)
    over(lambda s, x, y: 0, log_p, labels)  # checks the values
    p = probabilities(log_p)
    B, K = p.shape
    index = bin_index(p, bins)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(B, np.full(B, 1 / B), size=resamples).astype(np.float64)
    errors = np.empty((resamples, K))
    for k in range(K):
        residual = p[:, k] - (labels == k)
        inside = np.zeros((B, bins))
        inside[np.arange(B), index[:, k]] = residual
        errors[:, k] = np.abs(weights @ inside).sum(1) / B
    low, high = np.quantile(errors, [(1 - level) / 2, (1 + level) / 2], axis=0)
    centre = 2 * classwise(log_p, labels, bins)
    return np.maximum([centre - high, centre - low], 0.0)


def adaptive_ece(log_p: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Adaptive calibration error (ACE; Nixon et al. 2019).

    mean_k sum_j n_jk / B |mean p_jk - frequency_jk|, over all classes, each in `bins` bins of equal
    mass.
    """
    log_p, labels = checked(log_p, labels)
    bins = checked_bins(bins)
    over(lambda s, x, y: 0, log_p, labels)
    p = probabilities(log_p)
    errors = []
    for k in range(p.shape[1]):
        sums = mass_sums(*most_confident_first(p[:, k], labels == k), bins)
        errors.append(gap(sums[1], sums[2], len(labels)))
    return float(np.mean(errors))


def mce(confidence: ArrayLike, correct: ArrayLike, bins: int = 15, kind: str = "width") -> float:
    """Maximum calibration error: max_j |mean confidence_j - accuracy_j| (Naeini et al. 2015).

    Over the bins of `reliability_bins` that have examples. A bin with a single example counts as
    any other, so with bins of equal width it is often noise.
    """
    b = reliability_bins(confidence, correct, bins, kind)
    return float(np.nanmax(np.abs(b.confidence - b.accuracy)))


def debiased_error(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """Debiased root mean squared calibration error (Kumar, Liang & Ma 2019).

        sqrt(max(0, sum_j n_j / B [(mean confidence_j - accuracy_j)^2
                                   - accuracy_j (1 - accuracy_j) / (n_j - 1)]))

    over bins of equal mass. The subtracted term is the variance of accuracy_j, which raises the
    plain estimate and every binned ECE of a calibrated model above 0. Of bins with one example
    nothing can be said, and they are left out.
    """
    b = reliability_bins(confidence, correct, bins, "mass")
    n = np.asarray(b.count, np.float64)
    use = n > 1
    if not use.any():
        raise ValueError(f"bins: {bins} for {int(n.sum())} examples; some need two or more")
    bias = b.accuracy[use] * (1 - b.accuracy[use]) / (n[use] - 1)
    square = np.sum(n[use] * ((b.confidence[use] - b.accuracy[use]) ** 2 - bias)) / n[use].sum()
    return float(np.sqrt(max(square, 0.0)))


def by_group(
    confidence: ArrayLike, correct: ArrayLike, groups: Any, bins: int = 15
) -> dict[int, dict[str, float]]:
    """Examples, accuracy, confidence minus accuracy, and ECE of each group.

    Args:
      confidence, correct: [B].
      groups: [B] integers.
      bins: of equal width.

    Raises:
      ValueError: groups of another shape.
    """
    confidence, correct = checked_pair(confidence, correct)
    groups = np.asarray(groups)
    if groups.shape != confidence.shape or groups.dtype.kind not in "iub":
        raise ValueError(
            f"groups: {len(confidence)} integers are expected; got {groups.dtype} {groups.shape}"
        )
    values = {}
    for group in np.unique(groups):
        c, r = confidence[groups == group], correct[groups == group]
        _, total, right = width_sums(c, r, checked_bins(bins))
        values[int(group)] = {
            "examples": float(len(c)),
            "accuracy": float(r.mean()),
            "overconfidence": float(c.mean() - r.mean()),
            "ece": float(gap(total, right, len(c))),
        }
    return values
