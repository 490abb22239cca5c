"""Common code of post-hoc methods: checked arrays, and expressions for NumPy and JAX alike."""

from typing import Any

import numpy as np

LEAST = float(np.log(np.finfo(np.float32).tiny))  # of a finite log-probability, about -87


def checked(log_p: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """log_p [B, K] in float64, normalised, and labels [B].

    Raises:
      ValueError: a wrong shape or type, NaN, logits in place of log-probabilities, a label out of
        range.
    """
    log_p, labels = np.asarray(log_p, np.float64), np.asarray(labels)
    if log_p.ndim != 2 or log_p.shape[0] < 1 or log_p.shape[1] < 2:
        raise ValueError(
            f"log_p: [examples, classes] with at least 1 and 2 is expected; got {log_p.shape}"
        )
    B, K = log_p.shape
    if labels.shape != (B,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels: {B} integers are expected, as log_p has {B} examples; got "
            f"{labels.dtype} {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= K:
        b = ((labels < 0) | (labels >= K)).argmax()
        raise ValueError(
            f"labels: {labels[b]} at example {b}, but log_p has {K} classes: 0 to {K - 1} are "
            "allowed"
        )
    with np.errstate(over="ignore"):
        sums = np.exp(log_p).sum(-1)
    off = ~(np.abs(sums - 1) <= 0.01)
    if off.any():
        b = off.argmax()
        raise ValueError(
            f"log_p: probabilities sum to {sums[b]:.6g} at example {b}, but 1 is expected (logits "
            "passed? use log_softmax)"
        )
    return normalised(log_p), labels.astype(np.intp)


def namespace(log_p: Any) -> Any:
    """`numpy` or `jax.numpy`, to which log_p belongs."""
    return log_p.__array_namespace__()


def as_floats(log_p: Any) -> Any:
    """JAX arrays as they are, all else as NumPy float64."""
    if isinstance(log_p, np.ndarray) or not hasattr(log_p, "__array_namespace__"):
        return np.asarray(log_p, np.float64)
    return log_p


def normalised(scores: Any) -> Any:
    """log softmax over the last axis; -inf stays -inf."""
    xp = namespace(scores)
    shifted = scores - scores.max(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        return shifted - xp.log(xp.exp(shifted).sum(-1, keepdims=True))


def at_labels(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """x[b, labels[b]], [B]."""
    return np.take_along_axis(x, labels[:, None], 1)[:, 0]


def check_labels_possible(log_p: np.ndarray, labels: np.ndarray, remedy: str) -> None:
    """Raises ValueError where a label has the probability 0, whose likelihood nothing improves."""
    impossible = np.isneginf(at_labels(log_p, labels))
    if impossible.any():
        raise ValueError(
            f"log_p: the label has probability 0 in {impossible.sum()} of {len(labels)} examples, "
            f"first at example {impossible.argmax()}, so the likelihood is 0; {remedy}"
        )


def floored(log_p: np.ndarray, floor: float) -> np.ndarray:
    """log_p with probabilities below `floor` raised to it, normalised.

    Raises:
      ValueError: `floor` is no small probability.
    """
    if not 0 <= floor < 1 / log_p.shape[-1]:
        raise ValueError(f"floor: {floor!r}; from 0 to below 1 / {log_p.shape[-1]} classes")
    return normalised(np.maximum(log_p, np.log(floor))) if floor > 0 else log_p


def mixture(log_p: Any) -> Any:
    """The log of the members' mean probability, [M, B, ...] -> [B, ...]."""
    xp = namespace(log_p)
    if len(log_p) == 1:
        return log_p[0]
    top = log_p.max(0)
    shift = xp.where(top == -np.inf, 0.0, top)
    with np.errstate(divide="ignore"):
        return shift + xp.log(xp.exp(log_p - shift).mean(0))


def from_probabilities(p: Any) -> Any:
    """log of p [..., K] divided by its sum; uniform where the sum is 0."""
    xp = namespace(p)
    total = p.sum(-1, keepdims=True)
    p = xp.where(total > 0, p / xp.where(total > 0, total, 1.0), 1 / p.shape[-1])
    with np.errstate(divide="ignore"):
        return xp.log(p)


def bounded(log_p: Any) -> Any:
    """log_p with entries of at least `LEAST`, all finite."""
    return namespace(log_p).maximum(log_p, LEAST)
