"""Convolution as one product with patches; the plain expression is in `layers/conv.py`."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

Pads = tuple[tuple[int, int], tuple[int, int]]


def pay(x_shape: Sequence[int], kernel_shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether patches are faster than XLA's convolution for these shapes.

    CPU time for a gradient, on one core (AMD Zen 5, jax 0.10.2), 'lax' / 'patches': LeNet5's 5 x 5
    windows 1.4 to 2.9; 8 and 16 filters 1.6; 32 and 64 filters 1.0 to 1.2; 3 x 64 filters 0.94, so
    windows from 5 x 5 with few channels. With 3 x 3 windows plain networks gain too (8 and 16
    filters 2.3; 16, 32 and 64 filters 1.3), but between batch normalisations the images move back
    and forth (ResNet-8 0.6). Patches take h w times the memory of the image; at most 512 MB are
    used.
    """
    h, w, C, F = kernel_shape
    few = h * w >= 25 and C * F <= 2048
    size = 4 * math.prod(x_shape) * h * w / math.prod(strides)
    return few and size <= 2**29


# Inside, arrays are [C, H, W, N] with N = M B examples fastest: copies and sums of shifted images
# are then long and contiguous, and so are products with a kernel of few channels.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _convolve(
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
    if bias is not None:  # as one more row, so that its gradient needs no separate sum
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


_convolve.defvjp(_forward, _backward)
_compiled = jax.jit(_convolve, static_argnums=(3, 4))


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    strides: tuple[int, int],
    pads: Pads,
) -> jax.Array:
    """`layers.conv.convolve` of x [..., H, W, C], without a forward-mode derivative.

    The h w C inputs of each output are copied side by side, and multiplied by the kernel once.
    """
    return _compiled(x, kernel, bias, strides, pads)


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
    across = lax.optimization_barrier(jnp.concatenate(across))  # or XLA computes it h times
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
