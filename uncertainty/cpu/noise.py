"""Normal draws from raw Threefry; the plain expression is in `optimisers/samplers.py`."""

import math

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p


def normal(key: jax.Array, n: int) -> jax.Array:
    """Standard normal numbers [n], by the same map of 23 bits each as `jax.random.normal`.

    Both words of a Threefry block are used, where `jax.random` takes their exclusive or: this
    halves the work, which dominates a sampler's step (`benchmarks/svgd.py`). So the draws differ
    from those of `jax.random`, with the same distribution. Keys of other generators are passed to
    `jax.random`.
    """
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return jax.random.normal(key, (n,))
    return jnp.concatenate([of(word) for word in words(key, -(-n // 2))])[:n]


def words(key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """The two words, [n] each, of the blocks 0, ..., n - 1 of a Threefry key."""
    count = jnp.arange(n, dtype=jnp.uint32)
    first, second = threefry2x32_p.bind(*jax.random.key_data(key), jnp.zeros_like(count), count)
    return first, second


def of(word: jax.Array) -> jax.Array:
    """Normal numbers of random bits, uint32."""
    u = jax.lax.bitcast_convert_type((word >> 9) | 0x3F800000, jnp.float32) - 1  # [0, 1)
    return math.sqrt(2) * jax.lax.erf_inv(jnp.maximum(2 * u - 1, -1 + 2**-24))
