"""The common part of directions with interaction: spaces, kernels, and pulling back to weights.

A method is a pair of matrices [P, P], A and B, computed from the particles' inner products, with

    g_i  <-  a sum_j A_ij g_j  -  temperature / N  sum_j B_ij z_j

where g is the gradient of the mean nll (and of -1/N log p(theta)), z is the kernel's input, and a =
annealing(step), or 1. Particles may be sharded over devices: `inference/sharded.py`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from uncertainty.inference import examples, loss, sharded
from uncertainty.inference.directions.independent import independent
from uncertainty.inference.directions.spectral import prior_draws, prior_score
from uncertainty.inference.function_values import VALUES, features, represent
from uncertainty.inference.samples import times
from uncertainty.keys import Use, fold
from uncertainty.types import (
    Batch,
    Collections,
    Direction,
    Kernel,
    Latent,
    Metrics,
    Model,
    Objective,
    Own,
    Params,
    State,
    Target,
)

SPACES = ("weights", "functions", "functional_kernel", "functional_repulsion")
# K, F -> A, B. None for A is the identity; B is linear in F.
Transport = Callable[[jax.Array, jax.Array], tuple[jax.Array | None, jax.Array]]


def interacting(
    transport: Transport,
    over: Callable,
    target: Target,
    accumulate: int,
    objective: Objective,
    own_examples: bool,
    *,
    kernel: Kernel,
    space: str = "weights",
    values: str = "logits",
    per_layer: bool = False,
    weight_kernel: Kernel | None = None,
    annealing: Callable | None = None,
    context: Callable | None = None,
    function_prior: int = 0,
) -> Direction:
    """A direction in one of SPACES.

      weights               g = A g - B z, z the weights
      functions             g = J^T [A dnll/du - B z], z the function values on the batch; a prior
                            on the weights (and an auxiliary loss) is followed by each particle for
                            itself, times sum_j A_ij, so that it weighs against the likelihood as
                            in the posterior
      functional_kernel     g = A g - J^T B z: the scores of the weights, averaged and repelled by a
                            kernel of the functions
      functional_repulsion  g = A g - J^T B z with A of the weights and B z of the functions

    with J the Jacobian of a particle's function values. The last two are the two interpretations of
    "hybrid" in the literature; the text of "On Stein Variational Neural Network Ensembles" does not
    say which one it means, so neither is the default, which is plain SVGD. Both pull the repulsion
    back by the Jacobian J_i of the particle that moves, as function space does. The gradient of
    k(f(w_j), f(w_i)) in w_j would need J_j^T for each pair, P^2 pullbacks; with J_i it is no longer
    the derivative of a kernel of the weights, and the fixed point is not that of Stein's identity.

    With values='probabilities', z are probabilities; dnll/du is still with respect to the latents
    u, and is averaged as such.

    Functions may be compared at other points than the batch, the same for all particles: then z, B
    and A are computed at these points, where the networks run as in training, and B z is pulled
    back through the Jacobian there, while nll, auxiliary losses and collections are those of the
    batch.

    In 'functions' the prior may be one on functions, that of the weights' prior: J^T A (-1/N grad
    log q(z)) with the score estimated from draws, see `spectral.prior_score`. Draws are new at each
    step; `loss` is then without a prior.

    The objective's own parameters follow their own gradient and are not compared; spaces of
    functions do not allow them. If an objective changes the inputs, dnll/du is taken at the inputs
    of each particle and used for the same example of the others, while functions are compared on
    the unchanged batch. If particles have their own examples, functions are compared on a stream
    that all share; then there is no dnll/du to average, so space='functions' is only for methods
    whose A is the identity.

    The keys of points and draws are made from the key of particle 0 and the step, which all devices
    have.

    Args:
      transport: K and F of the kernel -> A and B.
      over, target, accumulate, objective, own_examples: see `independent`.
      kernel: of `inference/kernels`.
      space: one of SPACES, see above.
      values: the function values: 'logits', the latents' means, or 'probabilities'.
      per_layer: a kernel for each layer by itself, in weight space.
      weight_kernel: of the weights in 'functional_repulsion'; None for `kernel`.
      annealing: step -> factor of the driving term, see `uncertainty/inference/annealing.py`.
      context: batch, key -> points x [B', ...] at which functions are compared, see
        `uncertainty/inference/context.py`; None for the batch itself.
      function_prior: number of draws; 0 for a prior on the weights.

    Raises:
      ValueError: an unknown space or values; a field that does not apply to the space; a kernel of
        probabilities on other values; draws without a prior; where functions are compared, an
        objective without a loss of the latents, or particles with their own examples.
    """
    for field, value, allowed in (("space", space, SPACES), ("values", values, VALUES)):
        if value not in allowed:
            raise ValueError(f"{field}: {value!r}; one of {', '.join(map(repr, allowed))}")
    in_function_space = space != "weights"
    if in_function_space and accumulate > 1:
        raise ValueError(f"accumulate: {accumulate} parts, but functions are compared on the batch")
    if in_function_space and objective.loss is not None:
        raise ValueError(
            f"objective: {objective.name!r} is not a loss of the latents, which space={space!r} "
            "needs; use space='weights' or direction 'independent'"
        )
    if in_function_space and objective.init is not None:
        raise ValueError(
            f"objective: {objective.name!r} has its own parameters, which space={space!r} does "
            "not update; use space='weights' or direction 'independent'"
        )
    if in_function_space and objective.together is not None:
        raise ValueError(
            f"objective: {objective.name!r} compares functions itself, which space={space!r} does "
            "not allow; use space='weights' or direction 'independent'"
        )
    if in_function_space and own_examples and context is None:
        raise ValueError(
            "direction.context: functions are compared on the batch, but each particle has its own "
            "examples; use 'other', whose points all particles share"
        )
    if in_function_space and per_layer:
        raise ValueError("per_layer: for space='weights' only; functions have no layers")
    if not in_function_space and context is not None:
        raise ValueError("context: not for space='weights', which compares no functions")
    if weight_kernel is not None and space != "functional_repulsion":
        raise ValueError("weight_kernel: for space='functional_repulsion' only")
    weight_kernel = weight_kernel or kernel
    if kernel.features is not None and (not in_function_space or values != "probabilities"):
        raise ValueError(
            "kernel: this one compares probabilities; set values='probabilities' and "
            "a space of functions, not 'weights'"
        )
    if space == "functional_repulsion" and weight_kernel.features is not None:
        raise ValueError(
            "weight_kernel: 'functional_repulsion' compares weights too, and this "
            "kernel compares probabilities; give another"
        )
    if function_prior:
        if function_prior < 2:
            raise ValueError(f"function_prior: {function_prior} draws; at least 2, or 0")
        if space != "functions":
            raise ValueError("function_prior: for space='functions' only")
        if target.prior is None:
            raise ValueError("function_prior: needs a prior on the weights to draw from")
    scale = target.scale()
    alone = independent(over, target, accumulate, objective, own_examples).update

    def anneal(tree: Any, step: jax.Array) -> Any:
        if annealing is None:
            return tree
        return jax.tree.map(lambda a: (annealing(step) * a).astype(a.dtype), tree)

    def matrices(kernel: Kernel, z: list[jax.Array]) -> tuple[jax.Array | None, jax.Array]:
        return transport(*kernel.matrices(sharded.inner_products(z, kernel.stationary)))

    def in_weights(
        model: Model, state: State, batch: Batch, keys: jax.Array
    ) -> tuple[Params, Collections, Metrics]:
        g, collections, metrics = alone(model, state, batch, keys)

        def step(params: Params, g: Params) -> Params:
            z = sharded.columns(params)
            A, B = matrices(kernel, z)
            if A is None:
                return add(g, sharded.rows([-scale * sharded.product(B, a) for a in z], g))
            pairs = zip(sharded.columns(g), z, strict=True)
            product = sharded.product
            if kernel.proportional:
                c, d = _split(A, B)
                mixed = [product(A, g + scale * c * z) - scale * d * z for g, z in pairs]
            else:
                mixed = [product(A, g) - scale * product(B, z) for g, z in pairs]
            return sharded.rows(mixed, g)

        params, own = loss.network(objective, state.params), loss.own(objective, g)
        g = anneal(loss.network(objective, g), state.step)
        g = by_layer(step, params, g) if per_layer else step(params, g)
        return loss.join(objective, g, own), collections, metrics

    def in_functions(
        model: Model, state: State, batch: Batch, keys: jax.Array
    ) -> tuple[Params, Collections, Metrics]:
        both = jax.vmap(jax.random.split)(keys)  # [P, 2]
        shared = sharded.first(keys)
        mine, seen_by_all = moved(model, state, batch, keys)

        def forward(params: Params, collections: Collections, keys: jax.Array, x: Batch, y: Batch):
            """Function values at inputs x [P, ...] of each particle, or at x shared by all."""

            def one(particle, shared):
                params, collections, key, x = particle
                x = {**shared, **x}["x"]
                latent, new, auxiliary = model.forward(params, collections, x, key, train=True)
                return latent, auxiliary, new

            latent, auxiliary, new = over(one)((params, collections, keys, x), y)
            return (latent, auxiliary), new

        def pullback(x: Batch, y: Batch):
            return jax.vjp(
                lambda params: forward(params, state.collections, both[:, 0], x, y),
                state.params,
                has_aux=True,
            )

        def losses(latent: Latent) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            def one(latent, mine, key, slow):
                batch, own = {**seen_by_all, **mine}, Own(slow=slow, step=state.step)
                return loss.per_example(model.likelihood, objective, latent, batch, key, own)

            each, nll = jax.vmap(one)(latent, mine, both[:, 1], state.slow)
            return jnp.sum(jnp.mean(each, axis=(1, 2))), (each, nll)

        (latent, auxiliary), pull, collections = pullback(mine, seen_by_all)
        du, (each, nll) = jax.grad(losses, has_aux=True)(latent)
        apart = context is not None or objective.inputs is not None  # other points than the batch
        points, seen, pull_seen = batch["x"], latent, pull
        if context is not None:
            visible = examples.split(batch, own_examples)[1]
            points = context(visible, fold(shared, Use.POINTS))
        if apart:
            (seen, _), pull_seen, _ = pullback({}, dict(x=points))

        noise = fold(shared, Use.DRAWS)
        z, pull_values = jax.vjp(lambda u: represent(model, u, noise, values), seen)
        phi, slope = features(kernel, z)
        compared = sharded.columns(phi)
        A, B = matrices(kernel, compared)
        force = sharded.rows([-scale * sharded.product(B, a) for a in compared], z) * slope
        if function_prior and target.prior is not None:
            drawn = prior_draws(target.prior, function_prior, state, shared)
            draws = represent(model, forward(*drawn, {}, dict(x=points))[0][0], noise, values)
            score = prior_score(sharded.columns(z), sharded.columns(draws, shared=True))
            drive = sharded.mix(A, sharded.rows(score, z))
            force = force - anneal(drive, state.step) / target.N()
        (force,) = pull_values(force)

        energy, own = jax.vmap(jax.value_and_grad(_energy))(state.params)
        one, nothing = jnp.ones_like(auxiliary), jnp.zeros_like(auxiliary)
        if space == "functions":
            if own_examples and A is not None:
                raise ValueError(
                    "space: 'functions' averages dnll/du over particles, but each has its own "
                    "examples; use a method such as 'wgd'"
                )
            drive = anneal(sharded.mix(A, du), state.step)
            if not apart:
                drive = add(drive, force)
            weight = anneal(one if A is None else sharded.own(A.sum(1)), state.step)
            (g,) = pull((drive, weight))
            if apart:
                g = add(g, *pull_seen((force, nothing)))
            if not function_prior:
                g = add(g, jax.tree.map(times(weight), own))
        else:
            if space == "functional_repulsion":
                A, _ = matrices(weight_kernel, sharded.columns(state.params))
            drive = sharded.mix(A, anneal(add(own, *pull((du, one))), state.step))
            g = add(drive, *pull_seen((force, nothing)))
        value = jnp.mean(each, axis=(1, 2)) + auxiliary + (0.0 if function_prior else energy)
        return g, collections, dict(loss=value, nll=nll)

    def moved(model: Model, state: State, batch: Batch, keys: jax.Array) -> tuple[Batch, Batch]:
        """The batch in training: the particles' own arrays [P, ...], and the shared ones."""
        mine, shared = examples.split(batch, own_examples)
        if objective.inputs is None:
            return mine, shared

        def one(particle, shared):
            params, collections, key, slow, mine = particle
            own, batch = Own(slow=slow, step=state.step), {**shared, **mine}
            return loss.elsewhere(model, objective, params, collections, batch, key, own)

        particle = (state.params, state.collections, keys, state.slow, mine)
        return examples.split(over(one)(particle, shared), own=True)[0], shared

    def _energy(params: Params) -> jax.Array:
        return jnp.asarray(target.potential(params), jnp.float32)

    return Direction(in_functions if in_function_space else in_weights, posterior=True)


def by_layer(step: Callable, params: Params, g: Params) -> Params:
    """`step` for each layer (innermost dict) separately."""
    if any(not isinstance(value, dict) for value in params.values()):
        return step(params, g)
    return {name: by_layer(step, params[name], g[name]) for name in params}


def add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def _split(A: jax.Array, B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """c and d [P, 1] of B = diag(d) - c A."""
    apart = 1 - jnp.eye(len(A), dtype=A.dtype)
    c = -jnp.sum(B * apart) / jnp.maximum(jnp.sum(A * apart), jnp.finfo(A.dtype).tiny)
    return c, (jnp.diagonal(B) + c * jnp.diagonal(A))[:, None]
