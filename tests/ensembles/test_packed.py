"""Packed ensembles against separate small networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.backbones.conftest import OF_ANOTHER_CLASS, TINY, draw_variables
from uncertainty.backbones.lenet import LeNet5
from uncertainty.backbones.mlp import MLP
from uncertainty.backbones.resnet import ResNet
from uncertainty.backbones.vit import ViT
from uncertainty.backbones.wide_resnet import WideResNet
from uncertainty.ensembles.packed import narrower, packed
from uncertainty.ensembles.single import single
from uncertainty.heads.dense import Dense
from uncertainty.layers import packed as layers
from uncertainty.types import Backbone

M, B, K = 3, 4, 5
CLOSE = dict(rtol=2e-4, atol=2e-5)  # float32 sums in another order


def inputs(shape):
    return jnp.asarray(np.random.default_rng(1).normal(size=(B, *shape)), "float32")


def together_and_alone(name):
    """Both networks, and an input."""
    make, shape = TINY[name]
    network = packed(make(), Dense(K), M, alpha=1.5)
    return network, single(narrower(make(), 0.5), Dense(K)), inputs(shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_members_have_the_variables_of_separate_networks(name):
    network, small, x = together_and_alone(name)
    many, one = (
        jax.eval_shape(functools.partial(n.init, train=False), jax.random.key(0), x)
        for n in (network, small)
    )
    assert jax.tree.map(jnp.shape, many) == jax.tree.map(lambda a: (M, *a.shape), one)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_ANOTHER_CLASS)
def test_members_are_separate_networks(name):
    network, small, x = together_and_alone(name)
    variables = draw_variables(network, x, train=False)
    together = jax.jit(functools.partial(network.apply, train=False))(variables, x).mean
    alone = jax.jit(functools.partial(small.apply, train=False))
    assert together.shape == (M, B, K)
    for m in range(M):
        of_member = jax.tree.map(lambda a, m=m: a[m], variables)
        np.testing.assert_allclose(together[m], alone(of_member, x).mean[0], **CLOSE)
    assert not np.allclose(together[0], together[1], atol=1e-2)


@pytest.mark.slow
def test_batch_statistics_are_each_members_own():
    make, shape = TINY["resnet"]
    x = inputs(shape)
    network, small = packed(make(), Dense(K), 2), single(make(), Dense(K))  # alpha = size
    variables = draw_variables(network, x, train=False)
    apply = functools.partial(network.apply, train=True, mutable=["batch_stats"])
    latent, changed = jax.jit(apply)(variables, x)
    alone = jax.jit(functools.partial(small.apply, train=True, mutable=["batch_stats"]))
    for m in range(2):
        expected, stats = alone(jax.tree.map(lambda a, m=m: a[m], variables), x)
        np.testing.assert_allclose(latent.mean[m], expected.mean[0], **CLOSE)
        jax.tree.map(
            lambda a, b, m=m: np.testing.assert_allclose(a[m], b, **CLOSE), changed, dict(stats)
        )


@pytest.mark.parametrize(
    ("backbone", "factor", "multiple", "sizes"),
    [
        (MLP((10, 7)), 0.5, 1, dict(widths=(5, 4))),
        (MLP((10, 7)), 0.5, 4, dict(widths=(8, 4))),
        (MLP((10,)), 3 / 10, 1, dict(widths=(3,))),
        (MLP((50,)), 1.1, 1, dict(widths=(55,))),  # 55.00000000000001 in floating point
        (MLP((3,)), 1.0000001, 1, dict(widths=(4,))),
        (LeNet5(), 0.5, 2, dict(widths=(4, 8, 60, 42))),
        (ResNet(20), 0.25, 1, dict(width=4)),
        (ResNet(50), 0.5, 1, dict(width=32)),
        (WideResNet(28, 10), 0.5, 1, dict(width=8)),
        (ViT("S/16"), 0.5, 1, dict(width=192, mlp_dim=768)),
        (ViT("S/16"), 0.3, 1, dict(width=120, mlp_dim=461)),  # 115.2, for six heads
    ],
)
def test_narrower_backbones(backbone, factor, multiple, sizes):
    made = narrower(backbone, factor, multiple)
    assert made.sizes == sizes and type(made) is type(backbone)
    assert narrower(backbone, 1.0).sizes == backbone.sizes


def block_diagonal(blocks):
    rows = []
    for g, block in enumerate(blocks):
        row = [np.zeros_like(block)] * len(blocks)
        row[g] = block
        rows.append(np.concatenate(row, axis=-1))
    return np.concatenate(rows, axis=-2)


def test_a_dense_layer_in_groups_is_block_diagonal():
    x = inputs((2, 6))
    layer = layers.Dense(features=9, groups=3)
    variables = draw_variables(layer, x)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    assert kernel.shape == (3, 2, 3)
    np.testing.assert_allclose(
        layer.apply(variables, x), x @ block_diagonal(kernel) + bias, **CLOSE
    )
    drawn = layers.Dense(features=9, groups=3).init(jax.random.key(0), x)["params"]["kernel"]
    assert not np.allclose(drawn[0], drawn[1])
    with pytest.raises(ValueError, match="groups: 4 do not divide 6 inputs and 8 features"):
        layers.Dense(features=8, groups=4).init(jax.random.key(0), x)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "lenet_same"])
def test_gamma_makes_groups_of_inner_layers(name):
    """The same numbers as ungrouped members with block-diagonal kernels."""
    make, shape = TINY[name]
    x = inputs(shape)
    network = packed(make(), Dense(K), 2, alpha=2, gamma=2)
    variables = draw_variables(network, x, train=False)
    whole = packed(narrower(make(), 1, 2), Dense(K), 2, alpha=2)
    shapes = jax.eval_shape(functools.partial(whole.init, train=False), jax.random.key(0), x)

    def dense(like, a):
        if like.shape == a.shape:
            return a
        a = np.asarray(a)
        if name == "mlp":  # [M, G, D / G, K / G]
            return np.stack([block_diagonal(of_member) for of_member in a])
        return block_diagonal(np.split(a, 2, axis=-1))  # [M, h, w, C / G, K]

    full = jax.tree.map(dense, shapes, variables)
    grouped = [
        a.shape != b.shape for a, b in zip(*map(jax.tree.leaves, (shapes, variables)), strict=True)
    ]
    assert sum(grouped) == (1 if name == "mlp" else 2)
    together = jax.jit(functools.partial(network.apply, train=False))(variables, x).mean
    expected = jax.jit(functools.partial(whole.apply, train=False))(full, x).mean
    np.testing.assert_allclose(together, expected, **CLOSE)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (dict(size=0), "size: 0 members"),
        (dict(alpha=0.0), "alpha: 0.0; a positive number"),
        (dict(gamma=0), "gamma: 0 groups"),
        (dict(backbone=Backbone()), "backbone: Backbone does not define `sizes`"),
    ],
)
def test_what_cannot_be_is_refused(fields, why):
    with pytest.raises(ValueError, match=why):
        packed(**(dict(backbone=MLP(), head=Dense(2), size=2) | fields))
