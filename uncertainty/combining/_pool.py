"""Common code of combinations: checked arrays of a pool of members, and their mixture."""

from typing import Any

import numpy as np


def checked(log_p: Any, labels: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log_p [M, B, K] in float64, labels [B], and which members are usable, [M].

    Raises:
      ValueError: a wrong shape or type, no examples, a label out of range, probabilities that do
        not sum to 1, or no usable member.
    """
    log_p, labels = np.asarray(log_p, np.float64), np.asarray(labels)
    if log_p.ndim != 3 or log_p.shape[0] < 1 or log_p.shape[2] < 2:
        raise ValueError(
            "log_p: [members, examples, classes] is expected, of at least 1 and 2; got "
            f"{list(log_p.shape)}"
        )
    M, B, K = log_p.shape
    if not B:
        raise ValueError("labels: there are no held-out examples to choose members by")
    if labels.shape != (B,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels: {B} integers are expected, as log_p has {B} examples; got {labels.dtype} "
            f"{list(labels.shape)}"
        )
    if labels.min() < 0 or labels.max() >= K:
        b = int(((labels < 0) | (labels >= K)).argmax())
        raise ValueError(f"labels: {labels[b]} at example {b}; 0 to {K - 1} are expected")
    usable = ~(np.isnan(log_p) | np.isposinf(log_p)).any((1, 2))
    if not usable.any():
        raise ValueError(f"log_p: not finite for any of the {M} members, so none can be chosen")
    with np.errstate(over="ignore"):
        off = np.abs(np.exp(log_p[usable]).sum(-1) - 1)
    if off.max() > 0.01:
        m, b = np.unravel_index(off.argmax(), off.shape)
        raise ValueError(
            f"log_p: probabilities sum to {np.exp(log_p[usable][m, b]).sum():.6g} at member "
            f"{np.flatnonzero(usable)[m]}, example {b}, but 1 is expected (logits passed? use "
            "log_softmax)"
        )
    return log_p, labels.astype(np.intp), usable


def applied(log_p: Any, members: int) -> np.ndarray:
    """log_p [M, B, K] in float64, to combine as the pool of `members` that was fitted.

    Raises:
      ValueError: another number of members.
    """
    log_p = np.asarray(log_p, np.float64)
    if log_p.ndim != 3 or len(log_p) != members:
        raise ValueError(
            f"log_p: {list(log_p.shape)}; [members, examples, classes] of the {members} members "
            "that the combination was chosen from is expected"
        )
    return log_p


def mixture(log_p: np.ndarray) -> np.ndarray:
    """The mean of the members' probabilities, [M, B, K] -> [B, K]."""
    return np.exp(log_p).mean(0)


def of_labels(log_p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """log p of the labels, [M, B]."""
    return np.take_along_axis(log_p, labels[None, :, None], -1)[..., 0]
