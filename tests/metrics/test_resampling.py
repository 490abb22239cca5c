"""Metrics of weights against the metrics of the data set with its examples repeated as often."""

import time

import numpy as np
import pytest
import scipy.stats

from uncertainty import metrics
from uncertainty.metrics import calibration, classification, regression, resampling, selective


def drawn(seed, examples=40, groups=None, resamples=5):
    return np.concatenate(list(resampling.weights(examples, resamples, seed, groups)))


@pytest.mark.parametrize("seed", range(3))
def test_classes(seed):
    rng = np.random.default_rng(seed)
    p = np.round(rng.dirichlet(np.ones(3), (2, 40)), 1 + seed)  # with ties
    log_p = np.log(np.maximum(p, 1e-3) / np.maximum(p, 1e-3).sum(-1, keepdims=True))
    y = rng.integers(0, 3, 40)
    confidence, correct = calibration.top_label(log_p, y)
    each = np.array([classification.brier(log_p[:, [b]], y[[b]]) for b in range(40)])
    w = drawn(seed)
    for row, *values in zip(
        w.astype(int),
        resampling.mean(correct)(w),
        resampling.mean(each)(w),
        resampling.ece(confidence, correct, 7)(w),
        resampling.aurc(confidence, correct)(w),
        strict=True,
    ):
        b = np.repeat(np.arange(40), row)
        expected = [
            classification.accuracy(log_p[:, b], y[b]),
            classification.brier(log_p[:, b], y[b]),
            calibration.ece(log_p[:, b], y[b], 7),
            selective.aurc(confidence[b], correct[b]),
        ]
        np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("decimals", [1, 8])
def test_rankings(decimals):
    rng = np.random.default_rng(decimals)
    inside, outside = (
        np.round(rng.normal(0, 1, 40), decimals),
        np.round(rng.normal(1, 1, 30), decimals),
    )
    w_in, w_out = drawn(1), drawn(2, 30)
    found = resampling.ranking(inside, outside)(w_in, w_out)
    for r in range(5):
        sides = np.repeat(inside, w_in[r].astype(int)), np.repeat(outside, w_out[r].astype(int))
        expected = metrics.ranking(*sides)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name][r] == pytest.approx(value, abs=1e-12), name


def test_regression():
    rng = np.random.default_rng(0)
    mean, variance = rng.normal(0, 1, (3, 40, 2)), rng.gamma(2, 1, (3, 40, 2))
    y = rng.normal(0, 1.5, (40, 2))
    distance = 2 * np.abs(regression.pit(mean, variance, y) - 0.5)
    levels = np.arange(1, 20) / 20
    w = drawn(4)
    squared = ((mean.mean(0) - y) ** 2).mean(1)
    for row, error, root in zip(
        w.astype(int),
        resampling.coverage_error(distance, levels)(w),
        resampling.root_mean(squared)(w),
        strict=True,
    ):
        b = np.repeat(np.arange(40), row)
        at = mean[:, b], variance[:, b], y[b]
        assert error == pytest.approx(regression.calibration_error(*at), abs=1e-12)
        assert root == pytest.approx(regression.rmse(mean[:, b], y[b]), rel=1e-12)


def test_an_infinite_value_counts_where_it_was_drawn():
    w = np.array([[2.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    assert resampling.mean([1.0, np.inf, 4.0])(w).tolist() == [2.0, np.inf]


def test_groups_are_drawn_as_a_whole():
    groups = np.array(list("aababcc"))
    w = drawn(0, 7, groups, 200)
    for name in "abc":
        of = w[:, groups == name]
        assert (of == of[:, :1]).all()
    assert (w[:, [0, 2, 5]].sum(1) == 3).all()  # as many groups as there are


def test_the_spread_is_the_standard_error_of_a_mean():
    """For single examples s / sqrt(B); for groups of equal values, that of the groups' means."""
    values = np.random.default_rng(0).normal(size=50)
    of = resampling.mean(np.repeat(values, 4))
    w = drawn(1, 200, None, 4000), drawn(1, 200, np.repeat(np.arange(50), 4), 4000)
    single, grouped = (of(each).std() for each in w)
    assert single == pytest.approx(values.std() / np.sqrt(200), rel=0.05)
    assert grouped == pytest.approx(values.std() / np.sqrt(50), rel=0.05)


def test_intervals_of_a_mean_are_those_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(size=400)
    of = resampling.mean(values)(drawn(2, 400, None, 4000))
    low, high = resampling.interval(of, values.mean(), 0.9)
    half = scipy.stats.norm.ppf(0.95) * values.std() / 20
    assert [low, high] == pytest.approx(
        [values.mean() - half, values.mean() + half], abs=0.1 * half
    )


def test_intervals_of_calibration_errors_have_their_coverage():
    """Two overconfident models: the true difference is in the basic interval, as it should be.

    Nominal 90 %; among 100 data sets, 80 or fewer have a probability of .002.
    """

    def drawn_set(rng, examples):
        p = 1 / (1 + np.exp(-np.abs(rng.normal(1.5, 1.2, examples))))
        logit = np.log(p / (1 - p))
        models = [1 / (1 + np.exp(-factor * logit)) for factor in (1.6, 2.2)]
        return *models, rng.uniform(size=examples) < p

    def difference(a, b, correct):
        first, second = resampling.ece(a, correct), resampling.ece(b, correct)
        return lambda w: second(w) - first(w)

    rng = np.random.default_rng(0)
    (true,) = difference(*drawn_set(rng, 1_000_000))(np.ones((1, 1_000_000)))
    inside = 0
    for seed in range(100):
        of = difference(*drawn_set(rng, 300))
        values = np.concatenate([of(w) for w in resampling.weights(300, 256, seed)])
        low, high = resampling.interval(values, of(np.ones((1, 300)))[0], 0.9, biased=True)
        inside += low <= true <= high
    assert inside > 80


def test_ten_thousand_examples_a_thousand_times_take_seconds():
    rng = np.random.default_rng(0)
    confidence, correct = rng.uniform(size=10_000), rng.uniform(size=10_000) < 0.7
    of = [resampling.mean(correct), resampling.ece(confidence, correct)]
    began = time.process_time()
    for w in resampling.weights(10_000, 1000, 0):
        for statistic in of:
            statistic(w)
    assert time.process_time() - began < 5  # a loop over resamples that builds each set takes 100
