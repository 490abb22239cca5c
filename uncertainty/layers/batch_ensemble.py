"""Members that share a kernel: each has vectors that scale its inputs and its outputs.

    y_m = s_m * W (r_m * x) + b_m,   so that member m has the kernel W * (r_m s_m^T)

Wen et al. 2020, "BatchEnsemble: an alternative approach to efficient ensemble and lifelong
learning", equations 4 and 5. All members are rows of one product with W.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def random_sign(
    key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, probability: float = 0.5
) -> jax.Array:
    """1 with this probability, else -1.

    Raises:
      ValueError: a probability outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability: {probability}; allowed 0 to 1")
    return jnp.where(jax.random.bernoulli(key, probability, shape), 1, -1).astype(dtype)


def gaussian(
    key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, stddev: float = 0.5
) -> jax.Array:
    """N(1, stddev^2).

    Raises:
      ValueError: a negative stddev.
    """
    if not stddev >= 0:
        raise ValueError(f"stddev: {stddev}; allowed at least 0")
    return 1 + stddev * jax.random.normal(key, shape, dtype)


class FastWeights(nn.Module):
    """x [M or 1, B, ..., D] -> s_m * layer(r_m * x) + b_m, [M, B, ..., K], around a linear layer.

    Parameters are those of the layer, at its own paths (so that a deterministic checkpoint's
    `kernel` is the shared one), and `fast_input` [M, D], `fast_output` [M, K] and `bias` [M, K].

    Differences from the paper's code (edward2): members are an axis of their own, in place of the
    batch tiled M times, and what comes before the first of these layers is computed once.

    Attributes:
      layer: factory, without arguments, of a linear layer without a bias.
      size: M.
      initial: initialiser of r and s.
      use_bias, bias_init: of the members' biases.
      dtype: what is computed in; None for that of the input and parameters.

    Raises:
      ValueError: members made before this layer whose number is not `size`.
    """

    layer: Callable[[], nn.Module]
    size: int
    initial: Callable[..., jax.Array] = random_sign
    use_bias: bool = True
    bias_init: Callable[..., jax.Array] = nn.initializers.zeros
    dtype: Any = None

    def setup(self):
        self.shared = self.layer()
        nn.share_scope(self, self.shared)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        r = self.fast("fast_input", x.shape[-1])
        if x.shape[0] not in (1, len(r)):
            raise ValueError(
                f"size: {self.size} members, but the network has made {x.shape[0]} already; "
                "members are made in one place"
            )
        y = self.shared(self._times(x, r))
        y = self._times(y, self.fast("fast_output", y.shape[-1]))
        if not self.use_bias:
            return y
        bias = self.param("bias", self.bias_init, (self.size, y.shape[-1]), jnp.float32)
        return y + _over_members(jnp.repeat(bias, len(r) // self.size, axis=0), y)

    def fast(self, name: str, features: int) -> jax.Array:
        """r or s, [M, features]; [M S, features] where a member has S of them."""
        return self.param(name, self.initial, (self.size, features), jnp.float32)

    @nn.nowrap
    def _times(self, x: jax.Array, fast: jax.Array) -> jax.Array:
        x, fast = nn.dtypes.promote_dtype(x, fast, dtype=self.dtype)
        return x * _over_members(fast, x)


def around(
    layer: Callable[..., nn.Module], size: int, kind: type[FastWeights] = FastWeights, **of_kind
) -> Callable[..., nn.Module]:
    """A factory of `layer` with fast weights, which takes the fields that `layer` takes."""

    def make(*, name: str | None = None, **fields) -> nn.Module:
        own = {key: fields.pop(key) for key in ("use_bias", "bias_init") if key in fields}
        shared = functools.partial(layer, use_bias=False, **fields)
        return kind(shared, size, dtype=fields.get("dtype"), **own, **of_kind, name=name)

    return make


def _over_members(a: jax.Array, like: jax.Array) -> jax.Array:
    """[M, K] -> [M, 1, ..., 1, K] for `like` [M, B, ..., K], in its dtype."""
    return a.reshape(a.shape[0], *[1] * (like.ndim - 2), a.shape[1]).astype(like.dtype)
