"""Convolution."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from uncertainty import cpu
from uncertainty.cpu import kernel_gradient, patches

METHODS = ("auto", "lax", "patches", "kernel_gradient")


class Conv(nn.Module):
    """Two-dimensional convolution of x [M or 1, B, H, W, C] -> [M or 1, B, H', W', features].

    Replaces `flax.linen.Conv`, with the same fields, parameters (`kernel` [h, w, C, features],
    `bias` [features]) and values.

    Attributes:
      features: number of filters.
      kernel_size, strides: two integers each, or one for both directions.
      padding: 'SAME', 'VALID', or ((top, bottom), (left, right)).
      use_bias: whether a bias is added.
      kernel_init, bias_init: initialisers.
      dtype: of computation and of the result; None for that of the input and parameters.
      method: see `convolve`.

    Raises:
      ValueError: see `convolve`.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] = 1
    padding: str | Sequence[Sequence[int]] = "SAME"
    use_bias: bool = True
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()
    bias_init: Callable[..., jax.Array] = nn.initializers.zeros
    dtype: Any = None
    method: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*_pair("kernel_size", self.kernel_size), x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, shape[-1:], jnp.float32)
        kernel = self.transformed(kernel, x)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return convolve(x, kernel, bias, self.strides, self.padding, self.method)

    @nn.nowrap
    def transformed(self, kernel: jax.Array, x: jax.Array) -> jax.Array:
        """The kernel that is applied to x; layers that bound or perturb it override this."""
        del x
        return kernel


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    strides: int | Sequence[int] = 1,
    padding: str | Sequence[Sequence[int]] = "SAME",
    method: str = "auto",
) -> jax.Array:
    """y[..., p, q, f] = bias[f] + sum_{i,j,c} x[..., s p + i, t q + j, c] kernel[i, j, c, f].

    Args:
      x: [..., H, W, C], zero outside the image.
      kernel: [h, w, C, F].
      bias: [F], or None.
      strides: s and t, or one integer for both.
      padding: 'SAME' (ceil(H / s) rows, surplus padding at the bottom and right), 'VALID', or
        ((top, bottom), (left, right)).
      method: 'lax' is XLA's convolution, 'patches' and 'kernel_gradient' those of `cpu/`, which
        have no forward-mode derivative. 'auto' takes them on CPU for the shapes where they are
        faster, and 'lax' elsewhere. All agree up to the order of summation.

    Raises:
      ValueError: an unknown method or padding, numbers that are not positive, channels that differ,
        or an image smaller than the kernel.
    """
    if method not in METHODS:
        raise ValueError(f"method: {method!r}; allowed {', '.join(map(repr, METHODS))}")
    if x.ndim < 4 or kernel.ndim != 4 or x.shape[-1] != kernel.shape[2]:
        raise ValueError(
            f"x: {x.shape} does not fit kernel {kernel.shape}; allowed [..., H, W, C] and "
            "[h, w, C, F] with the same C"
        )
    strides = _pair("strides", strides)
    pads = _pads(padding, x.shape[-3:-1], kernel.shape[:2], strides)
    if method == "auto":
        shapes = (x.shape, kernel.shape, strides)
        kernels = dict(patches=patches, kernel_gradient=kernel_gradient) if cpu.enabled() else {}
        method = next((name for name, file in kernels.items() if file.pay(*shapes)), "lax")
    if method == "patches":
        return patches.convolve(x, kernel, bias, strides, pads)
    flat = x.reshape(-1, *x.shape[-3:])
    if method == "kernel_gradient":
        y = kernel_gradient.convolve(flat, kernel, strides, pads)
    else:
        y = lax.conv_general_dilated(
            flat, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    y = y if bias is None else y + bias
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def _pair(field: str, value: int | Sequence[int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(not isinstance(v, int) or v < 1 for v in pair):
        raise ValueError(f"{field}: {value!r}; allowed a positive integer, or two")
    return pair


def _pads(
    padding: Any, size: Sequence[int], window: Sequence[int], strides: Sequence[int]
) -> patches.Pads:
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(
                f"padding: {padding!r}; allowed 'SAME', 'VALID', ((top, bottom), (left, right))"
            )
        padding = lax.padtype_to_pads(size, window, strides, padding)
    pads = [tuple(int(p) for p in pair) for pair in padding]
    if len(pads) != 2 or any(len(pair) != 2 or min(pair) < 0 for pair in pads):
        raise ValueError(
            f"padding: {padding!r}; allowed 'SAME', 'VALID', ((top, bottom), (left, right))"
        )
    for n, k, pair in zip(size, window, pads, strict=True):
        if n + sum(pair) < k:
            raise ValueError(f"x: {n} + {sum(pair)} pixels with padding; allowed at least {k}")
    (top, bottom), (left, right) = pads
    return (top, bottom), (left, right)
