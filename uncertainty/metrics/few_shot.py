"""Linear probes of features by ridge regression, for every strength of l2 at once.

The few-shot protocol of BiT (Kolesnikov et al. 2020) and V-MoE (Riquelme et al. 2021), on the host
and in float64.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

BIAS = 100.0  # of the constant feature: large, so that its weight is hardly regularised
L2 = tuple(2.0**i for i in range(-10, 20))


def probe(
    x: ArrayLike,
    y: ArrayLike,
    num_classes: int,
    inputs: Sequence[ArrayLike],
    l2: Sequence[float] = L2,
) -> list[np.ndarray]:
    """The classes that a linear probe of (x, y) predicts for further inputs, [L, B] for each array.

    Features are whitened, (x - mean) / (std + 1e-5) with those of `x`, and get a constant 100; the
    targets t are -1, and 1 for the class. The probe is

        argmax_k x (X^T X + l2 I)^-1 X^T t_k

    whose inverses for all l2 follow from one eigendecomposition, of X^T X or, with more features
    than examples, of X X^T.

    Args:
      x: features [N, D].
      y: labels [N].
      num_classes: K.
      inputs: arrays of features [B, D].
      l2: L strengths.

    Raises:
      ValueError: no examples, labels outside [0, K), features that are not finite or do not
        match, or a strength that is not positive.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y)
    _check(x, y, num_classes, l2)
    mean, std = x.mean(0), x.std(0) + 1e-5

    def columns(a: ArrayLike) -> np.ndarray:
        a = np.asarray(a, np.float64)
        if a.ndim != 2 or a.shape[1] != x.shape[1]:
            raise ValueError(f"inputs: shape {a.shape}; [B, {x.shape[1]}] like x")
        return np.concatenate([(a - mean) / std, np.full((len(a), 1), BIAS)], axis=1)

    X, t = columns(x), 2.0 * (y[:, None] == np.arange(num_classes)) - 1
    if X.shape[0] >= X.shape[1]:
        eigenvalues, left = np.linalg.eigh(X.T @ X)
        right = left.T @ (X.T @ t)
    else:
        eigenvalues, q = np.linalg.eigh(X @ X.T)
        left, right = X.T @ q, q.T @ t
    scales = 1 / (np.maximum(eigenvalues, 0) + np.asarray(l2, np.float64)[:, None])
    predictions = []
    for a in inputs:
        a = columns(a) @ left  # [B, R]
        predictions.append(np.stack([(a @ (s[:, None] * right)).argmax(1) for s in scales]))
    return predictions


def draw_shots(y: ArrayLike, most: int, rng: np.random.Generator) -> np.ndarray:
    """Indices [K, most] of examples of each class, in random order; the first n are n shots.

    Raises:
      ValueError: a class from 0 to the largest label has fewer examples.
    """
    y = np.asarray(y)
    counts = np.bincount(y)
    if counts.min() < most:
        raise ValueError(f"shots: {most}, but class {counts.argmin()} has {counts.min()} examples")
    return np.stack([rng.permutation(np.flatnonzero(y == k))[:most] for k in range(len(counts))])


def best_l2(accuracies: Mapping[str, ArrayLike]) -> int:
    """The index of the l2 with the best mean rank over tasks; ties go to the strongest.

    Args:
      accuracies: task -> [L], in the order of ascending l2. Equal accuracies share the mean of
        their ranks; the published code prefers the stronger l2.
    """
    import scipy.stats

    ranks = np.mean([scipy.stats.rankdata(a) for a in accuracies.values()], axis=0)
    return int(np.flatnonzero(ranks >= ranks.max() - 1e-9)[-1])


def _check(x: np.ndarray, y: np.ndarray, num_classes: int, l2: Sequence[float]) -> None:
    if x.ndim != 2 or y.shape != x.shape[:1] or not len(x):
        raise ValueError(f"x, y: shapes {x.shape} and {y.shape}; [N, D] and [N] with N > 0")
    if not np.isfinite(x).all():
        raise ValueError("x: features that are not finite")
    if y.min() < 0 or y.max() >= num_classes:
        raise ValueError(f"y: labels from {y.min()} to {y.max()}; from 0 to {num_classes - 1}")
    if not len(l2) or not min(l2) > 0:
        raise ValueError(f"l2: {tuple(l2)}; positive numbers")
