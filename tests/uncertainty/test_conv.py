"""Convolutions as patches against XLA's own and a loop in NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from uncertainty.layers.conv import Conv, convolve

SHAPES = [  # x, kernel, strides, padding
    ((2, 1, 9, 8, 1), (5, 5, 1, 6), 1, "SAME"),
    ((1, 3, 7, 7, 3), (5, 5, 3, 4), 1, "VALID"),
    ((3, 5, 8, 7, 2), (3, 3, 2, 5), (2, 2), "SAME"),
    ((3, 9, 5, 4), (1, 1, 4, 3), 1, "SAME"),
    ((3, 9, 6, 4), (1, 1, 4, 3), (2, 3), "VALID"),
    ((2, 6, 7, 2), (2, 4, 2, 3), (1, 2), ((0, 2), (3, 1))),
    ((2, 2, 4, 4, 1), (4, 4, 1, 2), 3, ((3, 3), (3, 3))),
]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def loop(x, kernel, bias, strides, pads):
    """The definition, in float64."""
    (s, t), (h, w, _, F) = strides, kernel.shape
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    H, W = (x.shape[1] - h) // s + 1, (x.shape[2] - w) // t + 1
    y = np.zeros((len(x), H, W, F))
    for p in range(H):
        for q in range(W):
            window = x[:, s * p : s * p + h, t * q : t * q + w].astype("float64")
            y[:, p, q] = np.einsum("nijc,ijcf->nf", window, kernel) + bias
    return y


def explicit(padding, size, window, strides):
    if not isinstance(padding, str):
        return padding
    if padding == "VALID":
        return ((0, 0), (0, 0))
    surplus = [
        max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(size, window, strides, strict=True)
    ]
    return tuple((n // 2, n - n // 2) for n in surplus)


@pytest.mark.parametrize("method", ["lax", "patches"])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_equal_the_definition(shape, method):
    x_shape, kernel_shape, strides, padding = shape
    x, kernel, bias = normal(*x_shape), normal(*kernel_shape, seed=1), normal(kernel_shape[-1])
    pair = (strides, strides) if isinstance(strides, int) else strides
    pads = explicit(padding, x_shape[-3:-1], kernel_shape[:2], pair)
    expected = loop(x.reshape(-1, *x_shape[-3:]), kernel, bias, pair, pads)
    y = jax.jit(lambda *a: convolve(*a, strides, padding, method))(x, kernel, bias)
    assert y.shape == (*x_shape[:-3], *expected.shape[1:])
    np.testing.assert_allclose(y.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


def gradients(method, strides, padding, x, kernel, bias, g):
    """Of sum(y * g) in x, kernel and bias."""

    def inner(x, kernel, bias):
        return jnp.sum(convolve(x, kernel, bias, strides, padding, method) * g)

    return jax.grad(inner, argnums=(0, 1) if bias is None else (0, 1, 2))(x, kernel, bias)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "with_bias"), [*((shape, True) for shape in SHAPES), (SHAPES[2], False)]
)
def test_gradients_equal_those_of_lax(shape, with_bias):
    x_shape, kernel_shape, strides, padding = shape
    x, kernel = normal(*x_shape), normal(*kernel_shape, seed=1)
    bias = normal(kernel_shape[-1], seed=2) if with_bias else None
    y = jax.eval_shape(lambda *a: convolve(*a, strides, padding, "lax"), x, kernel, bias)
    g = normal(*y.shape, seed=3)
    both = [
        jax.jit(gradients, static_argnums=(0, 1, 2))(m, strides, padding, x, kernel, bias, g)
        for m in ("lax", "patches")
    ]
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(st.data())
def test_patches_equal_lax_for_any_shape(data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    h, w, C, F, B = draw(1, 4), draw(1, 4), draw(1, 3), draw(1, 3), draw(1, 3)
    H, W = draw(h, 8), draw(w, 8)
    strides = (draw(1, 3), draw(1, 3))
    padding = data.draw(
        st.sampled_from(["SAME", "VALID"])
        | st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2)
    )
    x, kernel, bias = normal(B, H, W, C), normal(h, w, C, F, seed=1), normal(F, seed=2)

    @jax.jit
    def both(*arrays):
        y = convolve(*arrays, strides, padding, "lax")
        g = jnp.cos(jnp.arange(y.size)).reshape(y.shape)
        return [
            (convolve(*arrays, strides, padding, m), gradients(m, strides, padding, *arrays, g))
            for m in ("lax", "patches")
        ]

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *both(x, kernel, bias)
    )


@pytest.mark.slow
@pytest.mark.parametrize("over", ["vmap kernels", "vmap both", "vmap x", "scan"])
def test_gradients_over_particles_equal_a_loop(over):
    P = 3
    x, kernel, bias = normal(P, 1, 4, 6, 6, 2), normal(P, 3, 3, 2, 4), normal(P, 4)
    g = normal(1, 4, 6, 6, 4)
    shared = {"vmap kernels": 0, "vmap x": 1}.get(over)
    if shared == 0:
        x = x[:1].repeat(P, 0)
    if shared == 1:
        kernel, bias = kernel[:1].repeat(P, 0), bias[:1].repeat(P, 0)

    def one(x, kernel, bias):
        y = convolve(x, kernel, bias, 1, "SAME", "patches")
        return y, gradients("patches", 1, "SAME", x, kernel, bias, g)

    axes = {"vmap kernels": (None, 0, 0), "vmap x": (0, None, None)}.get(over, (0, 0, 0))
    arrays = [a if axis == 0 else a[0] for a, axis in zip((x, kernel, bias), axes, strict=True)]
    mapped = jax.vmap(one, axes) if over != "scan" else lambda *a: lax.map(lambda b: one(*b), a)
    results = jax.jit(mapped)(*arrays)

    @jax.jit
    def by_lax(*arrays):
        return convolve(*arrays, 1, "SAME", "lax"), gradients("lax", 1, "SAME", *arrays, g)

    for p in range(P):
        expected = by_lax(x[p], kernel[p], bias[p])
        for a, b in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(np.asarray(a)[p], b, rtol=1e-4, atol=1e-4)


def test_examples_over_devices_give_the_same(  # the requested layout is one of a sharded array
):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x, kernel, bias = normal(8, 6, 6, 2), normal(3, 3, 2, 4), normal(4)
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    f = jax.jit(lambda x: gradients("patches", 1, "SAME", x, kernel, bias, jnp.cos(x[..., :1])))
    for a, b in zip(f(jax.device_put(x, sharding)), f(x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_rounded_once():
    x, kernel, bias = (normal(*s).astype(jnp.bfloat16) for s in [(2, 6, 6, 2), (5, 5, 2, 4), (4,)])
    by = lambda method: jax.jit(lambda *a: convolve(*a, 1, "SAME", method))  # noqa: E731
    y = by("patches")(x, kernel, bias)
    assert y.dtype == jnp.bfloat16
    wide = by("lax")(*(a.astype("float32") for a in (x, kernel, bias)))
    # half a unit in the last of 8 places, doubled because the sum may be rounded before the bias
    np.testing.assert_allclose(y.astype("float32"), wide, rtol=2**-7, atol=2**-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "method"),
    [
        ({}, "lax"),
        (dict(use_bias=False), "patches"),
        (dict(dtype="bfloat16", strides=2), "auto"),
    ],
)
def test_module_takes_the_place_of_flax(fields, method):
    x = normal(2, 3, 7, 7, 2)
    flax = nn.Conv(4, (5, 5), **fields)
    ours = Conv(4, (5, 5), method=method, **fields)
    variables, others = (jax.jit(m.init)(jax.random.key(0), x) for m in (ours, flax))
    jax.tree.map(np.testing.assert_array_equal, variables, others)
    a, b = (jax.jit(m.apply)(variables, x) for m in (flax, ours))
    assert a.dtype == b.dtype
    tolerance = 2**-6 if "dtype" in fields else 1e-5
    np.testing.assert_allclose(
        a.astype("float32"), b.astype("float32"), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize(
    "message, change",
    [
        ("method: 'fft'; allowed 'auto', 'lax', 'patches'", dict(method="fft")),
        ("padding: 'same'", dict(padding="same")),
        ("padding: ", dict(padding=((1, 1), (-1, 0)))),
        ("strides: 0", dict(strides=0)),
        ("strides: ", dict(strides=(1, 2, 3))),
        ("at least 3", dict(x=np.zeros((1, 2, 5, 2)), padding="VALID")),
        ("same C", dict(x=np.zeros((1, 5, 5, 3)))),
        ("same C", dict(x=np.zeros((5, 5, 2)))),
    ],
)
def test_bad_input_is_named(message, change):
    arguments = dict(x=np.zeros((1, 5, 5, 2)), kernel=np.zeros((3, 3, 2, 4))) | change
    with pytest.raises(ValueError) as error:
        convolve(**arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "x, kernel, lax_conv",
    [
        ((128, 14, 14, 6), (5, 5, 6, 16), False),
        ((128, 14, 14, 6), (3, 3, 6, 16), True),
        ((128, 14, 14, 64), (5, 5, 64, 64), True),
        ((1024, 224, 224, 3), (7, 7, 3, 64), True),
    ],
)
def test_auto_takes_patches_for_large_windows_of_few_channels(x, kernel, lax_conv):
    shapes = [jax.ShapeDtypeStruct(s, "float32") for s in (x, kernel)]
    assert ("conv_general_dilated" in str(jax.make_jaxpr(convolve)(*shapes))) == lax_conv
