"""Routers: layers that decide which tokens go to which experts. See `layers/moe/routing.py`.

A router has one kernel [D, M, E / M] without bias: member m scores its own block of experts alone.
It is called with groups x [1 or M, G, S, D] and, at prediction, with `real` [G, N], bool: which of
a group's N examples are not padding; None for all. Tokens of padding take no slots, and the
capacity is that of a group of the real examples alone.

It counts in the collection 'routing', for each member as a mean over groups: `load` [M, E / M], the
share of tokens that each expert processes, and `dropped` [M]. They are those of the last training
step, or of any call in which 'routing' is mutable. If 'routes' is mutable, its `dropped` [M or 1,
G, S] is that of each token.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uncertainty.layers.moe import routing
from uncertainty.layers.moe.routing import Mixture, Routes

KERNEL_INIT = nn.initializers.variance_scaling(
    1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=(1, 2)
)


class _Router(nn.Module, kw_only=True):
    """The fields of every router.

    Attributes:
      num_experts: E / M, of each member.
      members: M.
      group_size: examples whose tokens are routed together; None for the whole batch. In training
        it must divide a larger batch; at prediction, if it does not, the largest size that divides
        the batch is used. Groups are consecutive examples, so predictions for a set are equal for
        all batch sizes that are multiples of `group_size`, and for no others.
    """

    num_experts: int
    members: int = 1
    group_size: int | None = None

    shares_slots = True  # tokens of a group compete for slots, and `count` is called

    def __post_init__(self):
        for field in ("num_experts", "members", "group_size"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field}: {value}; at least 1")
        super().__post_init__()

    @nn.nowrap
    def scores(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """x [1 or M, G, S, D] and kernel [D, M, ...] -> [M, G, S, ...], or x's own 1 with M = 1."""
        if self.members == 1:
            return jnp.tensordot(x, kernel[:, 0], 1)
        if x.shape[0] == 1:
            return jnp.moveaxis(jnp.tensordot(x[0], kernel, 1), 2, 0)
        return jax.vmap(lambda x, w: jnp.tensordot(x, w, 1), (0, 1))(x, kernel)

    def count(self, routes: Routes, tokens: int, real: jax.Array | None) -> None:
        """Stores the counts of routes [M, G, ...], over the tokens real [G, S], or all for None."""
        lost = functools.partial(_of_groups, lambda r, real: routing.lost(r, tokens, real))
        if self.is_mutable_collection("routes") and not self.is_initializing():
            each = lost(routes, real)
            self.sow("routes", "dropped", each, init_fn=lambda: None, reduce_fn=lambda _, new: new)
        if not self.is_mutable_collection("routing"):
            return
        load = jax.vmap(jax.vmap(lambda r: routing.load(r, tokens)))(routes)
        for name, each in dict(load=load, dropped=lost(routes, real).mean(-1)).items():
            each = each.reshape(self.members, -1, *each.shape[2:]).mean(1)
            if real is not None:  # each group's share of its S tokens, some of which are padding
                each = each * (real.size / jnp.maximum(real.sum(), 1))
            stored = self.variable("routing", name, jnp.zeros_like, each)
            if not self.is_initializing():
                stored.value = each


