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
sample = jax.jit(predictive.sample, static_argnums=2)


def latent(M=2, B=5, K=3, R=None, variance=False, seed=0):
    rng = np.random.default_rng(seed)
    return Latent(
        mean=np.float32(rng.normal(size=(M, B, K))),
        variance=np.float32(rng.uniform(0.1, 1, (M, B, K))) if variance else None,
        factors=np.float32(rng.normal(size=(M, B, K, R))) if R else None,
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


@pytest.mark.slow
def test_softmax_integral_of_two_classes_matches_quadrature():
    # With two classes softmax(u) depends on u_0 - u_1 ~ N(m, s^2) alone.
    u = latent(M=1, B=4, K=2, R=2, variance=True)
    got = np.exp(jax.jit(likelihoods.softmax(samples=200_000).log_probs)(u, KEY))[0, :, 0]
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
    draws = np.asarray(sample(u, KEY, 100_000))
    for m in range(2):
        for b in range(2):
            expected = np.diag(u.variance[m, b]) + np.asarray(u.factors[m, b] @ u.factors[m, b].T)
            # Standard error of a covariance of 1e5 draws: sqrt((s_ii s_jj + s_ij^2) / 1e5) < 0.03.
            np.testing.assert_allclose(np.cov(draws[:, m, b].T), expected, atol=0.12)


def in_classes(latent):
    """The same Gaussian without a projection: Sigma_k = W^T Sigma_q W, one [K, K] per example."""
    e = latent.variance[..., None] * np.eye(latent.variance.shape[-1])
    e = e + np.einsum("mbqr,mbpr->mbqp", latent.factors, latent.factors)
    return np.einsum("mqk,mbqp,mpl->mbkl", latent.projection, e, latent.projection)


def projected(M=2, B=3, K=4, Q=5, R=2, seed=1):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return np.float32(rng.normal(size=shape))

    return Latent(
        mean=normal(M, B, K),
        variance=normal(M, B, Q) ** 2,
        factors=normal(M, B, Q, R),
        projection=normal(M, Q, K),
    )


@pytest.mark.slow
def test_noise_in_another_space_has_the_projected_covariance():
    u = projected()
    covariance = in_classes(u)
    draws = np.asarray(sample(u, KEY, 200_000), np.float64)
    for m in range(2):
        for b in range(3):
            scale = np.diag(covariance[m, b]).max()
            # Standard error of an entry: below scale sqrt(2 / 2e5) = 0.003 scale.
            np.testing.assert_allclose(
                np.cov(draws[:, m, b].T), covariance[m, b], atol=0.02 * scale
            )
    exact = np.diagonal(covariance, axis1=-2, axis2=-1)
    np.testing.assert_allclose(jax.jit(predictive.marginal_variance)(u), exact, rtol=1e-4)
    root = jax.jit(predictive.covariance_root)(u)
    np.testing.assert_allclose(
        np.einsum("mbkr,mblr->mbkl", root, root), covariance, rtol=1e-3, atol=1e-4
    )


def test_gaussian_likelihood_with_noise_in_another_space_is_scipys():
    u = projected(K=3)
    y = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    likelihood = likelihoods.gaussian(noise_std=0.5)
    got = jax.jit(likelihood.nll)(u, y, KEY)
    covariance = in_classes(u) + 0.25 * np.eye(3)
    for m in range(2):
        for b in range(3):
            exact = -scipy.stats.multivariate_normal.logpdf(y[b], u.mean[m, b], covariance[m, b])
            np.testing.assert_allclose(got[m, b], exact, rtol=1e-3)


@pytest.mark.slow
def test_draws_in_chunks_are_the_same_integral(monkeypatch):
    u = latent(M=1, B=4, K=3, R=2, variance=True)
    labels = jnp.array([0, 1, 2, 0])

    def value_and_gradient():
        likelihood = likelihoods.softmax(samples=12_000)
        grad = jax.grad(lambda u: likelihood.nll(u, labels, KEY).sum())
        return jax.jit(lambda u: (likelihood.log_probs(u, KEY), grad(u)))(u)

    whole, gradient = value_and_gradient()
    monkeypatch.setattr(predictive, "LIMIT", 12 * 2_000)  # six chunks
    parts, gradient_of_parts = value_and_gradient()
    # Other random numbers: standard error of log p below sqrt(1 / 12,000) / p.
    np.testing.assert_allclose(parts, whole, atol=0.1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=0.05), gradient_of_parts, gradient
    )


def test_chunks_of_noise_in_another_space_are_as_large_as_that_space(monkeypatch):
    u = projected(M=1, B=16, K=2, Q=256)
    monkeypatch.setattr(predictive, "LIMIT", 16 * 256 * 10)  # ten draws
    log_probs = jax.jit(likelihoods.softmax(samples=1000).log_probs)
    memory = log_probs.lower(u, KEY).compile().memory_analysis().temp_size_in_bytes
    assert memory < 4 * 16 * 256 * 100


