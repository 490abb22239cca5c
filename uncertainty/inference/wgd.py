"""Wasserstein gradient descent: repulsive ensembles by an estimate of the particles' own score."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from uncertainty.inference.independent import Direction
from uncertainty.inference.interacting import Transport, interacting
from uncertainty.kernels.rbf import rbf
from uncertainty.types import Kernel, Target

ESTIMATORS = ("kde", "sge", "ssge")


def wgd(
    over: Callable,
    target: Target,
    accumulate: int = 1,
    estimator: str = "kde",
    kernel: Callable[..., Kernel] = rbf,
    space: str = "weights",
    values: str = "logits",
    per_layer: bool = False,
    ridge: float = 0.01,
    kept: float = 0.99,
) -> Direction:
    """phi_i = s_i - temperature grad log q(z_i), with q the law of the particles.

    Source: D'Angelo & Fortuin 2021, "Repulsive deep ensembles are Bayesian". grad log q is made
    from K_ij = k(z_i, z_j) and r_i = sum_j grad_{z_j} k(z_j, z_i) by

      kde   -r_i / sum_j K_ij, the score of a kernel density
      sge   -(K + ridge I)^-1 r, the Stein gradient estimator (Li & Turner 2018)
      ssge  the same without a ridge on the leading eigenvectors of K, those that hold the
            share `kept` of its trace: the spectral estimator (Shi et al. 2018) at its samples

    Differences from the reference code: there 'ssge' keeps all eigenvectors and adds the ridge to
    K, which makes it 'sge'.

    Args:
      estimator: one of ESTIMATORS; 'kde' needs a stationary kernel.
      ridge, kept: see above.
      Others are those of `interacting`.

    Raises:
      ValueError: an unknown estimator, a kernel that is no density, a number out of range.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator: {estimator!r}; one of {', '.join(map(repr, ESTIMATORS))}")
    if not ridge > 0:
        raise ValueError(f"ridge: {ridge}; a positive number")
    if not 0 < kept <= 1:
        raise ValueError(f"kept: {kept}; above 0, at most 1")
    chosen = kernel()
    if estimator == "kde" and not chosen.stationary:
        raise ValueError("kernel: 'kde' is a density estimate and needs a stationary kernel")
    transport: dict[str, Transport] = {
        "kde": lambda K, F: (jnp.eye(len(K)), F / K.sum(1, keepdims=True)),
        "sge": lambda K, F: (jnp.eye(len(K)), jnp.linalg.solve(K + ridge * jnp.eye(len(K)), F)),
        "ssge": lambda K, F: (jnp.eye(len(K)), _leading(K, F, kept)),
    }
    return interacting(
        transport[estimator], over, target, accumulate, chosen, space, values, per_layer
    )


def _leading(K: jax.Array, F: jax.Array, kept: float) -> jax.Array:
    """U diag(1 / lambda) U^T F over the leading eigenpairs of K."""
    eigenvalues, U = jnp.linalg.eigh(K)  # ascending
    above = jnp.cumsum(eigenvalues[::-1])[::-1] - eigenvalues  # held by larger ones
    use = (above < kept * eigenvalues.sum()) & (eigenvalues > 1e-6 * eigenvalues[-1])
    inverse = jnp.where(use, 1 / jnp.where(use, eigenvalues, 1.0), 0.0)
    return U @ (inverse[:, None] * (U.T @ F))
