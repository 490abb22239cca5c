"""Particles that share a part of their loss, which compares what they predict."""

from collections.abc import Callable

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
    collections; their gradients are computed nevertheless.

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
    each = objective._replace(together=None)
    alone = independent(over, target, accumulate, each, own_examples).update

    def update(
        model: Model, state: State, batch: Batch, keys: jax.Array
    ) -> tuple[Params, Collections, Metrics]:
        g, collections, metrics = alone(model, state, batch, keys)
        visible = examples.split(batch, own_examples)[1]

        def one(particle: tuple, visible: Batch) -> Latent:
            params, collections, key = particle
            weights = loss.network(objective, params)
            return loss.at_points(model, objective, weights, collections, visible, key)

        latent, pull = jax.vjp(
            lambda params: over(one)((params, state.collections, keys), visible), state.params
        )
        key = fold(sharded.first(keys), Use.ALIKE)
        P = len(keys) * sharded.devices()

        def of_all(latent: Latent) -> tuple[jax.Array, Metrics]:
            joined = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), latent)
            value, metrics = loss.together(model.likelihood, objective, joined, key, state.step)
            return P * value, metrics

        (value, more), du = jax.value_and_grad(of_all, has_aux=True)(sharded.everyones(latent))
        (shared_part,) = pull(jax.tree.map(sharded.own, du))
        g = jax.tree.map(jnp.add, g, shared_part)
        everyone = {name: jnp.broadcast_to(a, keys.shape) for name, a in more.items()}
        return g, collections, {**metrics, **everyone, "loss": metrics["loss"] + value / P}

    def active(step: jax.Array, P: int) -> jax.Array:
        assert shared is not None and shared.turn is not None
        return jnp.arange(P) == jnp.minimum(shared.turn(step), P - 1)

    return Direction(update, active=active if shared.turn is not None else None)