def test_draws_are_opposite_pairs_and_shared_across_the_batch_only_when_asked():
    u = Latent(mean=jnp.zeros((2, 3, 4)), variance=jnp.ones((2, 3, 4)))
    for samples in (6, 7):
        draws = np.asarray(sample(u, KEY, samples))
        assert draws.shape == (samples, 2, 3, 4)
        half = -(-samples // 2)
        np.testing.assert_array_equal(draws[half:], -draws[: samples - half])
        np.testing.assert_array_equal(draws[:, 0], draws[:, 1])  # members
        assert not np.allclose(draws[:, 0, 0], draws[:, 0, 1])
        assert len(np.unique(np.abs(draws[0, 0]).ravel())) == 12  # classes and examples
    shared = np.asarray(predictive.sample(u, KEY, 6, shared=True))
    np.testing.assert_array_equal(shared[:, :, 0], shared[:, :, 2])
    assert len(np.unique(np.abs(shared[0, 0, 0]))) == 4


def test_mean_field_is_near_the_integral_and_exact_where_nothing_is_uncertain():
    u = latent(M=1, B=4, K=1, variance=True)
    mean, variance = np.asarray(u.mean, np.float64), np.asarray(u.variance, np.float64)
    got = np.exp(likelihoods.sigmoid(mean_field=np.pi / 8).log_probs(u, KEY))
    np.testing.assert_allclose(
        got, scipy.special.expit(mean / np.sqrt(1 + np.pi / 8 * variance)), rtol=1e-5
    )
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    values = scipy.special.expit(mean[..., None] + np.sqrt(variance)[..., None] * nodes)
    exact = np.sum(weights * values, axis=-1) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(got, exact, atol=0.01)  # MacKay's approximation, not rounding
    u = latent(variance=True)
    got = likelihoods.softmax(temperature=0.5, mean_field=3.0).log_probs(u, KEY)
    scaled = np.asarray(u.mean) / 0.5 / np.sqrt(1 + 3 * np.asarray(u.variance) / 0.25)
    np.testing.assert_allclose(got, scipy.special.log_softmax(scaled, axis=-1), rtol=1e-4)
    labels = jnp.array([0, 1, 2, 0, 1])
    nll = likelihoods.softmax(temperature=0.5, mean_field=3.0).nll(u, labels, KEY)
    np.testing.assert_allclose(nll, -jnp.take_along_axis(got, labels[None, :, None], 2)[..., 0])
    point = latent()
    np.testing.assert_array_equal(
        likelihoods.softmax(mean_field=20.0).log_probs(point, KEY),
        likelihoods.softmax().log_probs(point, KEY),
    )
    with pytest.raises(ValueError, match="mean_field: 0"):
        likelihoods.softmax(mean_field=0)


@pytest.mark.slow
def test_members_share_their_random_numbers():
    one = latent(M=1, variance=True, R=1)
    twice = jax.tree.map(lambda a: np.concatenate([a, a]), one)
    log_p = jax.jit(likelihoods.softmax(samples=8).log_probs)(twice, KEY)
    np.testing.assert_array_equal(log_p[0], log_p[1])


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_likelihoods_say_whether_probabilities_sum_to_1(name):
    likelihood = getattr(likelihoods, name)()
    sums = np.exp(likelihood.log_probs(latent(variance=True), KEY)).sum(-1)
    assert np.allclose(sums, 1, atol=1e-5) == likelihood.normalised


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
    got = jax.jit(likelihood.nll)(u, np.float32(y), KEY)
    mean, marginal = jax.jit(likelihood.moments)(u)
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
    np.testing.assert_allclose(np.exp(jax.jit(predictive.mixture)(np.log(p))), p.mean(0), rtol=1e-5)


def test_one_target_is_not_that_of_all_outputs():
    """Class labels [B] would broadcast to [B, K], as a regression of every output to the label."""
    likelihood = likelihoods.gaussian()
    latent = Latent(mean=jnp.zeros((1, 5, 3)))
    for labels in (jnp.arange(5) % 3, jnp.ones((5, 1))):
        with pytest.raises(ValueError, match=r"labels: 1 targets for 3 outputs; \[B, 3\]"):
            likelihood.nll(latent, labels, jax.random.key(0))
    one = Latent(mean=jnp.zeros((1, 5, 1)))
    assert likelihood.nll(one, jnp.ones(5), jax.random.key(0)).shape == (1, 5)


@pytest.mark.parametrize("make", [likelihoods.softmax, likelihoods.sigmoid])
@pytest.mark.parametrize(
    ("K", "labels"),
    [
        (2, np.array([True, False])),  # of classes, not one value for each
        (2, np.array([0.0, 1.0])),
        (1, np.array([[1, 0]])),
        (1, np.array([1.0, 0.0])),
        (3, np.array([0, 1, 1])),
    ],
)
def test_labels_of_another_shape_are_not_broadcast(make, K, labels):
    u = latent(M=1, B=2, K=K)
    with pytest.raises(ValueError, match=rf"labels: .* integers \[2\] or probabilities \[2, {K}\]"):
        make().nll(u, jnp.asarray(labels), KEY)
