"""Training that goes on after the training, with an optimiser of its own."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax

from uncertainty.inference.samples import fold
from uncertainty.layers import posterior
from uncertainty.optimisers.samplers import DecayingTransformation, SamplingTransformation
from uncertainty.types import Batch, Inference, State

_AFTER = 0x61667465  # of a particle's key
Optimiser: TypeAlias = (
    optax.GradientTransformation | DecayingTransformation | SamplingTransformation
)
Train = Callable[[Optimiser], Inference]  # independent particles, as the run's config has them


def check_no_posterior(state: State) -> None:
    """Raises ValueError after the stage 'laplace', whose posterior would be out of date."""
    if posterior.is_fitted(state.collections):
        raise ValueError(
            "there is a posterior already, of the stage laplace, for parameters and statistics as "
            "they are; let laplace come after"
        )


def further_training(
    train: Train, optimiser: Optimiser
) -> tuple[Callable[[State], State], Callable[[State, Batch], State]]:
    """(a state to begin with, a step of independent particles).

    The state is at step 0, with keys that training has not used, and `opt_state['faults']` [P]
    counts the steps that were not finite and so did not happen.

    Raises:
      ValueError: at its begin, where there are samples already, which would be lost, or the
        posterior of the stage 'laplace'.
    """
    inference = train(optimiser)

    def begin(state: State) -> State:
        check_no_posterior(state)
        if state.samples is not None:
            raise ValueError(
                "there are samples already, of inference.collect or of a stage before, which "
                "further training would lose"
            )
        return state.replace(
            step=jnp.zeros_like(state.step),
            key=fold(state.key, _AFTER),
            opt_state=dict(
                optimiser=jax.vmap(optimiser.init)(state.params),
                faults=jnp.zeros(state.key.shape, jnp.int32),
            ),
        )

    def update(state: State, batch: Batch) -> State:
        kept = state.opt_state
        state, metrics = inference.update(state.replace(opt_state=kept["optimiser"]), batch)
        faults = kept["faults"] + ~metrics["finite"]
        return state.replace(opt_state=dict(kept, optimiser=state.opt_state, faults=faults))

    return begin, update
