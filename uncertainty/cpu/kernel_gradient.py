"""Convolution whose kernel's gradient is a sum over examples, one after the other.

The plain expression is in `layers/conv.py`.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from uncertainty import cpu

Pads = tuple[tuple[int, int], tuple[int, int]]

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
CORES = 4  # the sum is serial: with more, XLA's parallel one is faster
CACHE = 2**20  # bytes of the patches of one example
SHORT = 64  # channels; with more, XLA's is near what the machine gives


def pay(x_shape: Sequence[int], kernel_shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether this is faster than XLA's gradient for these shapes.

    XLA makes the gradient of a kernel a convolution of the images in the layout [C, H, W, N], and
    to have them so computes normalisation, ReLU and residual sums before them once more. A step of
    ResNet-20, batch 64, takes .78 of the time on one core (AMD Zen 5, jax 0.10.2).
    """
    h, w, C, F = kernel_shape
    patches = 4 * math.prod(x_shape[-3:]) * h * w // math.prod(strides)
    return (
        h * w == 9
        and 3 < C <= SHORT
        and F <= SHORT
        and patches <= CACHE
        and cpu.cores() <= CORES
        and jax.sharding.get_abstract_mesh().size <= 1
    )


def convolve(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads) -> jax.Array:
    """`layers.conv.convolve` of x [N, H, W, C], without a forward-mode derivative."""
    return _convolve(x, kernel, strides, pads)


def _plain(x, kernel, strides, pads):
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=DIMENSIONS)


_convolve = jax.custom_vjp(_plain, nondiff_argnums=(2, 3))


def _forward(x, kernel, strides, pads):
    return _plain(x, kernel, strides, pads), (x, kernel)


def _backward(strides, pads, residuals, g):
    x, kernel = residuals
    h, w, C, F = kernel.shape
    (H, W), (s, t) = g.shape[1:3], strides

    def add(total: jax.Array, example: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        image, g = example
        image = jnp.pad(image, (*pads, (0, 0)))
        shifted = [
            image[i : i + s * (H - 1) + 1 : s, j : j + t * (W - 1) + 1 : t]
            for i in range(h)
            for j in range(w)
        ]
        patches = jnp.concatenate(shifted, -1).reshape(H * W, -1)
        return total + patches.T @ g.reshape(H * W, F), None

    dkernel, _ = lax.scan(add, jnp.zeros((h * w * C, F), kernel.dtype), (x, g))
    (dx,) = jax.linear_transpose(lambda x: _plain(x, kernel, strides, pads), x)(g)
    return dx, dkernel.reshape(kernel.shape)


_convolve.defvjp(_forward, _backward)
