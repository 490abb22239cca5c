"""Diversity of pairs of members against loops."""

import itertools

import numpy as np
import pytest
from scipy import special

from uncertainty.metrics import classification, information, pairs

KINDS = ("eq", "inv", "eq", "base", "inv")


def drawn(M=5, B=50, K=4):
    rng = np.random.default_rng(0)
    return special.log_softmax(2 * rng.normal(size=(M, B, K)), -1), rng.integers(0, K, B)


def test_matrices_by_loops():
    log_p, y = drawn()
    top = log_p.argmax(2)
    for i, j in itertools.product(range(5), repeat=2):
        both = log_p[[i, j]]
        differ = sum(a != b for a, b in zip(top[i], top[j], strict=True)) / 50
        one = sum((a == k) != (b == k) for a, b, k in zip(top[i], top[j], y, strict=True)) / 50
        assert pairs.disagreement(log_p)[i, j] == pytest.approx(differ)
        assert pairs.error_inconsistency(log_p, y)[i, j] == pytest.approx(one)
        assert pairs.accuracy(log_p, y)[i, j] == pytest.approx(classification.accuracy(both, y))
        assert pairs.nll(log_p, y)[i, j] == pytest.approx(classification.nll(both, y))
        oracle = np.mean((top[i] == y) | (top[j] == y))
        accuracies = [np.mean(top[m] == y) for m in (i, j)]
        assert oracle == pytest.approx((sum(accuracies) + one) / 2)
    of_all = pairs.between(pairs.disagreement(log_p), ["a"] * 5)
    assert of_all["a", "a"] == pytest.approx(information.disagreement(log_p))


def test_means_over_pairs_of_kinds():
    values = np.add.outer(10.0 ** np.arange(5), 10.0 ** np.arange(5))  # says which pair it is of
    found = pairs.between(values, KINDS)
    assert list(found) == [
        ("eq", "eq"), ("eq", "inv"), ("eq", "base"), ("inv", "inv"), ("inv", "base")
    ]  # fmt: skip
    assert found["eq", "eq"] == 101 and found["inv", "inv"] == 10010
    assert found["eq", "inv"] == np.mean([11, 10001, 110, 10100])
    assert found["eq", "base"] == np.mean([1001, 1100])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_accuracy_at_equal_member_counts(count):
    log_p, y = drawn()
    found = pairs.at_count(log_p, y, KINDS, count)
    of = np.array(KINDS)
    for a, b in itertools.combinations_with_replacement(("eq", "inv", "base"), 2):
        values = []
        for members in itertools.combinations(range(5), count):
            n, m = np.sum(of[list(members)] == a), np.sum(of[list(members)] == b)
            if n == count if a == b else (n + m == count and abs(n - m) <= 1 and min(n, m) > 0):
                of_them = log_p[list(members)]
                both = classification.accuracy(of_them, y), classification.nll(of_them, y)
                values.append(both)
        assert bool(values) == ((a, b) in found)
        if values:
            np.testing.assert_allclose(found[a, b], np.mean(values, axis=0))


def test_many_mixtures_are_drawn_without_bias():
    log_p, y = drawn(M=12)
    kinds = ["a"] * 6 + ["b"] * 6
    whole = pairs.at_count(log_p, y, kinds, 4, most=10**6)
    some = pairs.at_count(log_p, y, kinds, 4, most=100)
    assert some == pairs.at_count(log_p, y, kinds, 4, most=100) != whole
    for couple, values in whole.items():
        np.testing.assert_allclose(some[couple], values, atol=0.02)
    with pytest.raises(ValueError, match="count: 0 members; at least 1"):
        pairs.at_count(log_p, y, kinds, 0)
