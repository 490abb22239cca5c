"""Stochastic weight averaging, and a Gaussian around the average from the same path."""

from typing import Any

import jax
import jax.numpy as jnp

from uncertainty.keys import Use, fold
from uncertainty.optimisers.samplers import normal
from uncertainty.stages.training import Optimiser, Train, Training, further_training, trained
from uncertainty.types import Batch, Metrics, Params, Samples, Stage, State

Carry = tuple[Training, dict[str, Params]]  # the path: mean, squares, deviations


def swag(
    train: Train,
    optimiser: Optimiser,
    steps: int,
    every: int,
    samples: int = 30,
    rank: int = 20,
    scale: float = 0.5,
) -> Stage:
    """Trains further; predictions average over draws from N(mean, Sigma) of the path.

    Source: Maddox et al. 2019, "A simple baseline for Bayesian uncertainty in deep learning",
    algorithm 1. With the mean and variance of theta over the path, recorded every `every` steps,

      Sigma = scale (diag(variance) + D D^T / (rank - 1))

    where the columns of D are the last `rank` values of theta minus the running mean at their time.
    Several particles are MultiSWAG (Wilson & Izmailov 2020). They are trained further
    independently, whatever their `inference.direction` was. Batch statistics are those at the end
    of the path: add the stage 'batch_statistics' after it.

    Args:
      train: optimiser -> the run's inference with independent particles.
      optimiser: a config's `optimiser`; in the paper SGD at a constant, rather high rate.
      steps: of training.
      every: steps between recorded values of theta; an epoch in the paper. At least two must fit.
      samples: draws S of each particle; 0 uses the mean, stochastic weight averaging (Izmailov et
        al. 2018).
      rank: at least 2.
      scale: of the covariance; 1/2 in the paper.

    Raises:
      ValueError: a number out of range.
    """
    if every < 1 or steps < 2 * every:
        raise ValueError(f"every: {every}; at least 1, and at most half of the {steps} steps")
    if samples < 0:
        raise ValueError(f"samples: {samples}; at least 0")
    if rank < 2:
        raise ValueError(f"rank: {rank}; at least 2")
    if not scale > 0:
        raise ValueError(f"scale: {scale}; a positive number")
    values = steps // every
    rank = min(rank, values)
    start, step = further_training(train, optimiser)

    def begin(state: State, x: jax.Array) -> Carry:
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        deviations = jax.tree.map(lambda a: jnp.repeat(a[:, None], rank, axis=1), zeros)
        return start(state), dict(mean=zeros, squares=zeros, deviations=deviations)

    def update(state: State, carry: Carry, batch: Batch) -> tuple[State, Carry, Metrics]:
        training, path = carry
        state, training, metrics = step(state, training, batch)
        n = training.step // every  # values, this one included

        def add(path: dict[str, Params]) -> dict[str, Params]:
            params, old = state.params, path["mean"]
            mean = jax.tree.map(lambda m, w: m + (w - m) / n, old, params)
            # Welford's sum of squares, accurate for large means too.
            squares = jax.tree.map(
                lambda s, w, a, b: s + (w - a) * (w - b), path["squares"], params, old, mean
            )
            deviations = jax.tree.map(
                lambda D, w, m: jax.lax.dynamic_update_index_in_dim(D, w - m, (n - 1) % rank, 1),
                path["deviations"],
                params,
                mean,
            )
            return dict(mean=mean, squares=squares, deviations=deviations)

        path = jax.lax.cond(training.step % every == 0, add, lambda path: path, path)
        return state, (training, path), metrics

    def draw(key: jax.Array, path: dict[str, Params]) -> Params:
        """A draw of each particle, [P, ...]."""
        z = jax.vmap(lambda k: jax.random.normal(k, (rank,)))(fold(key, Use.LOW_RANK))

        def move(mean, squares, D, xi):
            low_rank = jnp.einsum("pr...,pr->p...", D, z) / jnp.sqrt(rank - 1)
            return mean + jnp.sqrt(scale) * (jnp.sqrt(squares / values) * xi + low_rank)

        parts = (path["mean"], path["squares"], path["deviations"], normal(key, path["mean"]))
        return jax.tree.map(move, *parts)

    def finish(state: State, carry: Carry, x: jax.Array) -> State:
        training, path = carry
        state = trained(state.replace(params=path["mean"]), training)
        if not samples:
            return state
        keys = fold(state.key, Use.SWAG)
        sampled = jax.vmap(lambda s: draw(fold(keys, s), path), out_axes=1)(jnp.arange(samples))

        def copies(tree: Any) -> Any:
            return jax.tree.map(lambda a: jnp.repeat(a[:, None], samples, axis=1), tree)

        return state.replace(
            samples=Samples(
                params=sampled,
                collections=copies(state.collections),
                taken=jnp.ones((len(state.key), samples), bool),
            )
        )

    return Stage(begin, update, finish, steps=steps)
