"""Samples: parameters kept during training, over which predictions average."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from uncertainty.types import Collections, Params, Samples, State


def reserve(state: State, size: int) -> State:
    """The state with empty slots for `size` samples of each particle."""

    def room(tree: Any) -> Any:
        return jax.tree.map(lambda a: jnp.zeros((a.shape[0], size, *a.shape[1:]), a.dtype), tree)

    taken = jnp.zeros((state.key.shape[0], size), bool)
    return state.replace(samples=Samples(room(state.params), room(state.collections), taken))


def take(state: State, at: Sequence[int]) -> State:
    """The state with its parameters in slot i of its samples, if the step is the i-th of `at`.

    Steps ascend; collections go with the parameters.
    """
    if (slots := state.samples) is None:
        return state
    steps = jnp.asarray(at)
    slot = jnp.minimum(jnp.searchsorted(steps, state.step), len(steps) - 1)
    when = steps[slot] == state.step

    def write(stored: jax.Array, new: jax.Array) -> jax.Array:
        old = jax.lax.dynamic_index_in_dim(stored, slot, axis=1, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(stored, jnp.where(when, new, old), slot, axis=1)

    return state.replace(
        samples=Samples(
            params=jax.tree.map(write, slots.params, state.params),
            collections=jax.tree.map(write, slots.collections, state.collections),
            taken=write(slots.taken, jnp.ones(slots.taken.shape[:1], bool)),
        )
    )


def average(state: State, decay: float, moved: jax.Array) -> State:
    """The state with the moving average of its parameters in the place of its only sample.

    Args:
      state: after t = `state.step` updates.
      decay: see `thinning.moving_average`.
      moved: [P] bool, False for particles that the last update left as they were.
    """
    if (own := state.samples) is None:
        return state
    t = state.step.astype(jnp.float32)
    d = jnp.minimum(decay, (1 + t) / (10 + t))

    def follow(slow: jax.Array, now: jax.Array) -> jax.Array:  # [P, 1, ...], [P, ...]
        def one(slow: jax.Array, now: jax.Array, taken: jax.Array, moved: jax.Array) -> jax.Array:
            follows = jnp.where(taken, d * slow + (1 - d) * now, now)
            return jnp.where(moved, follows, slow)

        return jax.vmap(one)(slow, now[:, None], own.taken[:, 0], moved)

    return state.replace(
        samples=Samples(
            params=jax.tree.map(follow, own.params, state.params),
            collections=jax.tree.map(lambda a: a[:, None], state.collections),
            taken=own.taken | moved[:, None],
        )
    )


def predicting(state: State) -> tuple[Params, Collections, jax.Array]:
    """Parameters, collections and keys for prediction, [P S, ...]; S = 1 without samples."""
    if (own := state.samples) is None:
        return state.params, state.collections, state.key
    P, S = own.taken.shape

    def joined(stored: jax.Array, current: jax.Array) -> jax.Array:
        taken = own.taken.reshape(P, S, *[1] * (current.ndim - 1))
        return jnp.where(taken, stored, current[:, None]).reshape(P * S, *current.shape[1:])

    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    return (
        jax.tree.map(joined, own.params, state.params),
        jax.tree.map(joined, own.collections, state.collections),
        fold(state.key, jnp.arange(S)).reshape(P * S),
    )


def times(factors: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """leaf [P, ...] -> factors [P] * leaf."""
    return lambda leaf: factors.reshape(-1, *[1] * (leaf.ndim - 1)) * leaf
