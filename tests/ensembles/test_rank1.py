"""Rank-1 layers: divergences against integrals, draws against their distribution, limits."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from tests.backbones.conftest import TINY, draw_variables
from uncertainty import likelihoods
from uncertainty.backbones.mlp import MLP
from uncertainty.backbones.vit import ViT
from uncertainty.ensembles.batch_ensemble import batch_ensemble
from uncertainty.ensembles.rank1 import rank1
from uncertainty.heads.dense import Dense
from uncertainty.layers.moe.experts import MoE
from uncertainty.layers.moe.routers import TopK
from uncertainty.layers.rank1 import FAMILIES, Rank1
from uncertainty.model import from_network

M, S, B, K, N = 2, 3, 4, 5, 50
key = functools.partial(jax.random.key, impl="unsafe_rbg")  # sooner compiled
DENSITIES = dict(gaussian=scipy.stats.norm, cauchy=scipy.stats.cauchy)


def inputs(shape):
    return jnp.asarray(np.random.default_rng(1).normal(size=(B, *shape)), "float32")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("at", "scale"), [(1.0, 0.1), (-1.0, 0.3), (1.2, 1.5), (0.4, 0.05)])
def test_divergences_are_integrals(family, at, scale):
    q, p = DENSITIES[family](at, scale), DENSITIES[family](1.0, 0.4)

    def integrand(t):  # over q's quantiles, which tame the Cauchy's tails
        x = q.ppf(t)
        return q.logpdf(x) - p.logpdf(x)

    expected, _ = scipy.integrate.quad(integrand, 0, 1, limit=500)
    found = FAMILIES[family][1](jnp.float32(at), jnp.float32(scale), 1.0, 0.4)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_draws_follow_the_posterior(family):
    """Identities as kernels, one input of ones: outputs are r s, the product of two draws."""
    layer = Rank1(
        functools.partial(nn.Dense, 400, use_bias=False),
        M,
        num_examples=N,
        family=family,
        samples=S,
        use_bias=False,
    )
    params = dict(
        kernel=jnp.eye(400),
        fast_input=jnp.asarray([[2.0], [-1.0]]) * jnp.ones((M, 400)),
        fast_input_scale=jnp.log(jnp.expm1(jnp.asarray([[0.5], [0.1]]))) * jnp.ones((M, 400)),
        fast_output=jnp.ones((M, 400)),
        fast_output_scale=jnp.full((M, 400), -50.0),  # s = 1
    )
    draw = jax.jit(
        lambda k: layer.apply({"params": params}, jnp.ones((1, 1, 400)), rngs={"noise": k})
    )
    r = draw(jax.random.key(0))
    assert r.shape == (M * S, 1, 400)
    r = np.asarray(r).reshape(M, S * 400)
    for m, (at, scale) in enumerate([(2.0, 0.5), (-1.0, 0.1)]):
        assert scipy.stats.kstest(r[m], DENSITIES[family](at, scale).cdf).pvalue > 0.01
    ranks = scipy.stats.spearmanr(r.reshape(-1, 400), axis=1).statistic
    assert abs(ranks[np.triu_indices(M * S, 1)]).max() < 0.3  # six deviations of independent draws


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "family"),
    [("lenet_same", "gaussian"), ("vit_token", "gaussian")]
    + [("mlp", "cauchy")],  # of which a layer knows its draws alone
)
def test_without_spread_it_is_a_batch_ensemble(name, family):
    make, shape = TINY[name]
    x = inputs(shape)
    network = rank1(make(), Dense(K), M, N, family, samples=S)
    variables = draw_variables(network, x, train=False)

    def narrow(path, a):
        return jnp.full_like(a, -100.0) if "_scale" in path[-1].key else a

    variables = jax.tree_util.tree_map_with_path(narrow, variables)
    plain = batch_ensemble(make(), Dense(K), M)
    shapes = jax.eval_shape(functools.partial(plain.init, train=False), jax.random.key(0), x)

    def of(path, like):  # the same names, without the scales
        a = functools.reduce(lambda tree, key: tree[key.key], path, variables)
        assert a.shape == like.shape
        return a

    params = jax.tree_util.tree_map_with_path(of, shapes)
    expected = jax.jit(functools.partial(plain.apply, train=False))(params, x).mean
    rngs = {"noise": key(1)}
    found = jax.jit(functools.partial(network.apply, train=False))(variables, x, rngs=rngs).mean
    assert found.shape == (M * S, B, K)
    np.testing.assert_allclose(found, np.repeat(expected, S, axis=0), rtol=2e-4, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("anneal_steps", [0, 4])
def test_the_loss_is_the_members_divergence_by_number_of_examples(anneal_steps):
    x = inputs((4,))
    network = rank1(
        MLP(widths=(5,)), Dense(K), M, N, prior_scale=0.3, anneal_steps=anneal_steps, samples=S
    )
    model = from_network(network, likelihoods.softmax())
    params, collections = jax.jit(model.init)(key(0), x)
    total = 0.0
    for layer in (params["backbone"]["dense0"], params["head"]["logits"]):
        for name in ("fast_input", "fast_output"):
            at, scale = layer[name], np.log1p(np.exp(layer[f"{name}_scale"]))
            np.testing.assert_allclose(scale, 0.03, rtol=1e-4)
            kl = np.log(0.3 / scale) + (scale**2 + (at - 1) ** 2) / (2 * 0.3**2) - 0.5
            total += kl.sum() / M / N
    train = functools.partial(model.forward, train=True)
    u = jax.eval_shape(train, params, collections, x, key(0))[0]
    assert u.mean.shape == (M, B, K)  # one draw of each member
    of_loss = jax.jit(lambda *args: train(*args)[1:])  # all that XLA compiles
    for step in range(6):
        collections, auxiliary = of_loss(params, collections, x, key(step))
        share = min(step / anneal_steps, 1) if anneal_steps else 1
        np.testing.assert_allclose(auxiliary, share * total, rtol=1e-4)
    predict = jax.jit(functools.partial(model.forward, train=False))
    u, after, auxiliary = predict(params, collections, x, key(0))
    assert u.mean.shape == (M * S, B, K) and auxiliary == 0
    jax.tree.map(np.testing.assert_array_equal, after, collections)
    assert len(np.unique(np.round(np.asarray(u.mean[:, 0, 0]), 6))) == M * S


@pytest.mark.slow
def test_divergences_of_experts_add_up():
    """A network of E experts has E times the fast weights, and the divergence of them all."""
    router = functools.partial(TopK, importance_loss=0.0, load_loss=0.0)
    vit = ViT(
        "tiny",
        width=8,
        mlp_dim=4,
        depth=1,
        expert_blocks=(0,),
        experts=functools.partial(MoE, num_experts=3, router=router),
    )
    model = from_network(rank1(vit, Dense(K), M, N, prior_scale=0.3), likelihoods.softmax())
    x = inputs((8, 8, 1))
    shapes, collections = jax.eval_shape(model.init, key(0), x)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: rng.normal(0, 0.5, a.shape).astype("float32"), shapes)
    collections = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), collections)
    leaves = {
        jax.tree_util.keystr(path): np.asarray(leaf, np.float64)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    total, experts = 0.0, 0
    for name, at in leaves.items():
        if name.endswith(("fast_input']", "fast_output']")):
            scale = np.log1p(np.exp(leaves[name.removesuffix("']") + "_scale']"]))
            kl = np.log(0.3 / scale) + (scale**2 + (at - 1) ** 2) / (2 * 0.3**2) - 0.5
            total += kl.sum() / M / N
            experts += at.ndim == 3
    assert experts == 4
    of_loss = jax.jit(lambda *args: model.forward(*args, train=True)[2])  # all that XLA compiles
    auxiliary = of_loss(params, collections, x, key(1))
    np.testing.assert_allclose(auxiliary, total, rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (dict(size=0), "size: 0 members"),
        (dict(family="laplace"), "family: 'laplace'; allowed 'gaussian', 'cauchy'"),
        (dict(num_examples=0), "num_examples: 0; at least 1"),
        (dict(samples=0), "samples: 0; at least 1"),
        (dict(prior_scale=0.0), "prior_scale: 0.0; a positive number"),
        (dict(anneal_steps=-1), "anneal_steps: -1; at least 0"),
    ],
)
def test_what_cannot_be_is_refused(fields, why):
    with pytest.raises(ValueError, match=why):
        rank1(**(dict(backbone=TINY["mlp"][0](), head=Dense(2), size=2, num_examples=N) | fields))
