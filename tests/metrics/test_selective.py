"""Risk-coverage curves against loops and the mean over all orders of ties."""

import itertools

import numpy as np
import pytest

from uncertainty.metrics import selective


def curve(order, correct):
    wrong, risks = 0, []
    for k, b in enumerate(order, 1):
        wrong += 1 - correct[b]
        risks.append(wrong / k)
    return np.array(risks)


def test_by_loop_without_ties():
    rng = np.random.default_rng(0)
    confidence, correct = rng.normal(size=200), rng.integers(2, size=200)
    coverage, risk = selective.risk_coverage(confidence, correct)
    np.testing.assert_allclose(coverage, np.arange(1, 201) / 200)
    expected = curve(np.argsort(-confidence), correct)
    np.testing.assert_allclose(risk, expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(selective.aurc(confidence, correct), expected.mean(), rtol=1e-12)
    assert risk[-1] == 1 - correct.mean()


@pytest.mark.parametrize("confidence", [[1, 1, 1, 1, 1, 1], [2, 2, 1, 1, 1, 0], [0, 1, 1, 2, 2, 2]])
def test_ties_are_the_mean_over_all_orders(confidence):
    confidence, correct = np.array(confidence, float), np.array([1, 0, 0, 1, 1, 0])
    curves = []
    for order in itertools.permutations(range(6)):
        order = np.array(order)
        curves.append(curve(order[np.argsort(-confidence[order], kind="stable")], correct))
    _, risk = selective.risk_coverage(confidence, correct)
    np.testing.assert_allclose(risk, np.mean(curves, 0), rtol=1e-12)


def test_excess_is_against_the_best_order():
    correct = np.array([1, 1, 0, 1, 0, 1, 1])
    best = min(curve(o, correct).mean() for o in itertools.permutations(range(7)))
    rng = np.random.default_rng(0)
    confidence = rng.random(7)
    np.testing.assert_allclose(
        selective.excess_aurc(confidence, correct),
        selective.aurc(confidence, correct) - best,
        rtol=1e-12,
    )
    assert selective.excess_aurc(correct + 0.1 * confidence, correct) < 1e-15


def test_excess_goes_to_the_papers_limit():
    rng = np.random.default_rng(0)
    correct = rng.random(200_000) < 0.8
    confidence = rng.random(200_000)
    r = 1 - correct.mean()
    limit = r + (1 - r) * np.log(1 - r)
    found = selective.aurc(confidence, correct) - selective.excess_aurc(confidence, correct)
    np.testing.assert_allclose(found, limit, atol=1e-5)


@pytest.mark.parametrize("value", [0, 1])
def test_all_right_or_all_wrong(value):
    correct = np.full(5, value)
    confidence = np.array([0.1, 0.2, 0.2, 0.3, 0.2])
    np.testing.assert_array_equal(selective.risk_coverage(confidence, correct)[1], 1.0 - value)
    assert selective.aurc(confidence, correct) == 1 - value
    assert selective.excess_aurc(confidence, correct) == 0


def test_wrong_input():
    with pytest.raises(ValueError, match="confidence: NaN at example 0"):
        selective.aurc([np.nan, 1.0], [0, 1])
    with pytest.raises(ValueError, match="B > 0"):
        selective.aurc([], [])
