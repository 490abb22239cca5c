"""One member: a backbone and a head."""

import flax.linen as nn
import jax

from uncertainty.types import Latent


class Single(nn.Module):
    """x [B, ...] -> Latent [1, B, K], or [M, B, K] where a layer of the backbone makes members."""

    backbone: nn.Module
    head: nn.Module

    def __call__(self, x: jax.Array, *, train: bool) -> Latent:
        return self.head(self.backbone(x[None], train=train), train=train)


def single(backbone: nn.Module, head: nn.Module) -> nn.Module:
    """No members beyond those that the layers of the backbone make."""
    return Single(backbone, head)
