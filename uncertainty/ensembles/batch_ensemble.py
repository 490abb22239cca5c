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

    In the backbone these are the layers of its fields `dense` and `conv`, in the head of its field
    `dense`; other heads are shared by the members. The bound of a spectrally normalised layer is
    that of the shared kernel, which fast weights multiply. Training takes the mean of the losses.
    A deterministic checkpoint has the shared parameters at the same paths, all but the biases.

    Fast weights are `fast_(input|output)` in rules; published settings often give them a learning
    rate of their own (`optimiser.multipliers`).

    Differences from the paper: members see the same batch, as in uncertainty-baselines; norms are
    shared, and batch statistics pooled over members.

    Args:
      size: M.
      fast_weights: initialiser, `batch_ensemble.random_sign` (with `probability` of +1) or
        `batch_ensemble.gaussian` (with `stddev`, around 1).
      where: a regular expression for the paths of the layers that have fast weights; all of them by
        default. 'backbone/block(09|1.)/|head' is the last blocks of a ViT and the head.

    Raises:
      ValueError: a size below 1; when traced, a `where` that is found in no layer's path, or
        members that something else has made.
    """
    check(size, where)
    wrap = functools.partial(around, size=size, initial=fast_weights)
    return members(backbone, head, size, wrap, where)
