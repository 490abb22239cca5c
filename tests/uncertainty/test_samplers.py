"""Samplers against the exact stationary law of their recursions, and that against the posterior."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from tests.uncertainty.posteriors import data, linear_regression, p_values, posterior
from uncertainty import priors
from uncertainty.inference import thinning
from uncertainty.inference.directions import svgd, wgd
from uncertainty.inference.kernels import linear
from uncertainty.inference.particles import particles
from uncertainty.optimisers import optimiser as optimisers
from uncertainty.optimisers import samplers, schedules

N, D, NOISE, PRIOR = 12, 2, 0.7, 1.5
BATCH = data(N, D)
CHAINS = 500
LEVEL = 1e-3  # of every test; the seeds are fixed


def chains(sampler, rate, size=CHAINS, **fields):
    fields = dict(prior=priors.gaussian(PRIOR), num_examples=N) | fields
    return particles(
        linear_regression(D, NOISE), optimisers.optimiser(sampler, rate), size=size, **fields
    )


def run(inference, steps, seed=0):
    state = inference.init(jax.random.key(seed), BATCH["x"][:1])
    return jax.jit(
        lambda s: jax.lax.scan(lambda s, _: (inference.update(s, BATCH)[0], None), s, length=steps)[
            0
        ],
        compiler_options={"xla_backend_optimization_level": 3},  # these run for long
    )(state)


def weights(state):
    return np.asarray(state.params["layer"]["kernel"], np.float64)


def hessian():
    """Of -1/N log p(w | D)."""
    return np.linalg.inv(posterior(BATCH, NOISE, PRIOR)[1]) / N


def stationary(rate, temperature=1.0, G=None, friction=None):
    """The covariance that the recursion of a sampler keeps, by a discrete Lyapunov equation."""
    I, H = np.eye(D), hessian()
    if friction is None:
        G = I if G is None else np.diag(G)
        return scipy.linalg.solve_discrete_lyapunov(
            I - rate * G @ H, 2 * rate * temperature / N * G
        )
    drift = np.block([[I - rate * H, (1 - friction) * I], [-rate * H, (1 - friction) * I]])
    noise = 2 * friction * rate * temperature / N * np.block([[I, I], [I, I]])
    return scipy.linalg.solve_discrete_lyapunov(drift, noise)[:D, :D]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "rate", "friction"),
    [
        (samplers.sgld(), 0.02, None),
        (samplers.sghmc(friction=0.2), 0.01, 0.2),
        (samplers.sghmc(friction=1.0), 0.02, 1.0),
    ],
    ids=["sgld", "sghmc", "sghmc without momentum"],
)
def test_the_chains_are_at_their_stationary_law_and_it_is_near_the_posterior(
    sampler, rate, friction
):
    mean, exact = posterior(BATCH, NOISE, PRIOR)
    covariance = stationary(rate, friction=friction)
    np.testing.assert_allclose(covariance, exact, rtol=0.08, atol=0.02 * exact.max())
    draws = weights(run(chains(sampler, rate), 800))  # of the start e^-8 is left, or less
    assert min(p_values(draws, mean, covariance)) > LEVEL
    # and the test tells: the spread of three examples fewer is refused
    assert min(p_values(draws, mean, covariance * N / (N - 3))) < LEVEL


def test_smaller_steps_come_closer_to_the_posterior():
    exact = posterior(BATCH, NOISE, PRIOR)[1]
    errors = [np.abs(stationary(rate) - exact).max() for rate in (0.04, 0.02, 0.01)]
    assert errors[0] > 1.8 * errors[1] > 1.8 * 1.8 * errors[2]


@pytest.mark.slow
def test_preconditioned_chains_have_the_stationary_law_of_their_preconditioner():
    state = run(chains(samplers.psgld(decay=0.9, adapt_steps=30), 0.01, size=500), 1500)
    mean, exact = posterior(BATCH, NOISE, PRIOR)
    G = 1 / (1e-5 + np.sqrt(np.asarray(state.opt_state[-1].memory["layer"]["kernel"], np.float64)))
    assert G.min() > 0 and np.ptp(G) > 0.1  # every chain its own
    white = []
    for w, g in zip(weights(state), G, strict=True):
        root = np.linalg.cholesky(stationary(0.01, G=g))
        white.append(np.linalg.solve(root, w - mean))
        np.testing.assert_allclose(root @ root.T, exact, rtol=0.15, atol=0.1 * exact.max())
    assert min(p_values(np.array(white), np.zeros(D), np.eye(D))) > LEVEL


def test_preconditioner_is_the_running_mean_of_squares():
    optimiser = optimisers.optimiser(samplers.psgld(decay=0.8, eps=0.1, adapt_steps=3), 0.5)
    rng = np.random.default_rng(0)
    g, xi = rng.normal(size=(2, 5, 4))
    state, V = optimiser.init(jnp.zeros(4)), g[0] ** 2
    for t in range(5):
        update, state = optimiser.update(jnp.asarray(g[t]), state, None, noise=jnp.asarray(xi[t]))
        V = V if t == 0 or t >= 3 else 0.8 * V + 0.2 * g[t] ** 2
        G = 1 / (0.1 + np.sqrt(V))
        np.testing.assert_allclose(update, -0.5 * G * g[t] + np.sqrt(G) * xi[t], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "rate", "steps"),
    [
        (dict(temperature=0.25), 0.005, 2500),
        (dict(likelihood_temperature=4.0), 0.02, 2000),
        (dict(prior=priors.gaussian(0.3)), 0.005, 1000),
    ],
    ids=["temperature", "likelihood_temperature", "prior"],
)
def test_temperatures_and_priors_are_those_of_the_posterior(fields, rate, steps):
    """A learning rate multiplies the gradient per example: the step is small for each of these.

    It widens the covariance by 1%, which cannot be seen; of the start e^-6 is left, or less.
    """
    known = {k: v for k, v in fields.items() if k != "prior"}
    mean, exact = posterior(BATCH, NOISE, 0.3 if "prior" in fields else PRIOR, **known)
    draws = weights(run(chains(samplers.sgld(), rate, **fields), steps))
    assert min(p_values(draws, mean, exact)) > LEVEL


def test_the_posterior_knows_no_batch_size_and_no_number_of_particles():
    """Gradient and noise of a step are those of N examples, however many are seen."""
    half = {k: jnp.concatenate([v, v]) for k, v in BATCH.items()}  # the same mean over the batch
    one, many = chains(samplers.sgld(), 0.02, size=3), chains(samplers.sgld(), 0.02, size=5)
    state = many.init(jax.random.key(1), BATCH["x"][:1])
    first = jax.tree.map(lambda a: a[:3], state.replace(step=None)).replace(step=state.step)
    a = weights(jax.jit(many.update)(state, BATCH)[0])[:3]
    np.testing.assert_allclose(weights(jax.jit(one.update)(first, BATCH)[0]), a, rtol=1e-6)
    np.testing.assert_allclose(weights(jax.jit(one.update)(first, half)[0]), a, rtol=1e-5)


def test_a_learning_rate_of_zero_is_no_step():
    schedule = schedules.cosine(4)
    optimiser = optimisers.optimiser(samplers.sgld(), 0.1, schedule)
    inference = particles(linear_regression(D, NOISE), optimiser, num_examples=N)
    state = inference.init(jax.random.key(0), BATCH["x"][:1])
    update = jax.jit(inference.update)
    for _ in range(6):  # two beyond the end, at rate 0
        before, (state, metrics) = state, update(state, BATCH)
        assert metrics["finite"].all()
    np.testing.assert_array_equal(weights(state), weights(before))


@pytest.mark.slow
def test_noise_of_particles_and_layers_is_independent():
    keys = jax.random.split(jax.random.key(0), 4)
    params = {"a": jnp.zeros((4, 300, 3)), "b": jnp.zeros((4, 100))}
    drawn = jax.jit(samplers.normal)(keys, params)
    flat = np.concatenate([np.asarray(a).reshape(4, -1) for a in jax.tree.leaves(drawn)], 1)
    assert np.abs(np.corrcoef(flat) - np.eye(4)).max() < 4 / np.sqrt(flat.shape[1])
    assert np.abs(np.corrcoef(flat[:, :100], flat[:, 100:200])[:4, 4:]).max() < 0.4


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_noise_is_standard_normal_whatever_the_generator(impl):
    keys = jax.random.split(jax.random.key(0, impl=impl), 2)
    drawn = jax.jit(samplers.normal)(keys, {"a": jnp.zeros((2, 50_001))})
    flat = np.asarray(drawn["a"]).ravel()
    assert np.isfinite(flat).all() and len(np.unique(flat)) > 0.98 * len(flat)
    assert scipy.stats.kstest(flat, "norm").pvalue > 1e-3
    # Neighbours, and the two words of a block, which stand half of a leaf apart.
    for lag in (1, 25_001):
        assert abs(np.corrcoef(flat[:-lag], flat[lag:])[0, 1]) < 4 / np.sqrt(len(flat) - lag)


@functools.cache
def collected():
    inference = chains(samplers.sgld(), 0.02, size=3, collect=(4, 6, 9))
    state = inference.init(jax.random.key(0), BATCH["x"][:1])
    update, seen = jax.jit(inference.update), []
    states = [state]
    for _ in range(10):
        state, _ = update(state, BATCH)
        seen.append(weights(state))
        states.append(state)
    return inference, states, seen


def test_samples_are_the_parameters_at_their_steps():
    _, states, seen = collected()
    kept = np.asarray(states[-1].samples.params["layer"]["kernel"])
    np.testing.assert_array_equal(kept, np.stack([seen[t - 1] for t in (4, 6, 9)], axis=1))
    assert np.asarray(states[-1].samples.taken).all()
    np.testing.assert_array_equal(states[6].samples.taken, [[True, True, False]] * 3)


@pytest.mark.parametrize("step", [0, 5, 10])
def test_predictions_are_those_of_the_samples_that_are_taken(step):
    inference, states, seen = collected()
    now = weights(states[step])
    sets = [seen[t - 1] if t <= step else now for t in (4, 6, 9)]
    predicted = jax.jit(inference.predict)(states[step], BATCH["x"]).mean  # [P S, B, 1]
    for p in range(3):
        for s in range(3):
            np.testing.assert_allclose(
                predicted[3 * p + s, :, 0],
                np.asarray(BATCH["x"]) @ sets[s][p],
                rtol=1e-4,
                atol=1e-5,
            )


def test_thinning_is_even_after_the_burn_in_and_ends_with_the_run():
    assert thinning.after_burn_in(100, 5) == (60, 70, 80, 90, 100)
    assert thinning.after_burn_in(10, 10, burn_in=0.0) == tuple(range(1, 11))
    assert thinning.cyclical(100, 4, cycles=4) == (25, 50, 75, 100)
    assert thinning.cyclical(100, 4, cycles=2, burn_in=0.8) == (45, 50, 95, 100)
    cycle = schedules.cyclical(100, cycles=4, final=0.1)
    t = np.arange(100)
    wanted = 0.1 + 0.9 * (1 + np.cos(np.pi * (t % 25) / 25)) / 2
    np.testing.assert_allclose(jax.vmap(cycle)(t), wanted, rtol=1e-5)


@pytest.mark.parametrize(("total", "cycles"), [(100, 4), (103, 7), (9, 4), (10, 10)])
@pytest.mark.parametrize("warmup", [0, 3])
def test_the_cycles_of_samples_are_those_of_the_rate(total, cycles, warmup):
    """A snapshot is taken where the rate is about to rise, and at the end."""
    rate, plain = (
        np.asarray(jax.vmap(schedules.cyclical(total, steps, cycles))(np.arange(total)))
        for steps in (warmup, 0)
    )
    rises = [t for t in range(1, total) if plain[t] > plain[t - 1]]
    ends = [*rises, total] if cycles < total else range(1, total + 1)
    assert thinning.cyclical(total, cycles, cycles) == tuple(ends)
    rise = np.minimum((np.arange(total) + 1) / max(warmup, 1), 1)
    np.testing.assert_allclose(rate, plain * rise, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: thinning.after_burn_in(10, 8), "size: 8 samples do not fit into 10 steps"),
        (lambda: thinning.cyclical(100, 5, cycles=4), "size: 5; a positive multiple of the 4"),
        (lambda: thinning.after_burn_in(10, 2, burn_in=1.0), "burn_in: 1.0; a fraction"),
        (lambda: schedules.cyclical(10, cycles=0), "cycles: 0; between 1 and the 10 steps"),
        (lambda: samplers.sghmc(friction=0.0), "friction: 0.0"),
        (lambda: samplers.psgld(decay=1.0), "decay: 1.0"),
        (lambda: samplers.psgld(adapt_steps=0), "adapt_steps: 0"),
        (lambda: optimisers.optimiser(samplers.sgld(), 0.1, clip=1.0), "clip: 1.0; it"),
        (
            lambda: optimisers.optimiser(samplers.sgld(), 0.1, weight_decay=((".*", 1.0),)),
            "weight_decay: .* the sampler",
        ),
        (lambda: chains(samplers.sgld(), 0.1, num_examples=None, prior=None), "num_examples"),
        (lambda: chains(samplers.sgld(), 0.1, direction=wgd.wgd), "direction: .*no diffusion"),
        (lambda: chains(samplers.sghmc(), 0.1, direction=svgd.svgd), "'sgld' is the only"),
        (
            lambda: chains(
                samplers.sgld(), 0.1, direction=functools.partial(svgd.svgd, kernel=linear.linear)
            ),
            "direction: .*no diffusion",
        ),
        (
            lambda: particles(
                linear_regression(D, NOISE),
                optimisers.optimiser(samplers.sgld(), 0.1, l2=((".*", 1.0),)),
                num_examples=N,
                direction=svgd.svgd,
            ),
            r"optimiser\.l2: changes the posterior that direction defines",
        ),
        (lambda: chains(samplers.sgld(), 0.1, hyper=dict(learning_rate=[1.0])), "hyper: "),
        (lambda: chains(samplers.sgld(), 0.1, likelihood_temperature=0.0), "likelihood_temp"),
    ],
    ids=lambda value: value[:25] if isinstance(value, str) else "",
)
def test_what_cannot_be_says_why(make, why):
    with pytest.raises(ValueError, match=why):
        make()
