"""Conformal intervals: exact coverage by leaving one out, and cases by hand."""

import math

import numpy as np
import pytest

from uncertainty.conformal.cqr import cqr
from uncertainty.conformal.split import split


def examples(seed=0, B=25, K=2):
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=(B, K))
    std = np.exp(rng.normal(size=(B, K)))
    return mean, std, mean + std * rng.normal(size=(B, K))


METHODS = {
    "split": lambda m, s, y, **f: (split(m, y, **f), lambda m, s: (m,)),
    "scaled": lambda m, s, y, **f: (split(m, y, s, **f), lambda m, s: (m, s)),
    "cqr": lambda m, s, y, **f: (cqr(m - s, m + s, y, **f), lambda m, s: (m - s, m + s)),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("alpha", [0.1, 0.35])
def test_coverage_over_all_choices_of_the_test_example_is_exact(name, alpha):
    mean, std, y = examples()
    groups = np.arange(25) % 2
    hits, in_groups = [], []
    for i in range(25):
        rest, own = np.arange(25) != i, [i]
        fitted, inputs = METHODS[name](mean[rest], std[rest], y[rest], alpha=alpha)
        low, high = fitted(*inputs(mean[own], std[own]))
        hits.append(((low <= y[own]) & (y[own] <= high))[0])
        fields = dict(alpha=alpha, by="group", groups=groups[rest])
        fitted, inputs = METHODS[name](mean[rest], std[rest], y[rest], **fields)
        low, high = fitted(*inputs(mean[own], std[own]), groups=groups[own])
        in_groups.append(((low <= y[own]) & (y[own] <= high))[0])
    expected = math.ceil(25 * (1 - alpha) - 1e-9)
    np.testing.assert_array_equal(np.sum(hits, 0), expected)
    for g, size in ((0, 13), (1, 12)):
        expected = math.ceil(size * (1 - alpha) - 1e-9)
        np.testing.assert_array_equal(np.sum(np.array(in_groups)[groups == g], 0), expected)


@pytest.mark.parametrize("name", METHODS)
def test_groups_may_have_any_numbers(name):
    mean, std, y = examples()
    groups = np.arange(25) % 2
    numbers = np.array([10**12, 4])[groups]
    ends = []
    for of in (groups, numbers):
        fitted, inputs = METHODS[name](mean, std, y, alpha=0.2, by="group", groups=of)
        ends.append(fitted(*inputs(mean, std), groups=of))
        assert fitted.quantile.shape == (2, 2)
    np.testing.assert_array_equal(*ends)
    low, high = fitted(*inputs(mean, std), groups=np.full(25, 5))
    assert np.isneginf(low).all() and np.isposinf(high).all()


def test_by_hand():
    y = np.array([[1.0], [-2.0], [3.0], [0.5]])
    zero = np.zeros_like(y)
    # Scores 1, 2, 3, .5; the ceil(5 * .5) = 3rd smallest is 2.
    low, high = split(zero, y, alpha=0.5)(np.array([[10.0]]))
    assert (low.item(), high.item()) == (8.0, 12.0)
    # Scores max(-1 - y, y - 1) = 0, 1, 2, -.5: the third is 1.
    low, high = cqr(zero - 1, zero + 1, y, alpha=0.5)(np.array([[4.0]]), np.array([[5.0]]))
    assert (low.item(), high.item()) == (3.0, 6.0)
    # Predicted intervals that are too wide shrink, and do not cross.
    wide = cqr(zero - 100, zero + 100, y, alpha=0.5)
    assert wide.quantile.item() == -98.0
    low, high = wide(np.array([[-1.0]]), np.array([[2.0]]))
    assert low.item() == high.item() == 0.5
    # Too few examples: everything.
    low, high = split(zero, y, alpha=0.1)(zero)
    assert np.isneginf(low).all() and np.isposinf(high).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m, s, y: split(m[:, 0], y), r"mean: \[examples, targets\]"),
        (lambda m, s, y: split(m, y[:3]), r"y: \(25, 2\) is expected"),
        (lambda m, s, y: split(m, y * np.nan), "y: nan at example 0, target 0"),
        (lambda m, s, y: split(m, y, -s), "scale: positive"),
        (lambda m, s, y: cqr(m + s, m - s, y), "low, high: low is above high in 50 places"),
        (lambda m, s, y: split(m, y, by="class"), "by: 'class'; one of 'none', 'group'"),
        (lambda m, s, y: split(m, y, alpha=0.0), "alpha: 0.0"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make(*examples())
