"""Moves tokens to the slots of experts and back, by two methods with equal outputs and gradients.

Shapes: x [1 or M, G, S, D] are G groups of S tokens; slots [M, E, G, C, D]. If all members see the
same tokens (1), they are not copied.

`sort` gathers rows by the sorted indices of routing: time and memory are linear in tokens and do
not depend on E. The gradient of a gather is a gather too, since slots and choices are partial
inverses of each other; only expert choice, where a token may be in any number of slots, adds up by
a scatter. `einsum` multiplies by the [S, E, C] array of zeros and ones: time and memory are
quadratic in S. Mixtures (soft routing) always use this form. Forward-mode derivatives are not
supported: `sort` has none.

`auto` is `sort`, except for groups of at most SMALL tokens on accelerators. Forward and backward,
each choice of a token moves four rows of D numbers by `sort` and is in five products of 2 S D
operations by `einsum`, for any E. On a chip with b operations per byte of HBM and 2 bytes per
number, the products take less time than rows at the full speed of HBM, up to S = 1.6 b, half of it
if most slots are empty: 390 and 195 for TPU v5e (b = 240), 470 and 235 for H100. The compiler for
v5e takes rows for six times as slow, and then products win up to S = 1,500 (`benchmarks/tpu.py`);
which of the two is true, only a clock can tell.
"""

import functools

import jax
import jax.numpy as jnp

from uncertainty import cpu
from uncertainty.cpu import rows
from uncertainty.layers.moe.routing import Mixture, Routes

METHODS = ("auto", "sort", "einsum")
SMALL = 256  # tokens


def dispatch(x: jax.Array, routes: Routes | Mixture, method: str = "auto") -> jax.Array:
    """The contents of slots: x [1 or M, G, S, D] -> [M, E, G, C, D]; empty slots are zero."""
    if isinstance(routes, Routes) and sorts(method, x.shape[2]):
        return _gather(x, routes)
    return jnp.einsum("mgsec,mgsd->megcd", _mixture(routes, x).inward, _members(x, routes))


def combine(y: jax.Array, routes: Routes | Mixture, tokens: int, method: str = "auto") -> jax.Array:
    """sum_e gate_e y_e of each token, [M, E, G, C, D] -> [M, G, S, D]; 0 without a slot."""
    if isinstance(routes, Routes) and sorts(method, tokens):
        return _scatter(y, routes, tokens)
    outward = _mixture(routes, y, tokens).outward
    return jnp.einsum("mgsec,megcd->mgsd", outward, y)


def sorts(method: str, tokens: int) -> bool:
    """Whether routes of groups of S tokens are followed by sorting."""
    return method == "sort" or (method == "auto" and (cpu.enabled() or tokens > SMALL))


def mixture(routes: Routes, tokens: int) -> Mixture:
    """Routes as arrays [..., S, E, C]."""
    inward = jax.nn.one_hot(routes.token, tokens, axis=-3)  # no row is S
    return Mixture(inward=inward, outward=inward * routes.gate[..., None, :, :])


def _mixture(routes: Routes | Mixture, x: jax.Array, tokens: int | None = None) -> Mixture:
    if isinstance(routes, Routes):
        routes = mixture(routes, x.shape[2] if tokens is None else tokens)
    return jax.tree.map(lambda a: a.astype(x.dtype), routes)


def _members(x: jax.Array, routes: Routes | Mixture) -> jax.Array:
    M = jax.tree.leaves(routes)[0].shape[0]
    return jnp.broadcast_to(x, (M, *x.shape[1:]))


def _gather(x: jax.Array, routes: Routes) -> jax.Array:
    A, G, S, D = x.shape
    M, _, E, C = routes.token.shape
    index, inverse = _flat(routes, S)
    if A < M:  # all members read the same rows
        index = jnp.where(index < M * G * S, index % (G * S), G * S)
        if inverse is not None:
            inverse = jnp.moveaxis(inverse.reshape(M, G * S, -1), 0, 1).reshape(G * S, -1)
    slots = _take(A * G * S, x.reshape(A * G * S, D), index.reshape(-1), inverse)
    return slots.reshape(M, E, G, C, D)


def _scatter(y: jax.Array, routes: Routes, tokens: int) -> jax.Array:
    M, E, G, C, D = y.shape
    index, inverse = _flat(routes, tokens)
    gate = jnp.swapaxes(routes.gate, 1, 2)[..., None].astype(y.dtype)  # [M, E, G, C, 1]
    if cpu.enabled():
        y = y * rows.over_row(gate, D)
    else:
        # In the shape of the experts' outputs, gates are multiplied where their last product ends;
        # with G and C as two axes, or as rows, in a pass of its own.
        y = y.reshape(M, E, G * C, D) * gate.reshape(M, E, G * C, 1)
    N = M * G * tokens
    return _put(N, y.reshape(-1, D), index.reshape(-1), inverse).reshape(M, G, tokens, D)


def _flat(routes: Routes, S: int) -> tuple[jax.Array, jax.Array | None]:
    """Flat indices: the rows in [M G S] of slots [M, E, G, C], and the slots of rows [M G S, K]."""
    M, G, E, C = routes.token.shape
    group = jnp.arange(M * G).reshape(M, G, 1, 1)
    index = jnp.where(routes.token < S, group * S + routes.token, M * G * S)
    index = jnp.swapaxes(index, 1, 2)
    if routes.slot is None:
        return index, None
    e, c = routes.slot // C, routes.slot % C
    m, g = jnp.arange(M).reshape(M, 1, 1, 1), jnp.arange(G).reshape(G, 1, 1)
    slot = ((m * E + e) * G + g) * C + c
    slot = jnp.where(e < E, slot, M * E * G * C)
    return index, slot.reshape(M * G * S, -1)


# Each is the transpose of the other. `inverse` [N, K] has the up to K places of row n of x; an
# index beyond the end means none.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _take(N: int, x: jax.Array, index: jax.Array, inverse: jax.Array | None) -> jax.Array:
    """x [N, D] -> [R, D]: the rows of `index` [R]."""
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _put(N: int, y: jax.Array, index: jax.Array, inverse: jax.Array | None) -> jax.Array:
    """y [R, D] -> [N, D]: row r is added to row index[r]."""
    if inverse is None:
        return jnp.zeros((N, y.shape[1]), y.dtype).at[index].add(y, mode="drop")
    each = (inverse[:, k] for k in range(inverse.shape[1]))
    rows = (jnp.take(y, row, axis=0, mode="fill", fill_value=0) for row in each)
    return functools.reduce(jnp.add, rows)


def _forward(fn):
    return lambda N, a, index, inverse: (fn(N, a, index, inverse), (index, inverse))


_take.defvjp(_forward(_take), lambda N, kept, g: (_put(N, g, *kept), None, None))
_put.defvjp(_forward(_put), lambda N, kept, g: (_take(N, g, *kept), None, None))
