"""The posterior of every `LinearPosterior` in a model, from one pass over the data."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from uncertainty.types import Batch, Model, Stage, State


def laplace(model: Model, over: Callable) -> Stage:
    """P = I + sum_i lambda_i phi_i phi_i^T at the trained parameters, then its factor.

    The data pass without augmentation or dropout; where members are dropout masks
    (`ensembles/mc_dropout.py`), the sum is the mean over them. A moving average of the training,
    where there is one, gives way to the exact sum.

    Args:
      model: with such a layer.
      over: executor that maps over the particles.

    Raises:
      ValueError: the model has no such layer.
    """

    def changed(state: State, x: jax.Array, collection: str) -> State:
        def one(particle, x):
            params, collections, key = particle
            return model.forward(params, collections, x, key, train=False, mutable=(collection,))[1]

        collections = over(one)((state.params, state.collections, state.key), x)
        return state.replace(collections=collections)

    def begin(state: State, x: jax.Array) -> State:
        if state.samples is not None:
            raise ValueError(
                "laplace: fits the last parameters, but samples of them predict; unset "
                "inference.collect, or what makes samples before it"
            )
        shapes = jax.eval_shape(lambda s, x: changed(s, x, "moments"), state, x).collections
        if "moments" not in shapes:
            raise ValueError(
                "laplace: the model has no posterior to fit; heads with one are sngp.Sngp and "
                "laplace.Laplace"
            )
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes["moments"])
        return state.replace(collections={**state.collections, "moments": zeros})

    def update(state: State, batch: Batch) -> State:
        return changed(state, batch["x"], "moments")

    def finish(state: State, x: jax.Array) -> State:
        state = changed(state, x, "precision")
        collections = {k: v for k, v in state.collections.items() if k != "moments"}
        return state.replace(collections=collections)

    return Stage(begin, update, finish)
