"""What particles that interact share: where the Stein step stands relative to the pull back.

A method is a pair of matrices [P, P] made of the particles' inner products, A and B, with which

    g_i  <-  sum_j A_ij g_j  -  temperature / N  sum_j B_ij z_j

where g is the gradient of the mean nll (and of -1/N log p(theta)) and z is what the kernel sees.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from uncertainty.inference.independent import Direction, independent
from uncertainty.types import (
    Batch,
    Collections,
    Kernel,
    Latent,
    Metrics,
    Model,
    Params,
    State,
    Target,
)

SPACES = ("weights", "functions", "functional_kernel", "functional_repulsion")
VALUES = ("logits", "probabilities")
Transport = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]  # K, F -> A, B


def interacting(
    transport: Transport,
    over: Callable,
    target: Target,
    accumulate: int,
    kernel: Kernel,
    space: str = "weights",
    values: str = "logits",
    per_layer: bool = False,
) -> Direction:
    """A direction in one of SPACES.

      weights               g = A g - B z, z the weights
      functions             g = J^T [A dnll/du - B z], z the function values on the batch; a prior
                            on the weights is followed by each particle for itself
      functional_kernel     g = A g - J^T B z: the scores of the weights, averaged and repelled by a
                            kernel of the functions
      functional_repulsion  g = A g - J^T B z with A of the weights and B z of the functions

    with J the Jacobian of a particle's function values. The last two are the readings of "hybrid"
    in the literature.

    Args:
      transport: K and F of the kernel -> A and B.
      over, target, accumulate: see `independent`.
      kernel: of `uncertainty/kernels`.
      space: see above.
      values: what stands for a function: 'logits', the latents' means, or 'probabilities'.
      per_layer: a kernel for each layer by itself, in weight space.

    Raises:
      ValueError: an unknown space or values, or `accumulate` or `per_layer` outside weight space.
    """
    for field, value, allowed in (("space", space, SPACES), ("values", values, VALUES)):
        if value not in allowed:
            raise ValueError(f"{field}: {value!r}; one of {', '.join(map(repr, allowed))}")
    if space != "weights" and accumulate > 1:
        raise ValueError(f"accumulate: {accumulate} parts, but functions are compared on the batch")
    if space != "weights" and per_layer:
        raise ValueError("per_layer: functions have no layers; for space='weights' only")
    scale = target.scale()
    alone = independent(over, target, accumulate)

    def matrices(z: Any) -> tuple[jax.Array, jax.Array]:
        return transport(*kernel.matrices(inner_products(z, kernel.stationary)))

    def energy(params: Params) -> jax.Array:
        return jnp.asarray(target.potential(params), jnp.float32)

    def prior_gradient(params: Params) -> Params:
        return jax.vmap(jax.grad(energy))(params)

    def in_weights(
        model: Model, state: State, batch: Batch, keys: jax.Array
    ) -> tuple[Params, Collections, Metrics]:
        g, collections, metrics = alone(model, state, batch, keys)

        def step(z: Any, g: Any) -> Any:
            A, B = matrices(z)
            return jax.tree.map(lambda g, z: _mix(A, g) - scale * _mix(B, z), g, z)

        g = _by_layer(step, state.params, g) if per_layer else step(state.params, g)
        return g, collections, metrics

    def in_functions(
        model: Model, state: State, batch: Batch, keys: jax.Array
    ) -> tuple[Params, Collections, Metrics]:
        both = jax.vmap(jax.random.split)(keys)  # [P, 2]

        def forward(params: Params) -> tuple[tuple[Latent, jax.Array], Collections]:
            def one(particle, x):
                latent, collections, auxiliary = model.forward(*particle[:2], x, particle[2],
                                                               train=True)  # fmt: skip
                return latent, auxiliary, collections

            latent, auxiliary, collections = over(one)(
                (params, state.collections, both[:, 0]), batch["x"]
            )
            return (latent, auxiliary), collections

        (latent, auxiliary), pull, collections = jax.vjp(forward, state.params, has_aux=True)

        def objective(latent: Latent) -> tuple[jax.Array, jax.Array]:
            nll = jax.vmap(model.likelihood.nll, (0, None, 0))(latent, batch["y"], both[:, 1])
            return jnp.sum(jnp.mean(nll, axis=(1, 2))), nll

        du, nll = jax.grad(objective, has_aux=True)(latent)
        z, pull_values = jax.vjp(lambda u: represent(model, u, keys, values), latent)
        A, B = matrices(z)
        (repulsion,) = pull_values(-scale * _mix(B, z))
        ones = jnp.ones_like(auxiliary)
        if space == "functions":
            (g,) = pull((jax.tree.map(lambda a, b: _mix(A, a) + b, du, repulsion), ones))
            g = jax.tree.map(jnp.add, g, prior_gradient(state.params))
        else:
            if space == "functional_repulsion":
                A, _ = matrices(state.params)
            (own,) = pull((du, ones))
            (force,) = pull((repulsion, jnp.zeros_like(ones)))
            own = jax.tree.map(jnp.add, own, prior_gradient(state.params))
            g = jax.tree.map(lambda own, force: _mix(A, own) + force, own, force)
        loss = jnp.mean(nll, axis=(1, 2)) + auxiliary + jax.vmap(energy)(state.params)
        return g, collections, dict(loss=loss, nll=nll)

    return in_weights if space == "weights" else in_functions


def inner_products(z: Any, centred: bool) -> jax.Array:
    """z_i . z_j over all leaves [P, ...], [P, P]; `centred`: of z minus its mean over particles."""
    total = 0.0
    for leaf in jax.tree.leaves(z):
        flat = leaf.reshape(leaf.shape[0], -1)
        flat = flat - flat.mean(0) if centred else flat
        total = total + jnp.matmul(flat, flat.T, precision=jax.lax.Precision.HIGHEST)
    return total


def represent(model: Model, latent: Latent, keys: jax.Array, values: str) -> jax.Array:
    """Function values of each particle on the batch, [P, M B K]."""
    P = latent.mean.shape[0]
    if values == "logits":
        return latent.mean.reshape(P, -1)
    if model.likelihood.log_probs is None:
        raise ValueError("values: 'probabilities' are those of classes; use 'logits'")
    return jnp.exp(jax.vmap(model.likelihood.log_probs)(latent, keys)).reshape(P, -1)


def _mix(matrix: jax.Array, leaf: jax.Array) -> jax.Array:
    """sum_j matrix_ij leaf_j."""
    flat = leaf.reshape(leaf.shape[0], -1)
    product = jnp.matmul(matrix, flat, precision=jax.lax.Precision.HIGHEST)
    return product.reshape(leaf.shape)


def _by_layer(step: Callable, params: Params, g: Params) -> Params:
    """`step` for each innermost dict, which is a layer, by itself."""
    if any(not isinstance(value, dict) for value in params.values()):
        return step(params, g)
    return {name: _by_layer(step, params[name], g[name]) for name in params}
