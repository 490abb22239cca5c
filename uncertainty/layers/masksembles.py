"""Masksembles: members are fixed masks of features (Durasov et al. 2021).

Between Monte Carlo dropout, with many random masks, and an ensemble, whose members share nothing:
`scale` sets how much the masks overlap.
"""

import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Masksembles(nn.Module):
    """Replaces dropout: x [M or 1, B, ..., D] times one of `size` masks of features.

    In training, example b of [1, B, ...] has the mask b mod M, and the leading axis stays 1. At
    prediction the first of these layers makes members, [M, B, ...], one for each mask. Nothing is
    rescaled. The masks [M, D] are in the collection 'masks'.

    Differences from the paper: examples are dealt to the masks in turn, not in M consecutive parts,
    so the batch need not be a multiple of M. Masks follow the paper's algorithm (`masks_of`); their
    features are permuted for each layer and particle.

    Attributes:
      size: M.
      scale: see `masks_of`.
      broadcast_dims: ignored, as these masks always drop whole filters.

    Raises:
      ValueError: a size or scale below 1, an earlier layer makes another number of members, or see
        `masks_of`.
    """

    size: int
    scale: float = 2.0
    broadcast_dims: Sequence[int] = ()

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size: {self.size} masks; at least 1")
        if not 1 <= self.scale < math.inf:
            raise ValueError(f"scale: {self.scale}; at least 1, where all masks are full")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        M, D = self.size, x.shape[-1]
        if x.shape[0] not in (1, M):
            raise ValueError(
                f"size: {M} masks, but an earlier part makes {x.shape[0]} members; "
                "only one part can make members"
            )

        def draw() -> jax.Array:
            columns = jnp.asarray(masks_of(D, M, self.scale), jnp.float32)
            return jax.random.permutation(self.make_rng("params"), columns, axis=1)

        masks = self.variable("masks", "mask", draw).value.astype(x.dtype)
        if train and x.shape[0] == 1:
            masks = masks[jnp.arange(x.shape[1]) % M]  # [B, D]
            return x * masks.reshape(1, -1, *[1] * (x.ndim - 3), D)
        return x * masks.reshape(M, *[1] * (x.ndim - 2), D)


@functools.cache
def masks_of(features: int, size: int, scale: float) -> np.ndarray:
    """Masks [size, features] of 0 and 1 with equally many ones each; every feature is in a mask.

    The algorithm of the paper (section 3.2): `size` random sets of A out of N positions each;
    positions in no set are left out, and sets are drawn again until `features` positions remain,
    with

        A = floor(features / (scale (1 - (1 - 1 / scale)^size)))

    ones in each mask. Two masks then share about A / scale features: with scale 1 all masks are
    full, with a large scale they share nothing. N is such that `features` positions remain on
    average, close to A scale.

    Differences from the published code: N is computed directly, not by raising and lowering the
    scale in steps, so fewer than 10 features and scales above 6 work too.

    Raises:
      ValueError: a number below 1.
    """
    if min(features, size, scale) < 1:
        raise ValueError(f"features, size, scale: {features}, {size}, {scale}; at least 1 each")
    exact = Fraction(str(scale))  # exact in decimal: a floor of a float may be one too low
    ones = math.floor(features / (exact * (1 - (1 - 1 / exact) ** size)))
    ones = min(max(ones, -(-features // size)), features)  # or some feature would be in no mask
    # Larger N would be for sets that hardly overlap.
    most = min(math.floor(ones * exact), 100 * features * size)
    places = np.arange(features, max(features * size, most) + 1)
    remaining = places * (1 - (1 - ones / np.maximum(places, ones)) ** size)
    number = places[np.abs(remaining - features).argmin()]
    random = np.random.default_rng(0)
    while True:
        masks = np.zeros((size, number), np.uint8)
        for mask in masks:
            mask[random.choice(number, ones, replace=False)] = 1
        masks = masks[:, masks.any(0)]
        if masks.shape[1] == features:
            return masks
