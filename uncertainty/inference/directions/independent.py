"""Particles that do not interact: each follows the gradient of its own loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from uncertainty import cpu
from uncertainty.types import Batch, Collections, Metrics, Model, Params, State, Target

# model, state, batch, keys [P] -> gradients, collections, metrics, all leading with P. It may have
#   separable  True where particles do not interact
#   colour     params, standard normal noise -> noise of its diffusion, for samplers
Direction = Callable[[Model, State, Batch, jax.Array], tuple[Params, Collections, Metrics]]


def independent(over: Callable, target: Target | None = None, accumulate: int = 1) -> Direction:
    """g_p = grad of 1/MB sum_{m,b} nll_{pmb} + auxiliary losses, for every particle by itself.

    With a prior, -1/N log p(theta) is added: P = 1 is MAP estimation.

    Args:
      over: executor that maps over the particles.
      target: the posterior; its prior alone counts here.
      accumulate: the batch is run in this many parts, one after the other, and their gradients are
        averaged: the same result with less memory. (Batch normalisation sees the parts, not the
        whole.) It must divide the batch.
    """

    def direction(
        model: Model, state: State, batch: Batch, keys: jax.Array
    ) -> tuple[Params, Collections, Metrics]:
        def one(particle, batch):
            params, collections, key, hyper = particle
            scale = hyper.get("prior_scale", 1.0)
            return gradient(model, params, collections, batch, key, accumulate, target, scale)

        return over(one)((state.params, state.collections, keys, state.hyper or {}), batch)

    direction.separable = True
    direction.colour = lambda params, noise: noise
    return direction


def gradient(
    model: Model,
    params: Params,
    collections: Collections,
    batch: Batch,
    key: jax.Array,
    accumulate: int = 1,
    target: Target | None = None,
    prior_scale: jax.Array | float = 1.0,
) -> tuple[Params, Collections, Metrics]:
    """The gradient of one particle's loss, without the leading P.

    Returns:
      The gradient, the new collections, and metrics: `loss` [], the objective; `nll` [M, B].

    Raises:
      ValueError: `accumulate` does not divide the batch.
    """

    def loss_fn(params, collections, batch, key):
        key_forward, key_likelihood = jax.random.split(key)
        latent, collections, auxiliary = model.forward(
            params, collections, batch["x"], key_forward, train=True
        )
        nll = model.likelihood.nll(latent, batch["y"], key_likelihood)
        loss = jnp.mean(nll) + auxiliary + (target or Target()).potential(params, prior_scale)
        return loss, (collections, dict(loss=loss, nll=nll))

    grad_fn = jax.grad(loss_fn, has_aux=True)
    if accumulate == 1:
        g, (collections, metrics) = grad_fn(params, collections, batch, key)
        return g, collections, metrics

    B = batch["x"].shape[0]
    if B % accumulate:
        raise ValueError(f"accumulate: {accumulate} parts do not divide a batch of {B}")
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
    nll = jnp.moveaxis(metrics["nll"], 0, -1)  # [M, B / accumulate, accumulate]
    metrics = dict(loss=metrics["loss"].mean(), nll=nll.reshape(nll.shape[0], -1))
    return jax.tree.map(lambda a: a / accumulate, total), collections, metrics
