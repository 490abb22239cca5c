"""Packed ensembles: M narrow networks as the groups of one (Laurent et al. 2023)."""

import dataclasses
import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import flax.linen as nn
import jax

from uncertainty.ensembles.multi_head import check_alone, of_each
from uncertainty.ensembles.replace import check, replace
from uncertainty.layers.packed import Dense
from uncertainty.types import Backbone, Head, Latent, Network


class Packed(Network):
    """x [B, ...] -> Latent [M, B, K]; every variable leads with M, and members share nothing."""

    size: int

    def __call__(self, x: jax.Array, *, train: bool) -> Latent:
        def member(module: nn.Module, x: jax.Array) -> Latent:
            phi = module.backbone(x[None], train=train)
            check_alone(phi, module.size, "packed")
            return module.head(phi, train=train)

        return of_each(member, self, x, self.size)


def packed(
    backbone: Backbone, head: Head, size: int, alpha: float = 2.0, gamma: int = 1
) -> Network:
    """`size` networks with alpha / size times the features of `backbone` in every layer.

    With alpha = sqrt(size) parameters and products are about those of the backbone; alpha = size is
    a deep ensemble. Training uses the mean of the members' losses. Unlike particles, members have
    one set of parameters and one optimiser (the gradient norm is clipped jointly), and run as one
    program of grouped products.

    Differences from the paper: members have separate heads of any kind; features are rounded up to
    a multiple of gamma, and in a ViT of its number of heads, which each member keeps. As in the
    paper, each member has its own batch statistics.

    Args:
      backbone: defines `sizes`, the fields that set its numbers of features.
      size: M.
      alpha: width of all members together, in widths of the backbone.
      gamma: groups in each member's layers, except in the head and in layers whose input is x.

    Raises:
      ValueError: a number below 1 (alpha: not positive), a backbone without `sizes`, or with gamma
        a backbone whose layers are replaced already.
    """
    check(size, "")
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha: {alpha}; a positive number")
    if gamma < 1:
        raise ValueError(f"gamma: {gamma} groups; at least 1")
    if not backbone.sizes:
        raise ValueError(f"backbone: {type(backbone).__name__} does not define `sizes`")
    for field in ("dense", "conv") if gamma > 1 else ():
        plain = {f.name: f.default for f in dataclasses.fields(backbone)}
        if field in plain and getattr(backbone, field) is not plain[field]:
            raise ValueError(
                f"backbone.{field}: gamma {gamma} replaces it by grouped layers; unset it, "
                "or set gamma to 1"
            )
    backbone = narrower(backbone, Fraction(str(alpha)) / size, gamma)
    if gamma > 1:
        # Except layers whose input is x, or a flattened image, whose channels are not contiguous.
        inner = rf"^(?!backbone/({'|'.join(backbone.input_layers)})$)"
        backbone = replace(backbone, ("dense",), _in_groups(Dense, "groups", gamma), inner)
        grouped = _in_groups(nn.Conv, "feature_group_count", gamma)
        backbone = replace(backbone, ("conv",), grouped, inner)
    return Packed(backbone, head, size)


def narrower(backbone: Backbone, factor: Fraction | float, multiple: int = 1) -> Backbone:
    """The backbone with `factor` times its features, rounded up to a multiple.

    The product is exact in decimal: 1.1 times 50 is 55, not 55.00000000000001, which would round up
    to 56.
    """
    factor = Fraction(str(factor))
    of_width = multiple * backbone.width_unit

    def scaled(features: int, multiple: int) -> int:
        return math.ceil(features * factor / multiple) * multiple

    sizes: dict[str, Any] = {}
    for field, value in backbone.sizes.items():
        unit = of_width if field == "width" else multiple
        many = isinstance(value, tuple)
        sizes[field] = tuple(scaled(v, unit) for v in value) if many else scaled(value, unit)
    return backbone.clone(**sizes)


def _in_groups(
    layer: Callable[..., nn.Module], field: str, groups: int
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    return lambda plain: functools.partial(layer, **{field: groups})
