"""Orders and maxima of short rows; the plain expressions are in `layers/moe/routing.py`."""

import jax
import jax.numpy as jnp


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k` of the rows of x [S, E], by k maxima if they are few."""
    if k > 4:
        return jax.lax.top_k(x, k)
    E = x.shape[1]
    at = jnp.arange(E)
    values, places = [], []
    for _ in range(k):
        values.append(x.max(1))
        places.append(jnp.where(x == values[-1][:, None], at, E).min(1))
        x = jnp.where(at == places[-1][:, None], -jnp.inf, x)
    return jnp.stack(values, 1), jnp.stack(places, 1)


def argsort(x: jax.Array, end: int) -> jax.Array:
    """The stable order of integers x [N] from 0 to `end`, by sorting one array instead of two."""
    N = x.size
    if N * (end + 1) >= 2**31:
        return jnp.argsort(x, stable=True)
    return jax.lax.sort(x * N + jnp.arange(N), is_stable=False) % N
