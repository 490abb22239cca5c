"""Calibration of mixtures and of members."""

import numpy as np
import pytest
from scipy import optimize, special

from uncertainty import posthoc
from uncertainty.posthoc.temperature import temperature
from uncertainty.posthoc.vector import vector


def members(M=3, B=50, K=4):
    rng = np.random.default_rng(0)
    return special.log_softmax(2 * rng.normal(size=(M, B, K)), -1), rng.integers(K, size=B)


def test_the_mixture_is_calibrated_as_one_and_members_each_alone():
    log_p, labels = members()
    pooled = special.logsumexp(log_p, 0) - np.log(3)
    of_mixture = posthoc.of_ensemble(temperature, log_p, labels)
    np.testing.assert_allclose(
        of_mixture(log_p), temperature(pooled, labels)(pooled)[None], rtol=1e-9
    )
    each = posthoc.of_ensemble(temperature, log_p, labels, "members")
    expected = [temperature(member, labels)(member) for member in log_p]
    np.testing.assert_array_equal(each(log_p), expected)


def test_joint_temperature_minimises_the_nll_of_the_mixture():
    log_p, labels = members(B=200)
    labels = np.where(labels % 2, labels, log_p.mean(0).argmax(-1))
    joint = posthoc.of_ensemble(temperature, log_p, labels, "joint")

    def nll(log_t):
        mixed = special.logsumexp(special.log_softmax(log_p / np.exp(log_t), -1), 0) - np.log(3)
        return -mixed[np.arange(200), labels].mean()

    reference = optimize.minimize_scalar(nll, bracket=(-1, 1), tol=1e-10)
    found = np.log(joint.calibrators[0].temperature)
    np.testing.assert_allclose(found, reference.x, atol=1e-5)
    assert nll(found) < nll(0.0) - 1e-3
    assert joint(log_p).shape == log_p.shape
    one = posthoc.of_ensemble(temperature, log_p[:1], labels, "joint").calibrators[0]
    np.testing.assert_allclose(
        one.temperature, temperature(log_p[0], labels).temperature, rtol=1e-6
    )
    alike = np.stack([log_p[0]] * 2)
    right = posthoc.of_ensemble(temperature, alike, log_p[0].argmax(-1), "joint").calibrators[0]
    assert right.at_bound
    np.testing.assert_allclose(right.temperature, 0.01)
    with pytest.raises(ValueError, match=r"\[examples, classes\]"):
        posthoc.of_ensemble(vector, log_p, labels, "joint")


def test_calibrated_members_make_an_underconfident_mixture():
    # Three informative members with noise of their own; each is calibrated, their mixture is not,
    # and calibrating it needs a temperature below 1 (Rahaman & Thiery 2021).
    rng = np.random.default_rng(1)
    labels = rng.integers(3, size=3000)
    log_p = special.log_softmax(2 * np.eye(3)[labels] + 1.2 * rng.normal(size=(3, 3000, 3)), -1)
    each = posthoc.of_ensemble(temperature, log_p, labels, "members")(log_p)
    confidence = np.exp(each).mean(0).max(-1).mean()
    accuracy = (np.exp(each).mean(0).argmax(-1) == labels).mean()
    assert confidence < accuracy - 0.03
    pooled = posthoc.of_ensemble(temperature, each, labels)
    assert pooled.calibrator.temperature < 0.9
    assert abs(np.exp(pooled(each))[0].max(-1).mean() - accuracy) < 0.01


def test_refuses_other_members_and_words():
    log_p, labels = members()
    with pytest.raises(ValueError, match="log_p: 2 members, but the calibrators are of 3"):
        posthoc.of_ensemble(temperature, log_p, labels, "members")(log_p[:2])
    with pytest.raises(ValueError, match="of: 'member'; one of 'mixture', 'members', 'joint'"):
        posthoc.of_ensemble(temperature, log_p, labels, "member")
    with pytest.raises(ValueError, match=r"\[members, examples, classes\]"):
        posthoc.of_ensemble(temperature, log_p[0], labels)
