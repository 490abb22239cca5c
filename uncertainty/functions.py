"""Functions drawn from the posterior of a network's last layer, for joint predictions."""

import jax

from uncertainty import predictive
from uncertainty.keys import Use, fold
from uncertainty.layers.posterior import FUNCTIONS
from uncertainty.types import Collections, Latent, Model, Params


def functions(
    model: Model,
    params: Params,
    collections: Collections,
    x: jax.Array,
    key: jax.Array,
    draws: int,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, Latent]:
    """Draws of f at x, see `predictive.functions`.

    Args:
      model: with such a posterior, which has been fitted.
      params, collections, x, key, mask: as `Model.forward`'s, at prediction; equal keys draw the
        same functions, whatever x is.
      draws: S.

    Returns:
      mean [S, M, B, K] of each function, and the latent with the rest of the variance.

    Raises:
      ValueError: not exactly one posterior, or one that is not fitted.
    """
    latent, changed, _ = model.forward(
        params, collections, x, key, train=False, mutable=(FUNCTIONS,), mask=mask
    )
    leaves = jax.tree.leaves(changed.get(FUNCTIONS, {}))
    if latent.epistemic is None or len(leaves) != 1:
        raise ValueError(
            f"functions: the members are Gaussians over u with {len(leaves)} posteriors of a last "
            "layer, from which functions cannot be drawn; 1 is needed"
        )
    return predictive.functions(latent, leaves[0], fold(key, Use.FUNCTIONS), draws)
