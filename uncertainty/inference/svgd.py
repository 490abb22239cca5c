"""Stein variational gradient descent."""

from collections.abc import Callable

import jax

from uncertainty.inference.independent import Direction
from uncertainty.inference.interacting import interacting
from uncertainty.kernels.rbf import rbf
from uncertainty.types import Kernel, Target


def svgd(
    over: Callable,
    target: Target,
    accumulate: int = 1,
    kernel: Callable[..., Kernel] = rbf,
    space: str = "weights",
    values: str = "logits",
    per_layer: bool = False,
) -> Direction:
    """phi_i = 1/P sum_j [ k(z_j, z_i) s_j + temperature grad_{z_j} k(z_j, z_i) ].

    Source: Liu & Wang 2016; in function space Wang et al. 2019; D'Angelo et al. 2021, "On Stein
    Variational Neural Network Ensembles", compares them. s = grad log p(theta | D) is kept per
    example, so phi is N times what a step follows.

    Arguments are those of `interacting`.
    """

    def transport(K: jax.Array, F: jax.Array) -> tuple[jax.Array, jax.Array]:
        return K / len(K), F / len(K)

    return interacting(transport, over, target, accumulate, kernel(), space, values, per_layer)
