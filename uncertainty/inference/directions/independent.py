"""Particles that do not interact: each follows the gradient of its own loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from uncertainty import cpu
from uncertainty.inference import examples, loss
from uncertainty.types import (
    LIKELIHOOD,
    Batch,
    Collections,
    Direction,
    Metrics,
    Model,
    Objective,
    Own,
    Params,
    State,
    Target,
)


def independent(
    over: Callable,
    target: Target | None = None,
    accumulate: int = 1,
    objective: Objective = LIKELIHOOD,
    own_examples: bool = False,
) -> Direction:
    """g_p = grad of 1/MB sum_{m,b} nll_{pmb} + auxiliary losses, for each particle separately.

    With a prior, -1/N log p(theta) is added: P = 1 is MAP estimation. Another objective replaces
    the nll.

    Args:
      over: executor that maps over the particles.
      target: the posterior; only its prior is used here.
      accumulate: number of parts of the batch, run one after the other, whose gradients are
        averaged: the same result with less memory, except that batch normalisation sees each part.
        It must divide the batch and its streams.
      objective: to minimise.
      own_examples: whether the batch is [P, B, ...], see `particles`.

    Raises:
      ValueError: several parts, and an objective that compares functions.
    """

    if objective.together is not None and accumulate > 1:
        raise ValueError(
            f"accumulate: {accumulate} parts, but objective {objective.name!r} compares functions "
            "on the whole batch"
        )

    def update(
        model: Model, state: State, batch: Batch, keys: jax.Array
    ) -> tuple[Params, Collections, Metrics]:
        mine, shared = examples.split(batch, own_examples)

        def one(particle, shared):
            params, collections, key, hyper, slow, mine = particle
            own = Own(slow=slow, hyper=hyper, step=state.step)
            batch = {**shared, **mine}
            return gradient(
                model, params, collections, batch, key, accumulate, target, objective, own
            )

        particle = (state.params, state.collections, keys, state.hyper or {}, state.slow, mine)
        return over(one)(particle, shared)

    return Direction(update, separable=True, diffusion=lambda params, noise: noise)


def gradient(
    model: Model,
    params: Params,
    collections: Collections,
    batch: Batch,
    key: jax.Array,
    accumulate: int = 1,
    target: Target | None = None,
    objective: Objective = LIKELIHOOD,
    own: Own | None = None,
) -> tuple[Params, Collections, Metrics]:
    """The gradient of one particle's loss, without the leading P.

    Returns:
      The gradient, the new collections, and metrics: `loss` [], `nll` [M, B] where there are
      labels, and those of the objective.

    Raises:
      ValueError: `accumulate` does not divide the batch.
    """

    def loss_fn(params, collections, batch, key):
        value, aux = loss.total(
            model, target or Target(), objective, params, collections, batch, key, own or Own()
        )
        return value, (aux.collections, loss.metrics(value, aux))

    grad_fn = jax.grad(loss_fn, has_aux=True)
    if accumulate == 1:
        g, (collections, metrics) = grad_fn(params, collections, batch, key)
        return g, collections, metrics

    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if len(leaf) % accumulate:
            of = path[0].key if len(path) > 1 else "batch"
            raise ValueError(f"accumulate: {accumulate} parts do not divide a {of} of {len(leaf)}")
    # Part i takes every accumulate-th example, so that each device of the data axis has a share.
    parts = jax.tree.map(
        lambda a: jnp.moveaxis(a.reshape(-1, accumulate, *a.shape[1:]), 1, 0), batch
    )

    def add(carry: Any, part: Any) -> tuple[Any, Metrics]:
        total, collections = carry
        g, (collections, metrics) = grad_fn(params, collections, *part)
        return (jax.tree.map(jnp.add, total, g), collections), metrics

    carry = (jax.tree.map(jnp.zeros_like, params), collections)
    keys = jax.random.split(key, accumulate)
    # Convolutions inside a scan leave the fast path on CPU.
    unroll = accumulate if cpu.enabled() else 1
    (total, collections), metrics = jax.lax.scan(add, carry, (parts, keys), unroll=unroll)
    nll = metrics.pop("nll", None)
    if nll is not None:
        nll = jnp.moveaxis(nll, 0, -1)  # [M, B / accumulate, accumulate]
    metrics = {name: value.mean(0) for name, value in metrics.items()}
    if nll is not None:
        metrics["nll"] = nll.reshape(nll.shape[0], -1)
    return jax.tree.map(lambda a: a / accumulate, total), collections, metrics
