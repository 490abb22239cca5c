"""Heteroscedastic heads: their covariance, their limits, and equivariance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uncertainty import predictive
from uncertainty.backbones.mlp import MLP
from uncertainty.ensembles.single import single
from uncertainty.heads.dense import Dense
from uncertainty.heads.heteroscedastic import Heteroscedastic, HeteroscedasticXL
from uncertainty.heads.sngp import Sngp
from uncertainty.inference import executors
from uncertainty.inference.particles import particles
from uncertainty.likelihoods import sigmoid, softmax
from uncertainty.model import from_network
from uncertainty.optimisers.optimiser import sgd
from uncertainty.stages.laplace import laplace

RNG = np.random.default_rng(0)
H = jnp.asarray(RNG.normal(size=(1, 6, 5)), jnp.float32)
KEY = jax.random.key(0)
K, R = 4, 3


def applied(head):
    """Parameters of which none is zero, and the latent in training."""
    shapes = jax.eval_shape(functools.partial(head.init, train=False), KEY, H)
    rng = np.random.default_rng(7)
    variables = jax.tree.map(lambda a: rng.normal(0, 0.6, a.shape).astype(np.float32), shapes)
    return variables["params"], jax.jit(functools.partial(head.apply, train=True))(variables, H)


def affine(params):
    h = np.asarray(H, np.float64)
    return h @ np.asarray(params["kernel"], np.float64) + np.asarray(params["bias"], np.float64)


def softplus(a):
    return np.logaddexp(a, 0)


sample = jax.jit(predictive.sample, static_argnums=2)


def covariance(latent, draws=100_000):
    draws = np.asarray(sample(latent, KEY, draws), np.float64)
    centred = draws - np.asarray(latent.mean)
    return np.einsum("smbk,smbl->mbkl", centred, centred) / len(draws)


def close(estimate, exact):
    """Standard error of a covariance of 1e5 draws: sqrt(2 / 1e5) = 0.0045 of the largest."""
    np.testing.assert_allclose(estimate, exact, atol=0.025 * np.abs(exact).max())


@pytest.mark.slow
@pytest.mark.parametrize("efficient", [False, True])
def test_noise_has_the_covariance_v_vt_plus_d_squared(efficient):
    params, latent = applied(Heteroscedastic(outputs=K, rank=R, efficient=efficient))
    d = softplus(affine(params["diagonal"])) + 1e-3
    if efficient:
        V = affine(params["factors_scale"])[..., None] * np.asarray(params["shared_factors"])
    else:
        V = affine(params["factors"]).reshape(1, 6, K, R)
    exact = np.einsum("mbkr,mblr->mbkl", V, V) + d[..., None] ** 2 * np.eye(K)
    close(covariance(latent), exact)
    np.testing.assert_allclose(latent.mean, affine(params["mean"]["logits"]), rtol=1e-4)
    assert latent.epistemic is None


@pytest.mark.slow
@pytest.mark.parametrize("efficient", [False, True])
def test_latent_space_noise_goes_through_the_output_layer(efficient):
    params, latent = applied(
        HeteroscedasticXL(outputs=K, rank=R, efficient=efficient, learn_temperature=False)
    )
    W = np.asarray(params["logits"]["kernel"], np.float64)
    d = softplus(affine(params["diagonal"])) + 1e-3
    if efficient:
        V = affine(params["factors_scale"])[..., None] * np.asarray(params["shared_factors"])
    else:
        V = affine(params["factors"]).reshape(1, 6, 5, R)
    inner = np.einsum("mbqr,mbpr->mbqp", V, V) + d[..., None] ** 2 * np.eye(5)
    close(covariance(latent), np.einsum("qk,mbqp,pl->mbkl", W, inner, W))
    np.testing.assert_allclose(latent.mean, affine(params["logits"]), rtol=1e-4)


def test_parameters_of_latent_space_noise_do_not_grow_with_the_classes():
    def count(K):
        init = functools.partial(HeteroscedasticXL(outputs=K).init, train=False)
        params = jax.eval_shape(init, KEY, H)["params"]
        return sum(
            a.size for name, p in params.items() if name != "logits" for a in jax.tree.leaves(p)
        )

    assert count(3) == count(3000)


@pytest.mark.slow
@pytest.mark.parametrize("head", [Heteroscedastic, HeteroscedasticXL])
def test_a_learned_temperature_divides_the_whole_latent(head):
    plain = head(outputs=K, rank=R, learn_temperature=False)
    params, latent = applied(plain)
    labels = np.array([0, 1, 2, 3, 0, 1])

    @functools.partial(jax.jit, static_argnums=1)
    def summary(latent, temperature):
        nll = softmax(samples=50, temperature=temperature).nll(latent, labels, KEY)
        return nll, predictive.marginal_variance(latent)

    @jax.jit
    def cooled(a):
        learned = head(outputs=K, rank=R, learn_temperature=True)
        return learned.apply({"params": {**params, "temperature": a}}, H, train=True)

    for a in (0.0, 1.3):
        tau = 0.3 + 2.7 / (1 + np.exp(-a))
        (nll, variance), (expected, plain_variance) = summary(cooled(a), 1.0), summary(latent, tau)
        np.testing.assert_allclose(nll, expected, rtol=1e-4)
        np.testing.assert_allclose(variance, plain_variance / tau**2, rtol=1e-4)


@pytest.mark.slow
def test_scaling_mean_noise_and_temperature_together_changes_nothing():
    _, latent = applied(Heteroscedastic(outputs=K, rank=R))
    double = latent.replace(
        mean=2 * latent.mean, variance=4 * latent.variance, factors=2 * latent.factors
    )
    for likelihood in (softmax, sigmoid):
        one, other = (jax.jit(likelihood(temperature=t, samples=64).log_probs) for t in (1.5, 3.0))
        np.testing.assert_allclose(one(latent, KEY), other(double, KEY), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_permuting_the_classes_permutes_the_probabilities():
    permutation = np.array([2, 0, 3, 1])
    head = Heteroscedastic(outputs=K, rank=R)
    params, latent = applied(head)

    def permuted(path, a):
        if "factors" in str(path):
            return a.reshape(*a.shape[:-1], K, R)[..., permutation, :].reshape(a.shape)
        return a[..., permutation]

    other = jax.jit(functools.partial(head.apply, train=True))(
        {"params": jax.tree_util.tree_map_with_path(permuted, params)}, H
    )
    found, expected = covariance(other, 40_000), covariance(latent, 40_000)
    np.testing.assert_allclose(
        found, expected[..., permutation, :][..., permutation], atol=0.05 * expected.max()
    )
    # Independent noise for each class is drawn by position, so the two agree as integrals only:
    # 4e4 draws of a probability, standard error below 0.0025.
    for likelihood in (softmax, sigmoid):
        log_probs = jax.jit(likelihood(samples=40_000).log_probs)
        p, q = np.exp(log_probs(latent, KEY)), np.exp(log_probs(other, jax.random.key(1)))
        np.testing.assert_allclose(q, p[..., permutation], atol=0.015)


def hetsngp(**fields):
    return Heteroscedastic(outputs=K, rank=R, mean=functools.partial(Sngp, features=32), **fields)


X = jnp.asarray(RNG.normal(size=(30, 3)), jnp.float32)


def inference_of(head):
    model = from_network(single(MLP(widths=(6,)), head), softmax(samples=64))
    return model, particles(model, sgd(), size=1)


def predict(head, state):
    return jax.jit(inference_of(head)[1].predict)(state, X)


@functools.cache
def fitted():
    """A state of `hetsngp` after the stage, which knows nothing of its weights in predictions."""
    model, inference = inference_of(hetsngp())
    stage = laplace(model, executors.mapping("vmap"))

    @jax.jit
    def fit(x):
        state = inference.init(KEY, x[:1])
        state, carry, _ = stage.update(state, stage.begin(state, x[:1]), dict(x=x))
        return stage.finish(state, carry, x[:1])

    return fit(X)


@pytest.mark.slow
def test_hetsngp_adds_the_two_variances_by_their_weights():
    state = fitted()
    latent = predict(hetsngp(), state)
    assert latent.epistemic.shape == (1, 30, 1)
    for noise_weight, mean_weight in ((0.0, 1.0), (0.5, 2.0)):
        head = hetsngp(noise_weight=noise_weight, mean_weight=mean_weight)
        weighted = predict(head, state)
        noise = latent.variance - latent.epistemic
        np.testing.assert_allclose(
            weighted.variance,
            noise_weight * noise + mean_weight * latent.epistemic,
            rtol=1e-4,
            atol=1e-7,  # `noise` is a difference: rounding of what was taken away
        )
        np.testing.assert_allclose(weighted.epistemic, mean_weight * latent.epistemic, rtol=1e-5)


@pytest.mark.slow
def test_without_gp_variance_hetsngp_is_het_with_a_mean_of_random_features():
    state = fitted()
    latent = predict(hetsngp(mean_weight=0.0), state)
    het = Heteroscedastic(outputs=K, rank=R)
    shapes = jax.eval_shape(inference_of(het)[1].init, KEY, X[:1]).params
    params = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
    params["backbone"] = state.params["backbone"]
    for name in ("diagonal", "factors"):
        params["head"][name] = state.params["head"][name]
    plain = predict(het, state.replace(params=params, collections={}))
    np.testing.assert_allclose(latent.variance, plain.variance, rtol=1e-5)
    np.testing.assert_allclose(latent.factors, plain.factors, rtol=1e-5)
    # The means differ only in the features that their linear map sees.
    features = Sngp(outputs=K, features=32)
    h = jax.nn.relu(X @ params["backbone"]["dense0"]["kernel"][0])[None]
    variables = {
        "params": state.params["head"]["mean"],
        "random_features": state.collections["random_features"]["head"]["mean"],
    }
    variables = jax.tree.map(lambda a: np.asarray(a)[0], variables)
    mean = jax.jit(functools.partial(features.apply, train=False))(variables, h).mean
    np.testing.assert_allclose(latent.mean, mean, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_without_noise_hetsngp_is_sngp():
    state = fitted()
    factors = jax.tree.map(np.zeros_like, state.params["head"]["factors"])
    params = {**state.params, "head": {**state.params["head"], "factors": factors}}
    latent = predict(hetsngp(noise_weight=0.0), state.replace(params=params))
    collections = {
        name: {"head": value["head"]["mean"]} for name, value in state.collections.items()
    }
    params = {"backbone": params["backbone"], "head": params["head"]["mean"]}
    plain = state.replace(params=params, collections=collections)
    expected = predict(Sngp(outputs=K, features=32), plain)
    np.testing.assert_allclose(latent.mean, expected.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        predictive.marginal_variance(latent), predictive.marginal_variance(expected), rtol=1e-5
    )
    log_probs = jax.jit(softmax(samples=4).log_probs)
    np.testing.assert_allclose(log_probs(latent, KEY), log_probs(expected, KEY), rtol=1e-4)


def test_training_draws_label_noise_alone():
    params, latent = applied(hetsngp(noise_weight=0.0))  # a weight of predictions
    d = softplus(affine(params["diagonal"])) + 1e-3
    np.testing.assert_allclose(latent.variance, d**2, rtol=1e-4)
    assert latent.epistemic is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "bias"),
    [
        (Heteroscedastic(outputs=K, rank=R), 0.0),
        (Heteroscedastic(outputs=K, rank=R, efficient=True, learn_temperature=True), 0.0),
        (HeteroscedasticXL(outputs=K, rank=R), 0.0),
        (Heteroscedastic(outputs=K, rank=R, minimum=0.0), -200.0),  # softplus of it is 0
    ],
    ids=["plain", "efficient", "xl", "no noise at all"],
)
def test_the_gradient_of_the_loss_is_its_slope(head, bias):
    params, _ = applied(head)
    params["diagonal"]["bias"] = params["diagonal"]["bias"] + bias
    labels = jnp.array([0, 1, 2, 3, 0, 1])

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        latent = head.apply({"params": params}, H, train=True)
        return softmax(samples=32).nll(latent, labels, KEY).mean()

    gradient = loss(params)[1]
    step = 2e-3
    for name, part in gradient.items():  # along the gradient of one parameter of the head
        norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(part)))
        assert np.isfinite(norm)
        if norm == 0:
            assert name == "diagonal" and bias
            continue

        ahead, behind = (
            {
                **params,
                name: jax.tree.map(lambda p, g, by=by: p + np.float32(by) * g, params[name], part),
            }
            for by in (step / norm, -step / norm)
        )
        slope = float(loss(ahead)[0] - loss(behind)[0]) / (2 * step)
        # Rounding of a loss of about 1: 1e-7 / step = 5e-5.
        np.testing.assert_allclose(slope, norm, rtol=0.02, atol=3e-4, err_msg=name)


@pytest.mark.slow
def test_many_draws_converge_and_few_are_biased_up():
    """NLL with S draws exceeds the exact one by Var[p] / (2 S p^2) on average (Jensen)."""
    _, latent = applied(Heteroscedastic(outputs=K, rank=R))
    labels = jnp.arange(6) % K
    exact = jax.jit(softmax(samples=200_000).nll)(latent, labels, KEY)

    @functools.partial(jax.jit, static_argnums=1)
    def few(keys, samples):
        nll = softmax(samples=samples).nll
        return jax.vmap(lambda key: nll(latent, labels, key))(keys).mean()

    keys = jax.random.split(jax.random.key(5), 500)
    excess = {S: float(few(keys, S) - exact.mean()) for S in (4, 64)}
    assert excess[4] > 3 * abs(excess[64]) and excess[4] > 0


@pytest.mark.parametrize(
    ("head", "fields", "why"),
    [
        (Heteroscedastic, dict(outputs=0), "outputs: 0"),
        (Heteroscedastic, dict(rank=-1), "rank: -1"),
        (Heteroscedastic, dict(mean_weight=-0.5), "mean_weight: -0.5"),
        (HeteroscedasticXL, dict(outputs=0), "outputs: 0"),
        (HeteroscedasticXL, dict(minimum=-1.0), "minimum: -1.0"),
    ],
)
def test_what_cannot_be_is_refused(head, fields, why):
    with pytest.raises(ValueError, match=why):
        head(**{"outputs": 2, **fields})


def test_a_mean_with_factors_of_its_own_is_refused():
    for inner in (Heteroscedastic, HeteroscedasticXL):
        head = Heteroscedastic(outputs=K, mean=inner)
        with pytest.raises(ValueError, match="mean: this head already has factors"):
            jax.eval_shape(functools.partial(head.init, train=False), KEY, H)


def test_rank_zero_is_independent_noise():
    _, latent = applied(Heteroscedastic(outputs=K, rank=0))
    assert latent.factors is None
    assert isinstance(Heteroscedastic(outputs=K).mean(outputs=2), Dense)
