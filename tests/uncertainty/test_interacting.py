"""Directions of particles that interact, against double sums in NumPy and known posteriors."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from uncertainty.backbones.mlp import MLP
from uncertainty.ensembles.single import single
from uncertainty.heads.dense import Dense
from uncertainty.inference import executors
from uncertainty.inference.annealing import linear as linear_annealing
from uncertainty.inference.context import other, perturbed
from uncertainty.inference.directions.independent import independent
from uncertainty.inference.directions.interacting import SPACES
from uncertainty.inference.directions.spectral import prior_score, score_at_samples
from uncertainty.inference.directions.svgd import svgd
from uncertainty.inference.directions.wgd import ESTIMATORS, wgd
from uncertainty.inference.function_values import represent
from uncertainty.inference.kernels.imq import imq
from uncertainty.inference.kernels.linear import linear
from uncertainty.inference.kernels.probability_product import probability_product
from uncertainty.inference.kernels.rbf import rbf
from uncertainty.inference.particles import particles
from uncertainty.keys import Use, fold
from uncertainty.likelihoods import softmax
from uncertainty.model import from_network
from uncertainty.optimisers.optimiser import sgd
from uncertainty.priors import gaussian
from uncertainty.types import Latent, Target

N, B, P, K = 40, 6, 4, 3
RNG = np.random.default_rng(0)
BATCH = dict(x=jnp.asarray(RNG.normal(size=(B, 2)), jnp.float32), y=jnp.asarray([0, 1, 2, 0, 1, 2]))
MODEL = from_network(single(MLP(widths=(5,), activation="tanh"), Dense(outputs=K)), softmax())
TARGET = Target(prior=gaussian(0.8), num_examples=N, temperature=0.7)


@functools.cache
def state_of(size=P):
    state = particles(MODEL, sgd(), size=size).init(jax.random.key(0), BATCH["x"][:1])
    return state.replace(params=jax.tree.map(lambda a: a + normal(a.shape, 0.3), state.params))


def normal(shape, std):
    return np.random.default_rng(np.prod(shape)).normal(0, std, shape).astype(np.float32)


STATE = state_of()


@functools.cache
def compiled(direction, executor, target, **fields):
    made = direction(over=executors.mapping(executor), target=target, **fields)
    return jax.jit(lambda s: made.update(MODEL, s, BATCH, s.key))


def direct(direction, state=STATE, executor="vmap", target=TARGET, **fields):
    return compiled(direction, executor, target, **fields)(state)


def flat(tree):
    return np.stack(
        [
            np.concatenate(
                [np.asarray(leaf[p], np.float64).ravel() for leaf in jax.tree.leaves(tree)]
            )
            for p in range(jax.tree.leaves(tree)[0].shape[0])
        ]
    )


def one(tree, p):
    return jax.tree.map(lambda a: np.asarray(a)[p], tree)


def logits(params, x=BATCH["x"]):
    return MODEL.forward(params, {}, x, jax.random.key(0), train=True)[0].mean[0]


@jax.jit
def log_joint(params):
    """1/N log p(theta, D), estimated from the batch, written out by hand."""
    log_p = jax.nn.log_softmax(logits(params))
    prior = sum(jnp.sum(w**2) for w in jax.tree.leaves(params)) / (2 * 0.8**2)
    return jnp.mean(log_p[jnp.arange(B), BATCH["y"]]) - prior / N


slopes_of_joint = jax.jit(jax.vmap(jax.grad(log_joint)))


@functools.cache
def gradients():
    """Of `log_joint` of each particle, stacked."""
    return slopes_of_joint(STATE.params)


def scores():
    return flat(gradients())


def wide():
    return rbf(2.0)


KERNELS = {  # a kernel of fixed width and its value and slope in the first argument for a pair
    "rbf": (
        wide,
        lambda a, b: np.exp(-((a - b) ** 2).sum() / 4),
        lambda a, b: -np.exp(-((a - b) ** 2).sum() / 4) * (a - b) / 2,
    ),
    "imq": (
        lambda: imq(2.0),
        lambda a, b: (1 + ((a - b) ** 2).sum() / 4) ** -0.5,
        lambda a, b: -((1 + ((a - b) ** 2).sum() / 4) ** -1.5) * (a - b) / 4,
    ),
    "linear": (linear, lambda a, b: a @ b + 1, lambda a, b: b),
}
# Of probabilities with K = 3 classes: floored as its docstring says.
FLOORED = lambda p: (p + 1e-6) / (1 + 3e-6)  # noqa: E731
OF_PROBABILITIES = {
    "rbf": KERNELS["rbf"],
    "product": (
        probability_product,
        lambda p, q: np.sqrt(FLOORED(p) * FLOORED(q)).sum() / (len(p) / 3),
        lambda p, q: 0.5 * np.sqrt(FLOORED(q) / FLOORED(p)) / (1 + 3e-6) / (len(p) / 3),
    ),
}
POINTS = jnp.asarray(RNG.normal(size=(5, 2)), jnp.float32)


@pytest.mark.parametrize("name", KERNELS)
def test_svgd_in_weight_space_is_the_double_sum(name):
    make, k, slope = KERNELS[name]
    g, _, metrics = direct(svgd, kernel=make)
    z, s = flat(STATE.params), scores()
    phi = np.zeros_like(z)
    for i in range(P):
        for j in range(P):
            phi[i] += (k(z[j], z[i]) * s[j] + 0.7 / N * slope(z[j], z[i])) / P
    np.testing.assert_allclose(flat(g), -phi, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["loss"][0], -log_joint(one(STATE.params, 0)), rtol=1e-5)
    if name != "linear":  # the repulsion of a stationary kernel sums to zero
        without = direct(svgd, kernel=make, target=TARGET._replace(temperature=0.0))[0]
        np.testing.assert_allclose((flat(g) - flat(without)).sum(0), 0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_wgd_in_weight_space_is_the_estimators_formula(estimator):
    g, _, _ = direct(wgd, kernel=wide, estimator=estimator, ridge=0.05, kept=1.0)
    z, s = flat(STATE.params), scores()
    _, k, slope = KERNELS["rbf"]
    gram = np.array([[k(z[i], z[j]) for j in range(P)] for i in range(P)])
    r = np.array([sum(slope(z[j], z[i]) for j in range(P)) for i in range(P)])
    if estimator == "kde":
        # By differences: the score of the density sum_j k(., z_j) at each particle.
        log_q = lambda x: np.log(sum(k(x, z[j]) for j in range(P)))  # noqa: E731
        score = np.array(
            [
                [(log_q(z[i] + h) - log_q(z[i] - h)) / 2e-4 for h in 1e-4 * np.eye(z.shape[1])]
                for i in range(P)
            ]
        )
    else:
        ridge = 0.05 if estimator == "sge" else 0.0
        score = -np.linalg.solve(gram + ridge * np.eye(P), r)
    np.testing.assert_allclose(flat(g), -(s - 0.7 / N * score), rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_equal_particles_have_equal_probabilities():
    """The draws of a latent with variance are no difference between particles."""
    rng = np.random.default_rng(0)
    mean, variance = (jnp.asarray(rng.uniform(1, 2, (1, 1, B, K)), jnp.float32) for _ in range(2))
    latent = jax.tree.map(lambda a: jnp.tile(a, (P, 1, 1, 1)), Latent(mean, variance))
    model = MODEL._replace(likelihood=softmax(samples=16))
    probabilities = jax.jit(lambda key: represent(model, latent, key, "probabilities"))
    made = probabilities(jax.random.key(0))
    np.testing.assert_array_equal(made, np.broadcast_to(made[:1], made.shape))
    other_draws = probabilities(jax.random.key(1))
    assert np.abs(made - other_draws).max() > 1e-3


def test_kde_with_a_delta_kernel_is_a_deep_ensemble():
    g, _, _ = direct(wgd, kernel=lambda: rbf(1e-6))
    plain, _, _ = direct(independent)
    np.testing.assert_allclose(flat(g), flat(plain), rtol=1e-5, atol=1e-7)


@functools.cache
def of_values(values, points):
    """The function values [P, n] of all particles, and what pulls cotangents back to parameters."""

    def value(params):
        u = logits(params, POINTS if points else BATCH["x"])
        return (u if values == "logits" else jax.nn.softmax(u)).ravel()

    pulled = jax.vmap(lambda params, c: jax.vjp(value, params)[1](c)[0])
    pull = jax.jit(lambda c: pulled(STATE.params, jnp.asarray(c, jnp.float32)))
    return jax.jit(jax.vmap(value)), pull


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES[1:])
@pytest.mark.parametrize(
    ("values", "kernel", "points"),
    [
        ("logits", "rbf", None),
        ("probabilities", "rbf", POINTS),
        ("probabilities", "product", None),
        ("probabilities", "product", POINTS),
    ],
    ids=["logits", "points", "product", "product-points"],
)
def test_every_space_of_functions_is_its_formula(space, values, kernel, points):
    make, k, slope = OF_PROBABILITIES[kernel]
    of_weights = (lambda: rbf(1.5)) if space == "functional_repulsion" else None
    context = None if points is None else lambda: lambda batch, key: points
    g, _, metrics = direct(
        svgd,
        kernel=make if kernel == "product" else wide,
        weight_kernel=of_weights,
        space=space,
        values=values,
        context=context,
    )
    value, pulled = of_values(values, points is not None)
    w, s = flat(STATE.params), scores()
    F = np.asarray(value(STATE.params), np.float64)
    repel = np.array([sum(slope(F[j], F[i]) for j in range(P)) for i in range(P)]) / P
    gram_F = np.array([[k(F[i], F[j]) for j in range(P)] for i in range(P)]) / P
    gram_w = np.exp(-((w[:, None] - w[None]) ** 2).sum(-1) / 3) / P
    if space == "functional_kernel":
        drive = gram_F @ s
    elif space == "functional_repulsion":
        drive = gram_w @ s
    else:
        u, pull = of_values("logits", False)
        prob = scipy.special.softmax(np.reshape(u(STATE.params), (P, B, K)), axis=-1)
        du = (np.eye(K)[BATCH["y"]] - prob) / B  # of the mean log-likelihood
        drive = flat(pull(np.einsum("ij,jbk->ibk", gram_F, du).reshape(P, -1)))
        drive -= gram_F.sum(1, keepdims=True) * w / 0.8**2 / N
    phi = drive + 0.7 / N * flat(pulled(repel))
    np.testing.assert_allclose(flat(g), -phi, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["loss"][0], -log_joint(one(STATE.params, 0)), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES)
def test_annealing_scales_the_drive_and_not_the_repulsion(space):
    def go(temperature, annealing=None):
        target = TARGET._replace(temperature=temperature)
        return svgd(executors.vmap, target, space=space, annealing=annealing)

    made = go(0.7), go(0.0), go(0.7, lambda: linear_annealing(120))
    together = jax.jit(lambda s: [d.update(MODEL, s, BATCH, s.key)[0] for d in made])
    whole, drive, annealed = map(flat, together(STATE.replace(step=jnp.int32(30))))
    np.testing.assert_allclose(annealed, 0.25 * drive + (whole - drive), rtol=1e-4, atol=1e-6)


class Normalised(nn.Module):
    """A network with batch statistics."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x[None]))
        return Latent(mean=nn.Dense(K)(jnp.tanh(x)))


