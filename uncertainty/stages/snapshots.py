"""Parameters along the path of a training that goes on: snapshots, or samples of a chain."""

from collections.abc import Callable

import jax

from uncertainty import thinning
from uncertainty.inference import members
from uncertainty.stages.training import Optimiser, further_training
from uncertainty.types import Batch, Model, Stage, State, Target


def snapshots(
    model: Model,
    over: Callable,
    target: Target,
    optimiser: Optimiser,
    steps: int,
    size: int,
    cycles: int = 1,
    burn_in: float = 0.0,
) -> Stage:
    """Each particle leaves `size` sets of parameters, and predictions average over them.

    With the schedule 'cyclical' and one snapshot a cycle: snapshot or fast geometric ensembles
    (Huang et al. 2017; Garipov et al. 2018). At a constant rate: the ensemble of checkpoints. With
    a sampler: a Markov chain that begins at a trained network.

    Args:
      model, over, target: of the run.
      optimiser: a config's `optimiser`, with a schedule over these `steps`.
      steps: of training.
      size, cycles, burn_in: which steps leave a set, see `thinning.cyclical`.

    Raises:
      ValueError: a number out of range, or fewer steps than sets.
    """
    at = thinning.cyclical(steps, size, cycles, burn_in)
    opened, train = further_training(model, over, target, optimiser)

    def begin(state: State, x: jax.Array) -> State:
        return members.reserve(opened(state), size)

    def update(state: State, batch: Batch) -> State:
        return members.take(train(state, batch), at)

    return Stage(begin, update, lambda state, x: state, steps=steps)
