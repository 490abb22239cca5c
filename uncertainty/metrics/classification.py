"""Accuracy, log-likelihood and the Brier score of the mixture over members.

Each takes log-probabilities log_p [M, B, K] and labels [B]; the mixture is the mean of the members'
probabilities. ValueErrors name the member, example and class: see `_arrays.checked`.
"""

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.metrics import _arrays
from uncertainty.metrics._arrays import (
    at_labels,
    bin_classes,
    checked,
    chunks,
    inner,
    probabilities,
)


def accuracy(log_p: ArrayLike, labels: ArrayLike) -> float:
    """Fraction of examples whose most probable class, the first of equals, is the label."""
    log_p, labels = checked(log_p, labels)
    correct = sum(np.sum(_arrays.predictions(log_p[:, s]) == labels[s]) for s in chunks(log_p))
    return np.float64(correct / len(labels))


def top_k_accuracy(log_p: ArrayLike, labels: ArrayLike, k: int = 5) -> float:
    """Fraction of examples whose label is among the k most probable classes.

    Of equal classes the first goes first, so k = 1 is `accuracy`.
    """
    log_p, labels = checked(log_p, labels)
    if k < 1:
        raise ValueError(f"k: at least 1 is expected; got {k}")
    found = 0
    for s in chunks(log_p):
        p = log_p[0, s] if len(log_p) == 1 else probabilities(log_p[:, s])
        at = p[np.arange(len(p)), labels[s]][:, None]
        before = np.arange(p.shape[1]) < labels[s][:, None]
        found += np.sum(((p > at) | ((p == at) & before)).sum(1) < k)
    return np.float64(found / len(labels))


def nll(log_p: ArrayLike, labels: ArrayLike) -> float:
    """Negative log-likelihood of the mixture, -mean_b log mean_m p_m(y_b), in nats.

    Infinite where every member gives a label the probability 0.
    """
    return -_arrays.log_mean_exp(at_labels(*checked(log_p, labels))).mean()


def member_nll(log_p: ArrayLike, labels: ArrayLike) -> float:
    """Mean over the members of each one's negative log-likelihood, in nats; at least `nll`."""
    return -at_labels(*checked(log_p, labels)).mean()


def brier(log_p: ArrayLike, labels: ArrayLike) -> float:
    """Brier score mean_b sum_k (p_k - [k = y_b])^2, from 0 to 2 (Brier, 1950)."""
    log_p, labels = checked(log_p, labels)
    total = 0.0
    for s in chunks(log_p):
        total += squared_error(probabilities(log_p[:, s]), log_p[:, s], labels[s])
    return np.float64(total / len(labels))


def squared_error(p: np.ndarray, log_p: np.ndarray, labels: np.ndarray) -> float:
    """Sum of (p - one hot)^2 for the mixture p [B, K], which is overwritten.

    1 - p of the label comes from expm1, so nothing cancels when p is close to 1.
    """
    p[np.arange(len(labels)), labels] = np.expm1(at_labels(log_p, labels)).mean(0)
    return inner(p, p)


def brier_decomposition(log_p: ArrayLike, labels: ArrayLike, bins: int = 15) -> dict[str, float]:
    """The five parts of the Brier score.

        brier = uncertainty - resolution + reliability
                + within_bin_variance - within_bin_covariance

    Every class is an event of its own, forecast with probability p_k and grouped by it into `bins`
    bins of equal width; the parts are summed over the classes. With n_j, f_j and o_j the number,
    mean forecast and frequency of the event in bin j of class k, and o its frequency overall:
    uncertainty o (1 - o), resolution sum_j n_j (o_j - o)^2 / B, reliability
    sum_j n_j (f_j - o_j)^2 / B (Murphy, 1973). Those three add up to the score only if all
    forecasts in a bin are equal; the variance of the forecasts within bins and twice their
    covariance with the event do the rest (Stephenson, Coelho & Jolliffe, 2008).
    """
    log_p, labels = checked(log_p, labels)
    sums = np.zeros((3, log_p.shape[2], _arrays.checked_bins(bins)))
    squares = at_label = 0.0
    for s in chunks(log_p):
        p = probabilities(log_p[:, s])
        bin_classes(p, labels[s], sums)
        squares += inner(p, p)
        at_label += p[np.arange(len(p)), labels[s]].sum()
    parts = murphy(sums)
    _, f, o = _bin_means(sums)
    B = len(labels)
    parts["within_bin_variance"] = (squares - np.sum(sums[1] * f)) / B
    parts["within_bin_covariance"] = 2 * (at_label - np.sum(sums[1] * o)) / B
    return parts


def murphy(sums: np.ndarray) -> dict[str, float]:
    """Uncertainty, resolution and reliability from `_arrays.bin_classes`' sums [3, K, bins]."""
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
