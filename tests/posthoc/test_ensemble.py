"""Calibration of mixtures and of members."""

import numpy as np
import pytest
from scipy import special

from uncertainty import posthoc
from uncertainty.posthoc.temperature import temperature


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


def test_refuses_other_members_and_words():
    log_p, labels = members()
    with pytest.raises(ValueError, match="log_p: 2 members, but the calibrators are of 3"):
        posthoc.of_ensemble(temperature, log_p, labels, "members")(log_p[:2])
    with pytest.raises(ValueError, match="of: 'member'; one of 'mixture', 'members'"):
        posthoc.of_ensemble(temperature, log_p, labels, "member")
    with pytest.raises(ValueError, match=r"\[members, examples, classes\]"):
        posthoc.of_ensemble(temperature, log_p[0], labels)
