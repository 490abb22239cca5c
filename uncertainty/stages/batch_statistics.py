"""The statistics of batch normalisation, again, for parameters that no training has seen."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from uncertainty.inference import samples
from uncertainty.stages.training import check_no_posterior
from uncertainty.types import Batch, Collections, Model, Samples, Stage, State

NAME = "batch_stats"


def batch_statistics(model: Model, over: Callable) -> Stage:
    """Mean and variance of every normalised layer, averaged over a pass over the training data.

    For averages and draws of weights (Izmailov et al. 2018, section 3.3): of the samples, where the
    particles have some. Batches are those of evaluation and count by their size; dropout acts as in
    training.

    Args:
      model: with batch normalisation.
      over: executor that maps over the particles.

    Raises:
      ValueError: the model has none, or the stage 'laplace' came before.
    """

    def forward(state: State, x: jax.Array, filled: float) -> Collections:
        """What one batch makes of statistics that are all `filled`, [P S, ...]."""

        def one(particle, x):
            params, collections, key = particle
            start = jax.tree.map(lambda a: jnp.full_like(a, filled), collections[NAME])
            collections = {**collections, NAME: start}
            return model.forward(params, collections, x, key, train=True)[1][NAME]

        params, collections, keys = samples.predicting(state)
        seen = state.opt_state["count"].astype(jnp.int32)  # each batch has dropout of its own
        return over(one)((params, collections, jax.vmap(jax.random.fold_in)(keys, seen)), x)

    def begin(state: State, x: jax.Array) -> State:
        if NAME not in state.collections:
            raise ValueError("batch_statistics: the model has no batch normalisation")
        check_no_posterior(state)
        sums = jax.tree.map(jnp.zeros_like, samples.predicting(state)[1][NAME])
        count = jnp.zeros(jax.tree.leaves(sums)[0].shape[:1])
        return state.replace(opt_state=dict(optimiser=state.opt_state, sums=sums, count=count))

    def update(state: State, batch: Batch) -> State:
        B, kept = len(batch["x"]), state.opt_state
        # The running average moves from 0 by (1 - momentum) times the batch's statistics.
        moved = forward(state, batch["x"], 0.0)
        sums = jax.tree.map(lambda total, new: total + B * new, kept["sums"], moved)
        return state.replace(opt_state=dict(kept, sums=sums, count=kept["count"] + B))

    def finish(state: State, x: jax.Array) -> State:
        kept = state.opt_state
        momentum = jax.tree.map(jnp.subtract, forward(state, x, 1.0), forward(state, x, 0.0))

        def average(total, momentum):
            return total / ((1 - momentum) * kept["count"].reshape(-1, *[1] * (total.ndim - 1)))

        found = jax.tree.map(average, kept["sums"], momentum)
        state = state.replace(opt_state=kept["optimiser"])
        if state.samples is None:
            return state.replace(collections={**state.collections, NAME: found})
        # What predicts in a slot that is not taken is the particle itself, with statistics of now.
        shape = state.samples.taken.shape
        params, collections, _ = samples.predicting(state)
        params, collections = jax.tree.map(
            lambda a: a.reshape(*shape, *a.shape[1:]), (params, {**collections, NAME: found})
        )
        return state.replace(samples=Samples(params, collections, jnp.ones(shape, bool)))

    return Stage(begin, update, finish)
