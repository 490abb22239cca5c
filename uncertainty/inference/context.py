"""Context points: where particles' functions are compared, other than on the training batch.

Each function returns (batch, key) -> x [B', ...], without labels. All particles compare their
functions at the same points: if they have their own examples, the batch here has only its streams.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from uncertainty.types import Batch

Context = Callable[[Batch, jax.Array], jax.Array]


def perturbed(std: float = 0.075) -> Context:
    """x + N(0, std^2), new at each step; std in units of x.

    Args:
      std: of the noise, in units of x.

    Raises:
      ValueError: a std that is not positive.
    """
    if not std > 0:
        raise ValueError(f"std: {std}; a positive number")

    def points(batch: Batch, key: jax.Array) -> jax.Array:
        x = _inputs(batch, "perturbed")
        return x + std * jax.random.normal(key, x.shape, x.dtype)

    return points


def blurred(size: int = 7, sigma: float = 1.0) -> Context:
    """Images x [B, H, W, C] after a Gaussian filter of size x size pixels.

    Near an edge, the weights of the pixels that are there add up to 1.

    Args:
      size: odd.
      sigma: in pixels.

    Raises:
      ValueError: an even size, a sigma that is not positive, or an x that is not a batch of images.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size: {size}; an odd number of pixels")
    if not sigma > 0:
        raise ValueError(f"sigma: {sigma}; a positive number")

    def along(length: int, dtype: jnp.dtype) -> jax.Array:
        apart = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
        weights = jnp.where(jnp.abs(apart) <= size // 2, jnp.exp(-(apart**2) / (2 * sigma**2)), 0.0)
        return (weights / weights.sum(1, keepdims=True)).astype(dtype)

    def points(batch: Batch, key: jax.Array) -> jax.Array:
        x = _inputs(batch, "blurred")
        if x.ndim != 4:
            raise ValueError(f"context: 'blurred' is for images [B, H, W, C], not {x.shape}")
        # A band matrix for each axis, as a convolution would be slow on CPU.
        x = jnp.einsum("ih,bhwc->biwc", along(x.shape[1], x.dtype), x)
        return jnp.einsum("jw,biwc->bijc", along(x.shape[2], x.dtype), x)

    return points


def other() -> Context:
    """Other data: the inputs of the batch's stream 'context', [B', ...].

    Raises:
      ValueError: the batch has no such stream.
    """

    def points(batch: Batch, key: jax.Array) -> jax.Array:
        if "context" not in batch:
            raise ValueError(
                "context: 'other' needs a stream 'context' in the batch, which has "
                + ", ".join(map(repr, sorted(batch)))
            )
        return batch["context"]["x"]

    return points


def _inputs(batch: Batch, name: str) -> jax.Array:
    if "x" not in batch:
        raise ValueError(
            f"context: {name!r} takes points from the batch, but each particle has its own "
            "examples; use 'other', whose points all particles share"
        )
    return batch["x"]
