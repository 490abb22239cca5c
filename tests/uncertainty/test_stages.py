"""Stages that train on, average and select, against the same in NumPy."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.uncertainty.posteriors import data, linear_regression, p_values
from uncertainty import likelihoods, priors
from uncertainty.backbones.mlp import MLP
from uncertainty.ensembles.single import single
from uncertainty.heads.heteroscedastic import Heteroscedastic
from uncertainty.in_memory import run_stage
from uncertainty.inference import executors
from uncertainty.inference.particles import particles
from uncertainty.inference.samples import predicting
from uncertainty.layers.norm import BatchNorm
from uncertainty.model import from_network
from uncertainty.optimisers import optimiser as optimisers
from uncertainty.optimisers import samplers
from uncertainty.stages.batch_statistics import batch_statistics
from uncertainty.stages.select import greedy, select
from uncertainty.stages.snapshots import snapshots
from uncertainty.stages.swag import swag
from uncertainty.types import Latent

D, P, RATE = 3, 2, 0.05
MODEL = linear_regression(D, 1.0)
BATCHES = [data(8, D, seed=i) for i in range(12)]
OPTIMISER = optimisers.optimiser(optimisers.sgd(momentum=0.5), RATE)


def train_of(prior, model=MODEL):
    return lambda optimiser: particles(model, optimiser, prior=prior, num_examples=64)


TRAIN = train_of(priors.gaussian(2.0))


@functools.cache
def trained(size=P):
    inference = particles(MODEL, OPTIMISER, size=size)
    inference = inference._replace(predict=jax.jit(inference.predict))
    return inference, inference.init(jax.random.key(3), BATCHES[0]["x"][:1])


def run(stage, state, batches=BATCHES):
    return run_with_metrics(stage, state, batches)[0]


def run_with_metrics(stage, state, batches=BATCHES):
    carry, before = jax.jit(stage.begin)(state, batches[0]["x"]), state.opt_state
    update, metrics = jax.jit(stage.update), []
    for batch in batches:
        state, carry, found = update(state, carry, batch)
        metrics.append(found)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, before)  # the optimiser's alone
    return jax.jit(stage.finish)(state, carry, batches[0]["x"]), metrics


@functools.cache
def path():
    """Weights [P, steps, D] of SGD with momentum on the mean nll and the prior, in NumPy."""
    w = np.asarray(trained()[1].params["layer"]["kernel"], np.float64)
    m, seen = np.zeros_like(w), []
    for batch in BATCHES:
        x, y = np.asarray(batch["x"], np.float64), np.asarray(batch["y"], np.float64)[:, 0]
        g = (w @ x.T - y) @ x / len(x) + w / 2.0**2 / 64
        m = g + 0.5 * m
        w = w - RATE * m
        seen.append(w)
    return np.stack(seen, axis=1)


def kernel(params):
    return np.asarray(params["layer"]["kernel"], np.float64)


def over():
    return executors.mapping("auto")


def test_swag_is_the_gaussian_of_the_path():
    stage = swag(TRAIN, OPTIMISER, steps=12, every=2, samples=1500, rank=3)
    _, state = trained()
    state = run(stage, state)
    values = path()[:, 1::2]  # [P, 6, D]
    np.testing.assert_allclose(kernel(state.params), values.mean(1), rtol=1e-4, atol=1e-5)
    running = np.cumsum(values, axis=1) / np.arange(1, 7)[:, None]
    for p in range(P):
        D3 = (values - running)[p, -3:].T  # [D, rank]
        Sigma = 0.5 * (np.diag(values[p].var(0)) + D3 @ D3.T / 2)
        draws = kernel(state.samples.params)[p]
        assert min(p_values(draws, values[p].mean(0), Sigma)) > 1e-3
        assert min(p_values(draws, values[p].mean(0), 1.2 * Sigma)) < 1e-3  # the test can tell
    assert state.samples.taken.all()


def test_without_draws_it_is_the_average_of_the_path():
    stage = swag(TRAIN, OPTIMISER, steps=12, every=3, samples=0)
    inference, state = trained()
    state = run(stage, state)
    np.testing.assert_allclose(kernel(state.params), path()[:, 2::3].mean(1), rtol=1e-4, atol=1e-5)
    assert state.samples is None
    assert inference.predict(state, BATCHES[0]["x"]).mean.shape[0] == P


def test_a_large_mean_does_not_drown_the_variance():
    """In float32 the mean of squares minus the squared mean would have no digit left here."""
    rate = optimisers.optimiser(optimisers.sgd(), 1e-3)
    stage = swag(train_of(None), rate, steps=12, every=1, samples=4000, rank=2, scale=1.0)
    _, state = trained()
    far = jax.tree.map(lambda a: 0 * a + 1000.0, state.params)
    batches = [dict(x=jnp.eye(D), y=jnp.full((D, 1), 1000.0 - 3 * i)) for i in range(12)]
    state = run(stage, state.replace(params=far), batches)
    w, values = 1000.0, []
    for i in range(12):
        w -= 1e-3 * (w - (1000.0 - 3 * i)) / D
        values.append(w)
    values = np.array(values)
    running = np.cumsum(values) / np.arange(1, 13)
    deviations = (values - running)[-2:]
    std = np.sqrt(values.var() + np.sum(deviations**2))
    assert std < 0.1  # of 1,000
    found = kernel(state.samples.params).std(axis=1)
    np.testing.assert_allclose(found, std, rtol=0.06)  # of 4,000 draws: 1.1 % each


def test_snapshots_are_the_path_at_the_end_of_each_cycle():
    stage = snapshots(TRAIN, OPTIMISER, steps=12, size=4, cycles=2, burn_in=0.5)
    inference, state = trained()
    state = run(stage, state)
    np.testing.assert_allclose(
        kernel(state.samples.params), path()[:, [3 + 1, 5, 9 + 1, 11]], rtol=1e-4, atol=1e-5
    )
    x = BATCHES[0]["x"]
    mean = inference.predict(state, x).mean[..., 0]  # [P S, B]
    every = kernel(state.samples.params).reshape(-1, D) @ np.asarray(x, np.float64).T
    np.testing.assert_allclose(mean, every, rtol=1e-4, atol=1e-5)


def test_a_sampler_in_a_stage_has_noise_that_training_did_not_have():
    sampler = optimisers.optimiser(samplers.sgld(), 1e-3)
    inference = particles(MODEL, sampler, size=P, num_examples=64)
    state = inference.init(jax.random.key(0), BATCHES[0]["x"][:1])
    stage = snapshots(train_of(None), sampler, steps=1, size=1)
    after, _ = jax.jit(inference.update)(state, BATCHES[0])
    other = run(stage, state, BATCHES[:1])
    assert not np.allclose(kernel(after.params), kernel(other.params), atol=1e-3)


def test_steps_that_are_not_finite_are_reported_and_samples_are_not_lost():
    wild = optimisers.optimiser(optimisers.sgd(), 1e38)
    stage = snapshots(TRAIN, wild, steps=12, size=2)
    _, state = trained()
    after, metrics = run_with_metrics(stage, state)
    assert [m["finite"].tolist() for m in metrics] == [[False] * P] * 12
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    with pytest.raises(ValueError, match="samples already"):
        stage.begin(after, None)


choose = jax.jit(greedy, static_argnums=1)


def test_a_particle_without_numbers_is_never_chosen():
    log_p = np.log(np.float32([[0.5, 0.5], [np.nan, 0.5], [0.9, 0.9]]))
    np.testing.assert_array_equal(choose(log_p, 3), [2, 2, 2])
    # One is good where it is a number.
    log_p = np.log(np.float32([[np.nan, 1.0], [0.5, 0.4], [0.1, 0.1]]))
    np.testing.assert_array_equal(choose(log_p, 3), [1, 1, 1])


@pytest.mark.parametrize("seed", range(3))
def test_greedy_selection_is_that_of_a_loop(seed):
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.05, 1, (6, 9))
    chosen = []
    for _ in range(5):
        scores = [-np.log(p[[*chosen, i]].mean(0)).mean() for i in range(6)]
        chosen.append(int(np.argmin(scores)))
    np.testing.assert_array_equal(choose(np.log(p), 5), chosen)


@pytest.mark.slow
def test_selection_keeps_the_particles_that_the_validation_data_like():
    inference, state = trained(size=5)
    x, y = (np.concatenate([b[k] for b in BATCHES]) for k in ("x", "y"))
    stage = select(MODEL, over(), num_validation=len(x), size=3)
    # batches of unequal size
    cuts = [dict(x=jnp.asarray(x[a:b]), y=jnp.asarray(y[a:b])) for a, b in ((0, 40), (40, len(x)))]
    after = run(stage, state, cuts)
    mean = kernel(state.params) @ x.T.astype(np.float64)
    log_p = -0.5 * (mean - y[:, 0]) ** 2 - 0.5 * np.log(2 * np.pi)
    chosen = np.asarray(choose(log_p, 3))
    np.testing.assert_array_equal(kernel(after.params), kernel(state.params)[chosen])
    np.testing.assert_array_equal(
        jax.random.key_data(after.key), jax.random.key_data(state.key)[chosen]
    )
    assert inference.predict(after, BATCHES[0]["x"]).mean.shape[0] == 3
    for wrong in (len(x) - 1, len(x) + 1):  # the last batch would be written over others
        with pytest.raises(ValueError, match=f"data: 96 examples, .* was made for {wrong}"):
            run_stage(select(MODEL, over(), num_validation=wrong, size=3), state, dict(x=x, y=y))


@pytest.mark.slow
def test_selection_does_not_look_for_the_luckiest_draws():
    head = Heteroscedastic(outputs=4, rank=1)
    model = from_network(single(MLP(widths=()), head), likelihoods.softmax(samples=8))
    x, y = BATCHES[0]["x"], jnp.arange(8) % 4
    state = jax.jit(particles(model, OPTIMISER, size=3).init)(
        jax.random.key(0, impl="unsafe_rbg"), x[:1]
    )
    params = jax.tree.map(lambda a: jnp.broadcast_to(a[:1], a.shape), state.params)
    stage = select(model, over(), num_validation=8, size=2)
    state = state.replace(params=params)
    carry = jax.jit(stage.update)(state, stage.begin(state, x), dict(x=x, y=y))[1]
    log_p = carry["log_p"]
    np.testing.assert_array_equal(log_p, np.broadcast_to(log_p[:1], log_p.shape))


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        h = nn.Dense(4, name="dense")(x)
        h = BatchNorm(name="norm")(h[None], train=train)
        return Latent(nn.Dense(1, name="out")(h))


@pytest.mark.slow
@pytest.mark.parametrize("sampled", [False, True])
def test_batch_statistics_are_the_mean_over_a_pass(sampled):
    model = from_network(Normalised(), likelihoods.gaussian(noise_std=1.0))
    inference = particles(model, OPTIMISER, size=P)
    batches = [*BATCHES[:3], {k: np.asarray(v)[:5] for k, v in BATCHES[3].items()}]
    state = inference.init(jax.random.key(0), batches[0]["x"][:1])
    if sampled:
        state = run(
            snapshots(train_of(None, model), OPTIMISER, steps=4, size=2), state, BATCHES[:4]
        )
        # In the other slot predicts the particle itself.
        taken = state.samples.taken.at[:, 1].set(False)
        state = state.replace(samples=state.samples.replace(taken=taken))
    before = predicting(state)[0]
    after = run(batch_statistics(model, over()), state, batches)
    params, found, _ = predicting(after)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    sizes = np.array([len(b["x"]) for b in batches])
    for i, (W, b) in enumerate(
        zip(
            np.asarray(params["dense"]["kernel"], np.float64),
            np.asarray(params["dense"]["bias"]),
            strict=True,
        )
    ):
        h = [np.asarray(batch["x"], np.float64) @ W + b for batch in batches]
        mean = np.average([a.mean(0) for a in h], axis=0, weights=sizes)
        variance = np.average([a.var(0) for a in h], axis=0, weights=sizes)
        stats = jax.tree.leaves_with_path(found["batch_stats"])
        for key, value in stats:
            wanted = mean if "mean" in jax.tree_util.keystr(key) else variance
            np.testing.assert_allclose(np.ravel(value[i]), wanted, rtol=2e-4, atol=2e-5)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, state.opt_state)


def test_batch_statistics_of_sorted_data_are_those_of_mixed_batches():
    model = from_network(Normalised(), likelihoods.gaussian(noise_std=1.0))
    state = particles(model, OPTIMISER, size=1).init(jax.random.key(0), BATCHES[0]["x"][:1])
    x = np.random.default_rng(0).normal(size=(512, BATCHES[0]["x"].shape[1])).astype(np.float32)
    x += np.repeat([-3, 3], 256)[:, None]  # two classes, one after the other
    after = run_stage(batch_statistics(model, over()), state, dict(x=x), batch_size=64)
    params = jax.tree.map(lambda a: np.asarray(a[0]), state.params)["dense"]
    h = x @ params["kernel"] + params["bias"]
    np.testing.assert_allclose(
        after.collections["batch_stats"]["norm"]["var"].reshape(-1), h.var(0), rtol=0.1
    )


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: swag(TRAIN, OPTIMISER, steps=5, every=3), "every: 3; at least 1"),
        (lambda: swag(TRAIN, OPTIMISER, steps=5, every=1, rank=1), "rank: 1"),
        (lambda: swag(TRAIN, OPTIMISER, 5, 1, scale=0.0), "scale: 0.0"),
        (lambda: snapshots(TRAIN, OPTIMISER, steps=3, size=4), "size: 4 samples"),
        (lambda: select(MODEL, over(), 10, size=0), "size: 0 particles"),
        (lambda: select(MODEL, over(), 0, size=2), "needs data.validation"),
        (lambda: batch_statistics(MODEL, over()).begin(trained()[1], None), "no batch normal"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_what_cannot_be_says_why(make, why):
    with pytest.raises(ValueError, match=why):
        make()
