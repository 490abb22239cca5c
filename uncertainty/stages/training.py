"""Further training in a stage, with its own optimiser."""

from collections.abc import Callable
from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import optax

from uncertainty.keys import Use, fold
from uncertainty.layers import posterior
from uncertainty.optimisers.samplers import SamplingTransformation, Transformation
from uncertainty.types import Batch, Inference, Metrics, Samples, State

Optimiser: TypeAlias = optax.GradientTransformation | Transformation | SamplingTransformation
Train = Callable[[Optimiser], Inference]  # independent particles, as the run's config has them


def check_no_posterior(state: State) -> None:
    """Raises ValueError after the stage 'laplace', whose posterior would be out of date."""
    if posterior.is_fitted(state.collections):
        raise ValueError(
            "there is a posterior already, from the stage laplace, for the current parameters and "
            "statistics; run laplace after this stage"
        )


class Training(flax.struct.PyTreeNode):
    """The carry of further training, [P, ...] except the step."""

    step: jax.Array
    key: jax.Array
    opt_state: Any
    samples: Samples | None = None


def further_training(
    train: Train, optimiser: Optimiser
) -> tuple[
    Callable[[State], Training], Callable[[State, Training, Batch], tuple[State, Training, Metrics]]
]:
    """(begin, update) of further training with independent particles.

    It starts at step 0, with keys that training has not used.

    Raises:
      ValueError: in begin, if there are samples already, which would be lost, or a posterior of the
        stage 'laplace'.
    """
    inference = train(optimiser)

    def begin(state: State) -> Training:
        check_no_posterior(state)
        if state.samples is not None:
            raise ValueError(
                "there are samples already, from inference.collect or an earlier stage, which "
                "further training would lose"
            )
        return Training(
            step=jnp.zeros_like(state.step),
            key=fold(state.key, Use.AFTER),
            opt_state=jax.vmap(optimiser.init)(state.params),
        )

    def update(state: State, training: Training, batch: Batch) -> tuple[State, Training, Metrics]:
        own = dict(step=training.step, key=training.key, opt_state=training.opt_state)
        new, metrics = inference.update(state.replace(**own), batch)
        former = {name: getattr(state, name) for name in own}
        training = training.replace(step=new.step, opt_state=new.opt_state)
        return new.replace(**former), training, metrics

    return begin, update


def trained(state: State, training: Training) -> State:
    """The state after further training, with its step, keys and samples."""
    return state.replace(step=training.step, key=training.key, samples=training.samples)
