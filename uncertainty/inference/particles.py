"""P sets of parameters, moved by a direction: P = 1 is training, P = 10 a deep ensemble."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from uncertainty.inference import executors
from uncertainty.inference.independent import Direction, independent
from uncertainty.types import Batch, Inference, Latent, Metrics, Model, Prior, State, Target


def particles(
    model: Model,
    optimiser: optax.GradientTransformation,
    size: int = 1,
    direction: Callable[..., Direction] = independent,
    executor: str = "auto",
    accumulate: int = 1,
    prior: Prior | None = None,
    temperature: float = 1.0,
    num_examples: int | None = None,
) -> Inference:
    """theta_p <- optimiser(theta_p, direction_p), p = 1..P.

    A particle is a function of (seed, p) alone, not of P: the first 5 of 10 are those of a run with
    5. The optimiser is mapped over P, so clipping and adaptive scales never couple particles.

    A step after which a particle's loss, gradient or update would not be finite leaves that
    particle as it was and reports `finite=False` for it; what to do then is the caller's choice.

    Args:
      model: network and likelihood.
      optimiser: for one particle, without P.
      size: P.
      direction: makes the direction from an executor and `accumulate`; `independent` by default.
      executor: one of `executors.NAMES`.
      accumulate: parts that each batch is run in.
      prior: p(theta), see `uncertainty/priors.py`; None for a flat one.
      temperature: of the posterior, for directions that stand for it; 1 is Bayes.
      num_examples: N, the size of the training set; experiments fill it in.

    Returns:
      An Inference. Its metrics lead with P: `loss`, `gradient_norm` and `finite` [P], and whatever
      the direction adds (`nll` [P, M, B]).

    Raises:
      ValueError: size or accumulate below 1, an unknown executor, a negative temperature, or a
        prior without `num_examples`.
    """
    if size < 1:
        raise ValueError(f"size: {size} particles; at least 1")
    if accumulate < 1:
        raise ValueError(f"accumulate: {accumulate} parts; at least 1")
    if not temperature >= 0:
        raise ValueError(f"temperature: {temperature}; at least 0")
    if prior is not None and num_examples is None:
        raise ValueError("num_examples: a prior needs the size of the data set")
    over = executors.mapping(executor)
    target = Target(prior, num_examples, temperature)
    direct = direction(over=over, target=target, accumulate=accumulate)
    init_one = jax.jit(model.init)

    def init(key: jax.Array, x: jax.Array) -> State:
        # One compiled init, called P times: faster to compile than init mapped over P.
        keys = [jax.random.fold_in(key, p) for p in range(size)]
        made = [init_one(k, x) for k in keys]
        params, collections = jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)
        return State(
            step=jnp.zeros((), jnp.int32),
            key=jnp.stack(keys),
            params=params,
            collections=collections,
            opt_state=jax.vmap(optimiser.init)(params),
        )

    def update(state: State, batch: Batch) -> tuple[State, Metrics]:
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(state.key, state.step)
        gradients, collections, metrics = direct(model, state, batch, keys)
        updates, opt_state = jax.vmap(optimiser.update)(gradients, state.opt_state, state.params)
        metrics["gradient_norm"] = jax.vmap(optax.global_norm)(gradients)
        metrics["finite"] = (
            jnp.isfinite(metrics["loss"])
            & jnp.isfinite(metrics["gradient_norm"])
            & jnp.isfinite(jax.vmap(optax.global_norm)(updates))
        )

        def keep_if_not_finite(new, old):
            finite = metrics["finite"].reshape(-1, *[1] * (new.ndim - 1))
            return jnp.where(finite, new, old)

        new = state.replace(
            params=jax.vmap(optax.apply_updates)(state.params, updates),
            collections=collections,
            opt_state=opt_state,
        )
        new = jax.tree.map(keep_if_not_finite, new.replace(step=None), state.replace(step=None))
        return new.replace(step=state.step + 1), metrics

    def predict(state: State, x: jax.Array) -> Latent:
        def one(particle, x):
            params, collections, key = particle
            return model.forward(params, collections, x, key, train=False)[0]

        latent = over(one)((state.params, state.collections, state.key), x)  # [P, M, B, K]
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), latent)

    return Inference(init, update, predict, separable=getattr(direct, "separable", False))
