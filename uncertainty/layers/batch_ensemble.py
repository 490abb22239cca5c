"""Members that share a kernel: each has vectors that scale its inputs and its outputs.

    y_m = s_m * W (r_m * x) + b_m,   so that member m has the kernel W * (r_m s_m^T)

Wen et al. 2020, "BatchEnsemble: an alternative approach to efficient ensemble and lifelong
learning", equations 4 and 5. All members are rows of one product with W; on CPU each member has a
separate convolution (`cpu/members.py`).
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uncertainty import cpu
from uncertainty.cpu import members as by_members
from uncertainty.layers.conv import Conv


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

    Parameters are those of the layer, at the same paths (so that a deterministic checkpoint's
    `kernel` is the shared one), and `fast_input` [M, D], `fast_output` [M, K] and `bias` [M, K].

    Differences from the paper's code (edward2): members have their own axis instead of a batch
    tiled M times, and layers before the first of these are computed once.

    Attributes:
      layer: factory, without arguments, of a linear layer without a bias.
      size: M.
      initial: initialiser of r and s.
      use_bias, bias_init: of the members' biases.
      dtype: of computation; None for that of the input and parameters.

    Raises:
      ValueError: an earlier layer makes another number of members than `size`.
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
                f"size: {self.size} members, but an earlier part makes {x.shape[0]}; only one part "
                "can make members"
            )
        if cpu.enabled() and self._is_convolution(x, r):
            return self._by_members(x, r)
        y = _examples_first(self.shared, self._times(x, r))
        y = self._times(y, self.fast("fast_output", y.shape[-1]))
        return y + _over_members(self._bias(len(r), y.shape[-1]), y) if self.use_bias else y

    def fast(self, name: str, features: int) -> jax.Array:
        """r or s, [M, features]; [M S, features] if a member has S of them."""
        return self.param(name, self.initial, (self.size, features), jnp.float32)

    @nn.nowrap
    def _bias(self, members: int, features: int) -> jax.Array:
        bias = self.param("bias", self.bias_init, (self.size, features), jnp.float32)
        return jnp.repeat(bias, members // self.size, axis=0)

    @nn.nowrap
    def _is_convolution(self, x: jax.Array, r: jax.Array) -> bool:
        """Whether the layer is a convolution that kernels W * (r_m s_m^T) can replace."""
        return (
            type(self.shared) in (Conv, nn.Conv)  # others transform the kernel
            and len(r) <= by_members.MEMBERS
            and not self.is_initializing()
            and self.get_variable("params", "kernel").shape[-2] == x.shape[-1]  # not grouped
        )

    @nn.nowrap
    def _by_members(self, x: jax.Array, r: jax.Array) -> jax.Array:
        params: dict[str, jax.Array] = {"kernel": self.get_variable("params", "kernel")}
        s = self.fast("fast_output", params["kernel"].shape[-1])
        plain = self.shared.clone(parent=None, name=None, use_bias=self.use_bias)
        if self.use_bias:
            params["bias"] = self._bias(len(r), s.shape[1])
        return by_members.convolve(lambda p, x: plain.apply({"params": p}, x), params, r, s, x)

    @nn.nowrap
    def _times(self, x: jax.Array, fast: jax.Array) -> jax.Array:
        x, fast = nn.dtypes.promote_dtype(x, fast, dtype=self.dtype)
        return x * _over_members(fast, x)


def around(
    layer: Callable[..., nn.Module], size: int, kind: type[FastWeights] = FastWeights, **of_kind
) -> Callable[..., nn.Module]:
    """A factory of `layer` with fast weights, which takes the fields of `layer`."""

    def make(*, name: str | None = None, **fields) -> nn.Module:
        own = {key: fields.pop(key) for key in ("use_bias", "bias_init") if key in fields}
        shared = functools.partial(layer, use_bias=False, **fields)
        return kind(shared, size, dtype=fields.get("dtype"), **own, **of_kind, name=name)

    return make


def _examples_first(layer: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """layer(x), [M, B, ..., D] -> [M, B, ..., K], with B before M meanwhile.

    The gradient of the shared kernel sums over both in one product, for which XLA folds them into
    one axis. Devices with shards of B have blocks of that axis only where B is first; otherwise
    they gather all activations. For CPU, XLA folds later, and exchanged axes only cost time.
    """
    if cpu.enabled():
        return layer(x)
    return jnp.swapaxes(layer(jnp.swapaxes(x, 0, 1)), 0, 1)


def _over_members(a: jax.Array, like: jax.Array) -> jax.Array:
    """[M, K] -> [M, 1, ..., 1, K] for `like` [M, B, ..., K], in its dtype."""
    return a.reshape(a.shape[0], *[1] * (like.ndim - 2), a.shape[1]).astype(like.dtype)
