"""The posterior of every `LinearPosterior` in a model, from one pass over the data."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from uncertainty.types import Batch, Collections, Metrics, Model, Stage, State

MOMENTS = "moments"  # the collection of the layers' sums, mutable only here


def laplace(model: Model, over: Callable) -> Stage:
    """P = I + sum_i lambda_i phi_i phi_i^T at the trained parameters, then its factor.

    The pass has no augmentation or dropout; if members are dropout masks
    (`ensembles/mc_dropout.py`), the sum is averaged over them. A moving average from training, if
    any, is replaced by the exact sum.

    Args:
      model: has such a layer.
      over: executor that maps over the particles.

    Raises:
      ValueError: the model has no such layer.
    """

    def changed(state: State, moments: Collections, x: jax.Array, collection: str) -> Collections:
        """The collections after a pass in which one of them is mutable."""

        def one(particle, x):
            params, collections, key = particle
            return model.forward(params, collections, x, key, train=False, mutable=(collection,))[1]

        collections = {**state.collections, **moments}
        return over(one)((state.params, collections, state.key), x)

    def begin(state: State, x: jax.Array) -> Collections:
        if state.samples is not None:
            raise ValueError(
                "laplace: fits the last parameters, but predictions use samples; unset "
                "inference.collect, or the stage that makes samples"
            )
        shapes = jax.eval_shape(lambda s, x: changed(s, {}, x, MOMENTS), state, x)
        if MOMENTS not in shapes:
            raise ValueError(
                "laplace: the model has no posterior to fit; heads with one are sngp.Sngp and "
                "laplace.Laplace"
            )
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes[MOMENTS])
        return {MOMENTS: zeros}

    def update(
        state: State, moments: Collections, batch: Batch
    ) -> tuple[State, Collections, Metrics]:
        return state, {MOMENTS: changed(state, moments, batch["x"], MOMENTS)[MOMENTS]}, {}

    def finish(state: State, moments: Collections, x: jax.Array) -> State:
        collections = changed(state, moments, x, "precision")
        return state.replace(collections={k: v for k, v in collections.items() if k != MOMENTS})

    return Stage(begin, update, finish, passes=1)
