"""ODIN (Liang et al. 2018, "Enhancing the reliability of out-of-distribution image detection")."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def odin(
    logits: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    temperature: float = 1_000.0,
    epsilon: float = 0.0014,
) -> jax.Array:
    """-max_k softmax(u(x') / T)_k at x' = x + eps sign(grad_x log max_k softmax(u(x) / T)_k).

    Unlike the other scores it needs the network, not its outputs.

    Args:
      logits: x [B, ...] -> [B, K]; an example's logits depend on it alone.
      x: inputs [B, ...].
      temperature: T.
      epsilon: the size of the step, in the units of x.

    Returns:
      Scores [B].

    Raises:
      ValueError: a temperature that is not positive, or a negative step.
    """
    if not temperature > 0:
        raise ValueError(f"temperature: {temperature!r}; allowed above 0")
    if epsilon < 0:
        raise ValueError(f"epsilon: {epsilon!r}; allowed from 0")

    def log_confidence(x: jax.Array) -> jax.Array:
        u = logits(x) / temperature
        # Not the max of log_softmax: unoptimised, XLA's CPU compiler makes NaN of its gradient.
        top = jax.nn.one_hot(u.argmax(-1), u.shape[-1], dtype=u.dtype)
        return (top * u).sum(-1) - jax.nn.logsumexp(u, axis=-1)

    gradient = jax.grad(lambda x: log_confidence(x).sum())(x)
    return -jnp.exp(log_confidence(x + epsilon * jnp.sign(gradient)))
