"""Tokens to the devices that hold their experts, and back, by one all-to-all each.

Where tracing is under a mesh (`jax.set_mesh`, `jax.shard_map`) with an axis AXIS of n > 1 devices,
each device routes its share of the groups, and works on its share of the experts for all groups.
Groups are set by the config, never by the devices, so outputs are those of one device.
"""

import functools
from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from uncertainty.layers.dispatch import combine, dispatch
from uncertainty.layers.routing import Mixture, Routes

AXIS = "expert"
_GROUPS, _EXPERTS = PartitionSpec(None, AXIS), PartitionSpec(AXIS)


def to_experts(
    x: jax.Array, routes: Routes | Mixture, members: int, method: str, devices: int
) -> jax.Array:
    """x [1 or M, G, S, D] -> what each of all experts works on, [E, N, G C, D].

    N, which is 1 where members have experts of their own, is the number of members that share an
    expert.
    """

    def there(x: jax.Array, routes: Routes | Mixture) -> jax.Array:
        slots = dispatch(x, routes, method)
        L, e, G, C, D = slots.shape
        slots = slots.reshape(members, L // members, e, G * C, D)
        slots = slots.swapaxes(1, 2).reshape(members * e, L // members, G * C, D)
        if devices > 1:
            slots = jax.lax.all_to_all(slots, AXIS, split_axis=0, concat_axis=2, tiled=True)
        return slots

    return _over(there, devices, (_GROUPS, _GROUPS), _EXPERTS)(x, routes)


def from_experts(
    y: jax.Array, routes: Routes | Mixture, members: int, method: str, devices: int, tokens: int
) -> jax.Array:
    """[E, N, G C, D] -> [M, G, S, D], `tokens` being S."""

    def back(y: jax.Array, routes: Routes | Mixture) -> jax.Array:
        if devices > 1:
            y = jax.lax.all_to_all(y, AXIS, split_axis=2, concat_axis=0, tiled=True)
        E, N, _, D = y.shape
        G = jax.tree.leaves(routes)[0].shape[1]
        y = y.reshape(members, E // members, N, -1, D).swapaxes(1, 2)
        y = y.reshape(members * N, E // members, G, -1, D)
        return combine(y, routes, tokens, method)

    return _over(back, devices, (_EXPERTS, _GROUPS), _GROUPS)(y, routes)


def devices() -> int:
    """Devices of the mesh axis AXIS that tracing is under; 1 without one."""
    return jax.sharding.get_abstract_mesh().shape.get(AXIS, 1)


def _over(fn: Callable, devices: int, in_specs: tuple, out_specs: PartitionSpec) -> Callable:
    if devices == 1:
        return fn
    shard = functools.partial(jax.shard_map, axis_names={AXIS}, check_vma=False)
    return shard(fn, in_specs=in_specs, out_specs=out_specs)
