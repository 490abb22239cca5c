"""Stein variational gradient descent."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from uncertainty.inference import sharded
from uncertainty.inference.directions.interacting import by_layer, interacting
from uncertainty.inference.kernels.rbf import rbf
from uncertainty.types import LIKELIHOOD, Direction, Kernel, Objective, Params, Target


def svgd(
    over: Callable,
    target: Target,
    accumulate: int = 1,
    objective: Objective = LIKELIHOOD,
    own_examples: bool = False,
    kernel: Callable[..., Kernel] = rbf,
    space: str = "weights",
    values: str = "logits",
    per_layer: bool = False,
    weight_kernel: Callable[..., Kernel] | None = None,
    annealing: Callable | None = None,
    context: Callable | None = None,
    function_prior: int = 0,
) -> Direction:
    """phi_i = 1/P sum_j [ a k(z_j, z_i) s_j + temperature grad_{z_j} k(z_j, z_i) ].

    Source: Liu & Wang 2016; in function space Wang et al. 2019; D'Angelo et al. 2021, "On Stein
    Variational Neural Network Ensembles", compares them. a = annealing(step), or 1: D'Angelo &
    Fortuin 2021, "Annealed Stein Variational Gradient Descent". s = grad log p(theta | D) is
    computed per example, so phi is N times the direction of a step.

    In weight space and with a stationary kernel the direction has a `diffusion`: noise that is
    standard normal and independent between particles gets the covariance K / P between them.
    theta <- theta - eta g + sqrt(2 eta temperature / N) xi with that noise xi is then stochastic
    SVGD (Gallego & Insua 2018), a Langevin diffusion of all particles with that matrix (Ma et al.
    2015). If the bandwidth is given, its divergence is the repulsion. With the median, which
    depends on the particles, a term is missing: variances are too large, especially with few
    particles and dimensions.

    Differences from the reference code: the matrix root of K, not that of its elements.

    Arguments are those of `interacting`; kernels, `annealing` and `context` are factories.
    """
    chosen = kernel()

    def transport(K: jax.Array, F: jax.Array) -> tuple[jax.Array, jax.Array]:
        return K / len(K), F / len(K)

    direction = interacting(
        transport,
        over,
        target,
        accumulate,
        objective,
        own_examples,
        kernel=chosen,
        space=space,
        values=values,
        per_layer=per_layer,
        weight_kernel=weight_kernel and weight_kernel(),
        annealing=annealing and annealing(),
        context=context and context(),
        function_prior=function_prior,
    )

    if space != "weights" or not chosen.stationary:
        return direction

    def coloured(params: Params, noise: Params) -> Params:
        def one(params: Params, noise: Params) -> Params:
            inner = sharded.inner_products(sharded.columns(params), chosen.stationary)
            K, _ = chosen.matrices(inner)
            return sharded.mix(_root(K / len(K)), noise)

        return by_layer(one, params, noise) if per_layer else one(params, noise)

    return direction._replace(diffusion=coloured)


def _root(K: jax.Array) -> jax.Array:
    """The symmetric root of K, which may be singular; it is equivariant to permutations."""
    eigenvalues, U = jnp.linalg.eigh(K)
    return sharded.product(U * jnp.sqrt(jnp.maximum(eigenvalues, 0)), U.T)
