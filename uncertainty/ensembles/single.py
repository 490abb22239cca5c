"""One member: a backbone and a head."""

import jax

from uncertainty.types import Backbone, Head, Latent, Network


class Single(Network):
    """x [B, ...] -> Latent [1, B, K], or [M, B, K] if a layer of the backbone makes members."""

    size: int | None = None  # expected members from layers at prediction; None for any number

    def __call__(self, x: jax.Array, *, train: bool) -> Latent:
        phi = self.backbone(x[None], train=train)
        if not train and self.size not in (None, phi.shape[0]):
            raise ValueError(
                f"size: {self.size} members, but {type(self.backbone).__name__} with these fields "
                f"makes {phi.shape[0]}: it has no layers that make members"
            )
        return self.head(phi, train=train)


def single(backbone: Backbone, head: Head) -> Network:
    """No members beyond those that the layers of the backbone make."""
    return Single(backbone, head)
