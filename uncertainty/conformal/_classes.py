"""Common code of prediction sets of classes."""

from typing import Any

import numpy as np

from uncertainty.conformal import _quantile


def probabilities(log_p: Any) -> np.ndarray:
    """exp(log_p) [B, K] in float64.

    Raises:
      ValueError: another shape, or probabilities that do not sum to 1.
    """
    log_p = np.asarray(log_p, np.float64)
    if log_p.ndim != 2 or 0 in log_p.shape:
        raise ValueError(
            f"log_p: [examples, classes] is expected, of the mixture; got {log_p.shape}"
        )
    with np.errstate(over="ignore"):
        p = np.exp(log_p)
    sums = p.sum(-1)
    off = ~(np.abs(sums - 1) <= 0.01)
    if off.any():
        b = off.argmax()
        raise ValueError(
            f"log_p: probabilities sum to {sums[b]:.6g} at example {b}, but 1 is expected (logits "
            "passed? use log_softmax)"
        )
    return p


def ranks(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes by falling probability and the place 1, ..., K of each, [B, K]; the first in ties."""
    order = np.argsort(-p, axis=-1, kind="stable")
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.arange(1, p.shape[1] + 1)[None], -1)
    return order, place


def cumulative(p: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the classes before each plus u [B] times its own, and its place, [B, K]."""
    order, place = ranks(p)
    falling = np.take_along_axis(p, order, -1)
    before = np.cumsum(falling, -1) - falling
    sums = np.empty_like(p)
    np.put_along_axis(sums, order, before + u[:, None] * falling, -1)
    return sums, place


def uniform(u: Any, examples: int, randomised: bool) -> np.ndarray:
    """u [B] for a randomised method, and 1 for others.

    Raises:
      ValueError: a randomised method without u, or u outside [0, 1].
    """
    if not randomised:
        return np.ones(examples)
    if u is None:
        raise ValueError("u: missing; a randomised method needs a uniform draw for each example")
    u = np.asarray(u, np.float64)
    if u.shape != (examples,) or not ((u >= 0) & (u <= 1)).all():
        raise ValueError(f"u: {examples} numbers from 0 to 1 are expected; got {u.shape}")
    return u


def fit(
    scores: np.ndarray, labels: Any, alpha: float, by: str, groups: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The quantiles of the labels' scores: [1], [K] for by='class', [G] for by='group'.

    Returns them with the groups that they are of, [G], ascending; without groups there are none.

    Args:
      scores: of every class, [B, K].
      labels: [B].
      alpha, by, groups: as the methods take them.

    Raises:
      ValueError: wrong labels, alpha, `by` or groups.
    """
    _quantile.check_alpha(alpha)
    if by not in _quantile.BY:
        raise ValueError(f"by: {by!r}; one of {', '.join(map(repr, _quantile.BY))}")
    B, K = scores.shape
    labels = np.asarray(labels)
    if labels.shape != (B,) or labels.dtype.kind not in "iu":
        raise ValueError(f"labels: {B} integers are expected; got {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= K:
        b = ((labels < 0) | (labels >= K)).argmax()
        raise ValueError(f"labels: {labels[b]} at example {b}, but there are {K} classes")
    of_labels = np.take_along_axis(scores, labels[:, None].astype(np.intp), -1)[:, 0]
    if by == "none":
        return _quantile.quantiles(of_labels, alpha, None, 1), _quantile.NO_IDS
    if by == "class":
        return _quantile.quantiles(of_labels, alpha, labels, K), _quantile.NO_IDS
    ids, places = _quantile.numbered(groups, B)
    return _quantile.quantiles(of_labels, alpha, places, len(ids)), ids


def sets(
    scores: np.ndarray,
    quantile: np.ndarray,
    by: Any,
    ids: np.ndarray,
    groups: Any,
    p: np.ndarray | None,
) -> np.ndarray:
    """Whether each class is in the set, [B, K].

    Args:
      scores: [B, K].
      quantile, ids: as from `fit`.
      by: an index into `_quantile.BY`.
      groups: [B] for by='group'.
      p: [B, K] to add the most probable class to empty sets, else None.
    """
    limit = quantile
    if _quantile.BY[int(by)] == "group":
        limit = _quantile.of_groups(quantile, ids, groups, len(scores))[:, None]
    chosen = scores <= limit
    if p is not None:
        empty = ~chosen.any(-1)
        chosen[empty, p[empty].argmax(-1)] = True
    return chosen
