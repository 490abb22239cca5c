"""Directional quantile regions of several targets (Kong & Mizera 2012; Feldman et al. 2023,
"Calibrated multiple-output quantile regression with representation learning").

    R(x) = {y : v . y >= low_v(x) for all directions v},   s(x, y) = max_v [low_v(x) - v . y]
    C(x) = {y : v . y >= low_v(x) - q for all v}

low_v(x) is a low quantile of v . y given x, so R is an intersection of half-spaces, convex and of
any orientation, unlike a box of intervals; all half-spaces move by one number.

Difference from Feldman et al.: their score is the distance to points of a grid inside R, which
fits regions that a network has bent; ours is exact for half-spaces, in any number of targets.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from uncertainty.conformal import _quantile, _targets


class Regions(NamedTuple):
    """Regions of `regions`."""

    quantile: np.ndarray  # [1, 1], [G, 1] by group
    by: Any  # [], an index into `_quantile.BY`
    directions: np.ndarray  # [D, K], of length 1
    ids: Any = _quantile.NO_IDS  # [G], the groups of `quantile`, ascending

    def __call__(self, low: ArrayLike, groups: Any = None) -> np.ndarray:
        """The bounds [B, D] of v . y from below, from the predicted quantiles [B, D]."""
        low = _targets.checked("low", low)
        return low - _targets.limits(self.quantile, self.by, self.ids, groups, len(low))

    def contains(self, low: ArrayLike, y: ArrayLike, groups: Any = None) -> np.ndarray:
        """Whether y [B, K] lies in the regions of the predicted quantiles low [B, D], [B]."""
        bounds = self(low, groups)
        return (_targets.checked("y", y) @ self.directions.T >= bounds - 1e-12).all(-1)


def spread(count: int, targets: int = 2, seed: int = 0) -> np.ndarray:
    """`count` directions on all sides of 0, [count, targets].

    Of the plane at equal angles. In more dimensions those of the axes first, each with its
    opposite, and then of random rotations of the axes.

    Args:
      count: at least 3 in the plane, and 2 for each target in more dimensions.
      targets: K, from 2.
      seed: of the rotations.

    Raises:
      ValueError: too few directions to bound a region, or fewer than 2 targets.
    """
    least = 3 if targets == 2 else 2 * targets
    if targets < 2 or count < least:
        raise ValueError(f"directions: {count} of {targets} targets; at least {least} are needed")
    if targets == 2:
        angles = 2 * np.pi * np.arange(count) / count
        return np.stack([np.cos(angles), np.sin(angles)], -1)
    axes, rng = [np.eye(targets)], np.random.default_rng(seed)
    while 2 * targets * len(axes) < count:
        axes.append(np.linalg.qr(rng.normal(size=(targets, targets)))[0])
    pairs = [part for of in axes for part in (of, -of)]
    return np.concatenate(pairs)[:count]


def regions(
    low: ArrayLike,
    directions: ArrayLike,
    y: ArrayLike,
    alpha: float = 0.1,
    by: str = "none",
    groups: Any = None,
) -> Regions:
    """Calibrates by how much the half-spaces move.

    Args:
      low: [B, D] predicted quantiles of v . y of held-out examples. Of a mixture of Gaussians they
        are those of the mixture with the means v . mean and the variances v^2 . variance
        (`metrics.regression.quantile`).
      directions: [D, K] vectors v of length 1, on all sides of 0, or regions have no end; for two
        targets `spread`.
      y: [B, K] targets, in comparable units.
      alpha, by, groups: as for `split`.

    Raises:
      ValueError: see `split`; directions of another length.
    """
    low, y = _targets.checked("low", low), _targets.checked("y", y)
    v = _targets.checked("directions", directions, (low.shape[1], y.shape[1]))
    if not np.allclose(np.linalg.norm(v, axis=-1), 1):
        raise ValueError("directions: vectors of length 1 are expected")
    if len(low) != len(y):
        raise ValueError(f"low, y: {len(low)} and {len(y)} examples")
    scores = (low - y @ v.T).max(-1, keepdims=True)
    quantile, by_index, ids = _targets.fit(scores, alpha, by, groups)
    return Regions(quantile, by_index, v, ids)


def areas(directions: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Areas [B] of {y : v . y >= bound for all v} in the plane; bounds [B, D].

    Half-planes cut one after the other from a square that contains every bounded region.
    """
    result = np.empty(len(bounds))
    for b, limits in enumerate(bounds):
        polygon = _polygon(directions, limits)
        x, y = polygon.T if len(polygon) else (np.zeros(1), np.zeros(1))
        result[b] = 0.5 * abs(x @ np.roll(y, -1) - y @ np.roll(x, -1))
    return result


