"""A network as pure functions: auxiliary losses, collections, randomness, dtypes."""

import functools

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uncertainty import likelihoods
from uncertainty.backbones.mlp import MLP
from uncertainty.ensembles.multi_head import multi_head
from uncertainty.ensembles.single import single
from uncertainty.heads.dense import Dense
from uncertainty.inference.directions.independent import gradient
from uncertainty.layers.dropout import Dropout
from uncertainty.layers.norm import BatchNorm
from uncertainty.model import from_network
from uncertainty.types import Backbone, Head, Latent

KEY = jax.random.key(0)


class Counting(Backbone):
    """Counts its steps of training in a collection, and sows two losses."""

    weight: float = 1.0

    @nn.compact
    def __call__(self, x, *, train):
        count = self.variable("count", "steps", lambda: jnp.zeros((), jnp.int32))
        if train:
            count.value += 1
        scale = self.param("scale", nn.initializers.constant(2.0), ())
        self.sow("losses", "a", self.weight * scale**2)
        self.sow("losses", "b", 3.0 * scale)
        return scale * x


class Normalised(Backbone):
    @nn.compact
    def __call__(self, x, *, train):
        return BatchNorm(name="norm")(x, train=train)


class Careless(Backbone):
    @nn.compact
    def __call__(self, x, *, train):
        count = self.variable("count", "calls", lambda: jnp.zeros(()))
        count.value += 1
        return x


class SowingHead(Head):
    @nn.compact
    def __call__(self, phi, *, train):
        scale = self.param("scale", nn.initializers.normal(1.0), ())
        self.sow("losses", "square", scale**2)
        return Latent(mean=scale * phi)


class Pair(Backbone):
    @nn.compact
    def __call__(self, x, *, train):
        x = Counting(1.0, name="one")(x, train=train)
        return Counting(10.0, name="two")(x, train=train)


def model_of(backbone, head=None, ensemble=single):
    return from_network(ensemble(backbone, head or Dense(outputs=3)), likelihoods.softmax())


def test_auxiliary_losses_of_all_layers_are_summed_in_training():
    model = model_of(Pair())
    x = jnp.ones((4, 3))
    params, collections = model.init(KEY, x)
    auxiliary = model.forward(params, collections, x, KEY, train=True)[2]
    assert auxiliary.shape == ()
    assert auxiliary == pytest.approx((1 * 4 + 3 * 2) + (10 * 4 + 3 * 2))


@pytest.mark.slow
def test_auxiliary_losses_enter_the_gradient():
    model = model_of(Counting(5.0))
    x, y = jnp.zeros((4, 3)), jnp.zeros(4, int)  # logits are 0 whatever `scale` is
    params, collections = model.init(KEY, x)
    g, _, metrics = gradient(model, params, collections, dict(x=x, y=y), KEY)
    assert g["backbone"]["scale"] == pytest.approx(5 * 2 * 2 + 3)
    assert metrics["loss"] == pytest.approx(np.log(3) + 5 * 4 + 3 * 2)
    np.testing.assert_allclose(metrics["nll"], np.log(3), rtol=1e-6)  # of the data alone


def test_of_losses_that_heads_have_each_for_themselves_the_mean_counts():
    ensemble = functools.partial(multi_head, size=4)
    model = model_of(MLP(widths=()), SowingHead(), ensemble)
    x = jnp.ones((2, 3))
    params, collections = model.init(KEY, x)
    scales = np.asarray(params["head"]["scale"])
    assert scales.shape == (4,) and len(set(scales)) == 4
    auxiliary = model.forward(params, collections, x, KEY, train=True)[2]
    assert auxiliary == pytest.approx(np.mean(scales**2), rel=1e-6)


def test_losses_are_neither_parameters_nor_collections():
    model = model_of(Pair())
    params, collections = model.init(KEY, jnp.ones((1, 3)))
    assert set(collections) == {"count"}
    assert set(params) == {"backbone", "head"}
    collections = model.forward(params, collections, jnp.ones((1, 3)), KEY, train=True)[1]
    assert set(collections) == {"count"}


