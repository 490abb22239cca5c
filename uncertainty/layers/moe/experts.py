"""A sparse mixture of experts in place of a transformer block's feed-forward layer."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from uncertainty.layers.dropout import Dropout
from uncertainty.layers.feed_forward import FeedForward
from uncertainty.layers.moe import all_to_all
from uncertainty.layers.moe.dispatch import METHODS
from uncertainty.layers.moe.mask import current
from uncertainty.layers.moe.routers import TopK
from uncertainty.layers.moe.routing import per_example

# Parameters of experts, [P, E, ...], are sharded over the mesh axis 'expert'.
SHARDING = (("/experts/", ("expert",)),)


class MoE(nn.Module):
    """sum_e g_e(x) FFN_e(x) over the experts that x is routed to; tokens [M or 1, B, T, D].

    Source: Riquelme et al. 2021, "Scaling vision with sparse mixture of experts" (V-MoE). A token
    that no expert has room for becomes 0, so that a residual block passes it through.

    With members (E3: Allingham et al. 2022, "Sparse MoEs meet efficient ensembles"), member m has
    its own router and the experts m E / M, ..., (m + 1) E / M - 1; tokens with the leading axis 1
    become [M, B, T, D] here, so that layers before the first such layer are computed once.
    Parameters are those of a V-MoE with E experts, except for the shape of the router's kernel, [D,
    M, E / M] instead of [D, 1, E]. `members=1` is V-MoE, applied to each of the members that x may
    have already.

    Two ablations of E3 separate the sources of its gain. Without `partition` the M routers choose
    among all E experts, and members differ in their routers alone ("only tiling"). Without `tile`
    no members are made: the outputs of the M blocks, each with its router, are summed ("only
    partitioning").

    Padding (`uncertainty/layers/moe/mask.py`) takes no slots and becomes 0.

    Differences from the papers: capacities are those of groups of one member's tokens, which are
    equal to the papers'; experts start from different weights if `split_rngs`.

    If the collection `routes` is mutable, its `per_example` [M, B, E / M] (without `partition` [M,
    B, E]) has the share of an example's tokens that each expert processes.

    Attributes:
      num_experts: E, the total over all members.
      feed_forward: factory of an expert; its variables are stacked, with a leading E.
      router: factory; see `layers/moe/routers.py`.
      members: M, which divides E.
      dispatch: 'auto', 'sort' or 'einsum'; see `layers/moe/dispatch.py`.
      dropout: rate within experts, instead of that of `feed_forward`.
      split_rngs: whether experts start from different weights. In the papers they start equal, so
        that experts, and members, differ in their routers alone.
      partition: whether each member has its own experts.
      tile: whether the outputs of members stay separate.

    Raises:
      ValueError: experts or members below 1, members that do not divide the experts or that x has
        already, neither `partition` nor `tile`, an unknown dispatch, or a mesh axis 'expert'
        (`layers/moe/all_to_all.py`) that does not divide experts; in training, groups that do not
        divide the batch or an axis that does not divide groups.
    """

    num_experts: int
    feed_forward: Callable[..., nn.Module] = FeedForward
    router: Callable[..., nn.Module] = TopK
    members: int = 1
    dispatch: str = "auto"
    dropout: float | None = None
    split_rngs: bool = False
    partition: bool = True
    tile: bool = True

    def __post_init__(self):
        for field in ("num_experts", "members"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: {getattr(self, field)}; at least 1")
        if self.num_experts % self.members:
            raise ValueError(
                f"num_experts: {self.num_experts} is not divisible by {self.members} members"
            )
        if not (self.partition or self.tile):
            raise ValueError("partition, tile: False, False; at least one is needed for members")
        if self.dispatch not in METHODS:
            allowed = ", ".join(map(repr, METHODS))
            raise ValueError(f"dispatch: {self.dispatch!r}; allowed {allowed}")
        super().__post_init__()

    @property
    def shares_slots(self) -> bool:
        """Whether tokens of several examples compete for slots; routers then count them."""
        return self._router(parent=None).shares_slots

    @nn.nowrap
    def _router(self, **fields: Any) -> Any:
        own = self.num_experts // (self.members if self.partition else 1)
        return self.router(num_experts=own, members=self.members, **fields)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        A, B, T, D = x.shape
        M, E = self.members, self.num_experts
        blocks = M if self.partition else 1
        if (M > 1 and A not in (1, M)) or (A > 1 and not self.tile):
            raise ValueError(
                f"members: {M} of the experts, but an earlier part makes {A}; only one part can "
                "make members"
            )
        router = self._router(name="router")
        size = min(router.group_size or B, B)
        if B % size:
            if train:
                raise ValueError(f"group_size: {size} does not divide a batch of {B}")
            size = next(n for n in range(size, 0, -1) if B % n == 0)
        x = x.reshape(A, B // size, size * T, D)  # groups [1 or M, G, S, D]
        axes = () if self.is_initializing() else all_to_all.axes_of(B // size, E, train)
        mask = current(B)
        real = None if mask is None else mask.reshape(B // size, size)
        routes = router(x, train=train, real=real)
        if self.is_mutable_collection("routes") and not self.is_initializing():
            each = jax.vmap(jax.vmap(lambda r: per_example(r, size, T)))(routes)
            each = each.reshape(each.shape[0], B, -1)
            self.sow(
                "routes", "per_example", each, init_fn=lambda: None, reduce_fn=lambda _, new: new
            )
        own = all_to_all.to_experts(x, routes, blocks, self.dispatch, axes)  # [E, N, G C, D]
        y = self._work(own, train)
        y = all_to_all.from_experts(y, routes, blocks, self.dispatch, axes, size * T)
        y = y.reshape(-1, B, T, D)
        return y if self.tile else y.sum(0, keepdims=True)

    def _work(self, x: jax.Array, train: bool) -> jax.Array:
        """Each expert on its own tokens."""
        factory = self.feed_forward
        if self.dropout is not None:
            factory = functools.partial(
                factory, dropout=functools.partial(Dropout, rate=self.dropout)
            )
        experts = nn.vmap(
            lambda expert, x: expert(x, train=train),
            variable_axes={nn.DenyList(()): 0},
            split_rngs={"params": self.split_rngs, nn.DenyList("params"): True},
        )
        y = experts(factory(name="experts"), x)
        # Losses of the experts themselves, such as a KL of their weights, are summed.
        if self.is_mutable_collection("losses") and self.has_variable("losses", "experts"):
            own: Any = self.get_variable("losses", "experts")
            own = jax.tree.map(lambda a: a.sum(0), own)
            self.put_variable("losses", "experts", own)
        if y.shape != x.shape:
            raise ValueError(
                "members: the experts themselves make members; only one part can make members"
            )
        return y
