"""Normalisation layers with one signature, `norm(name=..., dtype=...)(x, train=train)`."""

import flax.linen as nn
import jax


class BatchNorm(nn.BatchNorm):
    """Batch normalisation (Ioffe & Szegedy 2015) of [M or 1, B, ..., D] over all axes but the last.

    y = scale (x - mean) / sqrt(var + epsilon) + bias. In training mean and var are those of this
    batch, pooled over members, examples and space, and the averages in the collection `batch_stats`
    move by `average <- momentum average + (1 - momentum) batch`; otherwise the averages are used.

    Differences from the paper: members share one set of statistics, and the variance that enters
    the average is the biased one.

    Attributes:
      momentum: weight of the old average in a step (PyTorch's is 1 - momentum).
      epsilon: added to the variance.
      Others as in `flax.linen.BatchNorm`.
    """

    momentum: float = 0.9

    # Callers pass `train` here; Flax's own layer takes `use_running_average`.
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:  # type: ignore[override]
        return super().__call__(x, use_running_average=not train)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation (Ba et al. 2016) over the last axis; the same in both modes."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:  # type: ignore[override]
        return super().__call__(x)
