"""The Laplace posterior against direct solves in float64, and the stage that fits it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.special
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from uncertainty.backbones.mlp import MLP
from uncertainty.ensembles.mc_dropout import mc_dropout
from uncertainty.ensembles.multi_head import multi_head
from uncertainty.ensembles.single import single
from uncertainty.heads.dense import Dense
from uncertainty.heads.laplace import Laplace as LaplaceHead
from uncertainty.heads.sngp import Sngp
from uncertainty.inference import executors
from uncertainty.inference.particles import particles
from uncertainty.layers import posterior as layer
from uncertainty.likelihoods import gaussian, sigmoid, softmax
from uncertainty.model import from_network
from uncertainty.optimisers.optimiser import sgd
from uncertainty.stages.laplace import laplace

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 4)).astype(np.float32)
KEY = jax.random.key(0, impl="unsafe_rbg")  # sooner compiled


def model_of(head, ensemble=single, likelihood=None, backbone=None, **fields):
    network = ensemble(backbone or MLP(widths=(8,)), head, **fields)
    return from_network(network, likelihood or softmax())


def fitted(model, x, sizes=None, P=1, executor="vmap"):
    """A state after the stage, which sees x in parts of the given sizes.

    In programs of which most are those of other tests too, so that they are compiled once.
    """
    inference = particles(model, sgd(), size=P, executor=executor)
    stage = laplace(model, executors.mapping(executor))
    update, finish = jax.jit(stage.update), jax.jit(stage.finish)
    state = jax.jit(inference.init)(KEY, x[:1])
    carry = stage.begin(state, x[:1])
    for part in np.split(x, np.cumsum(sizes or [len(x)])[:-1]):
        _, carry, _ = update(state, carry, dict(x=part))
    state = finish(state, carry, x[:1])
    return inference._replace(predict=jax.jit(inference.predict)), state


@functools.cache
def plain():
    """What the exact pass makes of the smallest model."""
    return fitted(model_of(Sngp(outputs=2, features=16)), X)


def hidden(state, x, p=0):
    """The features of the backbone of `model_of`, in float64."""
    dense = state.params["backbone"]["dense0"]
    W, b = (np.asarray(dense[name], np.float64)[p] for name in ("kernel", "bias"))
    return np.maximum(x.astype(np.float64) @ W + b, 0)


def random_features(state, h, m, amplitude=1.0, p=0):
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
    features = state.collections["random_features"]["head"]["features"]
    W, b = (np.asarray(features[name], float)[p] for name in ("kernel", "bias"))
    return amplitude * np.sqrt(2 / m) * np.cos(h @ W / np.sqrt(h.shape[1] / 2) + b)


def direct(train, test, weights=1.0):
    """diag of test (I + train^T diag(weights) train)^-1 test^T."""
    precision = np.eye(train.shape[1]) + (train * np.reshape(weights, (-1, 1))).T @ train
    return np.einsum("bi,ij,bj->b", test, np.linalg.inv(precision), test)


@pytest.mark.slow
def test_gaussian_variance_is_that_of_the_regression_posterior():
    m, noise = 40, 0.3
    inference, state = fitted(model_of(Sngp(outputs=3, features=m, noise=noise)), X)
    test = RNG.normal(size=(9, 4)).astype(np.float32)
    latent = inference.predict(state, test)
    train, phi = (random_features(state, hidden(state, x), m) for x in (X, test))
    expected = direct(train, phi, 1 / noise)
    np.testing.assert_allclose(latent.variance[0, :, 0], expected, rtol=2e-4)
    np.testing.assert_array_equal(latent.epistemic, latent.variance)
    # Primal equals dual: k(x, x) - k(x, X) (K + noise I)^-1 k(X, x).
    K, k = train @ train.T, phi @ train.T
    dual = (phi**2).sum(1) - (k * np.linalg.solve(K + noise * np.eye(50), k.T).T).sum(1)
    np.testing.assert_allclose(latent.variance[0, :, 0], dual, rtol=2e-4)
    # edward2's form with its ridge: ridge phi^T (ridge I + sum phi phi^T)^-1 phi.
    ridge = noise * np.linalg.inv(noise * np.eye(m) + train.T @ train)
    np.testing.assert_allclose(
        latent.variance[0, :, 0], np.einsum("bi,ij,bj->b", phi, ridge, phi), rtol=2e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("curvature", ["softmax", "sigmoid"])
def test_classes_have_the_curvature_of_their_likelihood(curvature):
    m = 24
    head = Sngp(outputs=3, features=m, curvature=curvature)
    likelihood = dict(softmax=softmax, sigmoid=sigmoid)[curvature]()
    inference, state = fitted(model_of(head, likelihood=likelihood), X)
    train = random_features(state, hidden(state, X), m)
    f = train @ np.asarray(state.params["head"]["logits"]["kernel"][0], np.float64)
    p = scipy.special.softmax(f, axis=1) if curvature == "softmax" else scipy.special.expit(f)
    variance = inference.predict(state, X[:7]).variance
    assert variance.shape == (1, 7, 3)
    for k in range(3):
        expected = direct(train, train[:7], p[:, k] * (1 - p[:, k]))
        np.testing.assert_allclose(variance[0, :, k], expected, rtol=2e-4)
    # And p (1 - p) is the second derivative of the negative log-likelihood in its own latent.
    nll = {
        "softmax": lambda u: -jax.nn.log_softmax(u)[0],
        "sigmoid": lambda u: -jax.nn.log_sigmoid(u[0]),
    }[curvature]
    hessian = jax.vmap(lambda u: jnp.diagonal(jax.hessian(nll)(u))[0])(jnp.asarray(f, jnp.float32))
    np.testing.assert_allclose(hessian, p[:, 0] * (1 - p[:, 0]), rtol=1e-4)


def test_last_layer_laplace_has_a_dense_heads_parameters_and_the_direct_variance():
    head = LaplaceHead(outputs=3, prior_precision=4.0)
    inference, state = fitted(model_of(head), X)
    dense = particles(model_of(Dense(outputs=3)), sgd(), size=1).init(KEY, X[:1])
    assert jax.tree.structure(state.params) == jax.tree.structure(dense.params)
    h = np.concatenate([hidden(state, X), np.ones((50, 1))], axis=1)
    W = np.concatenate(
        [state.params["head"]["logits"]["kernel"][0], state.params["head"]["logits"]["bias"]]
    )
    p = scipy.special.softmax(h @ W, axis=1)
    variance = inference.predict(state, X).variance
    for k in range(3):
        precision = 4.0 * np.eye(9) + (h * (p[:, k] * (1 - p[:, k]))[:, None]).T @ h
        expected = np.einsum("bi,ij,bj->b", h, np.linalg.inv(precision), h)
        np.testing.assert_allclose(variance[0, :, k], expected, rtol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("N", "K", "too_small", "difference"),
    [
        (100, 2, (1.1, 1.7), (0.6, 0.8)),
        (1000, 2, (1.2, 4.5), (0.5, 0.75)),
        (1000, 10, (1.1, 1.9), (0.9, 1.2)),
    ],
)
def test_what_the_covariance_between_classes_would_add(N, K, too_small, difference):
    # The full posterior of a multinomial regression, [K m, K m], in float64.
    rng, m = np.random.default_rng(0), 10
    phi, f = rng.normal(size=(N, m)) / m**0.5, 3 * rng.normal(size=(m, K))
    p = scipy.special.softmax(phi @ f, axis=1)
    test = rng.normal(size=(100, m)) / m**0.5
    curvature = p[:, :, None] * np.eye(K) - p[:, :, None] * p[:, None]
    precision = np.einsum("nkl,ni,nj->kilj", curvature, phi, phi, optimize=True)
    precision = precision.reshape(K * m, K * m) + np.eye(K * m)
    full = np.linalg.inv(precision).reshape(K, m, K, m)
    full = np.einsum("kilj,bi,bj->bkl", full, test, test, optimize=True)
    phi, mean, test = (np.float32(a)[None] for a in (phi, phi @ f, test))
    apply = functools.partial(layer.LinearPosterior("softmax").apply, train=False)
    moments = jax.jit(lambda *args: apply({}, *args, mutable=["moments"])[1])(phi, mean)
    few = phi[:, :100], mean[:, :100]
    factor = jax.jit(lambda v, *args: apply(v, *args, mutable=["precision"])[1])(moments, *few)
    blocks = jax.jit(apply)(factor, test, few[1])[0]
    ratio = np.einsum("bkk->bk", full) / blocks
    assert too_small[0] <= ratio.min() + 1e-4 and ratio.max() < too_small[1]
    centre = np.eye(K) - 1 / K
    ratio = np.einsum("kl,blm,km->bk", centre, full, centre) / (blocks @ centre.T**2)
    assert difference[0] < ratio.min() and ratio.max() < difference[1]


@pytest.mark.slow
def test_the_pass_does_not_depend_on_the_batches_or_their_order():
    inference, whole = plain()
    _, parts = fitted(model_of(Sngp(outputs=2, features=16)), X[::-1].copy(), sizes=[20, 20, 10])
    variances = [inference.predict(state, X).variance for state in (whole, parts)]
    np.testing.assert_allclose(*variances, rtol=1e-4)
    assert "moments" not in whole.collections


@pytest.mark.slow
def test_there_is_no_variance_in_training_or_before_the_stage():
    model = model_of(Sngp(outputs=2, features=16))
    params, collections = jax.jit(model.init)(KEY, X[:1])
    assert "precision" not in collections
    for train in (True, False):
        latent, after, _ = jax.eval_shape(
            functools.partial(model.forward, train=train), params, collections, X, KEY
        )
        assert latent.variance is None and latent.epistemic is None
        assert set(after) == set(collections)
    _, state = plain()
    one = jax.tree.map(lambda a: a[0], (state.params, state.collections))
    training = functools.partial(model.forward, train=True)
    assert jax.eval_shape(training, *one, X, KEY)[0].variance is None


def moving(head):
    """A particle with a posterior that moves in training, and what a pass makes of its state."""
    model = model_of(head)
    inference = particles(model, sgd(), size=1)
    inference = inference._replace(predict=jax.jit(inference.predict))
    forward = jax.jit(lambda *args: model.forward(*args, KEY, train=True)[1])
    return inference, jax.jit(inference.init)(KEY, X[:1]), forward


@pytest.mark.slow
def test_momentum_in_the_stationary_case_is_the_exact_pass():
    # Every step sees the whole data, so the average is the mean from the first step on.
    exact, expected = plain()
    head = Sngp(outputs=2, features=16, momentum=0.9, num_examples=50)
    inference, state, forward = moving(head)
    for steps in (1, 7):
        collections = jax.tree.map(lambda a: a[0], state.collections)
        params = jax.tree.map(lambda a: a[0], state.params)
        for _ in range(steps):
            collections = forward(params, collections, X)
        after = state.replace(collections=jax.tree.map(lambda a: a[None], collections))
        np.testing.assert_allclose(
            inference.predict(after, X).variance, exact.predict(expected, X).variance, rtol=1e-3
        )


@pytest.mark.slow
def test_the_prior_does_not_decay_and_an_average_of_nothing_is_the_prior():
    head = Sngp(outputs=2, features=16, momentum=0.9, num_examples=50)
    inference, state, forward = moving(head)
    phi = random_features(state, hidden(state, X), 16)
    np.testing.assert_allclose(
        inference.predict(state, X).variance[0, :, 0], (phi**2).sum(1), rtol=1e-4
    )
    # Inputs whose features span one direction only: elsewhere P stays I, after any number of steps.
    params, collections = jax.tree.map(lambda a: a[0], (state.params, state.collections))
    for _ in range(200):
        collections = forward(params, collections, X[:1])
    after = state.replace(collections=jax.tree.map(lambda a: a[None], collections))
    expected = direct(np.repeat(phi[:1], 50, axis=0), phi)
    np.testing.assert_allclose(inference.predict(after, X).variance[0, :, 0], expected, rtol=1e-3)


def test_the_stage_replaces_a_moving_average_by_the_exact_sum():
    inference, state = fitted(
        model_of(Sngp(outputs=2, features=16, momentum=0.9, num_examples=7)), X
    )
    exact, expected = plain()
    np.testing.assert_allclose(
        inference.predict(state, X).variance, exact.predict(expected, X).variance, rtol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["vmap", "scan"])
def test_particles_are_fitted_each_by_itself(executor):
    model = model_of(Sngp(outputs=2, features=16))
    inference, state = fitted(model, X, P=2, executor=executor)
    variance = inference.predict(state, X).variance
    for p in range(2):
        train = random_features(state, hidden(state, X, p), 16, p=p)
        np.testing.assert_allclose(variance[p, :, 0], direct(train, train), rtol=2e-4)


@pytest.mark.slow
def test_multi_head_members_have_a_posterior_each():
    inference, state = fitted(model_of(Sngp(outputs=2, features=16), multi_head, size=2), X)
    variance = inference.predict(state, X).variance
    h = hidden(state, X)
    for member in range(2):
        take = jax.tree.map(lambda a, m=member: np.asarray(a)[:, m], state.collections)
        train = random_features(state.replace(collections=take), h, 16)
        np.testing.assert_allclose(variance[member, :, 0], direct(train, train), rtol=2e-4)


@pytest.mark.slow
def test_with_dropout_members_the_precision_is_their_mean():
    # Dropout follows the hidden layer, so each member has features of its own for every example.
    model = model_of(Sngp(outputs=2, features=16), mc_dropout, size=3, rate=0.3)
    inference, state = fitted(model, X)
    params, collections, key = jax.tree.map(
        lambda a: a[0], (state.params, state.collections, state.key)
    )
    network = mc_dropout(MLP(widths=(8,)), Sngp(outputs=2, features=16), size=3, rate=0.3)
    capture = functools.partial(
        network.apply,
        train=False,
        mutable=["intermediates"],
        capture_intermediates=lambda module, _: type(module).__name__ == "RandomFeatures",
    )
    rngs = dict(zip(("dropout", "noise"), jax.random.split(key, 2), strict=True))
    _, captured = jax.jit(capture)({"params": params, **collections}, X, rngs=rngs)
    (phi,) = jax.tree.leaves(captured)
    phi = np.asarray(phi, np.float64)
    assert phi.shape == (3, 50, 16) and not np.allclose(phi[0], phi[1])
    precision = np.eye(16) + np.einsum("mbi,mbj->ij", phi, phi) / 3
    expected = np.einsum("mbi,ij,mbj->mb", phi, np.linalg.inv(precision), phi)
    variance = inference.predict(state, X).variance[..., 0]
    np.testing.assert_allclose(variance, expected, rtol=2e-4)


@pytest.mark.slow
def test_many_features_give_the_exact_gaussian_process_near_and_far():
    # One input dimension and no backbone, so that distance is distance.
    x = np.random.default_rng(6).uniform(-2, 2, (25, 1)).astype(np.float32)
    grid = np.concatenate([np.linspace(-4, 4, 33), [6.0, -9.0, 30.0]])[:, None].astype(np.float32)
    exact = GaussianProcessRegressor(1.7**2 * RBF(0.7), alpha=0.05, optimizer=None)
    exact = exact.fit(x, np.zeros(25)).predict(grid, return_std=True)[1] ** 2
    head = Sngp(
        outputs=1, features=500, length_scale=0.7, amplitude=1.7, normalise=False, noise=0.05
    )
    inference, state = fitted(model_of(head, backbone=MLP(widths=())), x)
    latent = inference.predict(state, grid)
    # phi . phi is a mean of 500 terms 2 a^2 cos^2: within 3 standard errors, 3 sqrt(1 / 2 / 500).
    np.testing.assert_allclose(latent.variance[0, :, 0], exact, atol=0.1 * 1.7**2)
    near = np.abs(grid[:, 0]) < 1.8  # where the data leave nothing open, whatever the features
    np.testing.assert_allclose(latent.variance[0, near, 0], exact[near], atol=0.01)
    assert np.all(np.abs(latent.mean) < 3)


def on_a_plane(rng, m):
    """100 unit rows in a plane of m dimensions: rank 2."""
    phi = rng.normal(size=(100, 2)) @ np.linalg.qr(rng.normal(size=(m, 2)))[0].T
    return (phi / np.linalg.norm(phi, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.slow
def test_a_million_examples_leave_the_prior_where_there_are_none():
    # The same 100 examples 1e4 times over: in float32 the sum alone is off by eps 1e6 / noise,
    # which is 100 of the prior's 1.
    rng = np.random.default_rng(3)
    m, repeats, noise = 64, 1000, 1e-3
    phi = on_a_plane(rng, m)
    fitted = layer.LinearPosterior(noise=noise)

    @jax.jit
    def variance(chunk, test):
        def apply(variables, x, change=()):
            mean = jnp.zeros((*x.shape[:-1], 1))
            return fitted.apply(variables, x, mean, train=False, mutable=change)

        zeros = {"moments": dict.fromkeys(("sum", "rest"), jnp.zeros((m, m)))}
        step = lambda _, v: apply(v, chunk, ("moments",))[1]  # noqa: E731
        variables = jax.lax.fori_loop(0, repeats, step, zeros)
        variables = apply(variables, chunk, ("precision",))[1]
        return apply(variables, test)[0][0, :, 0]

    test = rng.normal(size=(50, m))
    test /= np.linalg.norm(test, axis=1, keepdims=True)
    both = np.concatenate([phi[:20], test]).astype(np.float32)
    got = variance(np.tile(phi, (10, 1))[None], both[None])
    exact = direct(phi.astype(float), both.astype(float), np.full(100, 1e4 / noise))
    assert exact[:20].max() < 1e-5 < 0.8 < exact[20:].min()
    np.testing.assert_allclose(got, exact, rtol=1e-3)


@pytest.mark.slow
def test_the_factor_of_badly_conditioned_moments_is_that_of_float64():
    # Eigenvalues from 0 to 1e9, over features of which some are a thousand times larger; by class
    # and by particle, and one that needs no second round.
    rng = np.random.default_rng(8)
    m = 96
    moments = []
    for largest in (10.0, 1e6, 1e9, 1e9):
        Q = np.linalg.qr(rng.normal(size=(m, m)))[0]
        values = np.where(np.arange(m) < m // 2, 0, np.geomspace(1e-3, largest, m))
        scales = np.where(np.arange(m) % 3 == 0, 1e-3, 1.0) if largest == 1e9 else 1.0
        moments.append((Q * values @ Q.T) * np.outer(scales, scales) * np.ones((m, m)))
    moments = np.reshape(moments, (2, 2, m, m))
    high = moments.astype(np.float32)
    low = (moments - high).astype(np.float32)
    factors = jax.jit(jax.vmap(layer.refined_factor))(high, low)
    assert factors.shape == (2, 2, m, m) and not np.triu(factors, 1).any()
    F = np.asarray(factors, float)
    got = F @ (np.eye(m) + moments) @ np.swapaxes(F, -1, -2)
    # Rounded to float32, the exact factor itself is off by 1.5e-4 here.
    np.testing.assert_allclose(got, np.broadcast_to(np.eye(m), got.shape), atol=3e-3)


def test_a_matrix_that_rounding_made_indefinite_is_mended_by_its_eigenvalues():
    rng = np.random.default_rng(4)
    Q = np.linalg.qr(rng.normal(size=(64, 64)))[0]
    values = np.concatenate([np.full(32, 1e9), np.full(32, -5.0)])  # rounding of 1e9 leaves -5
    factor = np.asarray(layer.inverse_factor(jnp.asarray((Q * values) @ Q.T, jnp.float32)))
    assert np.isfinite(factor).all()
    np.testing.assert_array_equal(factor, np.tril(factor))
    covariance = factor.astype(np.float64).T @ factor
    # Which of the 32 eigenvalues were above 1 cannot be told any more; below 1 none can have been.
    lost, known = np.diag(Q.T @ covariance @ Q)[32:], np.diag(Q.T @ covariance @ Q)[:32]
    assert np.all((lost > 0) & (lost < 1.001)) and lost.mean() > 0.3
    assert np.all(known < 1e-6)


def test_eigenvalues_are_computed_only_where_they_are_needed():
    # A condition under vmap would compute both branches.
    def unconditional(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name
            if equation.primitive.name != "cond":
                for value in equation.params.values():
                    inner = getattr(value, "jaxpr", value)
                    yield from unconditional(inner) if hasattr(inner, "eqns") else ()

    matrices = jnp.zeros((2, 3, 8, 8))
    traced = jax.make_jaxpr(jax.vmap(layer.inverse_factor))(matrices)
    names = set(unconditional(traced.jaxpr))
    assert "cholesky" in names and "cond" in names and "eigh" not in names


@pytest.mark.slow
@pytest.mark.parametrize("m", [1, 131])  # and that in uneven halves, twice
def test_the_inverse_of_a_triangle_is_that_of_a_solve(m):
    a = np.random.default_rng(m).normal(size=(m, 2 * m))
    L = np.linalg.cholesky(a @ a.T / m + 0.1 * np.eye(m))
    got = jax.jit(layer.inverse_triangle)(np.float32(L))
    exact = scipy.linalg.solve_triangular(L, np.eye(m), lower=True)
    np.testing.assert_allclose(got, exact, atol=2e-5 * np.abs(exact).max())
    assert not np.triu(got, 1).any()


@pytest.mark.parametrize("m", [7, 255, 256, 300])
def test_quadratic_forms_in_blocks_are_those_of_the_whole(m):
    rng = np.random.default_rng(m)
    F = np.tril(rng.normal(size=(2, m, m))).astype(np.float32)
    phi = rng.normal(size=(3, 5, m)).astype(np.float32)
    expected = np.einsum("kij,mbj->kmbi", F.astype(float), phi) ** 2
    np.testing.assert_allclose(
        layer.quadratic(jnp.asarray(phi), jnp.asarray(F)),
        np.moveaxis(expected.sum(-1), 0, -1),
        rtol=1e-3,
    )


def test_variance_of_many_examples_takes_memory_that_grows_with_b_not_its_square():
    phi = jax.ShapeDtypeStruct((1, 4000, 128), jnp.float32)
    factor = jax.ShapeDtypeStruct((128, 128), jnp.float32)
    compiled = jax.jit(layer.quadratic).lower(phi, factor).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 4000 * 128 * 4  # B x B is 64 MB


def test_bfloat16_features_leave_the_covariance_in_float32():
    model = model_of(Sngp(outputs=2, features=16), backbone=MLP(widths=(8,), dtype="bfloat16"))
    inference, state = fitted(model, X)
    for leaf in jax.tree.leaves((state.collections, inference.predict(state, X))):
        assert leaf.dtype == jnp.float32
    h = jax.jit(lambda v, x: MLP(widths=(8,), dtype="bfloat16").apply(v, x, train=False))(
        {"params": jax.tree.map(lambda a: a[0], state.params["backbone"])}, X[None]
    )
    train = random_features(state, np.asarray(h[0], np.float64), 16)
    np.testing.assert_allclose(
        inference.predict(state, X).variance[0, :, 0], direct(train, train), rtol=2e-3
    )


@pytest.mark.slow
def test_regression_with_an_sngp_head_is_bayesian_linear_regression():
    # Exact: the MAP of the linear weights, by one solve, and the posterior of the stage.
    m, noise_std = 30, 0.2
    rng = np.random.default_rng(5)
    x = rng.uniform(-2, 2, (60, 1)).astype(np.float32)
    y = np.sin(3 * x[:, 0]) + noise_std * rng.normal(size=60)
    head = Sngp(outputs=1, features=m, length_scale=0.5, normalise=False, noise=noise_std**2)
    model = model_of(head, backbone=MLP(widths=()), likelihood=gaussian(noise_std))
    inference, state = fitted(model, x)
    W = np.asarray(state.collections["random_features"]["head"]["features"]["kernel"][0], float)
    b = np.asarray(state.collections["random_features"]["head"]["features"]["bias"][0], float)
    phi = np.sqrt(2 / m) * np.cos(x.astype(float) @ W / 0.5 + b)
    precision = np.eye(m) + phi.T @ phi / noise_std**2
    beta = np.linalg.solve(precision, phi.T @ y / noise_std**2)
    state.params["head"]["logits"]["kernel"] = jnp.asarray(beta[None, :, None], jnp.float32)
    latent = inference.predict(state, x)
    mean, variance = model.likelihood.moments(latent)
    np.testing.assert_allclose(mean[0, :, 0], phi @ beta, atol=1e-3)
    expected = noise_std**2 + np.einsum("bi,ij,bj->b", phi, np.linalg.inv(precision), phi)
    np.testing.assert_allclose(variance[0, :, 0], expected, rtol=1e-3)

    # beta is where the training objective, with an L2 of 1 / N on beta, is stationary.
    def objective(beta):
        params = jax.tree.map(lambda a: a[0], state.params)
        params["head"]["logits"]["kernel"] = beta
        collections = jax.tree.map(lambda a: a[0], state.collections)
        u = model.forward(params, collections, x, KEY, train=True)[0]
        nll = model.likelihood.nll(u, jnp.asarray(y, jnp.float32), KEY).mean()
        return nll + jnp.sum(beta**2) / (2 * 60)

    gradient = jax.jit(jax.grad(objective))
    largest = [np.abs(gradient(b)).max() for b in np.float32([beta[:, None], np.zeros((m, 1))])]
    assert largest[0] < 1e-2 * largest[1]


def test_a_model_without_a_posterior_is_refused():
    with pytest.raises(ValueError, match=r"no posterior to fit.*sngp.Sngp"):
        fitted(model_of(Dense(outputs=2)), X)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (dict(curvature="poisson"), "curvature: 'poisson'; allowed 'gaussian'"),
        (dict(noise=0.0), "noise: 0.0"),
        (dict(momentum=1.0, num_examples=5), "momentum: 1.0"),
        (dict(momentum=0.9), "num_examples: None"),
        (dict(num_examples=5), "num_examples: 5"),
        (dict(momentum=0.9, num_examples=0), "num_examples: 0"),
        (dict(outputs=0), "outputs: 0"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(fields, why):
    for head in (Sngp, LaplaceHead):
        with pytest.raises(ValueError, match=why):
            head(**{"outputs": 2, **fields})
