"""A fixed random function beside the network: with particles, an ensemble with randomised priors.

u(x) = f(x) + scale p(x)

Source: Osband et al. 2018, "Randomized prior functions for deep reinforcement learning".
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax

from uncertainty.layers.fixed import Fixed, RandomFunction, like
from uncertainty.types import Backbone, Head, Latent, Network


class RandomisedPrior(Network):
    """x [B, ...] -> Latent [M, B, K], M of the backbone's layers; see `randomised_prior`."""

    scale: float
    prior: Callable[..., Backbone]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> Latent:
        latent = self.head(self.backbone(x[None], train=train), train=train)
        if not self.scale:
            return latent
        function = functools.partial(RandomFunction, self.prior, latent.mean.shape[-1])
        return latent.replace(mean=latent.mean + self.scale * Fixed(function, name="prior")(x))


def randomised_prior(
    backbone: Backbone,
    head: Head,
    scale: float,
    prior: Callable[..., Backbone] | None = None,
) -> Network:
    """`backbone` and `head`, to whose mean a random function that is never trained is added.

    Every particle has its own p, so P of them are an ensemble whose members differ far from the
    data as much as p does: the Neural Testbed's "ensemble+", with `inference.size=100`. With
    `data.particles="bootstrap"` it is that of Osband et al.; with noise added to the targets of
    regression, P draws of a Bayesian linear model's posterior. p is in the collection 'prior',
    where no optimiser, prior or kernel sees it.

    The testbed's settings are a `scale` of 3 / sqrt(temperature), an L2 of sqrt(temperature) d / N
    times |theta|^2, of which `optimiser.l2` is twice the factor, and P = 100.

    Args:
      backbone: its layers may make members, which then share p.
      scale: of p; 0 for none.
      prior: factory of the backbone of p, which is followed by an affine layer; None for one like
        `backbone`, with parameters of its own.

    Raises:
      ValueError: a negative or infinite scale; when traced, a prior that makes members.
    """
    if not 0 <= scale < math.inf:
        raise ValueError(f"scale: {scale}; finite, at least 0")
    return RandomisedPrior(backbone, head, scale, like(backbone) if prior is None else prior)
