"""Bootstrap resamples of a data set, and metrics as functions of them.

A resample draws as many examples as there are, with replacement; it is the number of times that
each was drawn, a row of weights [R, B]. The metric of a row is that of the data set in which
example b appears weights[r, b] times, so one matrix of weights serves all metrics and, for paired
differences (Efron & Tibshirani 1993, "An introduction to the bootstrap", chapters 8 and 13), all
models.

Every function here but `weights` and `interval` prepares a metric: it takes what the metric is of,
and returns a function weights [R, B] -> values [R], exact for integer weights.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse

from uncertainty.metrics._arrays import bin_index, checked_bins

Resampled = Callable[[np.ndarray], np.ndarray]
ROWS = 64  # resamples at a time: weights of 10,000 examples are 5 MB


def weights(
    examples: int, resamples: int, seed: int | tuple[int, ...], groups: ArrayLike | None = None
) -> Iterator[np.ndarray]:
    """Resamples, a few rows [<= ROWS, examples] at a time.

    Args:
      examples: B.
      resamples: how many rows in all.
      seed: of the draws.
      groups: [B]; examples of equal value are drawn together, as many groups as there are (the
        cluster bootstrap), so that the number of examples varies. None draws single examples.
    """
    if resamples < 1:
        raise ValueError(f"resamples: at least 1 is expected; got {resamples}")
    rng = np.random.default_rng(seed)
    member = None
    clusters = examples
    if groups is not None:
        names, member = np.unique(np.asarray(groups), return_inverse=True)
        clusters = len(names)
    for start in range(0, resamples, ROWS):
        rows = min(ROWS, resamples - start)
        drawn = rng.integers(0, clusters, (rows, clusters))
        drawn += clusters * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * clusters).reshape(rows, clusters)
        counts = counts.astype(np.float64)
        yield counts if member is None else counts[:, member]


def interval(
    values: np.ndarray, estimate: float, level: float = 0.95, biased: bool = False
) -> tuple[float, float]:
    """The percentile interval (q_low, q_high) of resampled values [R].

    With `biased` the basic interval, (2 t - q_high, 2 t - q_low) at the estimate t on the data, for
    metrics that grow with noise: a resample has more of it than the data, so the percentile
    interval of a binned calibration error has its bias twice, and the basic one takes it away
    (Efron & Tibshirani, chapter 13). NaN where values are not finite.

    Raises:
      ValueError: a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level: a number in (0, 1) is expected; got {level}")
    if not (np.isfinite(values).all() and np.isfinite(estimate)):
        return float("nan"), float("nan")
    low, high = map(float, np.quantile(values, [(1 - level) / 2, (1 + level) / 2]))
    return (2 * estimate - high, 2 * estimate - low) if biased else (low, high)


def mean(values: ArrayLike) -> Resampled:
    """The mean of values [B], such as errors or negative log-likelihoods; infinite ones count."""
    values = np.asarray(values, np.float64)
    infinite = np.isinf(values)
    finite, limit = np.where(infinite, 0.0, values), values[infinite]

    def resampled(w: np.ndarray) -> np.ndarray:
        result = w @ finite / w.sum(1)
        if len(limit):
            result = np.where((w[:, infinite] > 0).any(1), limit[0], result)
        return result

    return resampled


def root_mean(values: ArrayLike) -> Resampled:
    """The root of the mean of values [B], such as squared errors."""
    of = mean(values)
    return lambda w: np.sqrt(of(w))