@pytest.mark.slow
def test_collections_are_those_of_the_batch_and_points_are_the_same_for_all():
    model = from_network(Normalised(), softmax())
    state = particles(model, sgd(), size=3).init(jax.random.key(0), BATCH["x"])
    made = lambda **f: svgd(executors.vmap, TARGET, space="functions", **f)  # noqa: E731
    go = lambda d, b=BATCH: jax.jit(lambda s: d.update(model, s, b, s.key))(state)  # noqa: E731
    g, collections, _ = go(made())
    h, other_collections, _ = go(made(context=lambda: perturbed(0.5)))
    jax.tree.map(np.testing.assert_array_equal, collections, other_collections)
    assert np.abs(flat(g) - flat(h)).max() > 1e-5
    # With the points of particle 0's key, and no others, it is the same.
    at = perturbed(0.5)(BATCH, fold(state.key[0], Use.POINTS))
    same, _, _ = go(made(context=other), BATCH | dict(context=dict(x=at)))
    np.testing.assert_allclose(flat(same), flat(h), rtol=1e-5, atol=1e-7)


def stein_by_loops(draws, at, kept):
    """The spectral Stein estimator as the paper writes it: psi_a and beta_a, term by term."""
    n, dims = draws.shape
    pairs = [((draws[i] - draws[j]) ** 2).sum() for i in range(n) for j in range(i)]
    h = np.median(pairs)
    k = lambda a, b: np.exp(-((a - b) ** 2).sum() / (2 * h))  # noqa: E731
    lam, U = np.linalg.eigh(np.array([[k(a, b) for b in draws] for a in draws]))
    total, score = 0.0, np.zeros((len(at), dims))
    for a in range(n)[::-1]:
        if total >= kept * lam.sum():
            break
        total += lam[a]
        psi = lambda x: n**0.5 / lam[a] * sum(U[j, a] * k(x, draws[j]) for j in range(n))  # noqa: B023,E731
        beta = np.zeros(dims)
        for m in range(n):
            for j in range(n):
                grad = -k(draws[m], draws[j]) * (draws[m] - draws[j]) / h
                beta -= n**0.5 / lam[a] * U[j, a] * grad / n
        score += np.array([psi(x) for x in at])[:, None] * beta
    return score


