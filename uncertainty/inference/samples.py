"""What a particle has beside its parameters: samples that it leaves, and hyper-parameters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from uncertainty.types import Collections, Params, Samples, State

# What particles may differ in by intent, as factors on the config's own value.
HYPER = ("learning_rate", "prior_scale")
_DRAW = 0x68797072  # of a particle's key: its hyper-parameters


def reserve(state: State, size: int) -> State:
    """The state with room for `size` samples of each particle, none of them taken."""

    def room(tree: Any) -> Any:
        return jax.tree.map(lambda a: jnp.zeros((a.shape[0], size, *a.shape[1:]), a.dtype), tree)

    taken = jnp.zeros((state.key.shape[0], size), bool)
    return state.replace(samples=Samples(room(state.params), room(state.collections), taken))


def take(state: State, at: Sequence[int]) -> State:
    """The state with its parameters in slot i of its samples, if the step is the i-th of `at`.

    Steps ascend; collections go with the parameters.
    """
    if (kept := state.samples) is None:
        return state
    steps = jnp.asarray(at)
    slot = jnp.minimum(jnp.searchsorted(steps, state.step), len(steps) - 1)
    when = steps[slot] == state.step

    def write(kept: jax.Array, new: jax.Array) -> jax.Array:
        old = jax.lax.dynamic_index_in_dim(kept, slot, axis=1, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(kept, jnp.where(when, new, old), slot, axis=1)

    return state.replace(
        samples=Samples(
            params=jax.tree.map(write, kept.params, state.params),
            collections=jax.tree.map(write, kept.collections, state.collections),
            taken=write(kept.taken, jnp.ones(kept.taken.shape[:1], bool)),
        )
    )


def predicting(state: State) -> tuple[Params, Collections, jax.Array]:
    """Parameters, collections and keys of all that predicts, [P S, ...]; S = 1 without samples."""
    if (own := state.samples) is None:
        return state.params, state.collections, state.key
    P, S = own.taken.shape

    def joined(kept: jax.Array, now: jax.Array) -> jax.Array:
        taken = own.taken.reshape(P, S, *[1] * (now.ndim - 1))
        return jnp.where(taken, kept, now[:, None]).reshape(P * S, *now.shape[1:])

    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    return (
        jax.tree.map(joined, own.params, state.params),
        jax.tree.map(joined, own.collections, state.collections),
        fold(state.key, jnp.arange(S)).reshape(P * S),
    )


def check_hyper(hyper: Mapping[str, Any]) -> None:
    """Raises ValueError for an unknown name, or what is neither positive numbers nor a range."""
    for name, values in hyper.items():
        if name not in HYPER:
            raise ValueError(f"hyper.{name}: not one of {', '.join(HYPER)}")
        ranged = isinstance(values, Mapping)
        numbers = list(values.values()) if ranged else values
        listed = isinstance(numbers, list | tuple) and len(numbers) > 0
        positive = listed and all(isinstance(v, int | float) and v > 0 for v in numbers)
        ordered = not ranged or (set(values) == {"low", "high"} and values["low"] <= values["high"])
        if not (positive and ordered):
            raise ValueError(
                f"hyper.{name}: {values!r}; a list of positive numbers, or dict(low=, high=)"
            )


def draw_hyper(hyper: Mapping[str, Any], keys: Sequence[jax.Array]) -> dict[str, jax.Array]:
    """name -> [P] of the particles with these keys, of what `check_hyper` has seen."""
    drawn = {}
    for i, (name, values) in enumerate(sorted(hyper.items())):
        if isinstance(values, Mapping):
            low, high = jnp.log(values["low"]), jnp.log(values["high"])
            made = [
                jnp.exp(jax.random.uniform(jax.random.fold_in(key, _DRAW + i), (), minval=low,
                                           maxval=high))
                for key in keys
            ]  # fmt: skip
        else:
            made = [jnp.float32(values[p % len(values)]) for p in range(len(keys))]
        drawn[name] = jnp.stack(made)
    return drawn


def fold(keys: jax.Array, number: jax.Array | int) -> jax.Array:
    """Keys [P] made of each particle's own [P] and a number."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def times(factors: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """leaf [P, ...] -> factors [P] * leaf."""
    return lambda leaf: factors.reshape(-1, *[1] * (leaf.ndim - 1)) * leaf
