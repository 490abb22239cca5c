"""What the posterior does not depend on, batch size and number of particles, and how N enters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uncertainty.backbones.mlp import MLP
from uncertainty.ensembles.single import single
from uncertainty.heads.dense import Dense
from uncertainty.inference import executors
from uncertainty.inference.directions.independent import independent
from uncertainty.inference.directions.svgd import svgd
from uncertainty.inference.directions.wgd import wgd
from uncertainty.inference.kernels.imq import imq
from uncertainty.inference.kernels.rbf import rbf
from uncertainty.inference.particles import particles
from uncertainty.likelihoods import softmax
from uncertainty.model import from_network
from uncertainty.optimisers.optimiser import sgd
from uncertainty.priors import gaussian
from uncertainty.types import Target

N, B, P = 40, 6, 3
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(B, 2)).astype("float32"), np.asarray([0, 1, 2, 0, 1, 2])
MODEL = from_network(single(MLP(widths=(5,), activation="tanh"), Dense(outputs=3)), softmax())
STATE = particles(MODEL, sgd(), size=P).init(jax.random.key(0), X[:1])
KERNEL = functools.partial(rbf, 2.0)  # given: the median counts the pairs of different particles
DIRECTIONS = {
    "independent": independent,
    "svgd": functools.partial(svgd, kernel=KERNEL),
    "svgd imq": functools.partial(svgd, kernel=functools.partial(imq, 2.0)),
    "svgd by layer": functools.partial(svgd, kernel=KERNEL, per_layer=True),
    "svgd in functions": functools.partial(svgd, kernel=KERNEL, space="functions"),
    "hybrid kernel": functools.partial(svgd, kernel=KERNEL, space="functional_kernel"),
    "hybrid repulsion": functools.partial(svgd, kernel=KERNEL, space="functional_repulsion"),
    "kde": functools.partial(wgd, kernel=KERNEL),
    "kde in functions": functools.partial(wgd, kernel=KERNEL, space="functions"),
}
ON_THE_BATCH = {name for name in DIRECTIONS if "functions" in name or "hybrid" in name}


@functools.cache
def compiled(name, n):
    target = Target(prior=gaussian(0.8), num_examples=n, temperature=0.7)
    direction = DIRECTIONS[name](over=executors.vmap, target=target)
    return jax.jit(lambda state, batch: direction.update(MODEL, state, batch, state.key))


def force(name, state=STATE, rows=slice(None), n=N):
    """n g [P, parameters]: minus the gradient of the log posterior, and what particles add."""
    g, _, _ = compiled(name, n)(state, dict(x=X[rows], y=Y[rows]))
    P = len(state.key)
    return n * np.concatenate([np.reshape(a, (P, -1)) for a in jax.tree.leaves(g)], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", DIRECTIONS)
def test_each_particle_twice_is_no_other_law(name):
    """An average over 2 P particles of which each has a copy is the average over P."""
    twice = STATE.replace(
        params=jax.tree.map(lambda a: jnp.concatenate([a, a]), STATE.params),
        key=jnp.concatenate([STATE.key, STATE.key]),
    )
    expected = force(name)
    np.testing.assert_allclose(force(name, twice), np.tile(expected, (2, 1)), rtol=2e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(DIRECTIONS) - ON_THE_BATCH))
def test_parts_of_the_data_are_on_average_the_whole(name):
    parts = [force(name, rows=slice(i, i + 2)) for i in range(0, B, 2)]
    np.testing.assert_allclose(np.mean(parts, axis=0), force(name), rtol=2e-4, atol=1e-4)
    assert not np.allclose(parts[0], parts[1], rtol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", DIRECTIONS)
def test_n_multiplies_the_likelihood_alone(name):
    """n g is a line in n, and what it is at 0 has no likelihood: prior and repulsion."""
    at = {n: force(name, n=n) for n in (N, 2 * N, 5 * N)}
    slope = (at[2 * N] - at[N]) / N
    np.testing.assert_allclose(at[5 * N], at[N] + 4 * N * slope, rtol=2e-4, atol=1e-3)
    other = {n: force(name, rows=slice(0, 3), n=n) for n in (N, 2 * N)}
    if name not in ON_THE_BATCH:
        np.testing.assert_allclose(
            2 * other[N] - other[2 * N], 2 * at[N] - at[2 * N], rtol=2e-4, atol=1e-3
        )
