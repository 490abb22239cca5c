"""Masksembles: members are fixed masks of features (Durasov et al. 2021)."""

import functools

from uncertainty.ensembles.mc_dropout import with_dropout
from uncertainty.ensembles.single import Single
from uncertainty.layers.masksembles import Masksembles
from uncertainty.types import Backbone, Head, Network


def masksembles(backbone: Backbone, head: Head, size: int, scale: float = 2.0) -> Network:
    """`size` masks wherever the backbone has a place for dropout; `Masksembles`.

    Training gives each example one mask (M = 1), so it costs as much as a plain network's. At
    prediction the first mask broadcasts to [size, B, ...].

    Args:
      size: M.
      scale: from 1 (full masks, members are equal) up; at 2, half of a mask's features are in
        another; larger is closer to separate networks, and to smaller ones.

    Raises:
      ValueError: a size or scale below 1, a backbone that has a dropout already or no place for
        one, or one whose experts have no `dropout` of their own.
    """
    Masksembles(size, scale, parent=None)  # checked here, before anything is traced
    masks = functools.partial(Masksembles, size=size, scale=scale)
    masked = with_dropout(backbone, masks, "masksembles")
    if masked.experts is not None and masked.experts(parent=None).dropout is None:
        raise ValueError(
            "backbone.experts.dropout: missing; masks belong to examples, and an expert works on "
            "tokens of many; 0.0 leaves experts without masks"
        )
    return Single(masked, head, size)
