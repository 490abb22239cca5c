"""MIMO: what each head says stands beside the labels of the examples that it was shown."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uncertainty import likelihoods
from uncertainty.backbones.lenet import LeNet5
from uncertainty.backbones.mlp import MLP
from uncertainty.ensembles.mimo import mimo, orders
from uncertainty.heads.dense import Dense
from uncertainty.heads.heteroscedastic import HeteroscedasticXL
from uncertainty.model import from_network

M, B, D = 3, 10, 4
FIRST = jax.random.key(0, impl="unsafe_rbg")  # for initial parameters: sooner compiled
X = jnp.asarray(np.random.default_rng(0).normal(size=(B, D)), "float32")


def reading(slots, **fields):
    """A linear network whose head m says what input slots[m] is."""
    model = from_network(mimo(MLP(widths=()), Dense(D), M, **fields), likelihoods.gaussian(1.0))
    params, collections = jax.eval_shape(model.init, jax.random.key(0), X)
    assert collections == {}
    kernel = np.zeros((M, M, D, D), "float32")  # of head m, from input i
    for m, slot in enumerate(slots):
        kernel[m, slot] = np.eye(D)
    logits = dict(kernel=jnp.asarray(kernel.reshape(M, M * D, D)), bias=jnp.zeros((M, D)))
    assert jax.tree.map(jnp.shape, params) == {"head": {"logits": jax.tree.map(jnp.shape, logits)}}

    @functools.partial(jax.jit, static_argnames="train")
    def run(key, train):
        return model.forward({"head": {"logits": logits}}, {}, X, key, train=train)[0].mean

    return lambda seed, train=True: run(jax.random.key(seed), train=train)


@pytest.mark.parametrize(("share", "repetitions"), [(0.0, 1), (0.6, 3)])
def test_rows_stay_on_their_own_examples(share, repetitions):
    forward = reading(range(M), input_repetition=share, batch_repetitions=repetitions)
    for seed in range(3):
        u = forward(seed)
        assert u.shape == (M * repetitions, B, D)
        for one in u:  # of every head and every repetition
            np.testing.assert_array_equal(one, X)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "repetitions"), [(0.0, 2), (0.6, 1), (0.6, 2), (1.0, 1)])
def test_other_inputs_have_other_examples_but_for_the_share(share, repetitions):
    forward = reading(
        [(m + 1) % M for m in range(M)], input_repetition=share, batch_repetitions=repetitions
    )
    rows, seen = repetitions * B, []
    for seed in range(20):
        u = np.asarray(forward(seed)).reshape(M, rows, D)
        for one in u:  # each example as often as it is in the batch
            np.testing.assert_array_equal(
                np.sort(one[:, 0]), np.sort(np.tile(X[:, 0], repetitions))
            )
        same = (u == np.tile(X, (repetitions, 1))).all(-1).mean(1)
        assert (same >= share - 1e-9).all()
        seen.append(same)
    # Of n places of their own, one has the same row by chance, and one in n another copy of it.
    own = round((1 - share) * rows)
    chance = 1 + (repetitions - 1) * (own - 1) / (rows - 1) if own else 0
    expected = (rows - own + chance) / rows
    deviation = repetitions / rows * np.sqrt(2 / (20 * M))  # variances are below those of Poissons
    assert abs(np.mean(seen) - expected) <= (4 * deviation if own > 1 else 1e-6)


def test_prediction_shows_every_input_the_same_example():
    for slots in ([0, 1, 2], [2, 0, 0]):
        forward = reading(slots, input_repetition=0.3, batch_repetitions=2)
        u = forward(0, train=False)
        assert u.shape == (M, B, D)
        for one in u:
            np.testing.assert_array_equal(one, X)


def test_orders_are_permutations_with_a_common_part():
    made = np.asarray(orders(jax.random.key(1), 4, 50, 0.9))
    for order in made:
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
        np.testing.assert_array_equal(order[5:], made[0][5:])  # 45 of 50 agree
    assert len({tuple(order[:5]) for order in made}) > 1


@pytest.mark.slow
def test_images_are_joined_channel_by_channel_and_heads_are_independent():
    """Against the network written out: LeNet on M C channels, and a loop over heads."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(B, 8, 8, 2)), "float32")
    backbone = LeNet5(padding="SAME")
    network = mimo(backbone, Dense(5), M)
    params = jax.jit(functools.partial(network.init, train=False))(FIRST, x)["params"]
    assert params["backbone"]["conv0"]["kernel"].shape == (5, 5, M * 2, 6)
    kernel = params["head"]["logits"]["kernel"]
    assert kernel.shape == (M, 84, 5)
    # Glorot, of 84 inputs and 5 outputs: as a head by itself, and not the same for two of them
    assert np.abs(kernel).max() <= np.sqrt(6 / 89) and not np.allclose(kernel[0], kernel[1])
    joined = np.concatenate([x] * M, axis=-1)[None]
    of_backbone = jax.jit(functools.partial(backbone.apply, train=False))
    phi = of_backbone({"params": params["backbone"]}, joined)[0]
    latent = jax.jit(functools.partial(network.apply, train=False))({"params": params}, x)
    for m in range(M):
        np.testing.assert_allclose(latent.mean[m], phi @ kernel[m], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_noise_in_features_is_aligned_too():
    """The nll of a HET-XL head by the labels is that of a batch in the heads' own orders."""
    model = from_network(
        mimo(MLP(widths=(6,)), HeteroscedasticXL(2, rank=1), M, 0.0, 2), likelihoods.gaussian(0.5)
    )
    params, collections = jax.jit(model.init)(FIRST, X)
    key, forward = jax.random.key(4), jax.jit(model.forward, static_argnames="train")
    u, _, _ = forward(params, collections, X, key, train=True)
    assert u.projection.shape == (2 * M, 6, 2) and u.factors.shape == (2 * M, B, 6, 1)
    # all rows of one example: then orders do not matter, and rows must be equal
    same = jnp.broadcast_to(X[:1], X.shape)
    u, _, _ = forward(params, collections, same, key, train=True)
    alone, _, _ = forward(params, collections, X[:1], key, train=False)
    for leaf in ("mean", "variance", "factors"):
        expected = np.repeat(getattr(alone, leaf), 2, axis=0)
        found = getattr(u, leaf)
        np.testing.assert_allclose(
            found, np.broadcast_to(expected, found.shape), rtol=1e-5, atol=1e-6
        )
    np.testing.assert_array_equal(u.projection, np.repeat(alone.projection, 2, axis=0))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (dict(size=0), "size: 0 members; at least 1"),
        (dict(size=2, input_repetition=1.5), "input_repetition: 1.5; a share, from 0 to 1"),
        (dict(size=2, batch_repetitions=0), "batch_repetitions: 0; at least 1"),
    ],
)
def test_what_cannot_be_is_refused(fields, why):
    with pytest.raises(ValueError, match=why):
        mimo(MLP(), Dense(2), **fields)
