"""Accuracy, log-likelihood and the Brier score of the mixture over members.

Each takes log-probabilities log_p [M, B, K] and labels [B]; the mixture is the mean of the members'
probabilities. The likelihoods are those of classes that exclude one another; of independent ones
see `evaluate_classification`. A ValueError names the member, example and class with NaN, with a
positive log-probability or with a label out of range.
"""

import operator
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.metrics._arrays import (
    at_labels,
    bin_classes,
    checked,
    checked_bins,
    inner,
    log_mean_exp,
    over,
    places,
    predictions,
    probabilities,
)


def accuracy(log_p: ArrayLike, labels: ArrayLike) -> float:
    """Fraction of examples whose most probable class (the first in a tie) is the label."""

    def chunk(_: slice, x: np.ndarray, y: np.ndarray) -> int:
        return int(np.count_nonzero(predictions(x) == y))

    return _mean(chunk, log_p, labels)


def top_k_accuracy(log_p: ArrayLike, labels: ArrayLike, k: int = 5) -> float:
    """Fraction of examples whose label is among the k most probable classes.

    Ties go to the first class, so k = 1 is `accuracy`.
    """
    if k < 1:
        raise ValueError(f"k: at least 1 is expected; got {k}")

    def chunk(_: slice, x: np.ndarray, y: np.ndarray) -> int:
        p = x[0] if len(x) == 1 else probabilities(x)
        label = p.ravel().take(places(y, p.shape[1]))[:, None]
        before = np.arange(p.shape[1]) < y[:, None]
        return int(np.count_nonzero(((p > label) | ((p == label) & before)).sum(1) < k))

    return _mean(chunk, log_p, labels)


def nll(log_p: ArrayLike, labels: ArrayLike) -> float:
    """Negative log-likelihood of the mixture, -mean_b log mean_m p_m(y_b), in nats.

    Infinite where every member gives a label the probability 0.
    """

    def chunk(_: slice, x: np.ndarray, y: np.ndarray) -> float:
        return 0.0 - log_mean_exp(at_labels(x, places(y, x.shape[2]))).sum()

    return _mean(chunk, log_p, labels)


def member_nll(log_p: ArrayLike, labels: ArrayLike) -> float:
    """Mean of the members' negative log-likelihoods, in nats; at least `nll`."""

    def chunk(_: slice, x: np.ndarray, y: np.ndarray) -> float:
        return 0.0 - at_labels(x, places(y, x.shape[2])).sum() / len(x)

    return _mean(chunk, log_p, labels)


def brier(log_p: ArrayLike, labels: ArrayLike) -> float:
    """Brier score mean_b sum_k (p_k - [k = y_b])^2, from 0 to 2 (Brier, 1950)."""

    def chunk(_: slice, x: np.ndarray, y: np.ndarray) -> float:
        at = places(y, x.shape[2])
        return squared_error(probabilities(x), at_labels(x, at), at)

    return _mean(chunk, log_p, labels)


def briers(log_p: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """The Brier score of each example, [B]; its mean is `brier`."""
    log_p, labels = checked(log_p, labels)
    score = np.empty(len(labels))

    def chunk(s: slice, x: np.ndarray, y: np.ndarray) -> int:
        at = places(y, x.shape[2])
        p = probabilities(x)
        p.ravel()[at] = np.expm1(at_labels(x, at)).mean(0)  # as in `squared_error`
        score[s] = np.einsum("bk,bk->b", p, p)
        return 0

    over(chunk, log_p, labels)
    return score


def _mean(chunk: Callable, log_p: ArrayLike, labels: ArrayLike) -> float:
    log_p, labels = checked(log_p, labels)
    return np.float64(over(chunk, log_p, labels) / len(labels))


def squared_error(p: np.ndarray, log_p: np.ndarray, at: np.ndarray) -> float:
    """Sum of (p - one hot)^2.

    1 - p of the label comes from expm1, so nothing cancels when p is close to 1.

    Args:
      p: [B, K] of the mixture, in C order; overwritten.
      log_p: [M, B] of the labels.
      at: `places` of the labels.
    """
    p.ravel()[at] = np.expm1(log_p).mean(0)
    return inner(p, p)


def brier_decomposition(log_p: ArrayLike, labels: ArrayLike, bins: int = 15) -> dict[str, float]:
    """The five parts of the Brier score.

        brier = uncertainty - resolution + reliability
                + within_bin_variance - within_bin_covariance

    Every class is a separate event, forecast with probability p_k and binned by it into `bins` bins
    of equal width; the parts are summed over the classes. With n_j, f_j and o_j the number, mean
    forecast and frequency of the event in bin j of class k, and o its frequency overall:
    uncertainty o (1 - o), resolution sum_j n_j (o_j - o)^2 / B, reliability sum_j n_j (f_j - o_j)^2
    / B (Murphy, 1973). These three add up to the score only if all forecasts in a bin are equal;
    the variance of the forecasts within bins and twice their covariance with the event are the rest
    (Stephenson, Coelho & Jolliffe, 2008).
    """
    log_p, labels = checked(log_p, labels)
    bins, B = checked_bins(bins), len(labels)

    def chunk(_: slice, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float, float]:
        p, at = probabilities(x), places(y, x.shape[2])
        return bin_classes(p, at, bins), inner(p, p), p.ravel().take(at).sum()

    def add(a: tuple, b: tuple) -> tuple:
        return tuple(map(operator.add, a, b))

    sums, squares, at_label = over(chunk, log_p, labels, add)
    parts = murphy(sums)
    _, f, o = _bin_means(sums)
    parts["within_bin_variance"] = (squares - np.sum(sums[1] * f)) / B
    parts["within_bin_covariance"] = 2 * (at_label - np.sum(sums[1] * o)) / B
    return parts


def murphy(sums: np.ndarray) -> dict[str, float]:
    """Uncertainty, resolution and reliability from `bin_classes`' sums [3, K, bins]."""
    n, f, o = _bin_means(sums)
    B = n[0].sum()
    overall = sums[2].sum(1, keepdims=True) / B
    return {
        "uncertainty": np.sum(overall * (1 - overall)),
        "resolution": np.sum(n * (o - overall) ** 2) / B,
        "reliability": np.sum(n * (f - o) ** 2) / B,
    }


def _bin_means(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    count, probability, label = sums
    n = np.maximum(count, 1.0)  # the sums of an empty bin are 0
    return count, probability / n, label / n
