"""The loss of one particle: its objective, its network's auxiliary losses and its prior."""

from typing import Any

import jax
import jax.numpy as jnp

from uncertainty.inference import examples
from uncertainty.keys import Use, fold
from uncertainty.types import (
    Aux,
    Batch,
    Collections,
    Latent,
    Likelihood,
    Metrics,
    Model,
    Objective,
    Own,
    Params,
    Target,
)

NAME = "objective"  # key of the objective's own parameters among a particle's
RESERVED = {"loss", "nll", "gradient_norm", "finite"}  # metrics of every update


def check(objective: Objective) -> None:
    """Raises ValueError for an objective with a part that would be ignored."""
    if objective.loss is not None and (objective.inputs or objective.latents):
        raise ValueError(
            f"objective: {objective.name!r} has its own `loss`, so its `inputs` and `latents` "
            "would be ignored"
        )
    if (objective.start is None) != (objective.follow is None):
        raise ValueError(
            f"objective: {objective.name!r} has one of `start` and `follow`; slow copies need both"
        )


def network(objective: Objective, params: Params) -> Params:
    """The network's part of a particle's parameters."""
    return params if objective.init is None else {k: v for k, v in params.items() if k != NAME}


def own(objective: Objective, params: Params) -> Params:
    """The objective's part of a particle's parameters, or None."""
    return None if objective.init is None else params[NAME]


def join(objective: Objective, params: Params, own: Params) -> Params:
    """The inverse of `network` and `own`."""
    return params if objective.init is None else {**params, NAME: own}


def total(
    model: Model,
    target: Target,
    objective: Objective,
    params: Params,
    collections: Collections,
    batch: Batch,
    key: jax.Array,
    state: Own,
) -> tuple[jax.Array, Aux]:
    """The loss [] of a particle, and its auxiliary outputs.

    Args:
      params: the network's and the objective's.
      state: of the particle; its `params` are replaced.
    """
    weights = network(objective, params)
    state = state._replace(params=own(objective, params))
    if objective.loss is not None:
        loss, aux = objective.loss(model, weights, collections, batch, key, state)
        if clash := RESERVED & set(aux.metrics):
            raise ValueError(
                f"objective: {objective.name!r} has a metric {clash.pop()!r}, a name that is "
                "reserved for every update"
            )
    else:
        batch = elsewhere(model, objective, weights, collections, batch, key, state)
        key_forward, key_likelihood = jax.random.split(key)
        latent, collections, auxiliary = model.forward(
            weights, collections, batch["x"], key_forward, train=True
        )
        losses, nll = per_example(model.likelihood, objective, latent, batch, key_likelihood, state)
        loss, aux = jnp.mean(losses), Aux(collections, nll, {}, auxiliary)
    if objective.together is not None:
        if objective.together.steps_each:
            raise ValueError(
                f"objective: {objective.name!r} trains functions in turn, but these are members of "
                "one network; use inference.direction 'together'"
            )
        u = at_points(model, objective, weights, collections, batch, key)
        value, more = together(model.likelihood, objective, u, fold(key, Use.ALIKE), state.step)
        loss, aux = loss + value, aux._replace(metrics={**aux.metrics, **more})
    scale = state.hyper.get("prior_scale", 1.0)
    return loss + aux.auxiliary + target.potential(weights, scale), aux


def elsewhere(
    model: Model,
    objective: Objective,
    params: Params,
    collections: Collections,
    batch: Batch,
    key: jax.Array,
    state: Own,
) -> Batch:
    """The batch with the inputs of the objective, as constants."""
    if objective.inputs is None:
        return batch
    moved = objective.inputs(model, params, collections, batch, fold(key, Use.INPUTS), state)
    return jax.lax.stop_gradient(moved)


def per_example(
    likelihood: Likelihood,
    objective: Objective,
    latent: Latent,
    batch: Batch,
    key: jax.Array,
    state: Own,
) -> tuple[jax.Array, jax.Array]:
    """The loss of the latents and the nll, both [M, B].

    Raises:
      ValueError: the batch has no labels.
    """
    if "y" not in batch:
        raise ValueError(
            f"objective: {objective.name!r} needs labels, an entry 'y' in the batch, "
            "which has " + ", ".join(map(repr, sorted(batch)))
        )
    nll = likelihood.nll(latent, batch["y"], key)
    if objective.latents is None:
        return nll, nll
    return objective.latents(likelihood, latent, batch, key, state), nll


def at_points(
    model: Model,
    objective: Objective,
    params: Params,
    collections: Collections,
    batch: Batch,
    key: jax.Array,
) -> Latent:
    """The latents [M, B, K] of one particle where functions are compared, in training.

    What networks store meanwhile, such as batch statistics, is not kept.
    """
    stream = None if objective.together is None else objective.together.stream
    x = examples.points(batch, stream)
    return model.forward(params, collections, x, fold(key, Use.COMPARED), train=True)[0]


def together(
    likelihood: Likelihood,
    objective: Objective,
    latent: Latent,
    key: jax.Array,
    step: jax.Array | int,
) -> tuple[jax.Array, Metrics]:
    """The loss [] that functions have together, of their latents [N, B, K], and its metrics.

    Raises:
      ValueError: there is nothing to compare.
    """
    assert objective.together is not None
    if len(latent.mean) < 2:
        raise ValueError(
            f"objective: {objective.name!r} compares functions, but there is one; use an ensemble "
            "that has members in training, or inference.direction 'together' and two particles"
        )
    return objective.together.loss(likelihood, latent, key, step)


def metrics(loss: jax.Array, aux: Aux) -> dict[str, Any]:
    """The metrics of a step of one particle."""
    labelled = {} if aux.nll is None else dict(nll=aux.nll)
    return dict(loss=loss, **labelled, **aux.metrics)
