"""Greedy selection of particles for the mixture that predicts validation data best."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from uncertainty.inference import samples
from uncertainty.types import Batch, Metrics, Model, Stage, State

Carry = dict[str, jax.Array]  # log_p [P, validation examples], and the count [P] of those seen


def select(model: Model, over: Callable, num_validation: int, size: int) -> Stage:
    """Selects `size` of the particles greedily, with replacement.

    Each step adds the particle that minimises the nll of the mixture on the validation data; a
    particle that is added twice counts twice (Caruana et al. 2004; Wenzel et al. 2020,
    "Hyperparameter ensembles for robustness and uncertainty quantification"). The result is a state
    of `size` particles, each with its members and samples. A particle whose predictions are NaN is
    never chosen.

    Differences from the paper: there the selection continues up to a number of different particles;
    here `size` counts repetitions too.

    Args:
      model: network and likelihood.
      over: executor that maps over the particles.
      num_validation: validation examples, all of which are in the pass.
      size: particles that remain.

    Raises:
      ValueError: no size, or no validation data.
    """
    if size < 1:
        raise ValueError(f"size: {size} particles; at least 1")
    if num_validation < 1:
        raise ValueError("select: needs data.validation")

    def begin(state: State, x: jax.Array) -> Carry:
        P = len(state.key)
        return dict(log_p=jnp.zeros((P, num_validation)), count=jnp.zeros(P, jnp.int32))

    def update(state: State, carry: Carry, batch: Batch) -> tuple[State, Carry, Metrics]:
        # All particles use the same draws, or the choice would favour lucky draws.
        at = carry["count"][0]
        draws = jax.random.fold_in(jax.random.key(0), at)

        def one(particle, batch):
            params, collections, key = particle
            latent, _, _ = model.forward(params, collections, batch["x"], key, train=False)
            nll = model.likelihood.nll(latent, batch["y"], draws)
            return jax.nn.logsumexp(-nll, axis=0) - jnp.log(len(nll))  # mean over members, [B]

        log_p = over(one)(samples.predicting(state), batch)
        log_p = log_p.reshape(len(state.key), -1, log_p.shape[-1])
        log_p = jax.nn.logsumexp(log_p, axis=1) - jnp.log(log_p.shape[1])  # mean over samples
        carry = dict(
            log_p=jax.lax.dynamic_update_slice_in_dim(carry["log_p"], log_p, at, axis=1),
            count=carry["count"] + log_p.shape[-1],
        )
        return state, carry, {}

    def finish(state: State, carry: Carry, x: jax.Array) -> State:
        chosen = greedy(carry["log_p"], size)
        arrays = state.replace(step=None)
        return jax.tree.map(lambda a: a[chosen], arrays).replace(step=state.step)

    return Stage(
        begin,
        update,
        finish,
        passes=1,
        data="validation",
        num_examples=num_validation,
        separable=False,
    )


def greedy(log_p: jax.Array, size: int) -> jax.Array:
    """Rows of log_p [P, B] whose mean probability is greedily best, [size]; the first in ties."""
    bad = jnp.isnan(log_p).any(axis=1)
    total, chosen = jnp.full(log_p.shape[1:], -jnp.inf), []
    for _ in range(size):
        joined = jnp.logaddexp(total, log_p)  # [P, B]
        score = jnp.maximum(joined.mean(axis=1), jnp.finfo(joined.dtype).min)
        best = jnp.argmax(jnp.where(bad, -jnp.inf, score))
        total = joined[best]
        chosen.append(best)
    return jnp.stack(chosen)
