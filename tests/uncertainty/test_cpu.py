"""Kernels for CPU: each equal to its plain expression, and in no program for another platform."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import uncertainty.cpu
from uncertainty import build, cpu
from uncertainty.cpu import noise, order
from uncertainty.inference import sharded
from uncertainty.inference.kernels import rbf
from uncertainty.layers import attention, conv, norm, posterior, random_features
from uncertainty.layers import pool as pool_layers
from uncertainty.layers.feed_forward import FeedForward
from uncertainty.layers.moe import dispatch, routing
from uncertainty.layers.moe.experts import MoE
from uncertainty.optimisers import samplers

FOLDER = pathlib.Path(uncertainty.cpu.__file__).parent
KERNELS = {file.stem for file in FOLDER.glob("*.py")} - {"__init__"}


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def cholesky(m):
    a = normal(m, 2 * m).astype(float)
    return jnp.asarray(np.linalg.cholesky(np.asarray(a @ a.T / m)), jnp.float32)


def of_gather(x, gate):
    """A dispatch whose gates are multiplied over the rows of D."""
    routes = routing.Routes(token=jnp.arange(6).reshape(1, 1, 2, 3), gate=gate)
    return dispatch.combine(x, routes, 6)


def of_load(logits, noisy):
    return routing.load_loss(logits, noisy, 2, 0.3)[None]


def strided(x, kernel):
    """On any number of cores."""
    method = "kernel_gradient" if cpu.enabled() else "lax"
    return conv.convolve(x, kernel, None, 2, ((1, 0), (2, 1)), method)


POSITIVE = jnp.asarray([3.0, 0.0, 1.5, 0.0, 2.0, 7.0])
PAIRS = {  # kernel: (what chooses between it and the plain expression, arguments), same and slopes
    "patches": (conv.convolve, (normal(2, 3, 7, 6, 2), normal(5, 5, 2, 3), normal(3))),
    "kernel_gradient": (strided, (normal(2, 3, 7, 6, 5), normal(3, 3, 5, 4))),
    "cosine": (random_features.cosine, (100 * normal(50),)),
    "pool": (pool_layers.max_pool, (normal(2, 3, 5, 4, 2),)),
    "rows": (routing.softmax, (normal(4, 5),)),
    "rows of gates": (of_gather, (normal(1, 2, 1, 3, 4), jnp.abs(normal(1, 1, 2, 3)))),
    "rows of tokens": (lambda x: norm.standardise(x, 1e-6), (3 + normal(2, 4, 9),)),
    "heads_first": (attention.attend, tuple(normal(2, 3, 5, 4, 6, seed=i) for i in range(3))),
    "rows of particles": (lambda z: sharded.inner_products([z], centred=True), (normal(5, 9),)),
    "triangle": (lambda L: jnp.tril(posterior.inverse_triangle(jnp.tril(L))), (cholesky(70),)),
    "median": (rbf._median, (POSITIVE,)),
    "median of 0": (rbf._median, (POSITIVE * jnp.asarray([0, 0, 0, 0, 1, 1]),)),
    "median of none": (rbf._median, (0 * POSITIVE,)),
    "median of one": (rbf._median, (POSITIVE[:1],)),
    "order": (lambda x: routing._largest(x, 2)[0], (normal(6, 5),)),
    "order of a loss": (of_load, (normal(6, 5), normal(6, 5, seed=1))),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_values_and_slopes_are_those_of_the_plain_expression(name):
    """On this machine's CPU both run; what is compiled for elsewhere is the plain one."""
    fn, args = PAIRS[name]

    def values_and_slopes(args):
        y, back = jax.vjp(fn, *args)
        constant = name.startswith("median")  # under differentiation
        weights = jnp.cos(jnp.arange(y.size)).reshape(y.shape)
        return (y,) if constant else (y, *back(weights))

    results = []
    for platform in ("cpu", "tpu"):
        with cpu.compiling_for(platform):
            results.append(jax.jit(values_and_slopes)(args))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("k", [1, 2, 4, 5])
