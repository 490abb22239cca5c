"""Monte Carlo dropout: members are dropout masks, drawn at prediction (Gal & Ghahramani 2016)."""

import functools
from collections.abc import Callable

import flax.linen as nn

from uncertainty.ensembles.replace import is_field, told
from uncertainty.ensembles.single import Single
from uncertainty.layers.dropout import Dropout
from uncertainty.types import Backbone, Head, Network


def mc_dropout(
    backbone: Backbone, head: Head, size: int, rate: float, shared: bool = False
) -> Network:
    """Dropout of `rate` wherever the backbone has dropout layers; `size` masks at prediction.

    Training draws one mask for each example, like plain dropout (M = 1). At prediction the first
    dropout layer broadcasts to [size, B, ...], so layers before it are computed once.

    Differences from the paper: the masks of one evaluation are drawn from the particle's key, so a
    prediction is a function of the checkpoint.

    Args:
      size: masks at prediction, the members.
      rate: probability of a zero.
      shared: whether a member's mask is the same for all examples. A member is then one function,
        as a draw of weights is in the paper, and joint predictions (`metrics/joint.py`) see what
        members have in common; otherwise each example has masks of its own.

    Raises:
      ValueError: `rate` outside (0, 1), `size` below 1, a backbone that has dropout already or does
        not support it (for a backbone without layers, when traced), or experts with `shared`, whose
        slots are not examples.
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate: {rate}; a dropout rate lies strictly between 0 and 1")
    if size < 1:
        raise ValueError(f"size: {size} members; at least 1")
    if shared and backbone.experts is not None:
        raise ValueError(
            "shared: masks are shared by examples, but experts see slots; set it to False"
        )
    dropout = functools.partial(Dropout, rate=rate, members=size, shared=shared)
    dropped = with_dropout(backbone, dropout, "mc_dropout")
    return Single(told(dropped, 1, size), head, size)


def with_dropout(backbone: Backbone, dropout: Callable[..., nn.Module], ensemble: str) -> Backbone:
    """The backbone with this factory as its `dropout`.

    Raises:
      ValueError: a backbone that has dropout already or does not support it; the message names
        `ensemble`.
    """
    if not is_field(backbone, "dropout"):
        raise ValueError(f"backbone: {type(backbone).__name__} has no field 'dropout'")
    if backbone.dropout is not None:
        raise ValueError(f"backbone.dropout: {ensemble} sets it; use the fields of the ensemble")
    return backbone.clone(dropout=dropout)