@pytest.mark.slow
def test_the_prior_score_is_the_estimator_and_that_of_samples_at_samples():
    draws, at = RNG.normal(size=(9, 2)), RNG.normal(size=(3, 2))
    score_at = jax.jit(lambda at, draws: prior_score([at], [draws], kept=0.9)[0])
    score = score_at(at, draws)
    np.testing.assert_allclose(score, stein_by_loops(draws, at, 0.9), rtol=2e-3, atol=1e-3)
    score = score_at(draws, draws)
    inner = draws @ draws.T
    squared = np.diag(inner)[:, None] + np.diag(inner)[None] - 2 * inner
    h = np.median(squared[np.triu_indices(9, 1)])
    K_, F = rbf(float(h)).matrices(jnp.asarray(inner, jnp.float32))
    np.testing.assert_allclose(score, score_at_samples(K_, F, 0.9) @ draws, rtol=2e-3, atol=1e-3)


LINEAR = from_network(single(MLP(widths=()), Dense(outputs=2)), softmax())


def errors_of_prior(method, draws):
    """Of what a Gaussian prior on functions adds to a linear model's direction, by its draws."""
    batch = dict(x=jnp.asarray([[1.0, 0.3], [-0.5, 1.0]]), y=jnp.asarray([0, 1]))
    state = particles(LINEAR, sgd(), size=40).init(jax.random.key(3), batch["x"])
    # Where the prior is: in its tails the estimate is of nothing that was drawn.
    noise = lambda a: 0.8 * jax.random.normal(jax.random.key(a.size), a.shape)  # noqa: E731
    state = state.replace(params=jax.tree.map(noise, state.params))
    fields = dict(space="functions", kernel=lambda: rbf(3.0))
    target = Target(gaussian(0.8), num_examples=N, temperature=0.0)
    with_prior = [method(executors.vmap, target, function_prior=n, **fields) for n in draws]
    plain = method(executors.vmap, target._replace(prior=None), **fields)
    made = (plain, *with_prior)
    update = jax.jit(lambda s: [d.update(LINEAR, s, batch, s.key) for d in made])
    (without, _, free), *found = update(state)
    X = np.hstack([batch["x"], np.ones((2, 1))])  # the model's weights are [W; b] [3, 2]
    logits = state.params["head"]["logits"]
    W = np.concatenate([logits["kernel"], logits["bias"][:, None]], axis=1)
    # -1/N grad log p(f), f = X W, with p(f) = N(0, 0.8^2 X X^T) for each class.
    f = X @ W
    exact = np.linalg.solve(0.8**2 * X @ X.T, f) / N
    if method is svgd:
        z = f.reshape(40, -1)
        gram = np.exp(-((z[:, None] - z[None]) ** 2).sum(-1) / 6) / 40
        exact = np.einsum("ij,jbk->ibk", gram, exact)
    exact = X.T @ exact
    errors = []
    for g, _, metrics in found:
        np.testing.assert_allclose(metrics["loss"], free["loss"], rtol=1e-6)
        part = jax.tree.map(np.subtract, g, without)["head"]["logits"]
        part = np.concatenate([part["kernel"], part["bias"][:, None]], axis=1)  # [P, 3, 2]
        errors.append(np.linalg.norm(part - exact) / np.linalg.norm(exact))
    return errors


