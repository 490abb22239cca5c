"""The spectral Stein gradient estimator of grad log q from draws of q (Shi, Sun & Zhu 2018)."""

import jax
import jax.numpy as jnp

from uncertainty.inference.kernels.rbf import median, squared_distances
from uncertainty.inference.sharded import first, inner_products, product
from uncertainty.keys import Use, fold
from uncertainty.types import Collections, Params, Prior, State

KEPT = 0.95  # share of the trace in the eigenpairs of `prior_score`


def leading(K: jax.Array, kept: float) -> tuple[jax.Array, jax.Array]:
    """Eigenvectors U [n, n] of K and 1 / lambda [n], 0 beyond the pairs with the share `kept`.

    Eigenvalues below 1e-6 of the largest, which float32 does not resolve, are never used.
    """
    eigenvalues, U = jnp.linalg.eigh(K)  # ascending
    above = jnp.cumsum(eigenvalues[::-1])[::-1] - eigenvalues  # sum of larger ones
    use = (above < kept * eigenvalues.sum()) & (eigenvalues > 1e-6 * eigenvalues[-1])
    return U, jnp.where(use, 1 / jnp.where(use, eigenvalues, 1.0), 0.0)


def score_at_samples(K: jax.Array, F: jax.Array, kept: float) -> jax.Array:
    """The matrix S with grad log q(z_l) = (S z)_l at the samples themselves: -U / lambda U^T F."""
    U, inverse = leading(K, kept)
    return -product(U, inverse[:, None] * product(U.T, F))


def prior_score(z: list[jax.Array], draws: list[jax.Array], kept: float = KEPT) -> list[jax.Array]:
    """grad log q at z, with q known by draws z'_l: columns [P, n_i], [n, n_i] -> [P, n_i].

    With K' = U diag(lambda) U^T of the draws, the eigenfunctions of k under q are, by Nystrom,
    psi_a(x) = sqrt(n) / lambda_a sum_l U_la k(x, z'_l), and grad log q = sum_a beta_a psi_a with

      beta_a = -E_q[grad psi_a] = -1 / (sqrt(n) lambda_a) sum_l U_la r_l,
      r_l = sum_m grad_{z'_m} k(z'_m, z'_l) = (F' z')_l,

    so that grad log q(x) = -k(x, z') U diag(lambda^-2) U^T F' z'. At a draw k(z', z') U =
    U diag(lambda), which leaves `score_at_samples`.

    The kernel is exp(-|a - b|^2 / (2 h)) with h the median of |z'_l - z'_m|^2, as in the paper, and
    not the kernel of the particles: with SVGD's median over log P the estimate does not converge as
    n grows. It also does not depend on the particles.
    """
    P = len(z[0])
    joint = [jnp.concatenate(pair) for pair in zip(z, draws, strict=True)]
    squared = squared_distances(inner_products(joint, centred=True))
    h = median(squared[P:, P:])
    K = jnp.exp(-squared[P:, P:] / (2 * h))
    cross = jnp.exp(-squared[:P, P:] / (2 * h))
    F = (jnp.diag(K.sum(1)) - K) / h
    U, inverse = leading(K, kept)
    S = -product(product(cross, U) * inverse**2, product(U.T, F))
    return [product(S, a) for a in draws]


def prior_draws(
    prior: Prior, size: int, state: State, key: jax.Array
) -> tuple[Params, Collections, jax.Array]:
    """Weights from the prior, with particle 0's collections and keys, [n, ...], to run networks
    with.

    `state` has only the network's parameters.
    """
    keys = jax.vmap(jax.random.split)(jax.random.split(fold(key, Use.PRIOR_DRAWS), size))
    like = jax.tree.map(lambda a: a[0], state.params)
    params = jax.vmap(lambda key: prior.sample(key, like))(keys[:, 0])
    collections = jax.tree.map(
        lambda a: jnp.broadcast_to(a, (size, *a.shape)), first(state.collections)
    )
    return params, collections, keys[:, 1]
