"""Every backbone at a size that runs in milliseconds, each of its programs compiled once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uncertainty.backbones.lenet import LeNet5
from uncertainty.backbones.mlp import MLP
from uncertainty.backbones.resnet import ResNet
from uncertainty.backbones.vit import ViT
from uncertainty.backbones.wide_resnet import WideResNet

TINY = {  # name: (constructor, shape of an input without M and B)
    "mlp": (functools.partial(MLP, widths=(7, 5)), (3, 2)),
    "lenet_same": (functools.partial(LeNet5, padding="SAME"), (7, 6, 1)),
    "resnet": (functools.partial(ResNet, depth=8, width=3), (8, 8, 2)),
    "resnet_no_norm": (functools.partial(ResNet, depth=8, width=3, norm=None), (8, 8, 2)),
    "wide_resnet": (functools.partial(WideResNet, depth=10, width_multiplier=1), (8, 8, 2)),
    "vit_token": (functools.partial(ViT, "tiny", width=8, mlp_dim=12, depth=1), (8, 12, 2)),
    "vit_gap": (
        functools.partial(ViT, "tiny", width=8, mlp_dim=12, depth=1, pooling="gap"),
        (8, 8, 2),
    ),
}
OF_ANOTHER_CLASS = ("mlp", "lenet_same", "resnet", "wide_resnet", "vit_token")


def draw_variables(module, x, **options):
    """Variables of `module` for an input like x: no zeros or ones that would hide a mistake."""
    rng = np.random.default_rng(0)

    def draw(path, a):
        if path[-1].key == "kernel":  # keeps the scale of what passes through
            return rng.normal(0, np.prod(a.shape[:-1]) ** -0.5, a.shape)
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.7, 1.3, a.shape)
        return rng.normal(0, 0.3, a.shape)

    shapes = jax.eval_shape(functools.partial(module.init, **options), jax.random.key(0), x)
    drawn = jax.tree_util.tree_map_with_path(draw, shapes)
    return jax.tree.map(lambda a: jnp.asarray(a.astype("float32")), drawn)


def draw_model(model, x):
    """Parameters and collections of a `types.Model`; only the collections are computed as it does.

    Most of the time that initialisation takes goes into compiling its draws.
    """
    key = jax.random.key(0, impl="unsafe_rbg")  # sooner compiled
    shapes, _ = jax.eval_shape(model.init, key, x)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: rng.normal(0, 0.3, a.shape).astype("float32"), shapes)
    return params, jax.jit(lambda x: model.init(key, x)[1])(x)


class Tiny:
    def __init__(self, name: str):
        self.make, self.shape = TINY[name]
        self.module = self.make()
        self.variables = draw_variables(self.module, self.x(), train=False)
        self.predict = jax.jit(functools.partial(self.module.apply, train=False))

    def x(self, members: int = 1, batch: int = 3) -> jax.Array:
        rng = np.random.default_rng(members)
        return jnp.asarray(rng.normal(size=(members, batch, *self.shape)), "float32")


made = functools.cache(Tiny)


@pytest.fixture(params=TINY)
def tiny(request) -> Tiny:
    return made(request.param)


@pytest.fixture(params=OF_ANOTHER_CLASS)
def one_of_each(request) -> Tiny:
    """Backbones whose layers are made in different code."""
    return made(request.param)


@pytest.fixture(scope="session")
def random_variables():
    return draw_variables


@pytest.fixture(scope="session")
def initial_params():
    """Parameters as a backbone draws them, by a generator that compiles fast."""

    def draw(module, shape):
        init = jax.jit(functools.partial(module.init, train=False))
        return init(jax.random.key(0, impl="unsafe_rbg"), jnp.ones(shape))["params"]

    return draw
