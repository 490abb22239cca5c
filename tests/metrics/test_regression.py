"""Metrics of Gaussian mixtures against SciPy's densities, integrals and sampling."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import kstest, norm

from uncertainty import metrics
from uncertainty.metrics import regression


@pytest.fixture
def outcomes():
    rng = np.random.default_rng(0)
    mean, deviation = rng.normal(size=(3, 12, 2)), rng.uniform(0.3, 2.0, size=(3, 12, 2))
    return mean, deviation**2, rng.normal(size=(12, 2))


def test_likelihoods_against_scipy(outcomes):
    mean, variance, y = outcomes
    joint = norm.pdf(y, mean, np.sqrt(variance)).prod(-1)  # the outcomes of an example
    np.testing.assert_allclose(
        regression.nll(mean, variance, y), -np.log(joint.mean(0)).mean(), rtol=1e-12
    )
    np.testing.assert_allclose(
        regression.member_nll(mean, variance, y), -np.log(joint).mean(), rtol=1e-12
    )


def test_likelihood_far_out_does_not_underflow():
    mean, variance = np.zeros((2, 1, 1)), np.ones((2, 1, 1))
    expected = -norm.logpdf(1e4)
    np.testing.assert_allclose(regression.nll(mean, variance, [[1e4]]), expected, rtol=1e-12)


def test_rmse_is_of_the_mixtures_mean(outcomes):
    mean, _, y = outcomes
    total = sum((mean[:, b, k].mean() - y[b, k]) ** 2 for b in range(12) for k in range(2))
    np.testing.assert_allclose(regression.rmse(mean, y), np.sqrt(total / 24), rtol=1e-12)


def test_crps_against_its_integral(outcomes):
    mean, variance, y = outcomes

    def distribution(x, b, k):
        return norm.cdf(x, mean[:, b, k], np.sqrt(variance[:, b, k])).mean()

    total = 0.0
    for b in range(4):
        for k in range(2):
            below = quad(lambda x, b=b, k=k: distribution(x, b, k) ** 2, -30, y[b, k])[0]
            above = quad(lambda x, b=b, k=k: (1 - distribution(x, b, k)) ** 2, y[b, k], 30)[0]
            total += below + above
    found = regression.crps(mean[:, :4], variance[:, :4], y[:4])
    np.testing.assert_allclose(found, total / 8, rtol=1e-6)


def test_crps_of_a_sure_prediction_is_the_absolute_error():
    mean, y = np.array([[[1.0], [2.0]]]), np.array([[1.5], [1.0]])
    np.testing.assert_allclose(regression.crps(mean, np.full((1, 2, 1), 1e-20), y), 0.75)


def test_true_outcomes_are_covered_as_often_as_they_should_be():
    rng = np.random.default_rng(0)
    mean, deviation = rng.normal(size=(4, 20_000, 1)), rng.uniform(0.5, 2.0, size=(4, 20_000, 1))
    member = rng.integers(4, size=20_000)
    y = mean[member, np.arange(20_000)] + deviation[member, np.arange(20_000)] * rng.normal(
        size=(20_000, 1)
    )
    levels = (0.1, 0.5, 0.9, 0.99)
    covered = regression.interval_coverage(mean, deviation**2, y, levels)
    np.testing.assert_allclose(covered, levels, atol=0.01)
    assert regression.calibration_error(mean, deviation**2, y) < 0.01
    assert kstest(regression.pit(mean, deviation**2, y)[:, 0], "uniform").pvalue > 0.01
    narrow = regression.interval_coverage(mean, deviation**2 / 9, y, levels)
    assert (narrow < np.array(levels) - 0.005).all()


def test_interval_of_one_gaussian_is_the_textbooks():
    y = np.linspace(-4, 4, 2001)[:, None]
    mean, variance = np.zeros((1, 2001, 1)), np.full((1, 2001, 1), 1.0)
    for level in (0.5, 0.9, 0.95):
        inside = np.abs(y) <= norm.ppf((1 + level) / 2)
        assert regression.interval_coverage(mean, variance, y, [level])[0] == inside.mean()


def test_all_at_once(outcomes):
    mean, variance, y = outcomes
    found = metrics.evaluate_regression(mean, variance, y, levels=(0.5, 0.9))
    for name in ("nll", "member_nll", "crps"):
        assert found[f"regression/{name}"] == getattr(regression, name)(mean, variance, y)
    assert found["regression/rmse"] == regression.rmse(mean, y)
    assert found["regression/calibration"] == regression.calibration_error(mean, variance, y)
    covered = regression.interval_coverage(mean, variance, y, (0.5, 0.9))
    assert found["regression/coverage_0.5"] == covered[0]
    assert found["regression/coverage_0.9"] == covered[1]


def test_wrong_input(outcomes):
    mean, variance, y = outcomes
    for value, text in ((0.0, "0.0"), (-1.0, "-1.0"), (np.nan, "nan")):
        bad = variance.copy()
        bad[1, 4, 0] = value
        with pytest.raises(ValueError, match=f"variance: {text} at member 1, example 4, outcome 0"):
            regression.nll(mean, bad, y)
    bad = y.copy()
    bad[3, 1] = np.inf
    with pytest.raises(ValueError, match="y: inf at example 3, outcome 1"):
        regression.crps(mean, variance, bad)
    with pytest.raises(ValueError, match=r"\(3, 12, 2\) and \(12, 2\) are expected"):
        regression.nll(mean, variance, y[:, 0])
    with pytest.raises(ValueError, match=r"levels: numbers in \[0, 1\]"):
        regression.interval_coverage(mean, variance, y, [90])
