"""Bounded layers against the singular values of their matrices, built column by column in NumPy."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backbones.conftest import draw_variables
from uncertainty import build
from uncertainty.backbones.vit import ViT
from uncertainty.layers import conv, spectral_norm

STEPS = 300
key = functools.partial(jax.random.key, impl="unsafe_rbg")  # sooner compiled
CONVS = [  # image, features, fields
    ((6, 6, 2), 3, dict(kernel_size=3)),
    ((6, 5, 2), 3, dict(kernel_size=3, padding="VALID")),
    ((6, 6, 2), 4, dict(kernel_size=(3, 3), strides=(2, 2))),
    ((7, 5, 2), 3, dict(kernel_size=2, strides=2, padding="VALID")),
    ((5, 6, 3), 2, dict(kernel_size=1)),
    ((6, 4, 3), 2, dict(kernel_size=1, strides=2)),
    ((5, 4, 1), 2, dict(kernel_size=(4, 2))),
    ((7, 7, 2), 3, dict(kernel_size=5, strides=(2, 1), padding=((2, 2), (1, 3)))),
    ((2, 3, 1), 2, dict(kernel_size=(2, 1), strides=(3, 2), padding="VALID")),
    ((3, 2, 3), 4, dict(kernel_size=(3, 2), strides=(1, 3))),
]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def matrix(kernel, image, strides=1, padding="SAME", **_):
    """The convolution of images [H, W, C] as a matrix, one column for each pixel; float64."""
    (h, w, _, F), (s, t) = kernel.shape, np.broadcast_to(strides, 2)
    size, pads = [], []
    for n, k, stride, i in zip(image, (h, w), (s, t), (0, 1), strict=False):
        before, after = (0, 0) if isinstance(padding, str) else padding[i]
        if padding == "SAME":
            surplus = max((-(-n // stride) - 1) * stride + k - n, 0)
            before, after = surplus // 2, surplus - surplus // 2
        pads.append(before)
        size.append((n + before + after - k) // stride + 1)
    A = np.zeros((*size, F, *image))
    for p, q in np.ndindex(*size):
        for i, j in np.ndindex(h, w):
            a, b = s * p + i - pads[0], t * q + j - pads[1]
            if 0 <= a < image[0] and 0 <= b < image[1]:
                A[p, q, :, a, b, :] += kernel[i, j].T
    return A.reshape(-1, np.prod(image))


def map_of(layer, variables, image):
    """What the layer does to x, as a matrix: its outputs for one pixel at a time, less the bias."""
    x = np.eye(np.prod(image), dtype="float32").reshape(1, -1, *image)
    y = jax.jit(layer.apply)(variables, np.concatenate([x, 0 * x[:, :1]], axis=1))[0]
    return np.reshape(y[:-1] - y[-1:], (x.shape[1], -1)).T


@functools.partial(jax.jit, static_argnums=(0, 3))
def _train(layer, variables, x, steps):
    def step(_, state):
        return layer.apply({**variables, "spectral_norm": state}, x, mutable=["spectral_norm"])[1][
            "spectral_norm"
        ]

    return jax.lax.fori_loop(0, steps, step, variables["spectral_norm"])


def train(layer, variables, x, steps=STEPS):
    """The variables after training steps that leave the parameters alone."""
    return {**variables, "spectral_norm": _train(layer, variables, x, steps)}


WIDE, BIAS = nn.initializers.normal(3.0), nn.initializers.normal(1.0)


@functools.cache
def made(cls, image, features, seed=0, **fields):
    """A layer, its initial variables with a large kernel and a bias, and an input."""
    layer = cls(features, **dict(kernel_init=WIDE, bias_init=BIAS) | fields)
    x = normal(1, 3, *image, seed=seed)
    return layer, jax.jit(layer.init)(key(seed), x), x


def drawn(cls, image, features, **fields):
    """A layer, an input, and variables that nothing is compiled for."""
    layer = cls(features, **fields)
    x = normal(1, 3, *image)
    shapes = jax.eval_shape(layer.init, key(0), x)
    v = normal(*shapes["spectral_norm"]["v"].shape, seed=1)
    params = dict(kernel=3 * normal(*shapes["params"]["kernel"].shape), bias=normal(features))
    return layer, dict(params=params, spectral_norm=dict(v=v / np.linalg.norm(v))), x


def both(**fields):
    dense = made(spectral_norm.Dense, (7,), 5, **fields)
    return dense, made(spectral_norm.Conv, (6, 6, 2), 3, kernel_size=3, strides=2, **fields)


def v_of(variables):
    return np.asarray(variables["spectral_norm"]["v"])


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(4, 9), (1, 3), (6, 1)])
def test_dense_has_the_bound_as_its_largest_singular_value(shape):
    layer, variables, x = drawn(spectral_norm.Dense, shape[:1], shape[1], bound=0.9)
    W = np.asarray(variables["params"]["kernel"], "float64")
    sigma = np.linalg.svd(W)[1][0]
    assert sigma > 0.9
    W_eff = map_of(layer, train(layer, variables, x), shape[:1])
    np.testing.assert_allclose(W_eff, 0.9 * W.T / sigma, rtol=1e-4, atol=1e-5)


@functools.cache
def bounded(image, features, **fields):
    """A convolution with a bound of 1.5, its variables, and what it is after training."""
    layer, variables, x = drawn(spectral_norm.Conv, image, features, bound=1.5, **fields)
    pixels = np.eye(np.prod(image), dtype="float32").reshape(1, -1, *image)
    pixels = np.concatenate([pixels, 0 * pixels[:, :1]], axis=1)
    apply = jax.jit(lambda v: layer.apply(train(layer, v, x), pixels)[0])

    def effective(variables):
        """The map after training, as a matrix: outputs for one pixel at a time, less the bias."""
        y = np.asarray(apply(variables))
        return np.reshape(y[:-1] - y[-1:], (len(y) - 1, -1)).T

    return layer, variables, effective


@pytest.mark.slow
@pytest.mark.parametrize("image, features, fields", CONVS)
def test_convolution_has_the_bound_as_the_norm_of_its_map(image, features, fields):
    _, variables, effective = bounded(image, features, **fields)
    A = matrix(np.asarray(variables["params"]["kernel"]), image, **fields)
    sigma = np.linalg.svd(A)[1][0]
    assert sigma > 1.5
    # Images have many nearly equal singular values; the error is that of the power method.
    np.testing.assert_allclose(effective(variables), 1.5 * A / sigma, rtol=2e-3, atol=1e-5)


@pytest.mark.slow
@settings(max_examples=15)
@given(st.sampled_from(CONVS[:3]), st.floats(0.01, 10), st.integers(0, 999))
def test_the_norm_keeps_the_bound_for_any_kernel(case, scale, seed):
    image, features, fields = case
    layer, variables, effective = bounded(image, features, **fields)
    kernel = scale * normal(*variables["params"]["kernel"].shape, seed=seed)
    A = matrix(kernel, image, **fields)
    sigma = np.linalg.svd(A)[1][0]
    given = {**variables, "params": {**variables["params"], "kernel": kernel}}
    norm = np.linalg.svd(effective(given))[1][0]
    stated = 1.742 * np.log(A.shape[1]) / STEPS  # twice the mean of sigma^2's error
    low = min(sigma, layer.bound)
    assert low * (1 - 1e-4) < norm < low * (1 + max(stated, 1e-4))


def test_the_error_is_within_what_is_stated():
    """Mean over random starts, for singular values that lie as close as in a large image."""
    n, t, starts = 64, 20, 200
    W = np.diag(np.linspace(0.8, 1, n)).astype("float32")
    layer = spectral_norm.Dense(n, use_bias=False, bound=1e-3)
    x = jnp.eye(n)
    v = normal(starts, n)
    v /= np.linalg.norm(v, axis=1, keepdims=True)

    @jax.jit
    @jax.vmap
    def norms(v):
        variables = train(layer, {"params": {"kernel": W}, "spectral_norm": {"v": v}}, x, t)
        return layer.apply(variables, x)[-1, -1]  # of the largest singular value: c / sigma

    error = 1 - (1e-3 / np.asarray(norms(v))) ** 2
    assert (error > -1e-5).all()  # from below
    assert 1e-3 < error.mean() < 0.871 * np.log(n) / t


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, dict(use_bias=False, dtype="bfloat16")])
def test_below_the_bound_layers_are_those_without_one(fields):
    pairs = [
        (both(bound=1e3, **fields)[0], nn.Dense(5, **fields)),
        (both(bound=1e3, **fields)[1], conv.Conv(3, 3, 2, **fields)),
    ]
    for (layer, variables, x), plain in pairs:
        plain = plain.clone(kernel_init=layer.kernel_init, bias_init=layer.bias_init)
        params = jax.jit(plain.init)(key(0), x)["params"]
        jax.tree.map(np.testing.assert_array_equal, variables["params"], params)
        y, expected = layer.apply(variables, x), plain.apply({"params": params}, x)
        assert y.dtype == expected.dtype
        np.testing.assert_array_equal(y, expected)


def test_gradient_is_that_of_the_formula_with_fixed_vectors():
    c = 0.7
    for layer, variables, x in both(bound=c):
        kernel = np.asarray(variables["params"]["kernel"], "float64")
        image = x.shape[2:]
        A_of = (
            (lambda W: W.T)
            if kernel.ndim == 2
            else (lambda W, image=image: matrix(W, image, strides=2))
        )
        v = v_of(train(layer, variables, x, 1)).ravel().astype("float64")  # not yet singular
        u = A_of(kernel) @ v / np.linalg.norm(A_of(kernel) @ v)
        inputs, weights = x[0].reshape(3, -1).astype("float64"), normal(3, len(u), seed=5)

        def loss(W, A_of=A_of, u=u, v=v, inputs=inputs, weights=weights):
            A = A_of(W)
            return np.sum(weights * (inputs @ (A / max(1, u @ A @ v / c)).T))

        expected = np.zeros(kernel.shape)
        for i in np.ndindex(*kernel.shape):
            h = np.zeros(kernel.shape)
            h[i] = 1e-5
            expected[i] = (loss(kernel + h) - loss(kernel - h)) / 2e-5

        def ours(params, layer=layer, variables=variables, x=x, weights=weights):
            y, _ = layer.apply({**variables, "params": params}, x, mutable=["spectral_norm"])
            return jnp.sum(weights * y.reshape(3, -1))

        g = jax.jit(jax.grad(ours))(variables["params"])["kernel"]
        np.testing.assert_allclose(g, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_training_moves_the_state_and_prediction_does_not():
    for (layer, variables, x), (_, others, _) in zip(
        both(), both(kernel_init=nn.initializers.zeros), strict=True
    ):
        before = v_of(variables)
        np.testing.assert_array_equal(before, v_of(others))  # nor does initialisation
        np.testing.assert_allclose(np.linalg.norm(before), 1, rtol=1e-6)
        y, state = layer.apply(variables, x, mutable=["spectral_norm"])
        after = v_of(state)
        assert np.abs(after - before).max() > 1e-2
        np.testing.assert_allclose(np.linalg.norm(after), 1, rtol=1e-6)
        for mutable in ([], ["losses"]):
            again, changed = layer.apply({**variables, **state}, x, mutable=mutable)
            np.testing.assert_array_equal(again, y)  # what was trained with is what predicts
            assert not changed


def test_iterations_are_steps_taken_at_once():
    for (layer, variables, x), (thrice, *_) in zip(both(), both(iterations=3), strict=True):
        steps, at_once = train(layer, variables, x, 3), train(thrice, variables, x, 1)
        np.testing.assert_allclose(v_of(steps), v_of(at_once), rtol=1e-4, atol=1e-6)


def test_the_state_depends_neither_on_batch_nor_members_nor_image_later_on():
    for layer, variables, x in both():
        other = normal(4, 5, *x.shape[2:], seed=9)
        again = jax.jit(layer.init)(key(0), other)
        np.testing.assert_array_equal(v_of(again), v_of(variables))
        a, b = (train(layer, variables, inputs, 3) for inputs in (x, other))
        np.testing.assert_array_equal(v_of(a), v_of(b))
    larger = normal(1, 2, 9, 8, 2)
    W = variables["params"]["kernel"]
    y = layer.apply(variables, larger) - variables["params"]["bias"]
    v = v_of(variables)[None]
    sigma = np.linalg.norm(conv.convolve(v, W, None, 2))
    expected = conv.convolve(larger, W, None, 2) / max(1, sigma / layer.bound)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_rounds_the_bounded_kernel_and_keeps_the_state():
    for (layer, variables, x), (reduced, *_) in zip(both(), both(dtype="bfloat16"), strict=True):
        a, b = (train(one, variables, x, 5) for one in (layer, reduced))
        assert v_of(b).dtype == np.float32
        np.testing.assert_array_equal(v_of(a), v_of(b))
        y, exact = reduced.apply(b, x), layer.apply(a, x)
        assert y.dtype == jnp.bfloat16
        # 8 bits of mantissa in each factor, and in the sum of some twenty products
        scale = np.abs(exact).max()
        np.testing.assert_allclose(y.astype("float32"), exact, rtol=2**-6, atol=2**-6 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("over", ["vmap", "scan"])
def test_particles_together_equal_each_alone(over):
    for layer, variables, x in both():
        many = jax.tree.map(lambda a: np.stack([a, -2 * np.asarray(a), a[::-1]]), variables)

        def step(variables, layer=layer, x=x):
            def loss(params):
                y, state = layer.apply({**variables, "params": params}, x, mutable="spectral_norm")
                return jnp.sum(jnp.sin(y)), (y, state)

            return jax.grad(loss, has_aux=True)(variables["params"])

        mapped = jax.vmap(step) if over == "vmap" else functools.partial(jax.lax.map, step)
        together, alone = jax.jit(mapped)(many), jax.jit(step)
        for p in range(3):
            jax.tree.map(
                lambda a, b, p=p: np.testing.assert_allclose(a[p], b, rtol=1e-4, atol=1e-4),
                together,
                alone(jax.tree.map(lambda a, p=p: a[p], many)),
            )


def test_examples_over_devices_give_the_same_state():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    for layer, variables, _ in both():
        x = normal(1, 16, *((7,) if isinstance(layer, spectral_norm.Dense) else (6, 6, 2)))
        step = jax.jit(functools.partial(layer.apply, mutable=["spectral_norm"]))
        shared = jax.device_put(x, jax.NamedSharding(mesh, jax.P(None, "data")))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
            step(variables, shared),
            step(variables, x),
        )


@pytest.mark.slow
def test_a_kernel_of_zeros_is_let_through():
    for layer, variables, x in both(kernel_init=nn.initializers.zeros):

        def loss(params, layer=layer, variables=variables, x=x):
            y, state = layer.apply({**variables, "params": params}, x, mutable=["spectral_norm"])
            return jnp.sum(y), (y, state)

        g, (y, state) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
        np.testing.assert_array_equal(v_of(state), v_of(variables))  # it can still find a direction
        assert np.isfinite(y).all() and all(np.isfinite(a).all() for a in jax.tree.leaves(g))
        assert np.abs(g["kernel"]).max() > 0


@pytest.mark.slow
def test_recomputed_blocks_move_the_state_once():
    x = normal(1, 2, 8, 8, 1)
    fields = dict(width=8, mlp_dim=6, depth=1, dense=spectral_norm.Dense, conv=spectral_norm.Conv)
    plain, remat = (ViT("tiny", remat=r, **fields) for r in (False, True))
    variables = draw_variables(plain, x, train=False)

    def step(module):
        def loss(params):
            y, state = module.apply(
                {**variables, "params": params}, x, train=True, mutable=["spectral_norm"]
            )
            return jnp.sum(jnp.sin(y) * jnp.arange(y.size).reshape(y.shape)), state

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        step(plain),
        step(remat),
    )


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(bound=0.0), "bound: 0.0; allowed above 0"),
        (dict(bound=-6.0), "bound: -6.0; allowed above 0"),
        (dict(bound=float("nan")), "bound: nan; allowed above 0"),
        (dict(iterations=0), "iterations: 0; allowed at least 1"),
        (dict(iterations=1.5), "iterations: 1.5 is a float; int is needed"),
        (dict(bounds=6.0), "no such field; did you mean 'bound'"),
        (dict(name="spectral_norm.Dens"), "did you mean 'Dense'"),
    ],
)
def test_bad_fields_are_named(fields, message):
    backbone = dict(name="mlp.MLP", dense=dict(name="spectral_norm.Dense") | fields)
    config = dict(backbone=backbone, head=dict(name="dense.Dense", outputs=2), ensemble="single")
    with pytest.raises(ValueError) as error:
        network = build.network(config)
        jax.eval_shape(
            functools.partial(network.init, train=False), jax.random.key(0), normal(2, 3)
        )
    assert message in str(error.value)
    if set(fields) <= {"bound", "iterations"} and fields.get("iterations") != 1.5:
        with pytest.raises(ValueError, match=message):
            spectral_norm.Conv(2, 3, **fields)
