"""Masksembles: members are fixed masks of features (Durasov et al. 2021)."""

import functools

from uncertainty.ensembles.mc_dropout import with_dropout
from uncertainty.ensembles.replace import told
from uncertainty.ensembles.single import Single
from uncertainty.layers.masksembles import Masksembles
from uncertainty.types import Backbone, Head, Network


def masksembles(backbone: Backbone, head: Head, size: int, scale: float = 2.0) -> Network:
    """`size` masks wherever the backbone has dropout layers; see `Masksembles`.

    Training gives each example one mask (M = 1), so it costs as much as for a plain network. At
    prediction the first mask broadcasts to [size, B, ...].

    Args:
      size: M.
      scale: at least 1 (full masks, equal members); at 2, two masks share half of their features;
        larger values are closer to separate, smaller networks.

    Raises:
      ValueError: a size or scale below 1, a backbone that has dropout already or does not support
        it, or experts without their own `dropout`.
    """
    Masksembles(size, scale, parent=None)  # checked here, before anything is traced
    masks = functools.partial(Masksembles, size=size, scale=scale)
    masked = with_dropout(backbone, masks, "masksembles")
    if masked.experts is not None and masked.experts(parent=None).dropout is None:
        raise ValueError(
            "backbone.experts.dropout: missing; masks belong to examples, but an expert processes "
            "tokens of many; set 0.0 for experts without masks"
        )
    return Single(told(masked, 1, size), head, size)
