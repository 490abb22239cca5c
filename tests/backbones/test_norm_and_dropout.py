"""Normalisation and dropout against NumPy and against expectations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uncertainty.layers.dropout import Dropout
from uncertainty.layers.norm import BatchNorm, LayerNorm


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(2.0, 3.0, shape).astype("float32")


def test_batch_norm_pools_members_examples_and_space():
    layer = BatchNorm(momentum=0.8, epsilon=0.1)
    x = normal(2, 3, 4, 5, 6)
    variables = {
        "params": {"scale": normal(6, seed=1), "bias": normal(6, seed=2)},
        "batch_stats": {"mean": normal(6, seed=3), "var": np.abs(normal(6, seed=4))},
    }
    y, changed = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    rows = x.reshape(-1, 6).astype("float64")  # 2 x 3 x 4 x 5 rows
    mean, var = rows.mean(0), ((rows - rows.mean(0)) ** 2).mean(0)
    params, averages = variables["params"], variables["batch_stats"]
    expected = params["scale"] * (x - mean) / np.sqrt(var + 0.1) + params["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        changed["batch_stats"]["mean"], 0.8 * averages["mean"] + 0.2 * mean, rtol=1e-5
    )
    np.testing.assert_allclose(
        changed["batch_stats"]["var"], 0.8 * averages["var"] + 0.2 * var, rtol=1e-4
    )
    y = layer.apply(variables, x, train=False)
    expected = params["scale"] * (x - averages["mean"]) / np.sqrt(averages["var"] + 0.1)
    np.testing.assert_allclose(y, expected + params["bias"], rtol=1e-4, atol=1e-4)


def test_batch_norm_defaults_are_the_published_ones():
    assert (BatchNorm().momentum, BatchNorm().epsilon) == (0.9, 1e-5)


def test_batch_norm_averages_stay_float32_in_bfloat16():
    layer = BatchNorm(dtype="bfloat16")
    x = jnp.asarray(normal(1, 64, 3), "bfloat16")
    variables = layer.init(jax.random.key(0), x, train=False)
    y, changed = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert {a.dtype.name for a in jax.tree.leaves(changed)} == {"float32"}
    np.testing.assert_allclose(
        changed["batch_stats"]["mean"], 0.1 * np.asarray(x, "float64").mean((0, 1)), rtol=1e-4
    )


@pytest.mark.parametrize("train", [False, True])
def test_layer_norm_is_over_features(train):
    x, scale, bias = normal(2, 3, 4, 6), normal(6, seed=1), normal(6, seed=2)
    y = LayerNorm().apply({"params": {"scale": scale, "bias": bias}}, x, train=train)
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(y, scale * centred / deviation + bias, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=20)
@given(rate=st.floats(0.05, 0.9), members=st.sampled_from([None, 1, 5]), seed=st.integers(0, 2**31))
def test_masks_keep_with_the_right_frequency_and_scale(rate, members, seed):
    layer = Dropout(rate=rate, members=members)
    train = members is None
    y = layer.apply({}, jnp.ones((1, 400, 50)), train=train, rngs={"dropout": jax.random.key(seed)})
    assert y.shape == (members or 1, 400, 50)
    kept = np.asarray(y) != 0
    np.testing.assert_allclose(np.asarray(y)[kept], 1 / (1 - rate), rtol=1e-5)
    for mask in kept:  # six standard deviations of a binomial frequency
        assert abs(mask.mean() - (1 - rate)) < 6 * np.sqrt(rate * (1 - rate) / mask.size)


def test_members_masks_are_independent():
    y = Dropout(0.5, members=3).apply(
        {}, jnp.ones((1, 300, 100)), train=False, rngs={"dropout": jax.random.key(0)}
    )
    kept = (np.asarray(y) != 0).reshape(3, -1)
    np.testing.assert_allclose(np.corrcoef(kept), np.eye(3), atol=6 / np.sqrt(kept.shape[1]))


def test_shared_masks_are_of_members_and_not_of_examples():
    """In parts and whole, so that members are functions; in training each example has its own."""
    dropout = Dropout(0.5, members=3, shared=True)
    rngs, x = dict(dropout=jax.random.key(0)), jnp.ones((1, 40, 100))
    y = np.asarray(dropout.apply({}, x, train=False, rngs=rngs))
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1], y.shape))
    np.testing.assert_array_equal(dropout.apply({}, x[:, :7], train=False, rngs=rngs), y[:, :7])
    kept = (y[:, 0] != 0).astype(float)
    assert (abs(np.corrcoef(kept) - np.eye(3)) < 6 / np.sqrt(100)).all()
    trained = np.asarray(dropout.apply({}, x, train=True, rngs=rngs))
    assert len(np.unique(trained[0] != 0, axis=0)) == 40


def test_members_mask_does_not_depend_on_their_number():
    few, many = (
        Dropout(0.5, members=S).apply(
            {}, jnp.ones((1, 4, 6)), train=False, rngs={"dropout": jax.random.key(0)}
        )
        for S in (2, 5)
    )
    np.testing.assert_array_equal(few, many[:2])


def test_filters_are_dropped_whole():
    y = Dropout(0.5, broadcast_dims=(-3, -2)).apply(
        {}, jnp.ones((2, 20, 3, 4, 8)), train=True, rngs={"dropout": jax.random.key(0)}
    )
    filters = np.asarray(y).transpose(0, 1, 4, 2, 3).reshape(-1, 12)
    assert (filters == filters[:, :1]).all()
    assert 0.3 < (filters[:, 0] == 0).mean() < 0.7


def test_training_keeps_the_members_that_there_are():
    x = jnp.ones((3, 5, 40))
    y = Dropout(0.5, members=3).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
    assert y.shape == x.shape and not (y[0] == y[1]).all()


def test_mean_over_members_is_the_expectation_of_a_linear_network():
    """Dropout is unbiased, so where the rest is linear the members average to the plain network."""

    S, rate = 20_000, 0.4
    kernel = normal(6, 3, seed=1)
    dropout = Dropout(rate, members=S)
    x = normal(1, 2, 6)
    masked = dropout.apply({}, x, train=False, rngs={"dropout": jax.random.key(0)})
    outputs = np.asarray(masked @ kernel)
    assert outputs.shape == (S, 2, 3)
    # Var sum_i m_i x_i w_i = rate / (1 - rate) sum_i (x_i w_i)^2, in closed form.
    variance = rate / (1 - rate) * (x[0] ** 2) @ kernel**2
    np.testing.assert_array_less(np.abs(outputs.mean(0) - x[0] @ kernel), 6 * np.sqrt(variance / S))
    np.testing.assert_allclose(outputs.var(0), variance, rtol=0.1)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(rate=1.0), "rate: 1.0; allowed 0 <= rate < 1"),
        (dict(rate=-0.1), "rate: -0.1"),
        (dict(rate=float("nan")), "rate: nan"),
        (dict(rate=0.1, members=0), "members: 0; allowed None, or at least 1"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Dropout(**fields)


def test_rate_zero_still_makes_members():
    x = normal(1, 2, 3)
    y = Dropout(0.0, members=2).apply({}, x, train=False, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(y, np.concatenate([x, x]))


def test_prediction_without_a_key_is_an_error():
    apply = functools.partial(Dropout(0.5, members=2).apply, {}, jnp.ones((1, 2, 3)), train=False)
    with pytest.raises(Exception, match="dropout"):
        apply()
