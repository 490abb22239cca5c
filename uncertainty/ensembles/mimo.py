"""MIMO: one network with M inputs and M heads, trained on M examples at once (Havasi et al. 2021).

training     u_m(x_1, ..., x_M) learns the label of x_m, for M independent examples
prediction   u_m(x, ..., x)
"""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp

from uncertainty.ensembles.multi_head import heads
from uncertainty.types import Backbone, Head, Latent, Network


class Mimo(Network):
    """x [B, ..., C] -> Latent [M, B, K], or [M batch_repetitions, B, K] in training; see `mimo`.

    In training each input sees the batch in its own order, which is undone on the output of its
    head, so that latents are in the order of the labels.
    """

    size: int
    input_repetition: float
    batch_repetitions: int

    @property
    def mixes_examples(self) -> bool:
        """True: features are of M examples."""
        return True

    def __call__(self, x: jax.Array, *, train: bool) -> Latent:
        if x.ndim < 2:
            raise ValueError(f"x: shape {x.shape}; mimo joins its inputs on an axis after B")
        M, R, B = self.size, self.batch_repetitions if train else 1, x.shape[0]
        if train:
            key = self.make_rng("noise")
            order = orders(key, M, R * B, self.input_repetition)  # [M, R B]
            x = x[order % B]
        else:
            x = jnp.broadcast_to(x, (M, *x.shape))
        x = jnp.moveaxis(x, 0, -2)  # [R B, ..., M, C]
        phi = self.backbone(x.reshape(1, *x.shape[:-2], -1), train=train)
        latent = heads(self.head, phi, M, "mimo", train=train)
        if not train:
            return latent
        back = jnp.argsort(order, axis=1)

        def align(a: jax.Array) -> jax.Array:  # [M, R B, ...] -> [M R, B, ...]
            a = jax.vmap(lambda rows, at: rows[at])(a, back)
            return a.reshape(M * R, B, *a.shape[2:])

        projection = latent.projection  # of no example
        aligned = jax.tree.map(align, latent.replace(projection=None))
        if projection is not None:
            projection = jnp.repeat(projection, R, axis=0)
        return aligned.replace(projection=projection)


def mimo(
    backbone: Backbone,
    head: Head,
    size: int,
    input_repetition: float = 0.0,
    batch_repetitions: int = 1,
) -> Network:
    """A network with `size` inputs, joined on their last axis (channels), and as many heads.

    Only the first layer and the head grow. Training uses the mean of the heads' losses, each on
    different examples; at prediction all inputs get the same example. Orders come from the rng
    stream 'noise'.

    Differences from the paper: the mean over heads, not their sum; heads are initialised
    independently like single heads, not as columns of one wide layer; `batch_repetitions` does not
    change an example's weight in the mean. A batch that is sharded over devices is permuted as a
    whole, so inputs move between devices.

    Args:
      size: M.
      input_repetition: rho, the share of each batch for which all inputs see the same example (of
        R B examples the last R B - floor((1 - rho) R B)).
      batch_repetitions: R, how often a step repeats each example, in different orders.

    Raises:
      ValueError: a size or repetitions below 1, or a share outside [0, 1]; when traced, a head
        without parameters, or a backbone that makes members.
    """
    if size < 1:
        raise ValueError(f"size: {size} members; at least 1")
    if not 0 <= input_repetition <= 1:
        raise ValueError(f"input_repetition: {input_repetition}; a share, from 0 to 1")
    if batch_repetitions < 1:
        raise ValueError(f"batch_repetitions: {batch_repetitions}; at least 1")
    return Mimo(backbone, head, size, input_repetition, batch_repetitions)


def orders(key: jax.Array, size: int, rows: int, repetition: float) -> jax.Array:
    """Permutations [size, rows] that agree on the share `repetition` of their positions."""
    common, *keys = jax.random.split(key, size + 1)
    main = jax.random.permutation(common, rows)
    # Exact arithmetic on the decimal share: (1 - 0.9) 10 is below 1 in floating point.
    own = math.floor((1 - Fraction(str(repetition))) * rows)
    return jnp.stack([main.at[:own].set(jax.random.permutation(k, main[:own])) for k in keys])
