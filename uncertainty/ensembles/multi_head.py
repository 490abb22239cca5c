"""M heads on one shared backbone (TreeNet with the branch at the last layer, Lee et al. 2015)."""

from collections.abc import Callable

import flax.linen as nn
import jax

from uncertainty.types import Backbone, Head, Latent, Network


class MultiHead(Network):
    """x [B, ...] -> Latent [M, B, K]; every variable of the head leads with M."""

    size: int

    def __call__(self, x: jax.Array, *, train: bool) -> Latent:
        phi = self.backbone(x[None], train=train)
        return heads(self.head, phi, self.size, "multi_head", train=train)


def multi_head(backbone: Backbone, head: Head, size: int) -> Network:
    """`size` heads, initialised independently, trained on the mean of their losses.

    Args:
      head: with parameters, if `size` is above 1.
      size: M.

    Raises:
      ValueError: a size below 1; when traced, a head without parameters, or a backbone that makes
        members.
    """
    if size < 1:
        raise ValueError(f"size: {size} members; at least 1")
    return MultiHead(backbone, head, size)


def heads(head: nn.Module, phi: jax.Array, size: int, ensemble: str, *, train: bool) -> Latent:
    """phi [1, B, D] -> Latent [size, B, K] of separate heads, within a Flax module's call.

    Raises:
      ValueError: a backbone with members, or several heads without parameters, which would be the
        same function; the message names `ensemble`.
    """
    check_alone(phi, size, ensemble)
    latent = of_each(lambda head, phi: head(phi, train=train), head, phi, size)
    if size > 1 and not head.variables.get("params"):
        raise ValueError(
            f"head: {type(head).__name__} has no parameters, so the {size} members of {ensemble} "
            f"would be identical; give it a head, such as head=Dense({latent.mean.shape[-1]})"
        )
    return latent


def check_alone(phi: jax.Array, size: int, ensemble: str) -> None:
    """Raises ValueError if phi [M, B, D] has members already; the message names `ensemble`."""
    if phi.shape[0] != 1:
        raise ValueError(
            f"ensemble: {ensemble} makes {size} members, but the backbone already makes "
            f"{phi.shape[0]}; only one part can make members"
        )


def of_each(
    fn: Callable[[nn.Module, jax.Array], Latent], module: nn.Module, x: jax.Array, size: int
) -> Latent:
    """fn(module, x) [1, B, K] with `size` sets of variables, [size, B, K].

    A convolution mapped over its kernels is one convolution in groups.
    """
    mapped = nn.vmap(
        fn,
        in_axes=None,
        axis_size=size,
        variable_axes={nn.DenyList(()): 0},
        split_rngs={nn.DenyList(()): True},
    )
    return jax.tree.map(lambda a: a[:, 0], mapped(module, x))
