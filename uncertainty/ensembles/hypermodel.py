"""Linear hypermodel: members are index samples of all parameters (Dwaracherla et al. 2020).

u(x, z) = f(x; theta_0 + sum_d z_d theta_d) + scale sum_d z_d p_d(x),    z ~ N(0, I / Z)
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uncertainty.ensembles.multi_head import check_alone
from uncertainty.ensembles.single import Single
from uncertainty.layers.fixed import Fixed, RandomFunction, like
from uncertainty.types import Backbone, Head, Latent, Network


class Hypermodel(Network):
    """x [B, ...] -> Latent [size, B, K], or [training_size, B, K] in training; see `hypermodel`.

    Every parameter of backbone and head leads with 1 + Z: theta_0, theta_1, ..., theta_Z.
    """

    size: int
    training_size: int
    index: int
    prior_scale: float
    prior: Callable[..., Backbone]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> Latent:
        M, Z = self.training_size if train else self.size, self.index
        z = jax.random.normal(self.make_rng("noise"), (M, Z)) / math.sqrt(Z)
        if self.is_initializing():
            _check_parameters_alone(self, x)
            latent = _of_each(self, x, 1 + Z, train)
            latent = jax.tree.map(lambda a: jnp.broadcast_to(a[:1], (M, *a.shape[1:])), latent)
        else:
            weights = jnp.concatenate([jnp.ones((M, 1)), z], axis=1)

            def parameters(stored: Any) -> Any:
                return jax.tree.map(lambda a: jnp.tensordot(weights, a, axes=1), stored)

            run = nn.map_variables(
                lambda module, x: _of_each(module, x, M, train), "params", parameters
            )
            latent = run(self, x)
        if not self.prior_scale:
            return latent
        functions = functools.partial(RandomFunction, self.prior, latent.mean.shape[-1])
        p = Fixed(functions, copies=Z, name="additive")(x)
        deviation = self.prior_scale * jnp.einsum("mz,zbk->mbk", z, p)
        return latent.replace(mean=latent.mean + deviation)


def _of_each(module: Hypermodel, x: jax.Array, size: int, train: bool) -> Latent:
    """The latents [size, B, K] of parameters that lead with `size`."""

    def member(module: Hypermodel, x: jax.Array) -> Latent:
        phi = module.backbone(x[None], train=train)
        check_alone(phi, module.size, "hypermodel")
        return module.head(phi, train=train)

    mapped = nn.vmap(
        member,
        in_axes=None,
        axis_size=size,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={nn.DenyList(()): True},
    )
    return jax.tree.map(lambda a: a[:, 0], mapped(module, x))


def _check_parameters_alone(module: Hypermodel, x: jax.Array) -> None:
    """Raises ValueError if backbone or head have other variables than parameters."""
    backbone = module.backbone.clone(parent=None, name=None)
    plain = Single(backbone, module.head.clone(parent=None, name=None), parent=None)
    rngs = {name: jax.random.key(0) for name in ("params", "dropout", "noise")}
    made = jax.eval_shape(functools.partial(plain.init, train=False), rngs, x)
    if others := sorted(set(made) - {"params", "losses"}):
        raise ValueError(
            "ensemble: the parameters of a hypermodel are a function of its index, but "
            f"{', '.join(others)} of backbone or head belong to one set of them; use layers "
            "without them (norms of layers, not of batches)"
        )


def hypermodel(
    backbone: Backbone,
    head: Head,
    size: int,
    training_size: int = 16,
    index: int = 6,
    prior_scale: float = 0.0,
    prior: Callable[..., Backbone] | None = None,
) -> Network:
    """`size` index samples, each a network whose parameters are an affine function of its index z.

    Training uses the mean of the losses of `training_size` indices, drawn anew at each step. At
    prediction indices are drawn from the particle's key, so that a member is one function. Each
    member is a forward pass of its own (`epinet` shares the base). theta_0, ..., theta_Z are each
    initialised as a network is, at their paths and with a leading axis 1 + Z, so that initial
    members vary as networks do.

    The Neural Testbed's settings are `index=6`, `training_size=16` and a `prior_scale` of
    1 / sqrt(temperature).

    Args:
      backbone: without members, batch statistics or other state, as the head.
      size, training_size: M at prediction and in training.
      index: Z, the dimensions of z.
      prior_scale: of the additive prior, functions that are never trained; 0 for none.
      prior: factory of the backbones of p_1, ..., p_Z, each with an affine layer; None for ones
        like `backbone`.

    Raises:
      ValueError: a number below 1, a negative or infinite scale, or a head with a posterior; when
        traced, a backbone that makes members, or variables other than parameters.
    """
    for field, value in dict(size=size, training_size=training_size, index=index).items():
        if value < 1:
            raise ValueError(f"{field}: {value}; at least 1")
    if head.posterior is not None:
        raise ValueError(
            f"head: the posterior of {type(head).__name__} belongs to one set of parameters, but "
            "those of a hypermodel are a function of its index; use dense.Dense or another head "
            "without one"
        )
    if not 0 <= prior_scale < math.inf:
        raise ValueError(f"prior_scale: {prior_scale}; finite, at least 0")
    prior = like(backbone) if prior is None else prior
    return Hypermodel(backbone, head, size, training_size, index, prior_scale, prior)
