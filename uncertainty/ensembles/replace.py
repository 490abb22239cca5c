"""Members by replaced layers: the common code of ensembles that replace layers of a network."""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax

from uncertainty.layers.choice import Choice
from uncertainty.rules import paths
from uncertainty.types import Backbone, Head, Latent, Network

Wrap = Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]
Part = TypeVar("Part", Backbone, Head)


class Members(Network):
    """x [B, ...] -> Latent [M, B, K], with some layers that make members."""

    size: int
    where: str
    samples: int = 1  # of each member at prediction
    variational: bool = False  # parameters define a posterior, and the loss includes its KL

    def __call__(self, x: jax.Array, *, train: bool) -> Latent:
        latent = self.head(self.backbone(x[None], train=train), train=train)
        if latent.mean.shape[0] not in (self.size, self.size * self.samples):
            names = [name.rpartition("/")[0] for name in paths(self.variables["params"])]
            raise ValueError(
                f"where: {self.where!r} matches the path of no layer that can make members; the "
                f"paths are {', '.join(dict.fromkeys(names))}"
            )
        return latent


def members(
    backbone: Backbone, head: Head, size: int, wrap: Wrap, where: str, **fields: Any
) -> Network:
    """`Members` whose dense and convolution layers at the paths `where` are wrapped."""
    backbone = replace(backbone, ("dense", "conv"), wrap, where)
    backbone = told(backbone, size, size * fields.get("samples", 1))
    return Members(backbone, replace(head, ("dense",), wrap, where), size, where, **fields)


def replace(part: Part, fields: Sequence[str], wrap: Wrap, where: str) -> Part:
    """`part` with each factory in `fields` replaced by wrap(factory), at the paths `where`.

    Args:
      part: a backbone or a head.
      fields: such as 'dense' and 'conv'.
      wrap: factory -> factory.
      where: a regular expression to search in the paths of layers, such as
        `backbone/block0/attention/query`; '' matches all of them.
    """

    def chosen(plain: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        def make(*, name: str | None = None, **options) -> nn.Module:
            special = functools.partial(wrap(plain), **options)
            return Choice(functools.partial(plain, **options), special, where, name=name)

        return make

    own: dict[str, Any] = {f: chosen(getattr(part, f)) for f in fields if is_field(part, f)}
    return part.clone(**own)


def told(backbone: Backbone, training: int, prediction: int) -> Backbone:
    """The backbone, whose field `members` gets M in training and at prediction, if it has one."""
    if not is_field(backbone, "members"):
        return backbone
    return backbone.clone(members=(training, prediction))


def is_field(part: nn.Module, name: str) -> bool:
    """Whether a backbone or head has a field of this name, such as that of a layer."""
    return name in (field.name for field in dataclasses.fields(part))


def check(size: int, where: str) -> None:
    """Raises ValueError for a size below 1 or an invalid regular expression."""
    if size < 1:
        raise ValueError(f"size: {size} members; at least 1")
    try:
        re.compile(where)
    except re.error as error:
        raise ValueError(f"where: {where!r} is not a regular expression: {error}") from None
