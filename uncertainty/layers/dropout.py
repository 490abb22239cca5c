"""Dropout, and Monte Carlo dropout where the masks at prediction are the members."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp


class Dropout(nn.Module):
    """Sets entries of x [M or 1, B, ...] to zero with probability `rate`, scales the others up.

    With `members=None` it acts in training only. With `members=S` it is Monte Carlo dropout (Gal &
    Ghahramani 2016): it also acts in prediction, where an input with leading axis 1 first becomes
    [S, B, ...], so that each member draws its own masks and layers before the first dropout are
    computed once. In training the leading axis does not change. Masks come from the rng stream
    'dropout'; initialisation draws none.

    Differences from the paper: masks differ between the examples of a batch, unless `shared`.

    Attributes:
      rate: probability of a zero, 0 <= rate < 1.
      members: S, or None for ordinary dropout.
      broadcast_dims: axes along which a mask is constant; (-3, -2) drops whole filters of
        [M, B, H, W, C].
      shared: whether at prediction a member's mask is the same for all examples, so that a member
        is one function of x.

    Raises:
      ValueError: `rate` outside [0, 1), `members` below 1, or an earlier layer makes another number
        of members.
    """

    rate: float
    members: int | None = None
    broadcast_dims: Sequence[int] = ()
    shared: bool = False

    def __post_init__(self):
        if not 0 <= self.rate < 1:
            raise ValueError(f"rate: {self.rate}; allowed 0 <= rate < 1")
        if self.members is not None and self.members < 1:
            raise ValueError(f"members: {self.members}; allowed None, or at least 1")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.members is not None:
            if x.shape[0] not in (1, self.members):
                raise ValueError(
                    f"members: {self.members} of dropout, but an earlier part makes {x.shape[0]}; "
                    "only one part can make members"
                )
            if not train:
                x = jnp.broadcast_to(x, (self.members, *x.shape[1:]))
        acts = (train or self.members is not None) and not self.is_initializing()
        constant = tuple(self.broadcast_dims)
        if self.shared and not train:
            constant = (1, *constant)
        mask = nn.Dropout(self.rate, constant, name="mask")
        return mask(x, deterministic=not acts)
