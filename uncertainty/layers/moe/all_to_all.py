"""Sends tokens to the devices of their experts, and back, by one all-to-all each.

When tracing under a mesh (`jax.set_mesh`, `jax.shard_map`) with several devices along an axis
'expert', each device routes its share of the groups, and computes its share of the experts for all
groups. Groups do not move along an axis 'data'. Groups are set by the config, not by the devices,
so outputs equal those of one device.
"""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from uncertainty.layers.moe.dispatch import combine, dispatch
from uncertainty.layers.moe.routing import Mixture, Routes

AXES = ("data", "expert")  # in the order in which groups are split


def to_experts(
    x: jax.Array, routes: Routes | Mixture, members: int, method: str, axes: tuple[str, ...]
) -> jax.Array:
    """x [1 or M, G, S, D] -> inputs of all experts, [E, N, G C, D].

    N is the number of members that share an expert, 1 if members have their own experts.
    """

    def there(x: jax.Array, routes: Routes | Mixture) -> jax.Array:
        slots = dispatch(x, routes, method)
        L, e, G, C, D = slots.shape
        slots = slots.reshape(members, L // members, e, G * C, D)
        slots = slots.swapaxes(1, 2).reshape(members * e, L // members, G * C, D)
        if "expert" in axes:
            slots = jax.lax.all_to_all(slots, "expert", split_axis=0, concat_axis=2, tiled=True)
        return slots

    return _over(there, axes, True)(x, routes)


def from_experts(
    y: jax.Array,
    routes: Routes | Mixture,
    members: int,
    method: str,
    axes: tuple[str, ...],
    tokens: int,
) -> jax.Array:
    """[E, N, G C, D] -> [M, G, S, D], `tokens` being S."""

    def back(y: jax.Array, routes: Routes | Mixture) -> jax.Array:
        if "expert" in axes:
            y = jax.lax.all_to_all(y, "expert", split_axis=2, concat_axis=0, tiled=True)
        E, N, _, D = y.shape
        G = jax.tree.leaves(routes)[0].shape[1]
        y = y.reshape(members, E // members, N, -1, D).swapaxes(1, 2)
        y = y.reshape(members * N, E // members, G, -1, D)
        return combine(y, routes, tokens, method)

    return _over(back, axes, False)(y, routes)


def axes_of(groups: int, experts: int, train: bool) -> tuple[str, ...]:
    """The AXES of the current mesh that have several devices and divide the groups.

    For groups that they do not divide, such as those of a last batch, XLA gathers what it needs.

    Raises:
      ValueError: 'expert' does not divide experts or, in training, groups.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    data, expert = (sizes.get(axis, 1) for axis in AXES)
    if experts % expert:
        raise ValueError(
            f"num_experts: {experts}, which the {expert} devices of mesh axis 'expert' do not "
            "divide"
        )
    if groups % expert and not train:
        expert = 1
    if groups % (data * expert):
        data = 1
    if groups % expert:
        raise ValueError(
            f"group_size: makes {groups} groups, which the {expert} devices of mesh axis 'expert' "
            "do not divide"
        )
    return tuple(axis for axis, size in zip(AXES, (data, expert), strict=True) if size > 1)


def _over(fn: Callable, axes: tuple[str, ...], inward: bool) -> Callable:
    """fn(groups, routes) -> slots if `inward`, else fn(slots, routes) -> groups, on each device."""
    if not axes:
        return fn
    groups = PartitionSpec(None, axes)
    slots = PartitionSpec(*(axis if axis in axes else None for axis in ("expert", None, "data")))
    return jax.shard_map(
        fn,
        in_specs=(groups if inward else slots, groups),
        out_specs=slots if inward else groups,
        axis_names=set(axes),
        check_vma=False,
    )
