"""Classes of the nearest neighbours in a space of features, on the host."""

import numpy as np
from numpy.typing import ArrayLike

CHUNK = 1 << 24  # numbers in a block of cosines


def neighbours(
    x: ArrayLike,
    y: ArrayLike,
    num_classes: int,
    inputs: ArrayLike,
    k: int = 200,
    temperature: float = 0.1,
) -> np.ndarray:
    """The vote of the k nearest examples (x, y) for the class of each input, [B, K].

    p_c is proportional to the sum over neighbours of class c of exp(s / temperature), with s the
    cosine of their features: Wu et al. 2018, "Unsupervised feature learning via non-parametric
    instance discrimination", section 3.4. Of equally near examples those that come first count.

    Args:
      x: features [N, D].
      y: labels [N].
      num_classes: K.
      inputs: features [B, D].
      k: neighbours, at most N.
      temperature: of the cosines.

    Raises:
      ValueError: no examples, labels outside [0, K), features that are not finite or do not match,
        k outside [1, N], or a temperature that is not positive.
    """
    x, y, inputs = np.asarray(x, np.float64), np.asarray(y), np.asarray(inputs, np.float64)
    if x.ndim != 2 or y.shape != x.shape[:1] or not len(x):
        raise ValueError(f"x, y: shapes {x.shape} and {y.shape}; [N, D] and [N] with N > 0")
    if inputs.ndim != 2 or inputs.shape[1] != x.shape[1]:
        raise ValueError(f"inputs: shape {inputs.shape}; [B, {x.shape[1]}] like x")
    if not (np.isfinite(x).all() and np.isfinite(inputs).all()):
        raise ValueError("x, inputs: features that are not finite")
    if y.min() < 0 or y.max() >= num_classes:
        raise ValueError(f"y: labels from {y.min()} to {y.max()}; from 0 to {num_classes - 1}")
    if not 1 <= k <= len(x):
        raise ValueError(f"k: {k}; from 1 to the number of examples, {len(x)}")
    if not temperature > 0:
        raise ValueError(f"temperature: {temperature}; a positive number")
    x, inputs = unit(x), unit(inputs)
    votes = np.zeros((len(inputs), num_classes))
    size = max(1, CHUNK // len(x))
    for start in range(0, len(inputs), size):
        cosines = inputs[start : start + size] @ x.T
        nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        s = np.take_along_axis(cosines, nearest, axis=1)
        weight = np.exp((s - s[:, :1]) / temperature)
        rows = np.repeat(np.arange(start, start + len(s)), k)
        np.add.at(votes, (rows, y[nearest].ravel()), weight.ravel())
    return votes / votes.sum(1, keepdims=True)


def unit(x: np.ndarray) -> np.ndarray:
    """Features [N, D] over their norms; zeros stay zeros."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
