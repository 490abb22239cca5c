"""Entropies and divergences between members against SciPy and loops over pairs."""

import itertools

import numpy as np
import pytest
from scipy.special import rel_entr
from scipy.stats import entropy as scipy_entropy

from uncertainty.metrics import information


def test_entropies_against_scipy(predict):
    log_p, _ = predict(4, 60, 5)
    p = np.exp(log_p)
    total, members = scipy_entropy(p.mean(0), axis=-1), scipy_entropy(p, axis=-1).mean(0)
    np.testing.assert_allclose(information.entropy(log_p), total, rtol=1e-12)
    np.testing.assert_allclose(information.expected_entropy(log_p), members, rtol=1e-12)
    divergence = rel_entr(p, p.mean(0)).sum(-1).mean(0)
    np.testing.assert_allclose(information.mutual_information(log_p), divergence, rtol=1e-10)
    np.testing.assert_allclose(information.max_probability(log_p), p.mean(0).max(-1), rtol=1e-12)


def test_divergences_between_pairs_by_loop(predict):
    log_p, _ = predict(5, 40, 3)
    p, top = np.exp(log_p), log_p.argmax(-1)
    pairs = list(itertools.permutations(range(5), 2))
    kl = np.mean([rel_entr(p[m], p[n]).sum(-1) for m, n in pairs])
    np.testing.assert_allclose(information.pairwise_kl(log_p), kl, rtol=1e-12)
    different = np.mean([top[m] != top[n] for m, n in pairs])
    np.testing.assert_allclose(information.disagreement(log_p), different, rtol=1e-12)


def test_bounds_are_reached():
    log_p = np.where(
        np.eye(3)[:, None, :] == 1, 0.0, -np.inf
    )  # three members, each sure of its own
    np.testing.assert_allclose(information.mutual_information(log_p), np.log(3), rtol=1e-12)
    assert information.disagreement(log_p) == 1.0
    assert information.pairwise_kl(log_p) == np.inf
    assert information.expected_entropy(log_p) == 0.0


def test_equal_members_share_everything(predict):
    log_p, _ = predict(1, 100, 7)
    log_p = np.repeat(log_p, 3, axis=0)
    assert information.mutual_information(log_p).max() < 1e-14
    assert information.disagreement(log_p) == 0.0
    assert 0 <= information.pairwise_kl(log_p) < 1e-14


def test_small_differences_between_members_keep_their_information(predict):
    log_p, _ = predict(1, 50, 4)
    rng = np.random.default_rng(0)
    logits = log_p + 1e-4 * rng.normal(size=(3, 50, 4))
    near = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    p = np.exp(near)
    # To second order it is half the variance of log p under p.
    expected = 0.5 * (p * (near - near.mean(0)) ** 2).mean(0).sum(-1)
    np.testing.assert_allclose(information.mutual_information(near), expected, rtol=1e-3)


def test_probabilities_of_zero_and_one():
    rows = [[0.0, -np.inf, -np.inf], [0.0, -1e30, -np.inf], [np.log(0.5), np.log(0.5), -1e30]]
    log_p = np.array([rows, rows], np.float32)
    np.testing.assert_allclose(information.entropy(log_p), [0, 0, np.log(2)], atol=1e-7)
    np.testing.assert_array_equal(information.mutual_information(log_p), 0.0)
    assert information.pairwise_kl(log_p) == 0.0
    other = log_p.copy()
    other[1, 1] = [np.log(0.75), np.log(0.25), -np.inf]
    # KL(second || first) = 0.75 log 0.75 + 0.25 (log 0.25 + 1e30), by far the most of it.
    np.testing.assert_allclose(information.pairwise_kl(other), 0.25e30 / 2 / 3, rtol=1e-6)


def test_one_member_cannot_disagree(predict):
    log_p, _ = predict(1, 3, 3)
    np.testing.assert_array_equal(information.mutual_information(log_p), 0.0)
    for function in (information.disagreement, information.pairwise_kl):
        with pytest.raises(ValueError, match="at least 2 members are needed"):
            function(log_p)
