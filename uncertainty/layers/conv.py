"""Convolution with a fast path for CPU."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

METHODS = ("auto", "lax", "patches")
Pads = tuple[tuple[int, int], tuple[int, int]]


class Conv(nn.Module):
    """Two-dimensional convolution of x [M or 1, B, H, W, C] -> [M or 1, B, H', W', features].

    Takes the place of `flax.linen.Conv`: the same fields, parameters (`kernel` [h, w, C, features],
    `bias` [features]) and values.

    Attributes:
      features: number of filters.
      kernel_size, strides: two integers each, or one for both directions.
      padding: 'SAME', 'VALID', or ((top, bottom), (left, right)).
      use_bias: whether a bias is added.
      kernel_init, bias_init: initialisers.
      dtype: what is computed in, and of the result; None for that of the input and parameters.
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
        """What is applied to x in place of the kernel; for layers that bound or perturb it."""
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
      method: 'lax' is XLA's convolution. 'patches' copies the h w C inputs of each output side by
        side, with examples as the fastest axis, and multiplies by the kernel once; it has no
        forward-mode derivative. 'auto' takes 'patches' on CPU for the shapes where it is faster
        (see `patches_pay`), and 'lax' elsewhere. All agree up to the order of summation.

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
        method = "patches" if patches_pay(x.shape, kernel.shape, strides) else "lax"
    if method == "patches":
        return _convolve_patches(x, kernel, bias, strides, pads)
    flat = x.reshape(-1, *x.shape[-3:])
    y = lax.conv_general_dilated(
        flat, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    y = y if bias is None else y + bias
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def patches_pay(
    x_shape: Sequence[int], kernel_shape: Sequence[int], strides: Sequence[int]
) -> bool:
    """Whether 'patches' is faster than 'lax' for these shapes on this backend.

    CPU time for a gradient, on one core (AMD Zen 5, jax 0.10.2), 'lax' / 'patches': LeNet5's 5 x 5
    windows 1.4 to 2.9; 8 and 16 filters 1.6; 32 and 64 filters 1.0 to 1.2; 3 x 64 filters 0.94, so
    windows from 5 x 5 with few channels. With 3 x 3 windows plain networks gain too (8 and 16
    filters 2.3; 16, 32 and 64 filters 1.3), but between batch normalisations the images move back
    and forth (ResNet-8 0.6). Patches take h w times the memory of the image: up to 512 MB of them.
    """
    h, w, C, F = kernel_shape
    few = h * w >= 25 and C * F <= 2048
    size = 4 * math.prod(x_shape) * h * w / math.prod(strides)
    return jax.default_backend() == "cpu" and few and size <= 2**29


# Inside, arrays are [C, H, W, N] with N = M B examples fastest: copies and sums of shifted images
# are then long and contiguous, and so are products with a kernel of few channels.


@functools.partial(jax.jit, static_argnums=(3, 4))
@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _convolve_patches(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    strides: tuple[int, int],
    pads: Pads,
) -> jax.Array:
    return _forward(x, kernel, bias, strides, pads)[0]


def _forward(x, kernel, bias, strides, pads):
    h, w, _, F = kernel.shape
    rows = jnp.pad(_to_last(x), ((0, 0), *pads, (0, 0)))
    patches = _patches(rows, (h, w), strides, ones=bias is not None)
    size = patches.shape[1:]
    patches = patches.reshape(patches.shape[0], -1)
    weights = kernel.reshape(-1, F)
    if bias is not None:  # as one more row, so that its gradient needs no sum of its own
        weights = jnp.concatenate([weights, bias[None]])
    y = lax.dot_general(weights, patches, (((0,), (0,)), ((), ())))  # [F, H' W' N]
    # x itself is not needed, only its shape, which an array of no size carries
    return _from_last(y.reshape(F, *size), x.shape), (patches, kernel, bias, x[..., :0])


def _backward(strides, pads, residuals, g):
    patches, kernel, bias, x = residuals
    h, w, C, F = kernel.shape
    H, W = x.shape[-3:-1]
    (top, bottom), (left, right) = pads
    g = _to_last(g)
    size = g.shape[1:]
    g = g.reshape(F, -1)
    weights = lax.dot_general(patches, g, (((1,), (1,)), ((), ())))
    taps = (kernel.reshape(-1, F) @ g).reshape(h, w, C, *size)
    total = jnp.zeros((C, H + top + bottom, W + left + right, size[-1]), g.dtype)
    for i in range(h):
        for j in range(w):
            total = _add_at(total, taps[i, j], (i, j), strides)
    dx = _from_last(total[:, top : top + H, left : left + W], x.shape)
    dbias = None if bias is None else weights[-1]
    return dx, weights[: h * w * C].reshape(kernel.shape), dbias


_convolve_patches.__wrapped__.defvjp(_forward, _backward)


def _to_last(x: jax.Array) -> jax.Array:
    """[..., H, W, C] -> [C, H, W, N]; asks for a layout in which this moves nothing."""
    n = x.ndim
    x = with_layout_constraint(x, Layout((n - 1, n - 3, n - 2, *range(n - 3))))
    x = x.reshape(-1, *x.shape[-3:])
    return x.transpose(3, 1, 2, 0)


def _from_last(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[C, H, W, N] -> [..., H, W, C] with the leading axes of `shape`."""
    x = x.transpose(3, 1, 2, 0)
    return x.reshape(*shape[:-3], *x.shape[1:])


def _patches(
    x: jax.Array, window: tuple[int, int], strides: tuple[int, int], ones: bool
) -> jax.Array:
    """[C, H, W, N] -> [h w C (+ 1), H', W', N]; first columns, then rows: fewer, longer copies."""
    h, w = window
    s, t = strides
    rows = (x.shape[1] - h) // s + 1
    columns = (x.shape[2] - w) // t + 1
    across = [x[:, :, j : j + (columns - 1) * t + 1 : t] for j in range(w)]
    across = lax.optimization_barrier(jnp.concatenate(across))  # or XLA makes it h times over
    parts = [across[:, i : i + (rows - 1) * s + 1 : s] for i in range(h)]
    if ones:
        parts.append(jnp.ones((1, *parts[0].shape[1:]), x.dtype))
    return jnp.concatenate(parts)


def _add_at(
    total: jax.Array, tap: jax.Array, start: tuple[int, int], strides: tuple[int, int]
) -> jax.Array:
    """total[:, i::s, j::t] += tap."""
    if strides == (1, 1):  # in place
        at = (0, *start, 0)
        end = [a + b for a, b in zip(at, tap.shape, strict=True)]
        return lax.dynamic_update_slice(total, lax.slice(total, at, end) + tap, at)
    pads = [(0, 0, 0)]
    for a, b, c, s in zip(total.shape[1:3], tap.shape[1:3], start, strides, strict=True):
        pads.append((c, a - c - (b - 1) * s - 1, s - 1))
    return total + lax.pad(tap, jnp.zeros((), tap.dtype), [*pads, (0, 0, 0)])


def _pair(field: str, value: int | Sequence[int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(not isinstance(v, int) or v < 1 for v in pair):
        raise ValueError(f"{field}: {value!r}; allowed a positive integer, or two")
    return pair


def _pads(padding: Any, size: Sequence[int], window: Sequence[int], strides: Sequence[int]) -> Pads:
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(
                f"padding: {padding!r}; allowed 'SAME', 'VALID', ((top, bottom), (left, right))"
            )
        pads = lax.padtype_to_pads(size, window, strides, padding)
    else:
        pads = padding
    pads = tuple(tuple(int(p) for p in pair) for pair in pads)
    if len(pads) != 2 or any(len(pair) != 2 or min(pair) < 0 for pair in pads):
        raise ValueError(
            f"padding: {padding!r}; allowed 'SAME', 'VALID', ((top, bottom), (left, right))"
        )
    for n, k, pair in zip(size, window, pads, strict=True):
        if n + sum(pair) < k:
            raise ValueError(f"x: {n} + {sum(pair)} pixels with padding; allowed at least {k}")
    return pads
