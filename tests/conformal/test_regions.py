"""Directional quantile regions: exact coverage, areas, and a correlated target."""

import math

import numpy as np
import pytest
from scipy import stats

from uncertainty.conformal.regions import areas, regions, spread
from uncertainty.conformal.split import split


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
