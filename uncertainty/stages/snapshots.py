"""Parameters along the path of a training that goes on: snapshots, or samples of a chain."""

import jax

from uncertainty.inference import samples, thinning
from uncertainty.stages.training import Optimiser, Train, further_training
from uncertainty.types import Batch, Stage, State


def snapshots(
    train: Train,
    optimiser: Optimiser,
    steps: int,
    size: int,
    cycles: int = 1,
    burn_in: float = 0.0,
) -> Stage:
    """Each particle leaves `size` sets of parameters, and predictions average over them.

    Particles train on by themselves here, whatever `inference.direction` they were trained with.

    With the schedule 'cyclical' and one snapshot a cycle: snapshot or fast geometric ensembles
    (Huang et al. 2017; Garipov et al. 2018). At a constant rate: the ensemble of checkpoints. With
    a sampler: a Markov chain that begins at a trained network.

    Args:
      train: optimiser -> the run's inference with independent particles.
      optimiser: a config's `optimiser`, with a schedule over these `steps`.
      steps: of training.
      size, cycles, burn_in: which steps leave a set, see `thinning.cyclical`.

    Raises:
      ValueError: a number out of range, or fewer steps than sets.
    """
    at = thinning.cyclical(steps, size, cycles, burn_in)
    opened, step = further_training(train, optimiser)

    def begin(state: State, x: jax.Array) -> State:
        return samples.reserve(opened(state), size)

    def update(state: State, batch: Batch) -> State:
        return samples.take(step(state, batch), at)

    return Stage(begin, update, lambda state, x: state, steps=steps)
