"""What scores are made of, and checks that they share."""

from typing import NamedTuple

import numpy as np


class LastLayer(NamedTuple):
    """logits = features @ kernel + bias."""

    kernel: np.ndarray  # [D, K]
    bias: np.ndarray  # [K]


class Outputs(NamedTuple):
    """Outputs of a network for B examples; a score uses some of them."""

    features: np.ndarray | None = None  # [B, D]
    logits: np.ndarray | None = None  # [B, K]
    labels: np.ndarray | None = None  # [B], of training data
    layers: tuple[np.ndarray, ...] = ()  # features of earlier layers, [B, D_l] each
    last: LastLayer | None = None  # of the network, the same for all data


def features(outputs: Outputs) -> np.ndarray:
    """Features [B, D] in float64.

    Raises:
      ValueError: there are none, a wrong shape, or values that are not finite.
    """
    return matrix(outputs.features, "features")


def logits(outputs: Outputs) -> np.ndarray:
    """Logits [B, K] in float64; errors as in `features`."""
    return matrix(outputs.logits, "logits")


def labels(outputs: Outputs) -> np.ndarray:
    """Labels [B] of training data.

    Raises:
      ValueError: there are none, not integers, negative ones, or a class between without examples.
    """
    if outputs.labels is None:
        raise ValueError("labels: this score is fitted with labels, and there are none")
    y = np.asarray(outputs.labels)
    if y.ndim != 1 or y.dtype.kind not in "iu" or y.min() < 0:
        raise ValueError(f"labels: integers from 0, [B], are needed; got {y.dtype} {y.shape}")
    counts = np.bincount(y)
    if (counts == 0).any():
        raise ValueError(f"labels: class {counts.argmin()} has no example")
    return y


def last(outputs: Outputs) -> LastLayer:
    """The last layer in float64.

    Raises:
      ValueError: there is none, or it does not fit the features.
    """
    if outputs.last is None:
        raise ValueError("last: this score needs a dense last layer, and the network has none")
    kernel, bias = (np.asarray(a, np.float64) for a in outputs.last)
    D = features(outputs).shape[1]
    if kernel.ndim != 2 or kernel.shape[0] != D or bias.shape != kernel.shape[1:]:
        raise ValueError(f"last: kernel {kernel.shape} and bias {bias.shape} for {D} features")
    return LastLayer(kernel, bias)


def matrix(array: np.ndarray | None, field: str) -> np.ndarray:
    """[B, D] in float64; errors as in `features`."""
    if array is None:
        raise ValueError(f"{field}: this score needs them, and there are none")
    array = np.asarray(array, np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{field}: [examples, features] is needed, none 0; got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{field}: not finite at example {(~np.isfinite(array)).any(1).argmax()}")
    return array


def fraction(value: float, field: str) -> float:
    """Raises ValueError unless 0 < value < 1."""
    if not 0 < value < 1:
        raise ValueError(f"{field}: {value!r}; allowed above 0 and below 1")
    return value


def count(value: int, field: str, most: int) -> int:
    """Raises ValueError unless 1 <= value <= most."""
    if not 1 <= value <= most:
        raise ValueError(f"{field}: {value!r}; allowed 1 to {most}")
    return value
