"""Particles against loops over separate trainings, and executors against each other."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from uncertainty import build, cpu, likelihoods
from uncertainty.backbones.lenet import LeNet5
from uncertainty.backbones.mlp import MLP
from uncertainty.ensembles.mc_dropout import mc_dropout
from uncertainty.ensembles.single import single
from uncertainty.heads.dense import Dense
from uncertainty.inference import executors
from uncertainty.inference.directions.independent import independent
from uncertainty.inference.particles import particles
from uncertainty.layers.dropout import Dropout
from uncertainty.model import from_network
from uncertainty.optimisers import optimiser as optimisers

OPTIMISER = optimisers.optimiser(optimisers.adam(), 1e-2, clip=0.5)


def mlp():
    return from_network(single(MLP(widths=(8,)), Dense(outputs=3)), likelihoods.softmax())


def convolutional(**fields):
    backbone = LeNet5(padding="SAME", **fields)
    return from_network(single(backbone, Dense(outputs=3)), likelihoods.softmax())


def batch(shape=(5,), B=12, seed=0):
    rng = np.random.default_rng(seed)
    return dict(
        x=rng.normal(size=(B, *shape)).astype(np.float32), y=np.arange(B, dtype=np.int32) % 3
    )


def assert_close(a, b, rtol=2e-5, atol=2e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def steps(inference, n=3, shape=(5,), update=None, seed=0):
    state = inference.init(jax.random.key(seed), batch(shape)["x"][:1])
    update = update or jax.jit(inference.update)
    for i in range(n):
        state, metrics = update(state, batch(shape, seed=i))
    return getattr(update, "whole", lambda state: state)(state), metrics


@functools.cache
def reference(size):
    return steps(particles(mlp(), OPTIMISER, size=size, executor="unroll"))


@functools.cache
def reference_predictions():
    inference = particles(mlp(), OPTIMISER, size=2, executor="unroll")
    return jax.jit(inference.predict)(reference(2)[0], batch()["x"])


@pytest.mark.slow
def test_one_particle_is_plain_optax_training():
    model = mlp()
    inference = particles(model, OPTIMISER)
    state, metrics = steps(inference)
    key = jax.random.fold_in(jax.random.key(0), 0)
    params, _ = jax.jit(model.init)(key, batch()["x"][:1])
    opt_state = jax.jit(OPTIMISER.init)(params)

    @jax.jit
    def update(params, opt_state, b):
        def loss(params):
            logits = model.forward(params, {}, b["x"], key, train=True)[0].mean[0]
            return optax.softmax_cross_entropy_with_integer_labels(logits, b["y"]).mean()

        value, g = jax.value_and_grad(loss)(params)
        updates, opt_state = OPTIMISER.update(g, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    for i in range(3):
        params, opt_state, value = update(params, opt_state, batch(seed=i))
    assert_close(jax.tree.map(lambda a: np.asarray(a)[0], state.params), params)
    np.testing.assert_allclose(metrics["loss"], [value], rtol=1e-5)


@pytest.mark.slow
def test_a_particle_does_not_depend_on_how_many_there_are():
    three, _ = reference(3)
    two, _ = reference(2)
    first = jax.tree.map(lambda a: a[:2], three.replace(step=None))
    assert_close(first, two.replace(step=None))


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["auto", "vmap", "scan"])
def test_executors_give_the_same_numbers(executor):
    inference = particles(mlp(), OPTIMISER, size=2, executor=executor)
    assert_close(steps(inference), reference(2))
    predict = jax.jit(inference.predict)
    assert_close(predict(reference(2)[0], batch()["x"]), reference_predictions())


@pytest.mark.parametrize("threads", [1, 2])
def test_loop_gives_the_same_numbers_and_one_program(threads):
    inference = particles(mlp(), OPTIMISER, size=2, executor="loop")
    loop = executors.Loop(inference, threads)
    assert_close(steps(inference, update=loop), reference(2))
    assert loop._one._cache_size() == 1


@pytest.mark.parametrize("size", [1, 2])
def test_the_loop_updates_particles_where_they_lie(size):
    inference = particles(mlp(), OPTIMISER, size=size, executor="loop")
    update = executors.Loop(inference)

    def addresses(state):
        leaves = jax.tree.leaves([(one.params, one.opt_state) for one in state.particles])
        return [leaf.unsafe_buffer_pointer() for leaf in leaves]

    start = inference.init(jax.random.key(0), batch()["x"][:1])
    state, _ = update(start, batch())  # a copy of a particle would lie elsewhere
    before = addresses(state)
    state, _ = update(state, batch())
    assert addresses(state) == before
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(start))
    whole = update.whole(state)
    update(state, batch())
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(whole))


@functools.cache
def convolutional_steps(executor):
    # Not Adam, which divides by the size of gradients that are rounding errors alone.
    optimiser = optimisers.optimiser(optimisers.sgd(momentum=0.9), 0.1)
    inference = particles(convolutional(), optimiser, size=2, executor=executor)
    update = executors.Loop(inference) if executor == "loop" else None
    return steps(inference, 2, (8, 8, 1), update)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["vmap", "scan", "loop"])
def test_executors_agree_on_convolutions(executor):
    assert_close(convolutional_steps(executor), convolutional_steps("unroll"))


def test_convolutions_are_seen_through_nested_functions():
    model = convolutional(conv=nn.Conv)
    x = jnp.zeros((2, 8, 8, 1))
    params, _ = jax.eval_shape(model.init, jax.random.key(0), x)
    forward = jax.jit(lambda p, x: model.forward(p, {}, x, jax.random.key(0), train=False)[0].mean)
    mapped = jax.make_jaxpr(lambda p, x: jax.lax.map(lambda q: forward(p, q), x[None]))(params, x)
    assert executors.has_convolution(mapped.jaxpr)
    assert not executors.has_convolution(jax.make_jaxpr(lambda a: a @ a)(jnp.eye(2)).jaxpr)


def test_loop_refuses_particles_that_interact():
    inference = particles(mlp(), OPTIMISER, size=2)._replace(separable=False)
    with pytest.raises(ValueError, match="interact"):
        executors.Loop(inference)


@pytest.mark.slow
def test_accumulated_parts_are_the_whole_batch():
    def direction(over, target, accumulate, **rest):
        return independent(over, target, 4, **rest)

    parts = particles(mlp(), OPTIMISER, size=2, direction=direction, executor="vmap")
    (state, metrics), (expected, plain) = steps(parts), reference(2)
    assert_close(state.params, expected.params)
    assert_close(metrics, plain)  # the examples' own losses come back in their order


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_a_faulty_particle_stays_and_leaves_the_others_untouched(platform):
    inference = particles(mlp(), OPTIMISER, size=3, executor="vmap")

    compiled = jax.jit(inference.update)

    def update(state, batch):
        with cpu.compiling_for(platform):
            return compiled(state, batch)

    state = inference.init(jax.random.key(0), batch()["x"][:1])

    def poison(leaf):
        leaf = np.array(leaf)
        leaf[1] = np.nan
        return leaf

    faulty = state.replace(params=jax.tree.map(poison, state.params))
    for i in range(3):
        state, _ = update(state, batch(seed=i))
        faulty, metrics = update(faulty, batch(seed=i))
        np.testing.assert_array_equal(metrics["finite"], [True, False, True])
    keep = np.array([0, 2])
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(faulty.params), strict=True):
        np.testing.assert_array_equal(a[keep], b[keep])
    assert np.asarray(faulty.opt_state[1].count)[1] == 0  # its optimiser did not move either


def test_an_overflowing_update_keeps_the_last_finite_parameters():
    inference = particles(mlp(), optimisers.optimiser(optimisers.sgd(), 1e37), size=1)
    state = inference.init(jax.random.key(0), batch()["x"][:1])
    update = jax.jit(inference.update)
    large = batch()
    # The kernel of the first layer alone overflows, which is not the smallest of the arrays.
    _, metrics = update(state, large | dict(x=1e3 * large["x"]))
    assert np.isfinite(metrics["gradient_norm"][0]) and not metrics["finite"][0]
    for i in range(4):
        state, metrics = update(state, batch(seed=i))
    assert not metrics["finite"][0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


@pytest.mark.slow
def test_predictions_stack_particles_and_members():
    config = dict(
        backbone=dict(name="mlp.MLP", widths=(4,)),
        head=dict(name="dense.Dense", outputs=3),
        ensemble=dict(name="multi_head", size=2),
        likelihood="softmax",
        inference=dict(name="particles", size=3),
        optimiser=dict(name="sgd", learning_rate=0.1),
        steps=1,
    )
    inference, model = build.inference(config), build.model(config)
    x = batch()["x"]
    state = inference.init(jax.random.key(0), x[:1])
    got = jax.jit(inference.predict)(state, x).mean
    forward = jax.jit(
        lambda params: model.forward(params, {}, x, state.key[0], train=False)[0].mean
    )
    assert got.shape == (6, 12, 3)
    for p in range(3):
        params = jax.tree.map(lambda a, p=p: np.asarray(a)[p], state.params)
        one = forward(params)
        np.testing.assert_allclose(got[2 * p : 2 * p + 2], one, rtol=1e-5, atol=1e-6)
        phi = np.maximum(x @ params["backbone"]["dense0"]["kernel"], 0)
        for m in range(2):  # a loop over the heads, by hand
            logits = phi @ params["head"]["logits"]["kernel"][m]
            np.testing.assert_allclose(one[m], logits, rtol=1e-4, atol=1e-5)


def test_parts_that_do_not_divide_the_batch_are_refused():
    inference = particles(mlp(), OPTIMISER, accumulate=5)
    state = jax.eval_shape(inference.init, jax.random.key(0), batch()["x"][:1])
    with pytest.raises(ValueError, match="5 parts do not divide a batch of 12"):
        jax.eval_shape(inference.update, state, batch())


def test_impossible_parts_are_refused_by_name():
    with pytest.raises(ValueError, match="outputs: 0"):
        Dense(outputs=0)
    dropout = functools.partial(Dropout, rate=0.1)
    with pytest.raises(ValueError, match=r"backbone\.dropout"):
        mc_dropout(MLP(dropout=dropout), Dense(outputs=2), size=2, rate=0.1)
