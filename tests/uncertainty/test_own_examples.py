"""Particles with examples of their own against as many trainings of one particle each."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from experiments.runtime import execution
from tests.uncertainty.classes import B, K, batch, kernel, linear, softmax
from uncertainty import build
from uncertainty.inference import executors
from uncertainty.inference.context import other
from uncertainty.inference.directions.independent import independent
from uncertainty.inference.directions.svgd import svgd
from uncertainty.inference.directions.wgd import wgd
from uncertainty.inference.kernels.rbf import rbf
from uncertainty.inference.particles import particles
from uncertainty.objectives.mean_teacher import mean_teacher
from uncertainty.optimisers.optimiser import adam, optimiser
from uncertainty.priors import gaussian
from uncertainty.types import Target

P = 4
STREAM = dict(x=batch(9)["x"][:4])
OWN = [batch(i, P) | dict(more=STREAM) for i in range(2)]
TARGET = Target(gaussian(0.8), num_examples=40, temperature=0.7)
TAUGHT = mean_teacher(stream="more", decay=0.5)  # it looks at a stream, which is shared


def make(executor="vmap", own_examples=True, **fields):
    return particles(
        linear(),
        optimiser(adam(), 0.05),
        size=P,
        executor=executor,
        objective=TAUGHT,
        own_examples=own_examples,
        **fields,
    )


def begin():
    return make().init(jax.random.key(0), STREAM["x"][:1])


@functools.cache
def alone():
    """The kernels [P, D, K] and nll [P, 1, B] of particles that see their batches by themselves."""
    made = make(own_examples=False)
    update, results, start = jax.jit(made.update), [], begin()
    for p in range(P):
        state = jax.tree.map(lambda a, p=p: a[p : p + 1] if a.ndim else a, start)
        for b in OWN:
            mine = {name: value if name == "more" else value[p] for name, value in b.items()}
            state, metrics = update(state, mine)
        results.append((kernel(state)[0], np.asarray(metrics["nll"][0])))
    return tuple(map(np.stack, zip(*results, strict=True)))


@pytest.mark.parametrize("executor", ["vmap", "unroll", "scan", "loop"])
def test_every_executor_gives_each_particle_its_own(executor):
    made, state = make(executor), begin()
    assert made.own_examples
    update = executors.Loop(made) if executor == "loop" else jax.jit(made.update)
    for b in OWN:
        state, metrics = update(state, b)
    state = update.whole(state) if executor == "loop" else state
    weights, nll = alone()
    np.testing.assert_allclose(kernel(state), weights, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["nll"], nll, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_sharded_particles_get_theirs_and_nothing_moves():
    mesh = Mesh(np.asarray(jax.devices()[:4]).reshape(1, 4, 1, 1), execution.AXES)
    made, state = make(), begin()
    state = execution.place(state, execution.state_shardings(state, mesh))
    update = jax.jit(execution.on_mesh(made.update, mesh, own_examples=True))
    put = execution.put_batch(mesh, own_examples=True)
    for b in OWN:
        b = put(jax.tree.map(np.asarray, b))
        assert b["x"].addressable_shards[0].data.shape == (1, *OWN[0]["x"].shape[1:])
        assert b["more"]["x"].is_fully_replicated
        state, _ = update(state, b)
    np.testing.assert_allclose(kernel(state), alone()[0], rtol=1e-5, atol=1e-6)
    text = update.lower(state, b).compile().as_text()
    assert not any(name in text for name in ("all-gather", "all-to-all", "all-reduce"))


def test_parts_are_those_of_each_particles_batch():
    b = {name: OWN[0][name] for name in "xy"}
    _, whole = direct(independent, b)
    _, parts = direct(independent, b, accumulate=3)
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-6)


def direct(direction, b=OWN[0], own_examples=True, **fields):
    made = direction(executors.vmap, TARGET, own_examples=own_examples, **fields)
    state = begin()
    g = jax.jit(lambda s, b: made.update(linear(), s, b, s.key)[0])(state, b)
    return kernel(state), kernel(g)


def test_svgd_in_weight_space_averages_the_scores_of_everyones_own():
    z, g = direct(svgd, kernel=lambda: rbf(2.0))
    z = z.reshape(P, -1)
    gram = np.exp(-((z[:, None] - z[None]) ** 2).sum(-1) / 4) / P
    scores = []
    for p in range(P):
        x, y = np.asarray(OWN[0]["x"][p], np.float64), np.asarray(OWN[0]["y"][p])
        prob = softmax(x @ z[p].reshape(-1, K))
        scores.append((x.T @ (prob - np.eye(K)[y]) / B).ravel() + z[p] / 0.8**2 / 40)
    repel = np.stack([sum(gram[i, j] * (z[i] - z[j]) / 2 for j in range(P)) for i in range(P)])
    expected = gram @ np.stack(scores) - 0.7 / 40 * repel
    np.testing.assert_allclose(g.reshape(P, -1), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("space", ["functions", "functional_kernel"])
def test_functions_are_compared_on_a_stream_that_all_see(space):
    """The force, or the kernel, is that of the stream, whosever the examples are."""
    b = OWN[0] | dict(context=STREAM)
    fields = dict(kernel=lambda: rbf(2.0), space=space, context=other)
    z, own = direct(independent, b)
    if space == "functions":
        # What repels is the same as of particles that share a batch.
        shared = {name: value[0] for name, value in b.items() if name in "xy"} | dict(
            context=STREAM
        )
        force = direct(wgd, shared, False, **fields)[1] - direct(independent, shared, False)[1]
        np.testing.assert_allclose(direct(wgd, b, **fields)[1], own + force, rtol=1e-4, atol=1e-6)
        return
    f = np.einsum("bd,pdk->pbk", STREAM["x"], z).reshape(P, -1)
    gram = np.exp(-((f[:, None] - f[None]) ** 2).sum(-1) / 4) / P
    repel = np.stack([sum(gram[i, j] * (f[i] - f[j]) / 2 for j in range(P)) for i in range(P)])
    pulled = np.einsum("bd,pbk->pdk", STREAM["x"], repel.reshape(P, -1, K))
    expected = np.einsum("pq,qdk->pdk", gram, own) - 0.7 / 40 * pulled
    np.testing.assert_allclose(direct(svgd, b, **fields)[1], expected, rtol=1e-4, atol=1e-6)


def test_function_space_needs_points_and_losses_that_mean_the_same_to_all():
    with pytest.raises(ValueError, match=r"direction\.context: functions .* use 'other'"):
        direct(svgd, space="functions")
    with pytest.raises(ValueError, match="space: 'functions' averages dnll/du over particles"):
        direct(svgd, OWN[0] | dict(context=STREAM), space="functions", context=other)


CONFIG = dict(
    backbone=dict(name="mlp.MLP", widths=(4,)),
    ensemble="single",
    likelihood="softmax",
    head=dict(name="dense.Dense", outputs=K),
    inference=dict(name="particles", size=P),
    steps=9,
    optimiser=dict(name="adam", learning_rate=0.1),
)


@pytest.mark.parametrize(
    ("data", "own"),
    [
        ({}, False),
        (dict(particles="shared"), False),
        (dict(particles="shuffled"), True),
        (dict(particles=dict(name="bootstrap")), True),
    ],
)
def test_a_config_says_whose_examples_are_whose(data, own):
    assert build.inference(CONFIG | dict(data=data)).own_examples is own
