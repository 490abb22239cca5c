"""MLP, LeNet5 and pooling against loops in NumPy and SciPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d
from scipy.special import erf, expit

from uncertainty.backbones.lenet import LeNet5
from uncertainty.backbones.mlp import ACTIVATIONS, MLP
from uncertainty.layers.pool import max_pool

NUMPY = {
    "relu": lambda a: np.maximum(a, 0),
    "tanh": np.tanh,
    "sigmoid": expit,
    "silu": lambda a: a * expit(a),
    "softplus": lambda a: np.log1p(np.exp(a)),
    "elu": lambda a: np.where(a > 0, a, np.expm1(a)),
}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.mark.slow
@pytest.mark.parametrize("activation", NUMPY)
def test_mlp_is_affine_maps_and_activations(activation, random_variables):
    module = MLP(widths=(5, 4), activation=activation)
    x = normal(2, 3, 2, 3)
    variables = random_variables(module, x, train=False)
    params = variables["params"]
    expected = np.zeros((2, 3, 4))
    for m in range(2):
        for b in range(3):
            y = x[m, b].ravel()
            for name in ("dense0", "dense1"):
                y = NUMPY[activation](y @ params[name]["kernel"] + params[name]["bias"])
            expected[m, b] = y
    np.testing.assert_allclose(
        module.apply(variables, x, train=False), expected, rtol=1e-4, atol=1e-6
    )


def test_mlp_without_layers_flattens():
    x = normal(1, 3, 2, 2)
    features = MLP(widths=()).apply({}, x, train=False)
    np.testing.assert_array_equal(features, x.reshape(1, 3, 4))


def test_every_named_activation_exists():
    for name in ACTIVATIONS:
        assert np.isfinite(getattr(jax.nn, name)(jnp.ones(2))).all()
    # Named like the tanh approximation that the transformer uses.
    a = np.linspace(-3, 3, 13)
    assert 1e-5 < np.abs(jax.nn.gelu(a) - a * (1 + erf(a / np.sqrt(2))) / 2).max() < 1e-3


def convolve(x, kernel, bias, padding):  # x [H, W, C], kernel [h, w, C, F]
    mode = {"SAME": "same", "VALID": "valid"}[padding]
    return np.stack(
        [
            bias[f]
            + sum(correlate2d(x[..., c], kernel[..., c, f], mode) for c in range(x.shape[-1]))
            for f in range(kernel.shape[-1])
        ],
        axis=-1,
    )


def pool(x):  # [H, W, C]
    H, W = x.shape[:2]
    return np.stack(
        [
            np.stack([x[i : i + 2, j : j + 2].max((0, 1)) for j in range(0, W, 2)])
            for i in range(0, H, 2)
        ]
    )


@pytest.mark.parametrize("padding, size", [("VALID", (25, 28)), ("SAME", (7, 5))])
def test_lenet_is_correlations_pools_and_affine_maps(padding, size, random_variables):
    module = LeNet5(padding=padding)
    x = normal(1, 2, *size, 2)
    variables = random_variables(module, x, train=False)
    params = jax.tree.map(np.asarray, variables["params"])
    expected = []
    for image in x[0]:
        y = image
        for name, pad in (("conv0", "SAME"), ("conv1", padding), ("conv2", padding)):
            y = NUMPY["relu"](convolve(y, params[name]["kernel"], params[name]["bias"], pad))
            y = y if name == "conv2" else pool(y)
        y = y.ravel() @ params["dense0"]["kernel"] + params["dense0"]["bias"]
        expected.append(NUMPY["relu"](y))
    features = jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, x)
    np.testing.assert_allclose(features[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("H, W", [(4, 6), (5, 7), (1, 2), (1, 1)])
def test_max_pool_equals_a_window_reduction_with_its_gradient(H, W):
    x, weights = normal(2, 3, H, W, 2), normal(2, 3, (H + 1) // 2, (W + 1) // 2, 2, seed=1)

    def reduction(x):
        return nn.max_pool(x, (2, 2), (2, 2), "SAME")

    np.testing.assert_array_equal(max_pool(x), reduction(x))
    gradients = [
        jax.jit(jax.grad(lambda x, f=f: jnp.sum(f(x) * weights)))(x) for f in (max_pool, reduction)
    ]
    np.testing.assert_allclose(*gradients, rtol=1e-6)


def test_equal_maxima_share_the_gradient():
    np.testing.assert_array_equal(
        jax.grad(lambda x: max_pool(x).sum())(jnp.ones((1, 1, 2, 2, 1))).ravel(), [0.25] * 4
    )


def test_lenet_kernels_start_as_in_keras(initial_params):
    """Glorot uniform: bound sqrt(6 / (fan_in + fan_out)), a fan counting the 25 taps."""
    params = initial_params(LeNet5(), (1, 1, 28, 28, 1))
    for name, fans in {"conv1": 25 * (6 + 16), "conv2": 25 * (16 + 120), "dense0": 204}.items():
        kernel = np.abs(params[name]["kernel"])
        bound = np.sqrt(6 / fans)
        assert 0.99 * bound < kernel.max() <= bound
        np.testing.assert_allclose(kernel.mean(), bound / 2, rtol=0.05)
        assert not params[name]["bias"].any()


def test_mlp_kernels_start_he_normal(initial_params):
    kernel = initial_params(MLP(widths=(300,)), (1, 1, 200))["dense0"]["kernel"]
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / 200), rtol=0.02)


def test_biases_of_the_first_layer_may_start_otherwise(initial_params):
    init = nn.initializers.truncated_normal(1.0)
    params = initial_params(MLP((50, 40), input_bias_init=init), (1, 2, 3))
    assert 0.6 < np.std(params["dense0"]["bias"]) < 1.1 and not params["dense1"]["bias"].any()
