"""Sums and matrix products with twice float32's digits, on machines without float64.

A number is a pair (high, low) of float32 whose exact sum it is, |low| <= half a unit in the last
place of `high`: about 48 bits (Dekker 1971). Matrix products cut each row into slices of integers
so small that a product of two slices, sum included, is an integer up to 2^24, which float32 holds:
every order of summation, with or without fused multiply-add, in one pass of bfloat16 on TPU or of
TF32 on GPU, gives the same bits (Ozaki et al. 2012, "Error-free transformations of matrix
multiplication by using fast routines of matrix multiplication"). Nothing here multiplies two
numbers whose product is rounded, so a compiler that contracts a b + c changes nothing.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Pair = tuple[jax.Array, jax.Array]


def two_sum(a: jax.Array, b: jax.Array) -> Pair:
    """a + b without error: the rounded sum and what rounding took from it (Knuth)."""
    high = a + b
    b_part = high - a
    return high, (a - (high - b_part)) + (b - b_part)


def add(x: Pair, y: Pair) -> Pair:
    """x + y, to about 2^-47 of the larger."""
    high, low = two_sum(x[0], y[0])
    return two_sum(high, low + (x[1] + y[1]))


def gram(x: jax.Array) -> Pair:
    """sum_n x_n x_n^T of x [n, m], [m, m]: exact for x rounded to 20 bits of each column's maximum.

    So it is an exact Gram matrix, and positive semi-definite up to the pair's rounding: rounding x
    by d changes v^T gram v of a direction v without data by |x v|^2 = |d v|^2, not by 2 |d v| |x|,
    so n rows add at most n 2^-40 max^2.
    """
    n = x.shape[0]
    bits = next(b for b in range(8, 0, -1) if b == 1 or exact(n * slices_of(21, b), b))
    slices, scale = sliced((x.T, jnp.zeros_like(x.T)), bits, slices_of(21, bits))
    count = len(slices)

    def products(level: int) -> list[jax.Array]:  # of one level in one product, by their columns
        pairs = [(t, level - t) for t in range(count) if 0 <= level - t < count]
        left, right = (jnp.concatenate([slices[p[i]] for p in pairs], axis=1) for i in (0, 1))
        return [left @ right.T]

    return combined(products, 2 * count - 1, bits, scale, scale)


def matmul_transposed(a: Pair, b: Pair) -> Pair:
    """a b^T of [i, k] and [j, k], with an error of about 2^-48 of k max_k |a_ik| max_k |b_jk|."""
    bits = next(b for b in range(8, 0, -1) if b == 1 or exact(a[0].shape[-1], b))
    count = slices_of(48, bits)
    (a_slices, a_scale), (b_slices, b_scale) = (sliced(x, bits, count) for x in (a, b))
    # A loop with one product, as many products take long to compile.
    order = [(t, level - t) for level in reversed(range(count)) for t in range(level + 1)]
    shifts = [1.0 if t else 2.0**-bits for t, _ in order]  # by a level where one begins

    def step(total: Pair, at: tuple) -> tuple[Pair, None]:
        (t, u), shift = at
        product = a_slices[t] @ b_slices[u].T
        total = total[0] * shift, total[1] * shift
        return add(total, (product, jnp.zeros_like(product))), None

    zeros = jnp.zeros((a_slices.shape[1], b_slices.shape[1]))
    total, _ = jax.lax.scan(step, (zeros, zeros), (jnp.array(order), jnp.array(shifts)))
    return scaled(total, bits, a_scale, b_scale)


def exact(n: int, bits: int) -> bool:
    """Whether n products of integers up to 2^(bits - 1) sum to at most 2^24, as float32 can hold.

    Slices have 8 bits at most, as bfloat16 has.
    """
    return n * 4 ** (bits - 1) <= 2**24


def slices_of(digits: int, bits: int) -> int:
    """How many slices of so many bits hold a number of `digits` bits."""
    return -(-digits // bits)


def sliced(x: Pair, bits: int, count: int) -> tuple[jax.Array, jax.Array]:
    """Integers s [count, i, k], |s| <= 2^(bits - 1), and powers of two c [i] with

    x_ik = c_i sum_t 2^(2 - bits - bits t) s_tik, but for what `count` slices leave.
    """
    largest = jnp.max(jnp.abs(x[0]), axis=-1)
    exponent = jax.lax.bitcast_convert_type(largest, jnp.uint32) & jnp.uint32(0x7F800000)
    scale = jax.lax.bitcast_convert_type(exponent, jnp.float32)  # 2^floor(log2 largest), or inf
    scale = jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)

    def cut(rest: Pair, _: None) -> tuple[Pair, jax.Array]:
        integers = jnp.round(rest[0])
        high, low = two_sum(rest[0] - integers, rest[1])
        return (high * 2.0**bits, low * 2.0**bits), integers

    rest = _each(x, lambda part: part / scale[:, None] * 2.0 ** (bits - 2))
    return jax.lax.scan(cut, rest, length=count)[1], scale


def combined(products, levels: int, bits: int, rows: jax.Array, columns: jax.Array) -> Pair:
    """sum_l 2^(4 - 2 bits - bits l) of the `products(l)`, scaled by rows and columns."""
    shape = (len(rows), len(columns))
    total = jnp.zeros(shape), jnp.zeros(shape)
    for level in reversed(range(levels)):  # the smallest first
        total = _each(total, lambda part: part * 2.0**-bits)
        for product in products(level):
            total = add(total, (product, jnp.zeros_like(product)))
    return scaled(total, bits, rows, columns)


def scaled(total: Pair, bits: int, rows: jax.Array, columns: jax.Array) -> Pair:
    """A sum of products of slices in the units of what was sliced."""
    factor = 2.0 ** (4 - 2 * bits)
    return _each(total, lambda part: part * factor * rows[:, None] * columns)


def _each(x: Pair, fn: Callable[[jax.Array], jax.Array]) -> Pair:
    return fn(x[0]), fn(x[1])
