"""M heads on one shared backbone (TreeNet with the branch at the last layer, Lee et al. 2015)."""

import flax.linen as nn
import jax

from uncertainty.types import Latent


class MultiHead(nn.Module):
    """x [B, ...] -> Latent [M, B, K]; every variable of the head leads with M."""

    backbone: nn.Module
    head: nn.Module
    size: int

    def __call__(self, x: jax.Array, *, train: bool) -> Latent:
        phi = self.backbone(x[None], train=train)
        if phi.shape[0] != 1:
            raise ValueError(
                f"ensemble: multi_head makes {self.size} members, but the backbone has made "
                f"{phi.shape[0]} already; members are made in one place"
            )
        heads = nn.vmap(
            lambda head, phi: head(phi, train=train),
            in_axes=None,
            axis_size=self.size,
            variable_axes={nn.DenyList(()): 0},
            split_rngs={nn.DenyList(()): True},
        )
        return jax.tree.map(lambda a: a[:, 0], heads(self.head, phi))


def multi_head(backbone: nn.Module, head: nn.Module, size: int) -> nn.Module:
    """`size` heads, initialised independently, trained on the mean of their losses."""
    if size < 1:
        raise ValueError(f"size: {size} members; at least 1")
    return MultiHead(backbone, head, size)
