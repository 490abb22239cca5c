"""What crosses devices when particles are sharded, by the text of the compiled programs."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.planning.collectives import collectives
from experiments.runtime import execution
from uncertainty.backbones.mlp import MLP
from uncertainty.ensembles.single import single
from uncertainty.heads.dense import Dense
from uncertainty.inference import sharded
from uncertainty.inference.context import perturbed
from uncertainty.inference.directions.independent import independent
from uncertainty.inference.directions.svgd import svgd
from uncertainty.inference.directions.wgd import wgd
from uncertainty.inference.kernels.probability_product import probability_product
from uncertainty.inference.kernels.rbf import rbf
from uncertainty.inference.particles import particles
from uncertainty.likelihoods import softmax
from uncertainty.model import from_network
from uncertainty.optimisers.optimiser import optimiser, sgd
from uncertainty.optimisers.samplers import sgld
from uncertainty.priors import gaussian
from uncertainty.types import Target

P, B, K, D_IN = 8, 4, 3, 37
MODEL = from_network(single(MLP(widths=(31,), activation="tanh"), Dense(outputs=K)), softmax())
RNG = np.random.default_rng(0)
BATCH = dict(x=RNG.normal(size=(B, D_IN)).astype(np.float32), y=np.asarray([0, 1, 2, 0]))
LATENTS = P * B * K * 4  # bytes


def make(direction, **fields):
    return particles(
        MODEL,
        sgd(),
        size=P,
        direction=functools.partial(direction, **fields),
        prior=gaussian(1.0),
        num_examples=50,
        executor="vmap",
    )


def mesh_of(D):
    return Mesh(np.asarray(jax.devices()[:D]).reshape(1, D, 1, 1), execution.AXES)


@functools.cache
def state():
    made = make(independent).init(jax.random.key(0), BATCH["x"])
    noise = lambda a: np.random.default_rng(a.size).normal(0, 0.3, a.shape).astype("f")  # noqa: E731
    return made.replace(params=jax.tree.map(lambda a: a + noise(a), made.params))


def parameters():
    """Bytes of all particles' parameters."""
    return sum(a.size for a in jax.tree.leaves(state().params)) * 4


def run(made, D, begin=state):
    """The new state, the metrics, and the bytes that each kind of collective moves.

    A collective is counted by the bytes of its result on a device, so that an all-gather of the
    parameters counts as the bytes of all parameters; of an all-reduce, which sends everything
    twice, it is double.
    """
    mesh = mesh_of(D)
    placed = execution.place(begin(), execution.state_shardings(begin(), mesh))
    batch = jax.device_put(BATCH, NamedSharding(mesh, PartitionSpec()))
    update = jax.jit(execution.over_particles(made.update, mesh))
    compiled = update.lower(placed, batch).compile()
    moved = {}
    for each in collectives(compiled.as_text(), dict(mesh.shape)):
        assert each.axes == ("particle",)
        factor = 2 if each.kind == "all-reduce" else 1
        moved[each.kind] = moved.get(each.kind, 0) + each.times * each.bytes * factor
    new, metrics = compiled(placed, batch)
    return new, metrics, moved


@functools.cache
def run_of(name, D):
    return run(DIRECTIONS[name](), D)


@functools.cache
def alone(make_inference):
    return jax.jit(make_inference().update)(state(), BATCH)


DIRECTIONS = {
    "svgd": lambda: make(svgd),
    "layers": lambda: make(svgd, per_layer=True),
    "kde": lambda: make(wgd),
    "functions": lambda: make(svgd, space="functions"),
    "prior": lambda: make(
        svgd, space="functions", context=lambda: perturbed(0.2), function_prior=6
    ),
    "product": lambda: make(
        svgd,
        space="functional_repulsion",
        values="probabilities",
        kernel=probability_product,
        weight_kernel=rbf,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DIRECTIONS)
def test_devices_do_not_change_particles_and_what_they_move_is_bounded(name):
    new, metrics = alone(DIRECTIONS[name])
    many, many_metrics, moved = run_of(name, 4)
    for a, b in zip(jax.tree.leaves(many.params), jax.tree.leaves(new.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)  # sums in another order
    np.testing.assert_allclose(many_metrics["loss"], metrics["loss"], rtol=1e-4)
    total, grams = sum(moved.values()), 2 * 4 * P * P
    if name in ("svgd", "layers", "kde"):
        share = (2 if name == "kde" else 3) / 4
        assert total < share * parameters() * 1.02 + 2 * grams, (moved, parameters())
    elif name in ("functions", "prior"):
        # Function values, their gradients and what both become: four times latents / 4. Grams
        # of particles and draws, and the key of particle 0, beside it.
        assert total < 2 * LATENTS + 5 * grams, (moved, LATENTS)
    assert moved.get("all-gather", 0) == 0, moved


def test_independent_particles_move_nothing():
    assert run(make(independent), 4)[2] == {}


@pytest.mark.slow
@pytest.mark.parametrize("D", [4, 8])
def test_weights_move_less_than_one_all_gather_of_them_from_four_devices_on(D):
    moved = sum(run_of("svgd", D)[2].values())
    assert moved < 3 / D * parameters() * 1.02 + 2 * 4 * P * P < parameters()


@pytest.mark.slow
def test_stochastic_svgd_moves_its_noise_too():
    made = particles(
        MODEL,
        optimiser(sgld(), 0.01),
        size=P,
        direction=svgd,
        prior=gaussian(1.0),
        num_examples=50,
        executor="vmap",
    )
    begin = functools.partial(made.init, jax.random.key(0), BATCH["x"])
    moved = sum(run(made, 4, begin)[2].values())
    assert 4 / 4 * parameters() < moved < 5 / 4 * parameters() * 1.02 + 4 * 4 * P * P


@pytest.mark.slow
def test_noise_is_coloured_alike_on_devices():
    made = svgd(over=None, target=Target(num_examples=50))
    params = state().params
    noise = jax.tree.map(lambda a: np.sin(100 * np.asarray(a)), params)
    mesh = mesh_of(4)
    spread = jax.shard_map(
        made.diffusion,
        mesh=mesh,
        in_specs=PartitionSpec("particle"),
        out_specs=PartitionSpec("particle"),
        axis_names={sharded.AXIS},
        check_vma=False,
    )
    expected = jax.jit(made.diffusion)(params, noise)
    for a, b in zip(
        jax.tree.leaves(jax.jit(spread)(params, noise)), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
