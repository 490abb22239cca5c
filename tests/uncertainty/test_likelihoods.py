"""Likelihoods against SciPy, quadrature and the exact Gaussian integral."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from uncertainty import likelihoods, predictive
from uncertainty.types import Latent

KEY = jax.random.key(0)


def latent(M=2, B=5, K=3, R=None, variance=False, seed=0):
    rng = np.random.default_rng(seed)
    return Latent(
        mean=jnp.asarray(rng.normal(size=(M, B, K)), jnp.float32),
        variance=jnp.asarray(rng.uniform(0.1, 1, (M, B, K)), jnp.float32) if variance else None,
        factors=jnp.asarray(rng.normal(size=(M, B, K, R)), jnp.float32) if R else None,
    )


def test_softmax_of_a_point_is_scipys():
    u = latent()
    labels = jnp.array([0, 2, 1, 1, 0])
    likelihood = likelihoods.softmax(temperature=0.7)
    expected = scipy.special.log_softmax(np.asarray(u.mean) / 0.7, axis=-1)
    np.testing.assert_allclose(likelihood.log_probs(u, KEY), expected, rtol=1e-5, atol=1e-6)
    picked = -np.stack([e[np.arange(5), labels] for e in expected])
    np.testing.assert_allclose(likelihood.nll(u, labels, KEY), picked, rtol=1e-5, atol=1e-6)
    one_hot = jax.nn.one_hot(labels, 3)
    np.testing.assert_allclose(likelihood.nll(u, one_hot, KEY), picked, rtol=1e-5, atol=1e-6)


def test_soft_label_of_zero_ignores_log_zero():
    u = Latent(mean=jnp.array([[[0.0, -jnp.inf]]]))
    nll = likelihoods.softmax().nll(u, jnp.array([[1.0, 0.0]]), KEY)
    np.testing.assert_array_equal(nll, [[0.0]])


def test_softmax_integral_of_two_classes_matches_quadrature():
    # With two classes softmax(u) depends on u_0 - u_1 ~ N(m, s^2) alone.
    u = latent(M=1, B=4, K=2, R=2, variance=True)
    got = np.exp(likelihoods.softmax(samples=200_000).log_probs(u, KEY))[0, :, 0]
    difference = np.array([1.0, -1.0])
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    for b in range(4):
        covariance = np.diag(u.variance[0, b]) + np.asarray(u.factors[0, b] @ u.factors[0, b].T)
        m, s = difference @ u.mean[0, b], np.sqrt(difference @ covariance @ difference)
        exact = np.sum(weights * scipy.special.expit(m + s * nodes)) / np.sqrt(2 * np.pi)
        # 200,000 draws of a probability: standard error below 0.0012.
        np.testing.assert_allclose(got[b], exact, atol=0.005)


def test_samples_have_the_covariance_that_the_latent_states():
    u = latent(M=2, B=2, K=3, R=2, variance=True)
    draws = np.asarray(predictive.sample(u, KEY, 100_000))
    for m in range(2):
        for b in range(2):
            expected = np.diag(u.variance[m, b]) + np.asarray(u.factors[m, b] @ u.factors[m, b].T)
            # Standard error of a covariance of 1e5 draws: sqrt((s_ii s_jj + s_ij^2) / 1e5) < 0.03.
            np.testing.assert_allclose(np.cov(draws[:, m, b].T), expected, atol=0.12)


def test_members_share_their_random_numbers():
    one = latent(M=1, variance=True, R=1)
    twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), one)
    log_p = likelihoods.softmax(samples=8).log_probs(twice, KEY)
    np.testing.assert_array_equal(log_p[0], log_p[1])


def test_sigmoid_is_a_sum_of_bernoullis():
    u = latent()
    labels = jnp.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0]])
    p = scipy.special.expit(np.asarray(u.mean, np.float64))
    expected = -scipy.stats.bernoulli.logpmf(np.asarray(labels)[None], p).sum(-1)
    likelihood = likelihoods.sigmoid()
    np.testing.assert_allclose(likelihood.nll(u, labels, KEY), expected, rtol=1e-5)
    np.testing.assert_allclose(np.exp(likelihood.log_probs(u, KEY)), p, rtol=1e-5)
    classes = jnp.array([0, 2, 1, 1, 0])
    np.testing.assert_array_equal(
        likelihood.nll(u, classes, KEY), likelihood.nll(u, jax.nn.one_hot(classes, 3), KEY)
    )


@pytest.mark.parametrize("R", [None, 2])
@pytest.mark.parametrize("variance", [False, True])
def test_gaussian_is_the_marginal_of_latent_and_noise(R, variance):
    u = latent(R=R, variance=variance)
    y = np.random.default_rng(1).normal(size=(5, 3))
    likelihood = likelihoods.gaussian(noise_std=0.5)
    got = likelihood.nll(u, jnp.asarray(y, jnp.float32), KEY)
    mean, marginal = likelihood.moments(u)
    for m in range(2):
        for b in range(5):
            covariance = 0.25 * np.eye(3)
            if variance:
                covariance += np.diag(u.variance[m, b])
            if R:
                covariance += np.asarray(u.factors[m, b] @ u.factors[m, b].T)
            exact = -scipy.stats.multivariate_normal.logpdf(y[b], u.mean[m, b], covariance)
            np.testing.assert_allclose(got[m, b], exact, rtol=2e-5)
            np.testing.assert_allclose(marginal[m, b], np.diag(covariance), rtol=1e-5)
    np.testing.assert_array_equal(mean, u.mean)


@pytest.mark.parametrize("arguments", [dict(temperature=0.0), dict(samples=0)])
def test_out_of_range_is_refused_by_name(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        likelihoods.softmax(**arguments)


def test_mixture_is_the_mean_of_probabilities():
    p = np.random.default_rng(0).dirichlet(np.ones(4), size=(3, 6))
    np.testing.assert_allclose(np.exp(predictive.mixture(jnp.log(p))), p.mean(0), rtol=1e-5)