def ece(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> Resampled:
    """`calibration.ece` with bins of equal width."""
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    bins, B = checked_bins(bins), len(confidence)
    places = bin_index(confidence, bins), np.arange(B)
    gaps = sparse.csr_array((confidence - correct, places), (bins, B))
    return lambda w: np.abs(gaps @ w.T).sum(0) / w.sum(1)


def aurc(confidence: ArrayLike, correct: ArrayLike) -> Resampled:
    """`selective.aurc`, with the expectation over the order of equal confidences.

    Among n examples of equal confidence, after N with E errors, the k-th has the expected risk
    (E + s k) / (N + k) with s = e / n of their e errors, and these sum to e + (E - s N) (H_(N+n) -
    H_N) with the harmonic numbers H.
    """
    confidence, wrong = np.asarray(confidence), 1.0 - np.asarray(correct, np.float64)
    order = np.argsort(-confidence, kind="stable")
    ordered, wrong = confidence[order], wrong[order]
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))

    def resampled(w: np.ndarray) -> np.ndarray:
        w = w[:, order]
        n = np.add.reduceat(w, first, axis=1)
        e = np.add.reduceat(w * wrong, first, axis=1)
        N, E = np.cumsum(n, axis=1), np.cumsum(e, axis=1)
        before, errors = N - n, E - e
        most = int(N[:, -1].max())
        harmonic = np.append(0.0, np.cumsum(1 / np.arange(1, most + 1)))
        gain = harmonic[N.astype(np.intp)] - harmonic[before.astype(np.intp)]
        slope = e / np.maximum(n, 1)
        return (e + (errors - slope * before) * gain).sum(1) / N[:, -1]

    return resampled


def coverage_error(distance: ArrayLike, levels: ArrayLike) -> Resampled:
    """Mean over levels [L] of |coverage - level|; as `regression.calibration_error`.

    Args:
      distance: [B, K], |2 F(y) - 1|: a target is inside the central interval of a level above it.
      levels: in [0, 1].
    """
    distance, levels = np.asarray(distance), np.asarray(levels)
    inside = (distance[..., None] <= levels).mean(1)  # [B, L]
    return lambda w: np.abs(w @ inside / w.sum(1)[:, None] - levels).mean(1)


def ranking(
    scores_in: ArrayLike, scores_out: ArrayLike
) -> Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
    """`ranking.ranking`: weights of both sides, [R, N] and [R, N'] -> name -> values [R]."""
    scores_in, scores_out = np.asarray(scores_in), np.asarray(scores_out)
    order_in, order_out = np.argsort(scores_in), np.argsort(scores_out)
    thresholds = np.unique(np.concatenate([scores_in, scores_out]))
    ends_in = np.searchsorted(scores_in[order_in], thresholds, side="right")
    ends_out = np.searchsorted(scores_out[order_out], thresholds, side="right")

    def below(w: np.ndarray, order: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """How many are at or below each threshold, starting with 0, [R, 1 + T]."""
        sums = np.zeros((len(w), len(order) + 1))
        np.cumsum(w[:, order], axis=1, out=sums[:, 1:])
        return np.concatenate([sums[:, :1], sums[:, ends]], axis=1)

    def resampled(w_in: np.ndarray, w_out: np.ndarray) -> dict[str, np.ndarray]:
        below_in, below_out = below(w_in, order_in, ends_in), below(w_out, order_out, ends_out)
        N, N_out = below_in[:, -1], below_out[:, -1]
        step_in, step_out = np.diff(below_in), np.diff(below_out)
        above_in, above_out = N[:, None] - below_in[:, :-1], N_out[:, None] - below_out[:, :-1]
        twice = np.einsum("rt,rt->r", step_out, below_in[:, 1:] + below_in[:, :-1])
        total = np.maximum(above_in + above_out, 1.0)
        under = np.maximum(below_in[:, 1:] + below_out[:, 1:], 1.0)
        needed = np.ceil(0.95 * N_out)
        needed -= (needed - 1) / N_out >= 0.95
        at = (above_out >= needed[:, None]).sum(1) - 1  # the highest such threshold
        needed_in = np.ceil(0.95 * N)
        needed_in -= (needed_in - 1) / N >= 0.95
        kept = (below_in[:, 1:] < needed_in[:, None]).sum(1)  # the lowest such threshold
        rows = np.arange(len(N))
        return {
            "auroc": twice / (2 * N * N_out),
            "aupr_out": np.einsum("rt,rt->r", step_out, above_out / total) / N_out,
            "aupr_in": np.einsum("rt,rt->r", step_in, below_in[:, 1:] / under) / N,
            "fpr95": above_in[rows, at] / N,
            "fpr95_in": below_out[rows, 1 + kept] / N_out,
        }

    return resampled
