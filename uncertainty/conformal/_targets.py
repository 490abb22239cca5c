"""Common code of intervals of targets."""

from typing import Any

import numpy as np

from uncertainty.conformal import _quantile


def checked(field: str, values: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Values [B, K] in float64.

    Raises:
      ValueError: another shape, or values that are not finite.
    """
    values = np.asarray(values, np.float64)
    wanted = "[examples, targets]" if shape is None else f"{shape}"
    if values.ndim != 2 or 0 in values.shape or (shape is not None and values.shape != shape):
        raise ValueError(f"{field}: {wanted} is expected; got {values.shape}")
    if not np.isfinite(values).all():
        b, k = np.unravel_index((~np.isfinite(values)).argmax(), values.shape)
        raise ValueError(f"{field}: {values[b, k]} at example {b}, target {k}")
    return values


def fit(
    scores: np.ndarray, alpha: float, by: str, groups: Any
) -> tuple[np.ndarray, np.int64, np.ndarray]:
    """The quantiles of scores [B, K], [1 or G, K], the index of `by`, and the groups, [0 or G]."""
    _quantile.check_alpha(alpha)
    if by not in ("none", "group"):
        raise ValueError(f"by: {by!r}; one of 'none', 'group'")
    ids, places = _quantile.NO_IDS, None
    if by == "group":
        ids, places = _quantile.numbered(groups, len(scores))
    columns = [_quantile.quantiles(column, alpha, places, len(ids)) for column in scores.T]
    return np.stack(columns, -1), np.int64(_quantile.BY.index(by)), ids


def limits(quantile: np.ndarray, by: Any, ids: Any, groups: Any, examples: int) -> np.ndarray:
    """The quantile of each example and target, [B or 1, K]."""
    if _quantile.BY[int(by)] == "none":
        return quantile
    columns = [_quantile.of_groups(column, ids, groups, examples) for column in quantile.T]
    return np.stack(columns, -1)
