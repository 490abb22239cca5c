"""Directions of particles that interact, against double sums in NumPy and known posteriors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uncertainty.backbones.mlp import MLP
from uncertainty.ensembles.single import single
from uncertainty.heads.dense import Dense
from uncertainty.inference import executors
from uncertainty.inference.independent import independent
from uncertainty.inference.interacting import SPACES
from uncertainty.inference.particles import particles
from uncertainty.inference.svgd import svgd
from uncertainty.inference.wgd import ESTIMATORS, wgd
from uncertainty.kernels.imq import imq
from uncertainty.kernels.linear import linear
from uncertainty.kernels.rbf import rbf
from uncertainty.likelihoods import softmax
from uncertainty.model import from_network
from uncertainty.optimisers import sgd
from uncertainty.priors import gaussian
from uncertainty.types import Target

N, B, P, K = 40, 6, 4, 3
RNG = np.random.default_rng(0)
BATCH = dict(x=jnp.asarray(RNG.normal(size=(B, 2)), jnp.float32), y=jnp.asarray([0, 1, 2, 0, 1, 2]))
MODEL = from_network(single(MLP(widths=(5,), activation="tanh"), Dense(outputs=K)), softmax())
TARGET = Target(prior=gaussian(0.8), num_examples=N, temperature=0.7)


def state_of(size=P, seed=0):
    state = particles(MODEL, sgd(), size=size).init(jax.random.key(seed), BATCH["x"][:1])
    noise = lambda a: a + 0.3 * jax.random.normal(jax.random.key(a.size), a.shape)  # noqa: E731
    return state.replace(params=jax.tree.map(noise, state.params))


STATE = state_of()


def direct(direction, state=STATE, executor="vmap", target=TARGET, **fields):
    made = direction(over=executors.mapping(executor), target=target, **fields)
    return jax.jit(lambda s: made(MODEL, s, BATCH, s.key))(state)


def flat(tree):
    return np.stack([
        np.concatenate([np.asarray(leaf[p], np.float64).ravel() for leaf in jax.tree.leaves(tree)])
        for p in range(jax.tree.leaves(tree)[0].shape[0])
    ])  # fmt: skip


def one(tree, p):
    return jax.tree.map(lambda a: a[p], tree)


def logits(params):
    return MODEL.forward(params, {}, BATCH["x"], jax.random.key(0), train=True)[0].mean[0]


def log_joint(params):
    """1/N log p(theta, D), estimated from the batch, written out by hand."""
    log_p = jax.nn.log_softmax(logits(params))
    prior = sum(jnp.sum(w**2) for w in jax.tree.leaves(params)) / (2 * 0.8**2)
    return jnp.mean(log_p[jnp.arange(B), BATCH["y"]]) - prior / N


def scores(state=STATE):
    return flat(jax.tree.map(lambda *g: jnp.stack(g), *[
        jax.grad(log_joint)(one(state.params, p)) for p in range(P)]))  # fmt: skip


KERNELS = {  # a kernel of fixed width and its value and slope in the first argument for a pair
    "rbf": (lambda: rbf(2.0), lambda a, b: np.exp(-((a - b) ** 2).sum() / 4),
            lambda a, b: -np.exp(-((a - b) ** 2).sum() / 4) * (a - b) / 2),
    "imq": (lambda: imq(2.0), lambda a, b: (1 + ((a - b) ** 2).sum() / 4) ** -0.5,
            lambda a, b: -((1 + ((a - b) ** 2).sum() / 4) ** -1.5) * (a - b) / 4),
    "linear": (linear, lambda a, b: a @ b + 1, lambda a, b: b),
}  # fmt: skip


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


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_wgd_in_weight_space_is_the_estimators_formula(estimator):
    g, _, _ = direct(wgd, kernel=lambda: rbf(2.0), estimator=estimator, ridge=0.05, kept=1.0)
    z, s = flat(STATE.params), scores()
    _, k, slope = KERNELS["rbf"]
    gram = np.array([[k(z[i], z[j]) for j in range(P)] for i in range(P)])
    r = np.array([sum(slope(z[j], z[i]) for j in range(P)) for i in range(P)])
    if estimator == "kde":
        # By differences: the score of the density sum_j k(., z_j) at each particle.
        log_q = lambda x: np.log(sum(k(x, z[j]) for j in range(P)))  # noqa: E731
        score = np.array([[(log_q(z[i] + h) - log_q(z[i] - h)) / 2e-4
                           for h in 1e-4 * np.eye(z.shape[1])] for i in range(P)])  # fmt: skip
    else:
        ridge = 0.05 if estimator == "sge" else 0.0
        score = -np.linalg.solve(gram + ridge * np.eye(P), r)
    np.testing.assert_allclose(flat(g), -(s - 0.7 / N * score), rtol=1e-3, atol=2e-5)


def test_kde_with_a_delta_kernel_is_a_deep_ensemble():
    g, _, _ = direct(wgd, kernel=lambda: rbf(1e-6))
    plain, _, _ = direct(independent)
    np.testing.assert_allclose(flat(g), flat(plain), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("values", ["logits", "probabilities"])
def test_every_space_is_its_formula(space, values):
    if space == "weights" and values != "logits":
        return
    g, _, _ = direct(svgd, kernel=lambda: rbf(2.0), space=space, values=values)
    each = [one(STATE.params, p) for p in range(P)]

    def value(params):
        u = logits(params)
        return (u if values == "logits" else jax.nn.softmax(u)).ravel()

    w, s = flat(STATE.params), scores()
    F = np.stack([np.asarray(value(p), np.float64) for p in each])
    _, k, slope = KERNELS["rbf"]
    repel = np.array([sum(slope(F[j], F[i]) for j in range(P)) for i in range(P)]) / P
    pulled = flat(jax.tree.map(lambda *a: jnp.stack(a), *[
        jax.vjp(value, p)[1](jnp.asarray(r, jnp.float32))[0]
        for p, r in zip(each, repel, strict=True)
    ]))  # fmt: skip
    gram_F = np.array([[k(F[i], F[j]) for j in range(P)] for i in range(P)]) / P
    gram_w = np.array([[k(w[i], w[j]) for j in range(P)] for i in range(P)]) / P
    force_w = np.array([sum(slope(w[j], w[i]) for j in range(P)) for i in range(P)]) / P
    if space == "weights":
        phi = gram_w @ s + 0.7 / N * force_w
    elif space == "functional_kernel":
        phi = gram_F @ s + 0.7 / N * pulled
    elif space == "functional_repulsion":
        phi = gram_w @ s + 0.7 / N * pulled
    else:

        def log_likelihood(u):
            return jnp.mean(jax.nn.log_softmax(u)[jnp.arange(B), BATCH["y"]])

        du = np.stack([np.asarray(jax.grad(log_likelihood)(logits(p)), np.float64) for p in each])
        mixed = np.einsum("ij,jbk->ibk", gram_F, du)
        drive = flat(jax.tree.map(lambda *a: jnp.stack(a), *[
            jax.vjp(logits, p)[1](jnp.asarray(m, jnp.float32))[0]
            for p, m in zip(each, mixed, strict=True)
        ]))  # fmt: skip
        phi = drive + 0.7 / N * pulled - w / 0.8**2 / N
    np.testing.assert_allclose(flat(g), -phi, rtol=2e-4, atol=1e-5)


METHODS = {
    "svgd": (svgd, {}),
    **{e: (wgd, dict(estimator=e)) for e in ESTIMATORS},
}  # fmt: skip


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("method", METHODS)
def test_permuting_particles_permutes_the_direction(method, space):
    direction, fields = METHODS[method]
    g, _, _ = direct(direction, space=space, **fields)
    order = np.array([2, 0, 3, 1])
    mixed = STATE.replace(
        params=jax.tree.map(lambda a: a[order], STATE.params), key=STATE.key[order]
    )
    h, _, _ = direct(direction, state=mixed, space=space, **fields)
    scale = np.abs(flat(g)).max()
    np.testing.assert_allclose(flat(h), flat(g)[order], atol=2e-3 * scale)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("method", METHODS)
def test_a_single_particle_is_map_estimation(method, space):
    direction, fields = METHODS[method]
    state = state_of(size=1)
    g, _, _ = direct(direction, state=state, space=space, **fields)
    plain, _, _ = direct(independent, state=state)
    # sge keeps its ridge at P = 1, but there is no force to divide by it.
    np.testing.assert_allclose(flat(g), flat(plain), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(flat(plain)[0], -flat(
        jax.tree.map(lambda a: a[None], jax.grad(log_joint)(one(state.params, 0))))[0],
        rtol=1e-4, atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("executor", ["unroll", "scan"])
@pytest.mark.parametrize("space", SPACES)
def test_executors_agree(space, executor):
    g, _, _ = direct(svgd, space=space)
    other, _, _ = direct(svgd, space=space, executor=executor)
    np.testing.assert_allclose(flat(other), flat(g), rtol=1e-4, atol=1e-6)


def test_a_kernel_for_each_layer_sees_that_layer_alone():
    g, _, _ = direct(svgd, kernel=lambda: rbf(2.0), per_layer=True)
    _, k, slope = KERNELS["rbf"]
    layer, s = STATE.params["backbone"]["dense0"], None
    z = flat(layer)
    s = flat(jax.tree.map(lambda *g: jnp.stack(g), *[
        jax.grad(log_joint)(one(STATE.params, p))["backbone"]["dense0"] for p in range(P)
    ]))  # fmt: skip
    phi = np.array([
        sum(k(z[j], z[i]) * s[j] + 0.7 / N * slope(z[j], z[i]) for j in range(P)) / P
        for i in range(P)
    ])  # fmt: skip
    np.testing.assert_allclose(flat(g["backbone"]["dense0"]), -phi, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("direction", "fields", "why"),
    [
        (svgd, dict(space="weight"), "space: 'weight'; one of 'weights'"),
        (svgd, dict(space="functions", values="logit"), "values: 'logit'"),
        (svgd, dict(space="functions", accumulate=2), "accumulate: 2 parts"),
        (svgd, dict(space="functions", per_layer=True), "per_layer"),
        (wgd, dict(estimator="kdf"), "estimator: 'kdf'; one of 'kde'"),
        (wgd, dict(kernel=linear), "needs a stationary kernel"),
        (wgd, dict(ridge=0.0), "ridge: 0.0"),
        (wgd, dict(kept=0.0), "kept: 0.0"),
        (svgd, dict(target=Target()), "num_examples"),
    ],
)
def test_what_cannot_be_is_refused(direction, fields, why):
    with pytest.raises(ValueError, match=why):
        direction(**{"over": executors.vmap, "target": TARGET, **fields})
