"""Joint predictions by loops, identities, and draws of functions against their covariance."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uncertainty import predictive
from uncertainty.layers import posterior
from uncertainty.metrics import classification, joint
from uncertainty.types import Latent


def test_blocks_by_loop(predict):
    log_p, labels = predict(3, 23, 4)
    p = np.exp(log_p)
    total = []
    for start in range(0, 20, 5):
        blocks = [np.prod([p[m, b, labels[b]] for b in range(start, start + 5)]) for m in range(3)]
        total.append(-np.log(np.mean(blocks)))
    np.testing.assert_allclose(joint.joint_nll(log_p, labels, 5), np.mean(total))


def test_pairs_over_all_draws_of_the_indices(predict):
    log_p, labels = predict(3, 7, 4)
    p = np.exp(log_p)[:, np.arange(7), labels]
    total = []
    for first in (0, 2, 4):
        for draw in itertools.product((first, first + 1), repeat=4):  # all 2^4 are as likely
            total.append(-np.log(np.mean([np.prod(p[m, list(draw)]) for m in range(3)])))
    np.testing.assert_allclose(joint.dyadic_nll(log_p, labels, 4), np.mean(total))


def test_identities(predict):
    log_p, labels = predict(4, 40, 5)
    one = log_p[:1]
    for value in (joint.dyadic_nll(one, labels, 10), joint.joint_nll(one, labels, 10)):
        np.testing.assert_allclose(value, 10 * classification.nll(one, labels))
    np.testing.assert_allclose(joint.joint_nll(log_p, labels, 1), classification.nll(log_p, labels))
    # Jensen: at most the members' mean, tau times their NLL.
    assert joint.dyadic_nll(log_p, labels, 10) <= 10 * classification.member_nll(log_p, labels)
    # Two opposite and certain members: both labels or none.
    p = np.array([[[1 - 1e-9, 1e-9]] * 2, [[1e-9, 1 - 1e-9]] * 2])
    np.testing.assert_allclose(joint.dyadic_nll(np.log(p), [0, 0], 10), np.log(2), rtol=1e-6)
    # A label of probability 0 in one member is no label of the others.
    with np.errstate(divide="ignore"):
        zero = np.log([[[1.0, 0.0]] * 2, [[0.5, 0.5]] * 2])
    np.testing.assert_allclose(joint.dyadic_nll(zero, [1, 1], 3), -np.log(0.5**3 / 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(epistemic=np.ones((2, 4, 1))), "epistemic: these log_p are averages over a Gaussian"),
        (dict(tau=5), "tau: 5, but there are 4 examples"),
        (dict(tau=0), "tau: 0"),
        # Of independent classes log p(label) says nothing of the others.
        (dict(log_p=np.full((2, 4, 3), -1e-6)), "sum to 3 at member 0.* no joint likelihood"),
        (dict(labels=np.full(4, 3)), "labels: 3 at example 0"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        joint.joint_nll(
            **dict(log_p=np.log(np.full((2, 4, 3), 1 / 3)), labels=np.arange(4) % 3) | change
        )


@pytest.mark.parametrize("classes", [1, 3])
def test_functions_have_the_covariance_of_the_posterior(classes):
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(1, 5, 4)).astype(np.float32)
    roots = rng.normal(size=(classes, 9, 4))
    P = np.eye(4) + np.einsum("kni,knj->kij", roots, roots)
    factor = jnp.asarray(np.linalg.inv(np.linalg.cholesky(P)), jnp.float32)
    factor = factor[0] if classes == 1 else factor
    variance = posterior.quadratic(phi, factor)
    w = posterior.whitened(phi, factor)
    np.testing.assert_allclose(jnp.sum(w**2, -1).reshape(variance.shape), variance, rtol=1e-5)
    # A head may scale it, and add noise: the noise stays, the scale is kept.
    mean = jnp.asarray(rng.normal(size=(1, 5, 3)), jnp.float32)
    latent = Latent(mean=mean, variance=4 * variance + 0.7, epistemic=4 * variance)
    means, rest = predictive.functions(latent, w, jax.random.key(0), 40_000)
    np.testing.assert_allclose(rest.variance, 0.7, rtol=1e-4)
    f = np.asarray(means - mean)[:, 0]  # [S, 5, 3]
    inverse = np.linalg.inv(P)
    for k in range(3):
        expected = 4 * phi[0] @ inverse[k if classes > 1 else 0] @ phi[0].T
        drawn = f[:, :, k].T @ f[:, :, k] / len(f)
        np.testing.assert_allclose(drawn, expected, atol=0.03 * np.abs(expected).max())
    # The same functions at other inputs.
    first = jax.tree.map(lambda a: a[:, :2], latent)
    again, _ = predictive.functions(first, w[:, :2], jax.random.key(0), 40_000)
    np.testing.assert_allclose(again, means[:, :, :2], rtol=1e-4, atol=1e-5)
