"""Parameters along the path of further training: snapshots, or samples of a chain."""

import jax

from uncertainty.inference import samples, thinning
from uncertainty.stages.training import Optimiser, Train, Training, further_training, trained
from uncertainty.types import Batch, Metrics, Stage, State


def snapshots(
    train: Train,
    optimiser: Optimiser,
    steps: int,
    size: int,
    cycles: int = 1,
    burn_in: float = 0.0,
) -> Stage:
    """Keeps `size` sets of parameters of each particle, over which predictions average.

    Particles are trained further independently, whatever their `inference.direction` was.

    With the schedule 'cyclical' and one snapshot a cycle: snapshot or fast geometric ensembles
    (Huang et al. 2017; Garipov et al. 2018). At a constant rate: the ensemble of checkpoints. With
    a sampler: a Markov chain that starts at a trained network.

    Args:
      train: optimiser -> the run's inference with independent particles.
      optimiser: a config's `optimiser`, with a schedule over these `steps`.
      steps: of training.
      size, cycles, burn_in: the steps at which a set is kept, see `thinning.cyclical`.

    Raises:
      ValueError: a number out of range, or fewer steps than sets.
    """
    at = thinning.cyclical(steps, size, cycles, burn_in)
    start, step = further_training(train, optimiser)

    def begin(state: State, x: jax.Array) -> Training:
        training = start(state)
        return training.replace(samples=samples.reserve(state, size).samples)

    def update(state: State, training: Training, batch: Batch) -> tuple[State, Training, Metrics]:
        state, training, metrics = step(state, training, batch)
        updated = samples.take(state.replace(step=training.step, samples=training.samples), at)
        return state, training.replace(samples=updated.samples), metrics

    def finish(state: State, training: Training, x: jax.Array) -> State:
        return trained(state, training)

    return Stage(begin, update, finish, steps=steps)
