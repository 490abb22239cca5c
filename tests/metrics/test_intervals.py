"""Quantiles and interval widths of Gaussian mixtures against SciPy's root finder."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from uncertainty import metrics
from uncertainty.metrics import regression

rng = np.random.default_rng(0)
MEAN, DEVIATION = rng.normal(scale=3, size=(4, 6, 2)), rng.uniform(0.5, 2.0, size=(4, 6, 2))
Y = rng.normal(size=(6, 2))


def root(level, b, k):
    """Where the mixture's distribution function crosses the level."""

    def above(x):
        return norm.cdf(x, MEAN[:, b, k], DEVIATION[:, b, k]).mean() - level

    return brentq(above, -30, 30, xtol=1e-13)


@pytest.mark.parametrize("level", [0.025, 0.05, 0.25, 0.5, 0.975])
def test_quantiles_against_a_root_finder(level):
    found = regression.quantile(MEAN, DEVIATION**2, level)
    expected = [[root(level, b, k) for k in range(2)] for b in range(6)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_width_against_a_loop():
    for level in (0.5, 0.9, 0.95):
        low, high = (1 - level) / 2, (1 + level) / 2
        widths = [root(high, b, k) - root(low, b, k) for b in range(6) for k in range(2)]
        found = regression.interval_width(MEAN, DEVIATION**2, level)
        np.testing.assert_allclose(found, np.mean(widths), rtol=1e-9)


def test_one_gaussian_has_the_textbooks_quantiles():
    mean, deviation = MEAN[:1], DEVIATION[:1]
    for level in (0.01, 0.5, 0.9):
        expected = norm.ppf(level, mean[0], deviation[0])
        np.testing.assert_allclose(regression.quantile(mean, deviation**2, level), expected)
    assert regression.interval_width(mean, deviation**2, 0.0) == 0
    assert regression.interval_width(mean, deviation**2, 1.0) == np.inf


@settings(deadline=None, max_examples=50)
@given(level=st.floats(0.0, 1.0), shift=st.floats(-5, 5), scale=st.floats(0.1, 10))
def test_coverage_counts_what_lies_between_the_quantiles(level, shift, scale):
    """And a change of units changes the width alone."""
    mean, variance, y = MEAN * scale + shift, (DEVIATION * scale) ** 2, Y * scale + shift
    low, high = (regression.quantile(mean, variance, p) for p in ((1 - level) / 2, (1 + level) / 2))
    inside = np.mean((y >= low - 1e-9) & (y <= high + 1e-9))
    (covered,) = regression.interval_coverage(mean, variance, y, [level])
    assert inside == pytest.approx(covered, abs=1e-12)
    width = regression.interval_width(mean, variance, level)
    same = scale * regression.interval_width(MEAN, DEVIATION**2, level)
    assert width == pytest.approx(same, rel=1e-9, abs=1e-9)


def test_widths_are_among_all():
    found = metrics.evaluate_regression(MEAN, DEVIATION**2, Y, levels=(0.5, 0.9))
    for level in (0.5, 0.9):
        expected = regression.interval_width(MEAN, DEVIATION**2, level)
        assert found[f"regression/width_{level:g}"] == expected


@pytest.mark.parametrize("level", [-0.1, 1.1, np.nan, 90])
def test_levels_outside_are_refused(level):
    with pytest.raises(ValueError, match=r"level: a number in \[0, 1\] is expected; got"):
        regression.quantile(MEAN, DEVIATION**2, level)
