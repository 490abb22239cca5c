"""Scaling of variances against its closed form, and the likelihood of stretched mixtures."""

import numpy as np
import pytest
from scipy import optimize

from uncertainty.metrics import regression
from uncertainty.posthoc import variance_scale


def drawn(M, B=80, K=1, spread=2.0, seed=0):
    """Members that disagree, and targets `spread` times as far as they say."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=(1, B, K)) + 0.7 * rng.normal(size=(M, B, K))
    variance = np.exp(rng.normal(size=(M, B, K)))
    own = rng.integers(M, size=(B, K))
    at = np.take_along_axis(mean, own[None], 0)[0], np.take_along_axis(variance, own[None], 0)[0]
    centre = mean.mean(0)
    y = at[0] + np.sqrt(at[1]) * rng.normal(size=(B, K))
    return mean, variance, centre + spread * (y - centre)


def test_of_a_gaussian_it_is_the_root_mean_square_of_the_standardised_errors():
    mean, variance, y = drawn(1)
    fitted = variance_scale(mean, variance, y[:, 0])
    s = np.sqrt(np.mean((y - mean[0]) ** 2 / variance[0]))
    np.testing.assert_allclose(fitted.scale, [s], rtol=1e-12)
    after = fitted(mean, variance)
    np.testing.assert_array_equal(after[0], mean)
    np.testing.assert_allclose(np.mean((y - mean[0]) ** 2 / after[1][0]), 1)


@pytest.mark.parametrize("spread", [0.3, 2.0])
def test_of_a_mixture_it_has_the_lowest_nll_of_all_stretched_ones(spread):
    mean, variance, y = drawn(3, spread=spread)
    fitted = variance_scale(mean, variance, y)

    def nll(log_s):
        s, centre = np.exp(log_s), mean.mean(0)
        return regression.nll(centre + s * (mean - centre), s**2 * variance, y)

    best = optimize.brute(nll, [(-3, 3)], Ns=400, finish=optimize.fmin)
    np.testing.assert_allclose(np.log(fitted.scale), best, atol=1e-3)
    after = fitted(mean, variance)
    assert regression.nll(*after, y) <= nll(best[0]) + 1e-9
    assert abs(fitted.scale[0] / spread - 1) < 0.25 and not fitted.at_bound.any()
    np.testing.assert_allclose(after[0].mean(0), mean.mean(0), atol=1e-12)
    total = variance.mean(0) + mean.var(0)
    np.testing.assert_allclose(after[1].mean(0) + after[0].var(0), fitted.scale**2 * total)


def test_targets_are_scaled_each_by_itself():
    mean, variance, y = drawn(2, K=3)
    each = [variance_scale(mean[..., [k]], variance[..., [k]], y[:, k]).scale[0] for k in range(3)]
    fitted = variance_scale(mean, variance, y)
    np.testing.assert_array_equal(fitted.scale, each)
    with pytest.raises(ValueError, match="the scale is of 3 targets"):
        fitted(mean[..., :1], variance[..., :1])


@pytest.mark.parametrize("M", [1, 2])
def test_bounds_are_reported(M):
    mean, variance, _ = drawn(M)
    exact = variance_scale(mean, variance, mean.mean(0), minimum=0.1)
    assert exact.at_bound.all()
    np.testing.assert_allclose(exact.scale, 0.1)
    far = variance_scale(mean, variance, mean.mean(0) + 1e6, maximum=50.0)
    assert far.at_bound.all()
    np.testing.assert_allclose(far.scale, 50)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(minimum=2.0), "minimum, maximum: 2.0"),
        (dict(mean=np.zeros((5, 1))), r"mean: \[members, examples, targets\]"),
        (dict(variance=np.zeros((2, 5, 1))), r"variance: 0.0 at \[0, 0, 0\]; positive and finite"),
        (dict(y=np.zeros(4)), r"y: \(5, 1\) is expected; got \(4, 1\)"),
        (dict(y=np.full(5, np.nan)), r"y: nan at \[0, 0\]"),
    ],
)
def test_refuses(change, message):
    given = dict(mean=np.zeros((2, 5, 1)), variance=np.ones((2, 5, 1)), y=np.ones(5))
    with pytest.raises(ValueError, match=message):
        variance_scale(**given | change)
