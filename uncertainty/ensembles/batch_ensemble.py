"""BatchEnsemble: members share kernels and have scales of their own (Wen et al. 2020)."""

import functools
from collections.abc import Callable

import jax

from uncertainty.ensembles.replace import check, members
from uncertainty.layers.batch_ensemble import around, random_sign
from uncertainty.types import Backbone, Head, Network


def batch_ensemble(
    backbone: Backbone,
    head: Head,
    size: int,
    fast_weights: Callable[..., jax.Array] = random_sign,
    where: str = "",
) -> Network:
    """`size` members by fast weights around the dense and convolution layers; `FastWeights`.

    These are the layers in the backbone's fields `dense` and `conv` and in the head's field
    `dense`; other heads are shared by the members. A spectral norm bounds the shared kernel, which
    fast weights multiply. Training uses the mean of the losses. A deterministic checkpoint has the
    shared parameters, except biases, at the same paths.

    Fast weights are `fast_(input|output)` in rules; published settings often give them a learning
    rate of their own (`optimiser.multipliers`).

    Differences from the paper: members see the same batch, as in uncertainty-baselines; norms are
    shared, and batch statistics pooled over members.

    Args:
      size: M.
      fast_weights: initialiser, `batch_ensemble.random_sign` (with `probability` of +1) or
        `batch_ensemble.gaussian` (with `stddev`, around 1).
      where: a regular expression for the paths of the layers with fast weights; all layers by
        default. 'backbone/block(09|1.)/|head' is the last blocks of a ViT and the head.

    Raises:
      ValueError: a size below 1; when traced, a `where` that matches no layer's path, or members
        from another part.
    """
    check(size, where)
    wrap = functools.partial(around, size=size, initial=fast_weights)
    return members(backbone, head, size, wrap, where)