@pytest.mark.slow
@pytest.mark.parametrize("method", [svgd, wgd])
def test_the_prior_on_functions_approaches_a_gaussian_process_with_more_draws(method):
    # Over 40 particles; the same estimator in NumPy has 0.65 and 0.27 on average over draws.
    few, many = errors_of_prior(method, (10, 400))
    assert many < 0.4 and many < 0.6 * few, (few, many)


@pytest.mark.slow
@pytest.mark.parametrize("per_layer", [False, True])
def test_noise_is_coloured_by_the_matrix_root(per_layer):
    made = svgd(executors.vmap, TARGET, kernel=wide, per_layer=per_layer)
    diffusion = jax.jit(made.diffusion)
    alone = np.eye(P, dtype=np.float32)

    def gram_of_noise(params, pick):
        # `diffusion` is linear and the same for all numbers of a layer: column j of its matrix is
        # what becomes of noise that particle j alone has.
        def unit(j):
            return jax.tree.map(lambda a: a * 0 + alone[j].reshape(P, *[1] * (a.ndim - 1)), params)

        params = jax.tree.map(np.asarray, params)
        L = np.stack([flat(pick(diffusion(params, unit(j))))[:, 0] for j in range(P)], axis=1)
        return L @ L.T

    layer = lambda tree: tree["backbone"]["dense0"]  # noqa: E731
    z = flat(layer(STATE.params) if per_layer else STATE.params)
    gram = np.exp(-((z[:, None] - z[None]) ** 2).sum(-1) / 4) / P
    np.testing.assert_allclose(gram_of_noise(STATE.params, layer), gram, atol=1e-6)
    # Particles that are all the same have a singular K, and move as one.
    same = jax.tree.map(lambda a: np.broadcast_to(a[:1], a.shape), STATE.params)
    np.testing.assert_allclose(gram_of_noise(same, layer), 1 / P, atol=1e-5)


