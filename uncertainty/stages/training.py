"""Training that goes on after the training, with an optimiser of its own."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from uncertainty.inference.independent import independent
from uncertainty.inference.particles import particles
from uncertainty.samplers import SamplingTransformation
from uncertainty.types import Batch, Model, State, Target

_AFTER = 0x61667465  # of a particle's key
Optimiser = optax.GradientTransformation | SamplingTransformation


def further_training(
    model: Model, over: Callable, target: Target, optimiser: Optimiser
) -> tuple[Callable[[State], State], Callable[[State, Batch], State]]:
    """(a state to begin with, a step of independent particles).

    The state is at step 0, without samples, and with keys that training has not used.
    """
    inference = particles(
        model,
        optimiser,
        direction=lambda target, accumulate, **_: independent(over, target, accumulate),
        prior=target.prior,
        temperature=target.temperature,
        num_examples=target.num_examples,
    )

    def begin(state: State) -> State:
        return state.replace(
            step=jnp.zeros_like(state.step),
            key=jax.vmap(jax.random.fold_in, (0, None))(state.key, _AFTER),
            opt_state=jax.vmap(optimiser.init)(state.params),
            samples=None,
        )

    return begin, lambda state, batch: inference.update(state, batch)[0]