class _Bounded(_Router, kw_only=True):
    """Attributes:
    capacity_factor: see `routing.capacity`; None for as many slots as tokens: none is dropped, and
      experts' arrays are E / k times as large. eval_capacity_factor: for prediction; the same by
      default.
    rounding, multiple_of: of the capacity.
    """

    capacity_factor: float | None = 1.0
    eval_capacity_factor: float | None = None
    rounding: str = "ceil"
    multiple_of: int = 1

    def __post_init__(self):
        for train in (True, False):
            self.capacity(1, 1, train)
        super().__post_init__()

    @nn.nowrap
    def capacity(self, tokens: int, k: int, train: bool) -> int:
        """C, the slots of each expert in a group, if tokens choose k experts on average."""
        factor = self.capacity_factor
        if not train and self.eval_capacity_factor is not None:
            factor = self.eval_capacity_factor
        if factor is None:
            return tokens
        return routing.capacity(
            tokens, k, self.num_experts, factor, self.rounding, self.multiple_of
        )

    def route(
        self,
        fn: Callable[..., Routes],
        gates: jax.Array,
        k: int,
        real: jax.Array | None,
        train: bool,
    ) -> Routes:
        """Routes and counts the groups of gates [M, G, S, E] by fn(gates, slots, real, room).

        If only some examples are real [G, N], `fn` gets their tokens [S], and the capacity of a
        group of those alone.
        """
        S = gates.shape[2]
        slots, room = self.capacity(S, k, train), None
        if real is not None:
            N = real.shape[1]
            alone = [self.capacity(n * (S // N), k, train) for n in range(N + 1)]
            room = jnp.asarray(alone)[real.sum(1)]
            real = jnp.repeat(real, S // N, axis=1)
        routes = _of_groups(lambda g, real, room: fn(g, slots, real, room), gates, real, room)
        self.count(routes, S, real)
        return routes


class TopK(_Bounded):
    """Each token goes to its k best experts, with noise in training (Riquelme et al. 2021).

    gates = softmax(W x + e), e ~ N(0, sigma^2) with sigma = noise_std / E in training; the k
    largest are kept as they are. With members, E is the number of a member's own experts.

    In training, losses in the collection 'losses' balance the experts, each a mean over groups:
    importance, of the gates without noise; load, which needs noise_std > 0; and GShard's, of the
    gates with noise, which are used for routing (as in the published code; Lepikhin et al. have no
    noise).

    Differences from the published code: capacities are computed exactly (`routing.capacity`), there
    in floating point, which may give one more multiple of slots.

    Attributes:
      k: experts of each token.
      noise_std: 0 for none.
      batch_priority: whether tokens with large gates get slots first, rather than earlier tokens.
      capacity_factor, eval_capacity_factor, rounding, multiple_of: see `_Bounded`.
      importance_loss, load_loss, gshard_loss: weights.

    Raises:
      ValueError: more choices than experts, a negative noise or weight, or see `routing.capacity`.
    """

    k: int = 1
    noise_std: float = 1.0
    batch_priority: bool = False
    capacity_factor: float | None = 1.05
    multiple_of: int = 4
    importance_loss: float = 0.005
    load_loss: float = 0.005
    gshard_loss: float = 0.0

    def __post_init__(self):
        if not 1 <= self.k <= self.num_experts:
            raise ValueError(f"k: {self.k}; allowed 1 to {self.num_experts} experts of a member")
        for field in ("noise_std", "importance_loss", "load_loss", "gshard_loss"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"{field}: {getattr(self, field)}; at least 0")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, real: jax.Array | None = None) -> Routes:
        E = self.num_experts
        kernel = self.param("kernel", KERNEL_INIT, (x.shape[3], self.members, E))
        logits = noisy = self.scores(x.astype(jnp.float32), kernel)  # [M, G, S, E]
        sigma = self.noise_std / E
        if train and sigma > 0 and not self.is_initializing():
            noisy += sigma * jax.random.normal(self.make_rng("noise"), logits.shape)
        if train:
            self._balance(logits, noisy, sigma)

        def fill(gates: jax.Array, slots: int, real: Any, room: Any) -> Routes:
            return routing.top_k(gates, self.k, slots, self.batch_priority, real, room)

        return self.route(fill, routing.softmax(noisy), self.k, real, train)

    def _balance(self, logits: jax.Array, noisy: jax.Array, sigma: float) -> None:
        gates = routing.softmax(logits)

        def sow(name: str, weight: float, fn: Any, *args: Any) -> None:
            if weight:
                each = jax.vmap(jax.vmap(fn))(*args)  # [M, G]
                self.sow("losses", name, weight * each.mean(1))

        sow("importance", self.importance_loss, routing.importance_loss, gates)
        sow("gshard", self.gshard_loss, routing.gshard_loss, routing.softmax(noisy))
        if sigma > 0:
            sow(
                "load",
                self.load_loss,
                lambda a, b: routing.load_loss(a, b, self.k, sigma),
                logits,
                noisy,
            )


class ExpertChoice(_Bounded):
    """Each expert chooses its best tokens of the group (Zhou et al. 2022).

    gates = softmax(W x) over experts; expert e takes the C tokens with the largest gates, C being
    S capacity_factor / E. Loads are equal, so no loss is needed; a token may be taken by none. The
    output of a token depends on the tokens that it is routed with.

    Attributes:
      capacity_factor: experts of a token, on average.
      eval_capacity_factor, rounding, multiple_of: see `_Bounded`.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, real: jax.Array | None = None) -> Routes:
        kernel = self.param("kernel", KERNEL_INIT, (x.shape[3], self.members, self.num_experts))
        gates = routing.softmax(self.scores(x.astype(jnp.float32), kernel))
        return self.route(routing.expert_choice, gates, 1, real, train)


class Soft(_Router):
    """Each slot holds a weighted mean of the tokens of an image (Puigcerver et al. 2024).

    Scores are scale * cosine of token and slot; slots take a softmax over tokens, tokens one over
    the slots of all experts. The kernel is [D, M, E / M, C].

    Differences from the paper: the group is always one example, so `group_size` is 1, and padding
    shares no slots with examples. From the published code: vectors are divided by sqrt(sum of
    squares + 1e-12), there + 1e-6, which matters only for vectors near zero.

    Attributes:
      slots: C, of each expert.
    """

    group_size: int | None = 1
    slots: int = 1

    shares_slots = False

    def __post_init__(self):
        if self.slots < 1:
            raise ValueError(f"slots: {self.slots}; at least 1")
        if self.group_size != 1:
            raise ValueError(f"group_size: {self.group_size}; allowed 1, tokens mix in an example")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, real: jax.Array | None = None) -> Mixture:
        shape = (x.shape[3], self.members, self.num_experts, self.slots)
        kernel = self.param("kernel", nn.initializers.normal(shape[0] ** -0.5), shape)
        scale = self.param("scale", nn.initializers.ones, (self.members,))
        kernel = kernel * scale[:, None, None] / _norm(kernel, 0)
        x = x.astype(jnp.float32)
        return jax.vmap(jax.vmap(routing.soft))(self.scores(x / _norm(x, -1), kernel))


def _of_groups(fn: Callable[..., Any], x: Any, *shared: jax.Array | None) -> Any:
    """fn(x, *shared) of each group, of x [M, G, ...] and what members share, [G, ...] or None."""
    return jax.vmap(jax.vmap(fn), (0, *[None] * len(shared)))(x, *shared)


def _norm(x: jax.Array, axis: int) -> jax.Array:
    return jnp.sqrt(jnp.sum(x**2, axis=axis, keepdims=True) + 1e-12)
