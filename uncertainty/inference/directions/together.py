"""Particles that share a part of their loss, which compares what they predict."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from uncertainty.inference import examples, loss, sharded
from uncertainty.inference.directions.independent import independent
from uncertainty.keys import Use, fold
from uncertainty.types import (
    LIKELIHOOD,
    Batch,
    Collections,
    Direction,
    Latent,
    Metrics,
    Model,
    Objective,
    Params,
    State,
    Target,
)


def together(
    over: Callable,
    target: Target | None = None,
    accumulate: int = 1,
    objective: Objective = LIKELIHOOD,
    own_examples: bool = False,
) -> Direction:
    """g_p = grad of l_p + P T(f_1, ..., f_N) in theta_p, with N = P M functions.

    l_p is the loss of the particle alone, as in `independent`, and T what the objective compares
    (`types.Together`), such as the disagreement of all members of all particles at the inputs of a
    stream. Each step has a forward pass there besides the one of the batch; devices exchange the
    latents [P, M, B, K] alone, each computes T, and pulls dT/df of its own particles back.

    If the objective trains particles in turn, the others keep parameters, optimiser state and
    collections, and take part by a forward pass alone. Metrics are those of the one in training.

    Args:
      over, target, accumulate, objective, own_examples: see `independent`. With examples of its own
        for each particle, functions are compared on a stream.

    Raises:
      ValueError: an objective that compares nothing, or several parts of the batch.
    """
    shared = objective.together
    if shared is None:
        raise ValueError(
            f"direction: 'together' needs an objective that compares functions, such as 'd_bat'; "
            f"{objective.name!r} does not"
        )
    if accumulate > 1:
        raise ValueError(
            f"accumulate: {accumulate} parts, but objective {objective.name!r} compares functions "
            "on the whole batch"
        )
    each, steps_each = objective._replace(together=None), shared.steps_each
    alone = independent(over, target, accumulate, each, own_examples).update

    def update(
        model: Model, state: State, batch: Batch, keys: jax.Array
    ) -> tuple[Params, Collections, Metrics]:
        P = len(keys) * sharded.devices()
        here = _here(trained(state.step, P), len(keys)) if steps_each else None
        take = functools.partial(_take, here)
        own = take(state.replace(step=None, opt_state=None, samples=None)).replace(step=state.step)
        g, new, metrics = alone(model, own, examples.each(take, batch, own_examples), take(keys))
        visible = examples.split(batch, own_examples)[1]

        def one(particle: tuple, visible: Batch) -> Latent:
            params, collections, key = particle
            weights = loss.network(objective, params)
            return loss.at_points(model, objective, weights, collections, visible, key)

        latent, pull = jax.vjp(
            lambda params: over(one)((params, own.collections, take(keys)), visible), own.params
        )
        if here is not None:
            latent = over(one)((state.params, state.collections, keys), visible)
        key = fold(sharded.first(keys), Use.ALIKE)

        def of_all(latent: Latent) -> tuple[jax.Array, Metrics]:
            joined = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), latent)
            value, metrics = loss.together(model.likelihood, objective, joined, key, state.step)
            return P * value, metrics

        (value, more), du = jax.value_and_grad(of_all, has_aux=True)(sharded.everyones(latent))
        (shared_part,) = pull(take(jax.tree.map(sharded.own, du)))
        g = jax.tree.map(jnp.add, g, shared_part)
        if here is not None:
            mine = sharded.own(active(state.step, P))[here]  # not on devices without it
            g = jax.tree.map(lambda a: jnp.where(mine, a, jnp.zeros_like(a)), g)
            g = _put(here, jax.tree.map(jnp.zeros_like, state.params), g)
            new = _put(here, state.collections, new)
            metrics = _for_all(trained(state.step, P) // len(keys), metrics, len(keys))
        everyone = {name: jnp.broadcast_to(a, keys.shape) for name, a in more.items()}
        return g, new, {**metrics, **everyone, "loss": metrics["loss"] + value / P}

    def trained(step: jax.Array, P: int) -> jax.Array:
        """The particle whose turn it is."""
        return jnp.minimum(step // steps_each, P - 1)

    def active(step: jax.Array, P: int) -> jax.Array:
        return jnp.arange(P) == trained(step, P)

    return Direction(update, active=active if steps_each else None)


def _here(p: jax.Array, count: int) -> jax.Array:
    """The place of particle p among the `count` of this device, or the nearest to it."""
    first = jax.lax.axis_index(sharded.AXIS) * count if sharded.devices() > 1 else 0
    return jnp.clip(p - first, 0, count - 1)


def _take(here: jax.Array | None, tree: Any) -> Any:
    """One particle of a tree [P, ...], as [1, ...]; all of them for None."""
    if here is None:
        return tree
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, here, 1), tree)


def _put(here: jax.Array, tree: Any, one: Any) -> Any:
    """A tree [P, ...] with one particle [1, ...] replaced."""
    return jax.tree.map(lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, here, 0), tree, one)


def _for_all(device: jax.Array, metrics: Metrics, count: int) -> Metrics:
    """The metrics [1, ...] of one device, as those of the `count` particles of each."""
    each = jax.tree.map(lambda a: a[device], sharded.everyones(metrics))
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *a.shape)), each)