def test_only_svgd_in_weight_space_has_a_diffusion():
    assert svgd(executors.vmap, TARGET, space="functions").diffusion is None
    assert wgd(executors.vmap, TARGET).diffusion is None


METHODS = {
    "svgd": (svgd, {}),
    **{e: (wgd, dict(estimator=e)) for e in ESTIMATORS},
}
WHERE = [
    *(("svgd", space) for space in SPACES),
    ("kde", "functions"),
    ("sge", "weights"),
    ("ssge", "functions"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "space"), WHERE)
def test_permuting_particles_permutes_the_direction(method, space):
    direction, fields = METHODS[method]
    g, _, _ = direct(direction, space=space, **fields)
    order = np.array([2, 0, 3, 1])
    mixed = STATE.replace(
        params=jax.tree.map(lambda a: np.asarray(a)[order], STATE.params), key=STATE.key[order]
    )
    h, _, _ = direct(direction, state=mixed, space=space, **fields)
    scale = np.abs(flat(g)).max()
    np.testing.assert_allclose(flat(h), flat(g)[order], atol=2e-3 * scale)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "space"), WHERE)
def test_a_single_particle_is_map_estimation(method, space):
    direction, fields = METHODS[method]
    state = state_of(size=1)
    g, _, _ = direct(direction, state=state, space=space, **fields)
    plain, _, _ = direct(independent, state=state)
    # sge keeps its ridge at P = 1, but there is no force to divide by it.
    np.testing.assert_allclose(flat(g), flat(plain), rtol=1e-4, atol=1e-6)
    alone = slopes_of_joint(state.params)
    np.testing.assert_allclose(flat(plain), -flat(alone), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("space", "executor"), zip(SPACES, ("unroll", "scan") * 2, strict=True))
