"""Networks with random parameters that are never trained: fixed priors over functions."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uncertainty.types import Backbone


class Fixed(nn.Module):
    """make()(*args) with parameters as initialised; with `copies` S of them, [S, ...].

    All variables are in the collection 'prior', so optimisers, priors and kernels do not see them,
    and every particle draws its own.

    Attributes:
      make: () -> module, called with `parent=None`.
      copies: S independent ones; None for one, without the leading axis.
    """

    make: Callable[..., nn.Module]
    copies: int | None = None

    @nn.compact
    def __call__(self, *args: jax.Array) -> Any:
        module = self.make(parent=None)

        def draw() -> Any:
            key = self.make_rng("params")
            if self.copies is None:
                return module.init(key, *args)
            keys = jax.random.split(key, self.copies)
            return jax.vmap(lambda key: module.init(key, *args))(keys)

        variables = self.variable("prior", "variables", draw).value
        if self.copies is None:
            return module.apply(variables, *args)
        return jax.vmap(lambda one: module.apply(one, *args))(variables)


class RandomFunction(nn.Module):
    """An affine map of a backbone's features at prediction: x [B, ...] -> [B, K].

    Attributes:
      backbone: () -> backbone, called with `parent=None`.
      outputs: K.

    Raises:
      ValueError: a backbone that makes members, when called.
    """

    backbone: Callable[..., Backbone]
    outputs: int

    def setup(self):
        self.body = self.backbone(parent=None)
        self.logits = nn.Dense(self.outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        phi = self.body(x[None], train=False)
        if phi.shape[0] != 1:
            raise ValueError(
                f"prior: its backbone makes {phi.shape[0]} members, but one function is needed"
            )
        return self.logits(phi[0].astype(jnp.float32))


def like(backbone: Backbone) -> Callable[..., Backbone]:
    """A factory of backbones with the fields of this one."""
    return functools.partial(_copy, backbone)


def _copy(backbone: Backbone, parent: None) -> Backbone:
    return backbone.clone(parent=parent, name=None)
