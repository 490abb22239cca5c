"""Statistics of batch normalisation for parameters that were not trained, such as averages."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from uncertainty.inference import samples
from uncertainty.stages.training import check_no_posterior
from uncertainty.types import Batch, Collections, Metrics, Model, Samples, Stage, State

NAME = "batch_stats"
Carry = dict[str, Any]  # sums of statistics [P S, ...], and the count [P S] of examples


def batch_statistics(model: Model, over: Callable) -> Stage:
    """Mean and variance of every normalised layer, averaged over a pass over the training data.

    For averages and draws of weights (Izmailov et al. 2018, section 3.3); if the particles have
    samples, for the samples. Batches have the size of those in evaluation, a random order (as data
    may be sorted by class), and weights of their size; dropout acts as in training. As in the paper
    the variance is the mean over batches, without that between their means.

    Args:
      model: with batch normalisation.
      over: executor that maps over the particles.

    Raises:
      ValueError: the model has no batch normalisation or is frozen, or the stage 'laplace' came
        before.
    """

    def forward(state: State, seen: jax.Array, x: jax.Array, filled: float) -> Collections:
        """The statistics after one batch, starting from `filled`, [P S, ...]."""

        def one(particle, x):
            params, collections, key = particle
            start = jax.tree.map(lambda a: jnp.full_like(a, filled), collections[NAME])
            collections = {**collections, NAME: start}
            return model.forward(params, collections, x, key, train=True)[1][NAME]

        params, collections, keys = samples.predicting(state)
        seen = seen.astype(jnp.int32)  # each batch has its own dropout masks
        return over(one)((params, collections, jax.vmap(jax.random.fold_in)(keys, seen)), x)

    def begin(state: State, x: jax.Array) -> Carry:
        if NAME not in state.collections:
            raise ValueError("batch_statistics: the model has no batch normalisation")
        if "frozen" in state.collections:
            raise ValueError("batch_statistics: the network is frozen, with its statistics")
        check_no_posterior(state)
        sums = jax.tree.map(jnp.zeros_like, samples.predicting(state)[1][NAME])
        return dict(sums=sums, count=jnp.zeros(jax.tree.leaves(sums)[0].shape[:1]))

    def update(state: State, carry: Carry, batch: Batch) -> tuple[State, Carry, Metrics]:
        B, count = len(batch["x"]), carry["count"]
        # The running average moves from 0 by (1 - momentum) times the batch's statistics.
        moved = forward(state, count, batch["x"], 0.0)
        sums = jax.tree.map(lambda total, new: total + B * new, carry["sums"], moved)
        return state, dict(sums=sums, count=count + B), {}

    def finish(state: State, carry: Carry, x: jax.Array) -> State:
        count = carry["count"]
        ones, zeros = (forward(state, count, x, filled) for filled in (1.0, 0.0))
        momentum = jax.tree.map(jnp.subtract, ones, zeros)

        def average(total, momentum):
            return total / ((1 - momentum) * count.reshape(-1, *[1] * (total.ndim - 1)))

        statistics = jax.tree.map(average, carry["sums"], momentum)
        if state.samples is None:
            return state.replace(collections={**state.collections, NAME: statistics})
        # An empty slot predicts with the particle itself, which gets the new statistics.
        shape = state.samples.taken.shape
        params, collections, _ = samples.predicting(state)
        params, collections = jax.tree.map(
            lambda a: a.reshape(*shape, *a.shape[1:]), (params, {**collections, NAME: statistics})
        )
        return state.replace(samples=Samples(params, collections, jnp.ones(shape, bool)))

    return Stage(begin, update, finish, passes=1, shuffled=True)
