"""One member: a backbone and a head."""

import jax

from uncertainty.types import Backbone, Head, Latent, Network


class Single(Network):
    """x [B, ...] -> Latent [1, B, K], or [M, B, K] if a layer of the backbone makes members."""

    size: int | None = None  # expected members from layers at prediction; None for any number
    frozen: tuple[str, ...] = ()

    def __call__(self, x: jax.Array, *, train: bool) -> Latent:
        phi = self.backbone(x[None], train=train and not self.frozen)
        if not train and self.size not in (None, phi.shape[0]):
            raise ValueError(
                f"size: {self.size} members, but {type(self.backbone).__name__} with these fields "
                f"makes {phi.shape[0]}: it has no layers that make members"
            )
        return self.head(phi, train=train)


def single(backbone: Backbone, head: Head, frozen: bool = False) -> Network:
    """No members beyond those that the layers of the backbone make.

    Args:
      frozen: whether the backbone keeps the parameters that it begins with (`pretrained`) and
        computes in training as at prediction; with head `dense.Dense` a linear probe of its
        features. Its parameters are in the collection 'frozen'.
    """
    return Single(backbone, head, frozen=("backbone",) if frozen else ())