def test_executors_agree(space, executor):
    g, _, _ = direct(svgd, space=space)
    other, _, _ = direct(svgd, space=space, executor=executor)
    np.testing.assert_allclose(flat(other), flat(g), rtol=1e-4, atol=1e-6)


def test_a_kernel_for_each_layer_sees_that_layer_alone():
    g, _, _ = direct(svgd, kernel=wide, per_layer=True)
    _, k, slope = KERNELS["rbf"]
    z, s = (flat(tree["backbone"]["dense0"]) for tree in (STATE.params, gradients()))
    phi = np.array(
        [
            sum(k(z[j], z[i]) * s[j] + 0.7 / N * slope(z[j], z[i]) for j in range(P)) / P
            for i in range(P)
        ]
    )
    np.testing.assert_allclose(flat(g["backbone"]["dense0"]), -phi, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("direction", "fields", "why"),
    [
        (svgd, dict(space="weight"), "space: 'weight'; one of 'weights'"),
        (svgd, dict(space="functions", values="logit"), "values: 'logit'"),
        (svgd, dict(space="functions", accumulate=2), "accumulate: 2 parts"),
        (svgd, dict(space="functions", per_layer=True), "per_layer"),
        (wgd, dict(estimator="kdf"), "estimator: 'kdf'; one of 'kde'"),
        (
            wgd,
            dict(space="functional_kernel"),
            "space: 'functional_kernel'; 'weights' or 'functions'",
        ),
        (wgd, dict(kernel=linear), "needs a stationary kernel"),
        (wgd, dict(ridge=0.0), "ridge: 0.0"),
        (wgd, dict(kept=0.0), "kept: 0.0"),
        (svgd, dict(target=Target()), "num_examples"),
        (svgd, dict(context=perturbed), "context: not for space='weights'"),
        (svgd, dict(weight_kernel=rbf), "weight_kernel"),
        (svgd, dict(kernel=probability_product), "kernel: this one compares probabilities"),
        (svgd, dict(kernel=probability_product, space="functions"), "set values='probabilities'"),
        (
            svgd,
            dict(kernel=probability_product, space="functional_repulsion", values="probabilities"),
            "weight_kernel: 'functional_repulsion'",
        ),
        (wgd, dict(function_prior=20), "function_prior: for space='functions'"),
        (svgd, dict(function_prior=1, space="functions"), "function_prior: 1 draws"),
        (
            svgd,
            dict(function_prior=9, space="functions", target=Target(num_examples=5)),
            "needs a prior",
        ),
    ],
)
def test_what_cannot_be_is_refused(direction, fields, why):
    with pytest.raises(ValueError, match=why):
        direction(**{"over": executors.vmap, "target": TARGET, **fields})
