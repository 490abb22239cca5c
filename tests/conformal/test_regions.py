"""Directional quantile regions: exact coverage, areas, and a correlated target."""

import math

import numpy as np
import pytest
from scipy import stats

from uncertainty.conformal import areas, outline, regions, split, spread, volumes


def correlated(rng, B):
    """Targets whose two coordinates are nearly equal."""
    common = rng.normal(size=(B, 1))
    return common + 0.1 * rng.normal(size=(B, 2))


def test_coverage_over_all_choices_of_the_test_example_is_exact():
    rng = np.random.default_rng(0)
    v, y = spread(8), rng.normal(size=(21, 2))
    low = -1 + 0.3 * rng.normal(size=(21, 8))
    hits = []
    for i in range(21):
        rest = np.arange(21) != i
        fitted = regions(low[rest], v, y[rest], alpha=0.3)
        hits.append(fitted.contains(low[[i]], y[[i]])[0])
    assert np.sum(hits) == math.ceil(21 * 0.7 - 1e-9)


def test_areas_are_those_of_polygons():
    square = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    bounds = np.array([[-1.0, -2, -3, -4], [1, -0.5, 0, -1]])  # the second is empty
    np.testing.assert_allclose(areas(square, bounds), [3 * 7, 0])
    # A regular polygon around a circle of radius r: n r^2 tan(pi / n).
    np.testing.assert_allclose(
        areas(spread(12), np.full((1, 12), -2.0)), 12 * 4 * math.tan(math.pi / 12), rtol=1e-9
    )


def area(corners):
    """By the shoelace formula."""
    x, y = np.asarray(corners).T
    return 0.5 * sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))


def test_corners_lie_on_the_region_and_enclose_it():
    rng = np.random.default_rng(0)
    v = spread(16)
    for low in -1 - 0.3 * rng.random((5, 16)):
        corners = outline(v, low)
        slack = corners @ v.T - low
        assert slack.min() > -1e-9
        assert ((np.abs(slack) < 1e-9).sum(1) >= 2).all()  # each is where two lines meet
        y = rng.uniform(-2, 2, (20_000, 2))
        share = (y @ v.T >= low).all(1).mean()
        assert area(corners) == pytest.approx(16 * share, rel=0.05)
        assert area(corners) == pytest.approx(areas(v, low[None])[0])
    assert outline(spread(4), np.array([1.0, -0.5, 0, -1])).shape == (0, 2)


def test_outlines_of_several_targets_are_projections():
    box, axes = np.array([-1.0, -2, -3, 0, 0, -1]), spread(6, 3)  # x >= -1, x <= 0, ...
    corners = outline(axes, box)
    assert {tuple(np.round(c, 6) + 0.0) for c in corners} == {(-1, -2), (0, -2), (0, 0), (-1, 0)}
    signs = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T / np.sqrt(3)
    octahedron = outline(signs, np.full(8, -1 / np.sqrt(3)))  # |x| + |y| + |z| <= 1
    assert area(octahedron) == pytest.approx(2)
    rng = np.random.default_rng(0)
    v = spread(14, 3)
    low = -1 - 0.3 * rng.random(14)
    y = rng.uniform(-2, 2, (20_000, 3))
    inside = y[(y @ v.T >= low).all(1)][:, :2]
    corners = outline(v, low)
    edges = np.roll(corners, -1, axis=0) - corners
    to = inside[:, None] - corners
    left = edges[:, 0] * to[..., 1] - edges[:, 1] * to[..., 0]
    assert (left > -0.02).all()  # but for corners between two of the angles
    assert outline(axes, np.array([1.0, 0, 0, 0, 0, 0])).shape == (0, 2)
    for given in ((axes, np.append(box[:5], -np.inf)), (np.delete(axes, 3, 0), np.delete(box, 3))):
        with pytest.raises(ValueError, match="end"):
            outline(*given)


def test_regions_of_a_correlated_target_are_smaller_than_boxes():
    rng = np.random.default_rng(1)
    fit, test = correlated(rng, 1000), correlated(rng, 4000)
    v = spread(32)
    deviation = np.sqrt(np.einsum("dk,kl,dl->d", v, np.ones((2, 2)) + 0.01 * np.eye(2), v))
    low = stats.norm.ppf(0.02) * deviation  # the true quantiles
    fitted = regions(np.tile(low, (1000, 1)), v, fit)
    covered = fitted.contains(np.tile(low, (4000, 1)), test).mean()
    assert abs(covered - 0.9) < 0.04
    area = areas(v, fitted(low[None]))[0]
    # A box of two intervals that both miss 5 %: at least as much is covered by Bonferroni.
    left, right = split(np.zeros((1000, 2)), fit, alpha=0.05)(np.zeros((1, 2)))
    assert area < 0.5 * np.prod(right - left)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(directions=2 * spread(4)), "directions: vectors of length 1"),
        (dict(directions=spread(3)), r"directions: \(4, 2\) is expected"),
        (dict(y=np.zeros((2, 2))), "low, y: 3 and 2 examples"),
    ],
)
def test_refuses(change, message):
    given = dict(low=np.zeros((3, 4)), directions=spread(4), y=np.zeros((3, 2)))
    with pytest.raises(ValueError, match=message):
        regions(**given | change)


def test_directions_and_volumes_in_space():
    for K, count in ((3, 6), (3, 14), (4, 16)):
        v = spread(count, K)
        assert v.shape == (count, K)
        np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1)
        np.testing.assert_array_equal(v[: 2 * K], np.concatenate([np.eye(K), -np.eye(K)]))
    # On all sides: some direction is within a right angle of any vector, so that regions end.
    any_vector = np.random.default_rng(0).normal(size=(1000, 3))
    assert ((any_vector @ spread(8, 3).T).max(1) > 0).all()
    bounds = np.array([[-1.0, -2, -3, 0, 0, -1], [1, 0, 0, 0, 0, 0]])  # the second is empty
    np.testing.assert_allclose(volumes(spread(6, 3), bounds), [1 * 2 * 4, 0])
    # An octahedron |x| + |y| + |z| <= 1 has the volume 4 / 3.
    signs = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T / np.sqrt(3)
    v = np.concatenate([spread(6, 3), signs])
    bounds = np.append(np.full(6, -1.0), np.full(8, -1 / np.sqrt(3)))[None]
    np.testing.assert_allclose(volumes(v, bounds, draws=40_000), 4 / 3, rtol=0.03)
    for count, K in ((2, 2), (5, 3), (4, 1)):
        with pytest.raises(ValueError, match=f"directions: {count} of {K} targets"):
            spread(count, K)
    with pytest.raises(ValueError, match="those of all axes"):
        volumes(signs, np.zeros((1, 8)))
