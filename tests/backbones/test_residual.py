"""Residual networks against explicit compositions of jax.lax operations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from uncertainty.backbones.resnet import ResNet
from uncertainty.backbones.wide_resnet import WideResNet
from uncertainty.layers.dropout import Dropout
from uncertainty.layers.residual import BasicBlock, BottleneckBlock, PreActivationBlock

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class Reference:
    """The operations on [B, H, W, C], by the names of their variables."""

    def __init__(self, variables):
        self.params, self.averages = variables["params"], variables.get("batch_stats", {})

    def at(self, name):
        part = Reference.__new__(Reference)
        part.params = self.params[name]
        part.averages = self.averages.get(name, {})
        return part

    def conv(self, x, name, strides=1, padding="SAME"):
        y = lax.conv_general_dilated(
            x,
            self.params[name]["kernel"],
            (strides, strides),
            padding,
            dimension_numbers=DIMENSIONS,
        )
        return y + self.params[name].get("bias", 0)

    def norm(self, x, name):
        if name not in self.params:
            return x
        averages, params = self.averages[name], self.params[name]
        x = (x - averages["mean"]) * lax.rsqrt(averages["var"] + 1e-5)
        return x * params["scale"] + params["bias"]

    def basic(self, x, strides):
        y = relu(self.norm(self.conv(x, "conv0", strides), "norm0"))
        y = self.norm(self.conv(y, "conv1"), "norm1")
        return relu(y + self.shortcut(x, strides))

    def bottleneck(self, x, strides):
        y = relu(self.norm(self.conv(x, "conv0"), "norm0"))
        y = relu(self.norm(self.conv(y, "conv1", strides), "norm1"))
        y = self.norm(self.conv(y, "conv2"), "norm2")
        return relu(y + self.shortcut(x, strides))

    def pre_activation(self, x, strides):
        y = self.conv(relu(self.norm(x, "norm0")), "conv0", strides)
        y = self.conv(relu(self.norm(y, "norm1")), "conv1")
        return y + (self.conv(x, "shortcut", strides) if "shortcut" in self.params else x)

    def shortcut(self, x, strides):
        if "shortcut" not in self.params:
            return x
        return self.norm(self.conv(x, "shortcut", strides), "shortcut_norm")

    def stages(self, x, kind, depths):
        for i, depth in enumerate(depths):
            for j in range(depth):
                block = self.at(f"stage{i + 1}").at(f"block{j}")
                x = getattr(block, kind)(x, 2 if i and not j else 1)
        return x


def relu(x):
    return jnp.maximum(x, 0)


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def agree(module, variables, x, reference):
    """`module` on [2, B, H, W, C] and `reference` on each member give the same."""
    apply = jax.jit(functools.partial(module.apply, train=False))
    expected = jax.jit(lambda v, x: jnp.stack([reference(Reference(v), image) for image in x]))
    np.testing.assert_allclose(apply(variables, x), expected(variables, x), rtol=1e-3, atol=1e-4)


BLOCKS = {"basic": BasicBlock, "bottleneck": BottleneckBlock, "pre_activation": PreActivationBlock}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("channels, strides", [(12, 1), (12, 2), (5, 1)])
@pytest.mark.parametrize("fields", [{}, {"norm": None}])
def test_block(kind, channels, strides, fields, random_variables):
    features = 3 if kind == "bottleneck" else 12  # 12 channels out, so that 12 in can be added
    module = BLOCKS[kind](features=features, strides=strides, **fields)
    x = normal(2, 2, 6, 5, channels)
    variables = random_variables(module, x, train=False)
    projects = strides == 2 or channels != 12
    assert ("shortcut" in variables["params"]) == projects
    assert ("bias" in variables["params"]["conv0"]) == ("norm" in fields)
    agree(module, variables, x, lambda part, x: getattr(part, kind)(x, strides))


def test_cifar_network(random_variables):
    module, x = ResNet(depth=8, width=3), normal(2, 1, 9, 8, 2)
    variables = random_variables(module, x, train=False)

    def reference(part, x):
        stem = part.at("stem")
        x = relu(stem.norm(stem.conv(x, "conv"), "norm"))
        return part.stages(x, "basic", (1, 1, 1)).mean((1, 2))

    agree(module, variables, x, reference)


@pytest.mark.slow
def test_imagenet_network(random_variables):
    module, x = ResNet(depth=50, width=1), normal(1, 1, 32, 32, 2)
    variables = random_variables(module, x, train=False)

    def reference(part, x):
        stem = part.at("stem")
        x = relu(stem.norm(stem.conv(x, "conv", 2, ((3, 3), (3, 3))), "norm"))
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
        return part.stages(x, "bottleneck", (3, 4, 6, 3)).mean((1, 2))

    agree(module, variables, x, reference)


def test_wide_network(random_variables):
    module, x = WideResNet(depth=16, width_multiplier=1), normal(2, 1, 8, 8, 3)
    variables = random_variables(module, x, train=False)

    def reference(part, x):
        x = part.stages(part.conv(x, "stem"), "pre_activation", (2, 2, 2))
        return relu(part.norm(x, "norm")).mean((1, 2))

    agree(module, variables, x, reference)


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [ResNet(depth=8), WideResNet(depth=10, width_multiplier=1)],
    ids=["ResNet", "WideResNet"],
)
def test_convolutions_start_he_normal(module, initial_params):
    kernel = initial_params(module, (1, 1, 8, 8, 3))["stage3"]["block0"]["conv1"]["kernel"]
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / np.prod(kernel.shape[:-1])), rtol=0.03)


def dropouts(module, x) -> list[tuple]:
    """(path, shape of the mask) of each dropout that training passes."""
    found = []

    class Spy(Dropout):
        def __call__(self, x, *, train):
            dims = {d % x.ndim for d in self.broadcast_dims}
            shape = tuple(1 if i in dims else n for i, n in enumerate(x.shape))
            found.append(("/".join(self.path), shape))
            return x

    module = module.clone(dropout=functools.partial(Spy, rate=0.1))
    jax.eval_shape(functools.partial(module.init, train=True), jax.random.key(0), x)
    return found


def test_dropout_of_a_wide_network_is_between_convolutions_or_around_all():
    fields = dict(depth=10, width_multiplier=1)
    x = normal(1, 2, 8, 8, 3)
    inside = dropouts(WideResNet(**fields), x)
    assert inside == [
        ("stage1/block0/dropout", (1, 2, 8, 8, 16)),
        ("stage2/block0/dropout", (1, 2, 4, 4, 32)),
        ("stage3/block0/dropout", (1, 2, 2, 2, 64)),
    ]
    around = dropouts(WideResNet(**fields, residual_dropout=False, filterwise_dropout=True), x)
    assert around == [
        ("dropout", (1, 2, 1, 1, 16)),
        ("stage1/block0/dropout0", (1, 2, 1, 1, 16)),
        ("stage1/block0/dropout1", (1, 2, 1, 1, 16)),
        ("stage1/block0/dropout2", (1, 2, 1, 1, 16)),
        ("stage2/block0/dropout0", (1, 2, 1, 1, 16)),
        ("stage2/block0/dropout1", (1, 2, 1, 1, 32)),
        ("stage2/block0/dropout2", (1, 2, 1, 1, 32)),
        ("stage2/block0/shortcut_dropout", (1, 2, 1, 1, 32)),
        ("stage3/block0/dropout0", (1, 2, 1, 1, 32)),
        ("stage3/block0/dropout1", (1, 2, 1, 1, 64)),
        ("stage3/block0/dropout2", (1, 2, 1, 1, 64)),
        ("stage3/block0/shortcut_dropout", (1, 2, 1, 1, 64)),
    ]


def test_dropout_of_a_residual_network_follows_inner_activations_and_projections():
    found = [path for path, _ in dropouts(ResNet(depth=8, width=3), normal(1, 1, 8, 8, 3))]
    assert found == [
        "stem/dropout",
        "stage1/block0/dropout0",
        "stage2/block0/dropout0",
        "stage2/block0/shortcut_dropout",
        "stage3/block0/dropout0",
        "stage3/block0/shortcut_dropout",
    ]


@pytest.mark.slow
def test_remat_changes_neither_values_nor_gradients_nor_statistics(random_variables):
    x = normal(1, 2, 8, 8, 3)
    dropout = functools.partial(Dropout, rate=0.5)
    plain, remat = (
        ResNet(depth=8, width=4, dropout=dropout, remat=remat) for remat in (False, True)
    )
    variables = random_variables(plain, x, train=False)

    def step(params, module):
        rest = {name: tree for name, tree in variables.items() if name != "params"}
        out, changed = module.apply(
            {"params": params, **rest}, x, train=True,
            mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)},
        )  # fmt: skip
        return (out**2).sum(), changed

    results = [
        jax.jit(jax.value_and_grad(functools.partial(step, module=m), has_aux=True))(
            variables["params"]
        )
        for m in (plain, remat)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)
    program = jax.make_jaxpr(lambda p: step(p, remat)[0])(variables["params"])
    assert str(program).count("remat") >= 3  # blocks
