"""Randomised priors and hypermodels against loops over particles and indices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uncertainty.backbones.mlp import MLP
from uncertainty.backbones.resnet import ResNet
from uncertainty.ensembles.hypermodel import hypermodel
from uncertainty.ensembles.randomised_prior import randomised_prior
from uncertainty.ensembles.single import single
from uncertainty.heads.dense import Dense
from uncertainty.likelihoods import gaussian
from uncertainty.model import from_network

B, D, K, Z, M = 6, 4, 3, 5, 4
key = functools.partial(jax.random.key, impl="unsafe_rbg")  # sooner compiled
X = jnp.asarray(np.random.default_rng(0).normal(size=(B, D)), "float32")


def drawn(network, x=X, seed=1):
    """Variables with random numbers, biases too."""
    shapes = jax.eval_shape(functools.partial(network.init, train=False), key(0), x)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), shapes)


def mlp(params, x, body, logits):
    h = np.maximum(x @ params[body]["dense0"]["kernel"] + params[body]["dense0"]["bias"], 0)
    return h @ logits["kernel"] + logits["bias"]


def random_function(params):
    return mlp(params, X, "body", params["logits"])


def test_a_randomised_prior_adds_a_fixed_function():
    network = randomised_prior(MLP((7,)), Dense(K), scale=1.5)
    variables = drawn(network)
    params, prior = variables["params"], variables["prior"]["prior"]["variables"]["params"]
    assert jax.tree.map(jnp.shape, prior["body"]) == jax.tree.map(jnp.shape, params["backbone"])
    u = network.apply(variables, X, train=True).mean
    expected = mlp(params, X, "backbone", params["head"]["logits"]) + 1.5 * random_function(prior)
    np.testing.assert_allclose(u[0], expected, rtol=1e-4, atol=1e-4)
    assert "prior" not in drawn(randomised_prior(MLP((7,)), Dense(K), scale=0.0))


def test_every_particle_has_a_prior_of_its_own_and_no_number_of_it_is_trained():
    network = randomised_prior(MLP((7,)), Dense(K), 1.0, functools.partial(MLP, (2,)))
    model = from_network(network, gaussian())
    init = jax.jit(model.init)
    (params, first), (_, second) = (init(key(i), X) for i in range(2))
    assert {a.shape[-1] for a in jax.tree.leaves(first)} == {2, K}
    assert not np.array_equal(
        *(c["prior"]["prior"]["variables"]["params"]["logits"]["kernel"] for c in (first, second))
    )
    assert set(params) == {"backbone", "head"}
    # What the training fits is y - p, and the prediction is of y.
    y = jnp.ones((B, K))
    nll = lambda model, params, collections, y: model.likelihood.nll(  # noqa: E731
        model.forward(params, collections, X, key(0), train=True)[0], y, key(0)
    ).sum()
    plain = from_network(single(MLP((7,)), Dense(K)), gaussian())
    p = random_function(first["prior"]["prior"]["variables"]["params"])
    gradients = (
        jax.grad(nll, 1)(model, params, first, y),
        jax.grad(nll, 1)(plain, params, {}, y - p),
    )
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_members_of_a_hypermodel_are_networks_of_their_parameters():
    network = hypermodel(MLP((7,)), Dense(K), M, training_size=3, index=Z, prior_scale=0.5)
    variables = drawn(network)
    params, prior = variables["params"], variables["prior"]["additive"]["variables"]["params"]
    assert {a.shape[0] for a in jax.tree.leaves(params)} == {1 + Z}
    for train, size in ((False, M), (True, 3)):
        rngs = dict(noise=key(3))
        u = network.apply(variables, X, train=train, rngs=rngs).mean
        assert u.shape == (size, B, K)
        # The indices follow from the priors of another network, whose functions are constants.
        z = np.asarray(_indices(network, variables, train, rngs))
        for m in range(size):
            own = jax.tree.map(lambda a, z=z[m]: a[0] + np.tensordot(z, a[1:], 1), params)
            expected = mlp(own, X, "backbone", own["head"]["logits"])
            for d in range(Z):
                one = jax.tree.map(lambda a, d=d: np.asarray(a[d]), prior)
                expected = expected + 0.5 * z[m, d] * random_function(one)
            np.testing.assert_allclose(u[m], expected, rtol=1e-3, atol=1e-3)


def _indices(network, variables, train, rngs):
    """z [M, Z]: what is added to zero networks by priors that are the units of K = Z classes."""
    units = network.clone(head=Dense(Z), prior_scale=1.0)
    plain = drawn(units)
    zero = jax.tree.map(jnp.zeros_like, plain)
    zero["prior"]["additive"]["variables"]["params"]["logits"]["bias"] = jnp.eye(Z)
    return units.apply(zero, X, train=train, rngs=rngs).mean[:, 0]


@pytest.mark.slow
def test_members_of_a_hypermodel_begin_as_networks_do():
    """The variance of an initial kernel over indices is that over initialisations."""
    network = hypermodel(MLP((30,)), Dense(K), M, index=Z)
    x = jnp.zeros((1, 40))
    kernel = jax.jit(functools.partial(network.init, train=False))(key(0), x)["params"]
    kernel = np.asarray(kernel["backbone"]["dense0"]["kernel"])
    assert kernel.shape == (1 + Z, 40, 30) and len(np.unique(kernel[:, 0, 0])) == 1 + Z
    np.testing.assert_allclose(kernel.std((1, 2)), np.sqrt(2 / 40), rtol=0.1)  # He et al.'s


def test_features_of_a_hypermodel_are_its_members():
    model = from_network(hypermodel(MLP((7,)), Dense(K), M, index=Z), gaussian())
    shapes = jax.eval_shape(model.init, key(0), X)
    assert jax.eval_shape(model.features, *shapes, X, key(0)).shape == (M, B, 7)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: randomised_prior(MLP(), Dense(2), -1.0), "scale: -1.0; finite, at least 0"),
        (lambda: hypermodel(MLP(), Dense(2), 0), "size: 0; at least 1"),
        (lambda: hypermodel(MLP(), Dense(2), 2, 0), "training_size: 0; at least 1"),
        (lambda: hypermodel(MLP(), Dense(2), 2, index=0), "index: 0; at least 1"),
        (lambda: hypermodel(MLP(), Dense(2), 2, prior_scale=-1.0), "prior_scale: -1.0; finite"),
    ],
)
def test_what_cannot_be_is_refused(make, why):
    with pytest.raises(ValueError, match=why):
        make()


def test_a_hypermodel_has_parameters_alone():
    network = hypermodel(ResNet(depth=8, width=4), Dense(K), 2)
    with pytest.raises(ValueError, match="but batch_stats of backbone or head belong to one set"):
        jax.eval_shape(
            functools.partial(network.init, train=False), key(0), jnp.zeros((1, 8, 8, 1))
        )
