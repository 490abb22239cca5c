"""Particles that interact against posteriors that are known exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tests.uncertainty.posteriors import data, linear_regression, p_values, posterior
from uncertainty import likelihoods, priors
from uncertainty.inference import context
from uncertainty.inference.directions.independent import independent
from uncertainty.inference.directions.svgd import svgd
from uncertainty.inference.directions.wgd import wgd
from uncertainty.inference.kernels.linear import linear
from uncertainty.inference.kernels.rbf import rbf
from uncertainty.inference.particles import particles
from uncertainty.optimisers import optimiser as optimisers
from uncertainty.optimisers import samplers, schedules
from uncertainty.types import Latent, Model

N = 12
BATCH = data(N, 2)


def scan(inference, state, batch, steps):
    update = lambda s, _: (inference.update(s, batch)[0], None)  # noqa: E731
    return jax.lax.scan(update, state, length=steps)[0]


@pytest.mark.slow
def test_stochastic_svgd_samples_the_posterior_that_svgd_is_too_narrow_for():
    """One particle of each of many groups is a draw, however few are in its group."""
    P, groups, rate = 3, 200, 0.02
    mean, exact = posterior(BATCH, 0.7, 1.5)
    h = float(np.trace(exact))

    def spread(optimiser):
        inference = particles(
            linear_regression(2, 0.7),
            optimiser,
            size=P,
            num_examples=N,
            direction=functools.partial(svgd, kernel=lambda: rbf(h)),
            prior=priors.gaussian(1.5),
        )
        states = [inference.init(jax.random.key(i), BATCH["x"][:1]) for i in range(2)]
        keys = jax.vmap(
            lambda i: jax.vmap(lambda p: jax.random.fold_in(jax.random.key(i), p))(jnp.arange(P))
        )(jnp.arange(groups))
        start = jax.tree.map(lambda a: jnp.repeat(a[None], groups, 0), states[0].replace(key=None))
        start = start.replace(key=keys)
        done = jax.jit(jax.vmap(lambda s: scan(inference, s, BATCH, 1_000)))(start)
        return np.asarray(done.params["layer"]["kernel"], np.float64)[:, 0]  # of each group, one

    draws = spread(optimisers.optimiser(samplers.sgld(), P * rate))
    assert min(p_values(draws, mean, exact)) > 1e-3
    # Without its noise all groups end at the same few points, and one of them has no spread.
    narrow = spread(optimisers.optimiser(optimisers.sgd(), P * rate))
    assert np.trace(np.cov(narrow.T)) < 0.1 * np.trace(exact)


def test_svgd_with_a_linear_kernel_has_the_mean_and_the_covariance_of_a_gaussian():
    mean, exact = posterior(BATCH, 0.7, 1.5)
    sgd = optimisers.optimiser(optimisers.sgd(), 0.05)
    inference = particles(
        linear_regression(2, 0.7),
        sgd,
        size=6,
        num_examples=N,
        direction=functools.partial(svgd, kernel=linear),
        prior=priors.gaussian(1.5),
    )
    state = inference.init(jax.random.key(0), BATCH["x"][:1])
    state = jax.jit(lambda s: scan(inference, s, BATCH, 4_000))(state)
    w = np.asarray(state.params["layer"]["kernel"], np.float64)
    np.testing.assert_allclose(w.mean(0), mean, atol=1e-3 * np.sqrt(exact.max()))
    np.testing.assert_allclose(np.cov(w.T, bias=True), exact, atol=1e-3 * exact.max())


# A Gaussian process: random features, and a prior N(0, I) on their weights.
M_FEATURES, NOISE = 50, 0.2
RNG = np.random.default_rng(0)
FREQUENCY, PHASE = 2 * RNG.normal(size=M_FEATURES), RNG.uniform(0, 2 * np.pi, M_FEATURES)
X = np.concatenate([np.linspace(-2, -1, 6), np.linspace(0.5, 1.5, 6)])[:, None]
Y = np.sin(2 * X) + NOISE * RNG.normal(size=X.shape)
GRID = np.linspace(-3, 3, 25)[:, None]


def features(x):
    return np.sqrt(2 / M_FEATURES) * jnp.cos(x * FREQUENCY + PHASE)


def process():
    def init(key, x):
        return {"layer": {"kernel": jax.random.normal(key, (M_FEATURES,))}}, {}

    def forward(params, collections, x, key, *, train, mutable=(), mask=None):
        mean = (features(x) @ params["layer"]["kernel"])[None, :, None]
        return Latent(mean), collections, jnp.zeros(())

    return Model(init, forward, likelihoods.gaussian(noise_std=NOISE))


@functools.cache
def exact_process():
    """Mean and standard deviation at GRID."""
    F, G = (np.asarray(features(x), np.float64) for x in (X, GRID))
    covariance = np.linalg.inv(F.T @ F / NOISE**2 + np.eye(M_FEATURES))
    mean = covariance @ F.T @ Y[:, 0] / NOISE**2
    return G @ mean, np.sqrt(np.einsum("ij,jk,ik->i", G, covariance, G))


def distance(direction, steps=1_500):
    """1-Wasserstein distance to the marginals of the exact process, mean over GRID."""
    batch = dict(
        x=jnp.asarray(X, jnp.float32),
        y=jnp.asarray(Y, jnp.float32),
        context=dict(x=jnp.asarray(GRID, jnp.float32)),
    )
    adam = optimisers.optimiser(optimisers.adam(), 0.02, schedules.cosine(steps))
    inference = particles(
        process(),
        adam,
        size=20,
        direction=direction,
        num_examples=len(X),
        prior=priors.gaussian(1.0),
    )
    state = inference.init(jax.random.key(1), batch["x"][:1])
    state = jax.jit(lambda s: scan(inference, s, batch, steps))(state)
    weights = np.asarray(state.params["layer"]["kernel"], np.float64)
    f = weights @ np.asarray(features(GRID), np.float64).T
    mean, std = exact_process()
    normal = scipy.stats.norm.ppf((np.arange(1000) + 0.5) / 1000)
    return np.mean(
        [
            scipy.stats.wasserstein_distance(f[:, i], mean[i] + std[i] * normal)
            for i in range(len(GRID))
        ]
    )


@functools.cache
def ensemble():
    return distance(independent)


@pytest.mark.slow
@pytest.mark.parametrize("method", [svgd, wgd], ids=["svgd", "kde-wgd"])
def test_function_space_is_nearer_to_the_exact_process_than_weights_and_those_than_an_ensemble(
    method,
):
    """All networks of the ensemble are at the mode; where functions are compared matters."""
    in_weights = distance(method)
    on_batch = distance(functools.partial(method, space="functions"))
    on_grid = distance(functools.partial(method, space="functions", context=context.other))
    assert on_grid < 0.7 * on_batch < 0.7 * in_weights < 0.7 * ensemble()
