"""Masks against the properties that the paper gives them, members against a loop over masks."""

import functools
import math
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from uncertainty.backbones.lenet import LeNet5
from uncertainty.backbones.mlp import MLP
from uncertainty.ensembles.masksembles import masksembles
from uncertainty.heads.dense import Dense
from uncertainty.layers.masksembles import Masksembles, masks_of

M, B, K = 3, 7, 5
key = functools.partial(jax.random.key, impl="unsafe_rbg")  # sooner compiled


@settings(max_examples=50)
@given(
    features=st.integers(1, 1100),
    size=st.integers(1, 9),
    scale=st.floats(1.0, 10.0) | st.integers(10, 100).map(lambda n: n / 10),
)
@example(features=1024, size=2, scale=6.0)  # sets of more places than all masks have ones
@example(features=300, size=2, scale=8.0)
def test_every_mask_has_as_many_ones_and_every_feature_a_mask(features, size, scale):
    masks = masks_of(features, size, scale)
    assert masks.shape == (size, features) and set(np.unique(masks)) <= {0, 1}
    ones = set(masks.sum(1))
    exact = Fraction(str(scale))
    expected = math.floor(features / (exact * (1 - (1 - 1 / exact) ** size)))  # of the paper
    assert ones == {max(expected, -(-features // size))} and masks.any(0).all()


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("scale", [1.0, 1.5, 2.0, 4.0])
def test_masks_overlap_as_the_scale_says(size, scale):
    features = 1000
    masks = masks_of(features, size, scale).astype(int)
    ones, overlaps = masks[0].sum(), masks @ masks.T
    found = overlaps[np.triu_indices(size, 1)] / ones
    # Two of them share a hypergeometric number, A / scale on average.
    deviation = np.sqrt((1 - 1 / scale) ** 2 / (scale * ones))
    assert abs(found - 1 / scale).max() < 4 * deviation + 0.01
    intersection = ones / masks.any(0).sum() * scale * (1 - (1 - 1 / scale) ** size)
    assert abs(intersection - 1) < 0.01


def test_extremes():
    assert masks_of(12, 4, 1.0).all()  # members are equal
    apart = masks_of(64, 4, 1e6)
    np.testing.assert_array_equal(apart.sum(0), np.ones(64))  # members share nothing


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(6,), (4, 5, 6)])
def test_the_layer_is_a_product_with_its_masks(shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, B, *shape)), "float32")
    layer = Masksembles(M)
    variables = layer.init(jax.random.key(0), x, train=False)
    masks = np.asarray(variables["masks"]["mask"])
    assert sorted(map(tuple, masks.T)) == sorted(map(tuple, masks_of(6, M, 2.0).T))
    predicted, trained = (layer.apply(variables, x, train=train) for train in (False, True))
    assert predicted.shape == (M, B, *shape) and trained.shape == (1, B, *shape)
    for b in range(B):
        np.testing.assert_array_equal(trained[0, b], x[0, b] * masks[b % M])
        for m in range(M):
            np.testing.assert_array_equal(predicted[m, b], x[0, b] * masks[m])
    assert layer.apply(variables, predicted, train=False).shape == predicted.shape


@pytest.mark.slow
@pytest.mark.parametrize("backbone, shape", [(MLP((12, 11)), (6,)), (LeNet5("SAME"), (8, 8, 1))])
def test_members_are_networks_without_the_masked_features(backbone, shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(B, *shape)), "float32")
    network = masksembles(backbone, Dense(K), M)
    variables = jax.jit(functools.partial(network.init, train=False))(key(0), x)
    masks = {name: v["mask"] for name, v in variables["masks"]["backbone"].items()}
    apply = jax.jit(network.apply, static_argnames="train")
    together = apply(variables, x, train=False).mean

    def one_mask(m):
        """The network's own layers, with member m's masks between them, by interception."""

        def without(next_call, arguments, options, context):
            if isinstance(context.module, Masksembles):
                return arguments[0] * masks[context.module.name][m]
            return next_call(*arguments, **options)

        with nn.intercept_methods(without):
            one = network.clone(size=None)  # which does not ask where its members are
            return one.apply(variables, x, train=False).mean[0]

    loop = np.stack([one_mask(m) for m in range(M)])
    assert together.shape == (M, B, K)
    np.testing.assert_allclose(together, loop, rtol=1e-4, atol=1e-5)
    assert not np.allclose(together[0], together[1], atol=1e-3)
    # In training every example has the mask of its turn in all layers.
    trained = apply(variables, x, train=True).mean
    np.testing.assert_allclose(
        trained[0], loop[np.arange(B) % M, np.arange(B)], rtol=1e-4, atol=1e-5
    )
    # Layers and particles have masks of their own.
    other = jax.jit(functools.partial(network.init, train=False))(key(1), x)
    drawn = [v["masks"]["backbone"] for v in (variables, other)]
    assert any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, drawn), strict=True))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (dict(size=0), "size: 0 masks; at least 1"),
        (dict(size=2, scale=0.5), "scale: 0.5; at least 1"),
        (dict(size=2, backbone=MLP(dropout=Masksembles)), "dropout: masksembles sets it"),
        (dict(size=2, backbone=Dense(2)), "backbone: Dense has no field 'dropout'"),
    ],
)
def test_what_cannot_be_is_refused(fields, why):
    with pytest.raises(ValueError, match=why):
        masksembles(**(dict(backbone=MLP(), head=Dense(2)) | fields))