def outline(directions: np.ndarray, bounds: np.ndarray, angles: int = 48) -> np.ndarray:
    """The corners of {y : v . y >= bound for all v} in the plane, in order, [N, 2]; N = 0 if empty.

    Of more than two targets, corners of its projection on the first two: points of the region at
    which u . y is largest, for directions u of that plane at equal angles, by linear programs.

    Args:
      directions: [D, K], on all sides of 0.
      bounds: [D], finite.
      angles: how many directions u.

    Raises:
      ValueError: infinite bounds; of more than two targets, another region without end.
    """
    if not np.isfinite(bounds).all():
        raise ValueError("bounds: finite numbers are expected, or the region has no end")
    K = directions.shape[1]
    if K == 2:
        return _polygon(directions, bounds)
    half_spaces = dict(A_ub=-directions, b_ub=-bounds, bounds=(None, None))
    if optimize.linprog(np.zeros(K), **half_spaces).status == 2:  # infeasible
        return np.zeros((0, 2))
    corners = []
    for u in spread(angles):
        furthest = optimize.linprog(np.append(-u, np.zeros(K - 2)), **half_spaces)
        if furthest.status != 0:
            raise ValueError(f"directions: a region without end: {furthest.message}")
        corners.append(furthest.x[:2])
    points = np.array(corners)
    size = np.abs(points).max() + 1
    return points[np.abs(points - np.roll(points, 1, axis=0)).max(1) > 1e-9 * size]


def volumes(
    directions: np.ndarray, bounds: np.ndarray, draws: int = 2_000, seed: int = 0
) -> np.ndarray:
    """Volumes [B] of {y : v . y >= bound for all v}, in any number of targets; bounds [B, D].

    The share of uniform draws in a box around the region that lie inside, times the volume of the
    box; its relative standard error is sqrt((1 / share - 1) / draws). In the plane use `areas`.

    Args:
      directions: [D, K], with those of all axes and their opposites, which give the box.
      bounds: [B, D].
      draws: of each region.
      seed: of the draws, the same ones for all regions.

    Raises:
      ValueError: the direction of an axis is missing.
    """
    K = directions.shape[1]
    aligned = directions @ np.concatenate([np.eye(K), -np.eye(K)]).T > 1 - 1e-9  # [D, 2 K]
    if not aligned.any(0).all():
        raise ValueError("directions: those of all axes and their opposites are needed")
    low, high = np.split(bounds[:, aligned.argmax(0)] * np.repeat([1, -1], K), 2, axis=1)
    side = np.maximum(high - low, 0)
    u = np.random.default_rng(seed).random((draws, K))
    inside = [
        ((start + u * size) @ directions.T >= limits).all(-1).mean()
        for start, size, limits in zip(low, side, bounds, strict=True)
    ]
    return side.prod(-1) * np.array(inside)


def _polygon(directions: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """The corners [N, 2] of a bounded region in the plane, in order; N = 0 if it is empty."""
    size = 1e3 * (np.abs(bounds).max() + 1)
    polygon = size * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    for v, limit in zip(directions, bounds, strict=True):
        if len(polygon):
            polygon = _cut(polygon, v, limit)
    return polygon.reshape(-1, 2)


def _cut(polygon: np.ndarray, v: np.ndarray, limit: float) -> np.ndarray:
    """The part of a convex polygon [N, 2] in a half-plane."""
    inside = polygon @ v - limit
    corners = []
    for i in range(len(polygon)):
        j = (i + 1) % len(polygon)
        if inside[i] >= 0:
            corners.append(polygon[i])
        if inside[i] * inside[j] < 0:
            share = inside[i] / (inside[i] - inside[j])
            corners.append(polygon[i] + share * (polygon[j] - polygon[i]))
    return np.array(corners)
