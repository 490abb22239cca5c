"""Efficient ensemble of experts: members are blocks of the experts (Allingham et al. 2022)."""

import functools

from uncertainty.ensembles.single import Single
from uncertainty.types import Backbone, Head, Network


def e3(
    backbone: Backbone, head: Head, size: int, partition: bool = True, tile: bool = True
) -> Network:
    """`size` members, each with its own routers and a share of the experts of `backbone.experts`.

    Source: "Sparse MoEs meet efficient ensembles" (first called partitioned batch ensembles).
    Everything except routers and experts is shared, including the head, and layers before the first
    mixture of experts are computed once. Training uses the mean of the members' losses; predictions
    average their probabilities. A V-MoE's parameters fit after a reshape of the router's kernels,
    [D, 1, E] to [D, M, E / M].

    Args:
      size: M.
      partition, tile: False for the ablations "only tiling" and "only partitioning"; see
        `layers/moe/experts.py`. Without `tile` there is one prediction.

    Raises:
      ValueError: a size below 1, a backbone without experts or whose experts have members already;
        when called, a size that does not divide the experts.
    """
    if size < 1:
        raise ValueError(f"size: {size} members; at least 1")
    if backbone.experts is None:
        raise ValueError(
            f"backbone: e3 needs experts, but this {type(backbone).__name__} has none; set "
            "backbone.experts of a vit.ViT"
        )
    if backbone.experts(parent=None).members != 1:
        raise ValueError("backbone.experts.members: e3 sets them; give its `size` instead")
    experts = functools.partial(backbone.experts, members=size, partition=partition, tile=tile)
    experts(parent=None)  # checked here, before anything is traced
    return Single(backbone.clone(experts=experts), head)
