"""Random features against the kernel and the exact Gaussian process."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from uncertainty.layers.random_features import RandomFeatures, cosine, orthogonal

X = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)


@functools.cache
def compiled(**fields):
    layer = RandomFeatures(**fields)
    return jax.jit(lambda key, x: layer.init_with_output(key, x)[0])


def features(x, seed=0, **fields):
    return np.asarray(compiled(**fields)(jax.random.key(seed), x), np.float64)


def test_features_follow_the_equation():
    x = 3 * X
    layer = RandomFeatures(features=16, length_scale=0.7, amplitude=1.5)
    phi, variables = jax.jit(layer.init_with_output)(jax.random.key(0), x)
    W, b = (np.asarray(variables["random_features"][k], np.float64) for k in ("kernel", "bias"))
    expected = 1.5 * np.sqrt(2 / 16) * np.cos(x @ W / 0.7 + b)
    # Angles of up to 60 are rounded to 4e-6.
    np.testing.assert_allclose(phi, expected, atol=2e-5)


def test_the_cosine_and_its_derivative():
    turns = np.concatenate([np.linspace(-2, 2, 10_001), [1e3 + 0.125, -1e5]]).astype(np.float32)
    exact = 2 * np.pi * turns.astype(np.float64)
    # 5e-7 is reached, four roundings of float32; another machine may have some more.
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(cosine)))(turns)
    np.testing.assert_allclose(value, np.cos(exact), atol=3e-6)
    np.testing.assert_allclose(slope, -2 * np.pi * np.sin(exact), atol=2e-5)
    assert np.isnan(cosine(jnp.float32(np.inf)))


@pytest.mark.slow
@pytest.mark.parametrize("is_orthogonal", [True, False])
def test_inner_products_approach_the_rbf_kernel(is_orthogonal):
    exact = 1.5**2 * RBF(2.0)(X)
    errors = []
    for m in (64, 4096):
        fields = dict(length_scale=2.0, amplitude=1.5, orthogonal=is_orthogonal, features=m)
        grams = [features(X, seed, **fields) for seed in range(8)]
        errors.append(np.mean([np.abs(phi @ phi.T - exact).mean() for phi in grams]))
    # The error of the mean of m terms falls as m^-1/2: by 8 from 64 to 4,096.
    assert 4 < errors[0] / errors[1] < 16
    assert errors[1] < 0.05


@pytest.mark.slow
def test_the_default_length_scale_is_that_of_unit_variance():
    phi = features(X, features=8_000)
    np.testing.assert_allclose(phi @ phi.T, RBF(np.sqrt(X.shape[1] / 2))(X), atol=0.05)


def test_orthogonal_features_have_less_variance():
    # At a distance of about one length scale, where the gain is largest (Yu et al. 2016, figure 2).
    x = np.stack([np.zeros(16), np.full(16, 0.25)]).astype(np.float32)
    exact = RBF(1.0)(x)[0, 1]
    squared = []
    for is_orthogonal in (True, False):
        # cos(Wx + b) has a variance of its own from b; cos(W(x - y)) is the kernel's part.
        keys = jax.random.split(jax.random.key(0), 400)
        draw = (
            (lambda k: orthogonal(k, 16, 16))
            if is_orthogonal
            else (lambda k: jax.random.normal(k, (16, 16)))
        )
        W = jax.jit(jax.vmap(draw))(keys)
        estimate = np.cos(np.einsum("d,ndm->nm", x[1] - x[0], W)).mean(-1)
        squared.append(np.mean((estimate - exact) ** 2))
    assert squared[0] < 0.8 * squared[1]


@pytest.mark.slow
def test_orthogonal_columns_are_orthogonal_and_as_long_as_gaussian_ones():
    W = np.asarray(jax.jit(lambda k: orthogonal(k, 8, 20))(jax.random.key(0)))
    assert W.shape == (8, 20)
    for block in (W[:, :8], W[:, 8:16], W[:, 16:]):
        gram = block.T @ block
        np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0, atol=1e-5)
    many = np.asarray(
        jax.jit(jax.vmap(lambda k: orthogonal(k, 8, 8)))(jax.random.split(jax.random.key(1), 2000))
    )
    lengths = (many**2).sum(1).ravel()  # chi^2 with 8 degrees: mean 8, variance 16
    # 16,000 of them: standard errors 0.03 and, of the variance, about 0.25.
    assert abs(lengths.mean() - 8) < 0.15 and abs(lengths.var() - 16) < 1.2
    np.testing.assert_allclose(np.einsum("nij,nik->jk", many, many) / 2000, 8 * np.eye(8), atol=0.6)
    # Rotationally uniform: entries are symmetric about zero. Standard error 1 / sqrt(2000).
    assert np.abs(many.mean(0)).max() < 0.12


@pytest.mark.slow
def test_the_posterior_of_many_features_is_the_exact_gaussian_process():
    rng = np.random.default_rng(1)
    x = rng.uniform(-3, 3, (15, 1)).astype(np.float32)
    y = np.sin(2 * x[:, 0]) + 0.1 * rng.normal(size=15)
    grid = np.linspace(-4, 4, 41, dtype=np.float32)[:, None]
    exact = GaussianProcessRegressor(ConstantKernel(1.0) * RBF(0.8), alpha=0.05, optimizer=None)
    mean, std = exact.fit(x, y).predict(grid, return_std=True)
    errors = []
    for m in (100, 10_000):
        phi = features(np.concatenate([x, grid]), features=m, length_scale=0.8, orthogonal=False)
        train, test = phi[:15], phi[15:]
        gram = train @ train.T + 0.05 * np.eye(15)  # the dual form of a Bayesian linear regression
        mean_m = test @ train.T @ np.linalg.solve(gram, y)
        explained = np.linalg.solve(gram, train @ test.T)
        var_m = (test**2).sum(1) - ((test @ train.T) * explained.T).sum(1)
        errors.append((np.abs(mean_m - mean).max(), np.abs(np.sqrt(var_m) - std).max()))
    assert errors[1][0] < 0.08 and errors[1][1] < 0.05
    assert errors[1][0] < errors[0][0] and errors[1][1] < errors[0][1]


def test_features_are_not_trained_and_stay_float32():
    layer = RandomFeatures(features=8)
    x = jnp.asarray(X, jnp.bfloat16)
    phi, variables = jax.eval_shape(layer.init_with_output, jax.random.key(0), x)
    assert set(variables) == {"random_features"} and phi.dtype == jnp.float32


@pytest.mark.parametrize(
    "fields", [dict(features=0), dict(length_scale=0.0), dict(amplitude=-1.0)], ids=str
)
def test_what_cannot_be_is_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        RandomFeatures(**fields)