def test_orders_are_those_of_the_plain_expression_with_ties(k):
    x = jnp.asarray(np.random.default_rng(k).integers(0, 3, (20, 6)), jnp.float32)
    for a, b in zip(order.top_k(x, k), jax.lax.top_k(x, k), strict=True):
        np.testing.assert_array_equal(a, b)
    numbers = x[:, 0].astype(jnp.int32)
    for end in (2, 2**30):
        np.testing.assert_array_equal(order.argsort(numbers, end), np.argsort(numbers, stable=True))


@pytest.mark.slow
def test_noise_is_made_of_the_words_that_jax_combines():
    key = jax.random.key(3)
    first, second = noise.words(key, 64)
    of_both = jax.random.normal(key, (64,))  # to the rounding of one compiled program
    np.testing.assert_allclose(noise.of(first ^ second), of_both, rtol=1e-5)
    drawn = noise.normal(key, 4001)
    np.testing.assert_array_equal(drawn[:2001], noise.of(noise.words(key, 2001)[0]))
    assert scipy.stats.kstest(drawn, "norm").pvalue > 0.01
    with cpu.compiling_for("tpu"):
        plain = samplers._normal(key, 64)
    np.testing.assert_array_equal(plain, jax.random.normal(key, (64,)))


CONFIG = dict(
    backbone=dict(name="lenet.LeNet5", padding="SAME"),
    ensemble=dict(name="batch_ensemble", size=2),
    head=dict(name="sngp.Sngp", outputs=3, features=8, momentum=0.9, num_examples=8),
    likelihood=dict(name="softmax", samples=4),
    inference=dict(
        name="particles",
        size=3,
        executor="vmap",  # traced once for all particles
        direction=dict(name="svgd"),
        prior=dict(name="gaussian", scale=1.0),
    ),
    optimiser=dict(name="sgld", learning_rate=0.1),
    steps=9,
)


@pytest.fixture
def origins():
    """Operations of lowered programs tell where they were traced."""
    before = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 10)
    yield
    jax.config.update("jax_traceback_in_locations_limit", before)


@pytest.mark.slow
def test_a_program_for_a_tpu_has_no_kernel_for_cpu(origins):
    """Operations tell the files that they were traced in: all of the kernels for CPU, or none.

    A step of SVGD with SGLD's noise, its predictions, attention, and gradients of a mixture of
    experts and of a convolution. The same functions are traced for both platforms, one after the
    other.
    """
    model, x = build.model(CONFIG), jnp.zeros((4, 8, 8, 1))
    inference = build.inference(CONFIG, model, num_examples=8)
    state = jax.eval_shape(inference.init, jax.random.key(0), x)
    experts, tokens = MoE(4, functools.partial(FeedForward, mlp_dim=6)), jnp.zeros((1, 4, 3, 5))
    init = functools.partial(experts.init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), tokens)

    def loss(params):
        return experts.apply(params, tokens, train=False).sum()

    programs = [
        (jax.jit(inference.update), state, dict(x=x, y=jnp.zeros(4, int))),
        (jax.jit(inference.predict), state, x),
        (jax.jit(jax.grad(loss)), params),
        (jax.jit(attention.attend), *PAIRS["heads_first"][1]),
        (jax.jit(jax.grad(lambda *a: strided(*a).sum(), 1)), *PAIRS["kernel_gradient"][1]),
    ]
    met = {"cpu": set(), "tpu": set()}
    for program, *args in programs:
        for platform, files in met.items():
            with cpu.compiling_for(platform):
                lowered = program.trace(*args).lower(lowering_platforms=(platform,))
            text = lowered.as_text(debug_info=True)
            files |= set(re.findall(r"uncertainty/cpu/(\w+)\.py", text))
    assert met == {"cpu": KERNELS, "tpu": set()}


def test_the_platform_is_that_of_the_context_else_that_of_the_machine():
    assert cpu.enabled() == (jax.default_backend() == "cpu")
    with cpu.compiling_for("tpu"):
        assert not cpu.enabled()
        with cpu.compiling_for("cpu"):
            assert cpu.enabled()
    traced = jax.jit(lambda x: x + cpu.enabled())
    assert traced(0) == cpu.enabled()
    with cpu.compiling_for("cuda"):
        assert traced(0) == 0  # not what was traced before
