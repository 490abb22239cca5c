"""Spectral normalisation: dense layers and convolutions whose operator norm is bounded.

    W_eff = W / max(1, sigma / c),   sigma = max_v |W v| / |v|

Liu et al. 2020 (SNGP), section 3.1, by the power iteration of Miyato et al. 2018. Each layer has a
unit vector v that persists from step to step; a training step does

    v <- W^T W v / |W^T W v|   `iterations` times, then   sigma = u^T W v with u = W v / |W v|

Derivatives pass through W in sigma, with u and v held constant, as Miyato et al. do. v is float32
whatever the layer computes in, and depends neither on the batch nor on members.

v is in the Flax collection 'spectral_norm' and is updated in training only. Layers have no argument
for this: `uncertainty/model.py` makes the collection mutable exactly in training, so v is updated
if it is mutable and the network is not being initialised.

sigma converges from below. From the random v of a new network, the mean relative error of sigma^2
after t iterations on one W with n inputs is at most 0.871 ln(n) / t (Kuczynski & Wozniakowski 1992,
Theorem 3.1), usually far less; |W_eff|^2 may exceed c^2 by as much. So the bound holds after some
tens of steps, and follows a changing W with that delay.

Differences from the papers: Liu et al. write c W / sigma if c < sigma, which is the same, but their
TensorFlow code assigns that to W, where here W is not changed; edward2's JAX layer treats sigma as
a constant in the derivative. Miyato et al. bound the reshaped kernel of a convolution; here the
bound is on the layer's linear map between images, with stride and padding.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uncertainty.layers import conv


class Dense(nn.Module):
    """Dense layer x [..., D] -> [..., features] with a bound on its operator norm.

    Replaces `flax.linen.Dense`, with the same parameters (`kernel` [D, features], `bias`
    [features]), and the same values if the norm of the kernel is below the bound. State: v [D].

    Attributes:
      features: number of outputs.
      use_bias: whether a bias is added.
      kernel_init, bias_init: initialisers.
      dtype: of computation and of the result; None for that of the input and parameters.
      bound: c, the largest singular value that the layer may have.
      iterations: of the power method in each training step.

    Raises:
      ValueError: a bound that is not positive, or iterations below 1.
    """

    features: int
    use_bias: bool = True
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()
    bias_init: Callable[..., jax.Array] = nn.initializers.zeros
    dtype: Any = None
    bound: float = 0.95
    iterations: int = 1

    def __post_init__(self):
        _check(self.bound, self.iterations)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, shape[-1:], jnp.float32)
        kernel = _normalise(self, kernel, shape[:1], lambda kernel, v: v @ kernel)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = x @ kernel
        return y if bias is None else y + bias


class Conv(conv.Conv):
    """Convolution [M or 1, B, H, W, C] -> [M or 1, B, H', W', features] with a bounded norm.

    Replaces `uncertainty.layers.conv.Conv` and `flax.linen.Conv`, with the same parameters. sigma
    is the operator norm of the map from images [H, W, C] to images [H', W', features], of the size
    seen at initialisation. State: v [H, W, C].

    Attributes:
      bound: c, the largest singular value that the layer may have.
      iterations: of the power method in each training step.
      Others as in `uncertainty.layers.conv.Conv`.

    Raises:
      ValueError: a bound that is not positive, or iterations below 1; see also `conv.convolve`.
    """

    bound: float = 0.95
    iterations: int = 1

    def __post_init__(self):
        _check(self.bound, self.iterations)
        super().__post_init__()

    @nn.nowrap
    def transformed(self, kernel: jax.Array, x: jax.Array) -> jax.Array:
        def apply(kernel: jax.Array, v: jax.Array) -> jax.Array:
            # 'patches' has no transpose, and is not faster for one image
            return conv.convolve(v[None], kernel, None, self.strides, self.padding, "lax")

        return _normalise(self, kernel, x.shape[-3:], apply)


def _check(bound: float, iterations: int) -> None:
    if not bound > 0:
        raise ValueError(f"bound: {bound}; allowed above 0")
    if iterations < 1:
        raise ValueError(f"iterations: {iterations}; allowed at least 1")


def _normalise(
    layer: Dense | Conv,
    kernel: jax.Array,
    shape: tuple[int, ...],
    apply: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """The kernel divided by max(1, sigma / c); apply(kernel, v) is the linear map of v [*shape]."""
    # After the parameters, so that their initial values equal those of the unbounded layer.
    state = layer.variable(
        "spectral_norm", "v", lambda: _unit(jax.random.normal(layer.make_rng("params"), shape))
    )
    # By default accelerators round the factors to 8 or 11 bits.
    with jax.default_matmul_precision("highest"):
        v = jax.lax.stop_gradient(state.value)
        if layer.is_mutable_collection("spectral_norm") and not layer.is_initializing():
            constant = jax.lax.stop_gradient(kernel)
            transpose = jax.linear_transpose(lambda v: apply(constant, v), v)
            for _ in range(layer.iterations):
                (new,) = transpose(_unit(apply(constant, v)))
                v = jnp.where(jnp.any(new != 0), _unit(new), v)  # a kernel may be zero
            state.value = v
        y = apply(kernel, v)
        sigma = jnp.vdot(jax.lax.stop_gradient(_unit(y)), y)
    return kernel / jnp.maximum(1.0, sigma / layer.bound)


def _unit(x: jax.Array) -> jax.Array:
    """x / |x|, and 0 for 0."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.vdot(x, x), jnp.finfo(x.dtype).tiny))