def test_collections_change_in_training_only():
    model = model_of(Counting())
    x = jnp.ones((4, 3))
    params, start = model.init(KEY, x)
    assert start["count"]["backbone"]["steps"] == 0
    _, after, _ = model.forward(params, start, x, KEY, train=True)
    assert after["count"]["backbone"]["steps"] == 1
    _, same, auxiliary = model.forward(params, after, x, KEY, train=False)
    assert same["count"]["backbone"]["steps"] == 1
    assert auxiliary == 0
    assert start["count"]["backbone"]["steps"] == 0  # what was given is not written to


def test_batch_statistics_follow_the_batches_of_training():
    model = model_of(Normalised())
    x = 3.0 + jax.random.normal(KEY, (4, 3))
    params, start = model.init(KEY, x)
    after = model.forward(params, start, x, KEY, train=True)[1]
    norm = after["batch_stats"]["backbone"]["norm"]
    np.testing.assert_allclose(norm["mean"], 0.1 * np.mean(x, 0), rtol=1e-5)
    np.testing.assert_allclose(norm["var"], 0.9 + 0.1 * np.var(x, 0), rtol=1e-5)
    again = model.forward(params, after, x, KEY, train=False)[1]
    jax.tree.map(np.testing.assert_array_equal, again, after)


def test_a_layer_that_writes_in_prediction_is_stopped():
    model = model_of(Careless())
    params, collections = model.init(KEY, jnp.ones((1, 3)))
    with pytest.raises(flax.errors.ModifyScopeVariableError, match="immutable"):
        model.forward(params, collections, jnp.ones((1, 3)), KEY, train=False)


def test_randomness_is_a_function_of_the_key():
    dropout = functools.partial(Dropout, rate=0.5)
    model = model_of(MLP(widths=(16,), dropout=dropout))
    x = jnp.ones((4, 3))
    params, collections = model.init(KEY, x)
    forward = jax.jit(lambda key: model.forward(params, collections, x, key, train=True)[0].mean)
    one, same, other = (forward(jax.random.key(i)) for i in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    without = model_of(MLP(widths=(16,))).forward(params, {}, x, KEY, train=False)[0].mean
    quiet = model.forward(params, collections, x, KEY, train=False)[0].mean
    np.testing.assert_allclose(quiet, without, rtol=1e-6)


def test_initialisation_is_a_function_of_the_key_and_not_of_the_batch():
    model = model_of(MLP(widths=(4,)))
    one, _ = model.init(KEY, jnp.zeros((1, 3)))
    many, _ = model.init(KEY, jnp.ones((7, 3)))
    jax.tree.map(np.testing.assert_array_equal, one, many)
    other, _ = model.init(jax.random.key(1), jnp.zeros((1, 3)))
    assert not np.array_equal(
        one["backbone"]["dense0"]["kernel"], other["backbone"]["dense0"]["kernel"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_latents_and_parameters_are_float32_whatever_the_network_computes_in(dtype):
    model = model_of(MLP(widths=(64, 64), dtype=dtype))
    x = jax.random.normal(KEY, (4, 8))
    params, collections = jax.jit(model.init)(KEY, x)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    forward = functools.partial(model.forward, train=True)
    latent, _, auxiliary = jax.jit(forward)(params, collections, x, KEY)
    assert latent.mean.dtype == auxiliary.dtype == jnp.float32
    batch = dict(x=x, y=jnp.zeros(4, int))
    g = jax.eval_shape(lambda: gradient(model, params, collections, batch, KEY)[0])
    assert {leaf.dtype.name for leaf in jax.tree.leaves(g)} == {"float32"}
    # What was computed in bfloat16 has at most 8 significant bits, and the head adds to that.
    exact = model_of(MLP(widths=(64, 64))).forward(params, {}, x, KEY, train=False)[0].mean
    error = float(jnp.abs(latent.mean - exact).max())
    assert error == 0 if dtype == "float32" else 0 < error < 0.1


@pytest.mark.parametrize("made", [lambda y: y, lambda y: Latent(y)], ids=["array", "no members"])
def test_a_network_without_the_member_axis_is_refused(made):
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return made(nn.Dense(3)(x))

    model = from_network(Plain(), likelihoods.softmax())
    params, collections = model.init(KEY, jnp.ones((4, 5)))
    with pytest.raises(ValueError, match=r"mean \[M, B, K\] is needed.* of shape \(4, 3\)"):
        jax.eval_shape(
            functools.partial(model.forward, train=True), params, collections, jnp.ones((4, 5)), KEY
        )
