"""Kernels against their formulas and automatic differentiation, pair by pair."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uncertainty.inference.kernels import rbf as rbf_module
from uncertainty.inference.kernels.imq import imq
from uncertainty.inference.kernels.linear import linear
from uncertainty.inference.kernels.probability_product import probability_product
from uncertainty.inference.kernels.rbf import median_bandwidth, rbf, squared_distances

PAIRS = {  # a kernel and its formula for one pair
    "rbf": (rbf(0.7), lambda a, b: jnp.exp(-jnp.sum((a - b) ** 2) / 1.4)),
    "imq": (imq(0.7, 0.3), lambda a, b: (1 + jnp.sum((a - b) ** 2) / 1.4) ** -0.3),
    "linear": (linear(0.5), lambda a, b: a @ b + 0.5),
}


def particles(P=5, n=3, seed=0):
    return np.random.default_rng(seed).normal(size=(P, n)).astype(np.float32)


@functools.cache
def compiled(kernel):
    return jax.jit(kernel.matrices)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("P", [1, 7])
def test_matrices_are_the_double_sum(name, P):
    kernel, pair = PAIRS[name]
    z = particles(P)
    gram, force = compiled(kernel)(z @ z.T)
    every = jax.vmap(jax.vmap(jax.value_and_grad(pair), (None, 0)), (0, None))
    values, slopes = jax.jit(every)(z, z)  # [j, i]: of the kernel in its first argument
    np.testing.assert_allclose(gram, values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.asarray(force) @ z, slopes.sum(0), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [rbf(), imq()], ids=["rbf", "imq"])
@settings(max_examples=30)
@given(P=st.sampled_from([2, 3, 6]), n=st.integers(1, 6), seed=st.integers(0, 100))
def test_stationary_forces_sum_to_zero_and_ignore_a_shift(kernel, P, n, seed):
    assert kernel.stationary
    z = particles(P, n, seed)
    matrices = compiled(kernel)
    gram, force = matrices(z @ z.T)
    np.testing.assert_allclose((np.asarray(force) @ z).sum(0), 0, atol=1e-4)
    shifted = z + 1.0
    np.testing.assert_allclose(matrices(shifted @ shifted.T)[0], gram, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [rbf(), imq(), linear()], ids=["rbf", "imq", "linear"])
def test_permuting_particles_permutes_the_matrices(kernel):
    z = particles(6)
    order = np.random.default_rng(1).permutation(6)
    matrices = compiled(kernel)
    results = matrices(z @ z.T), matrices(z[order] @ z[order].T)
    for whole, permuted in zip(*results, strict=True):
        expected = np.asarray(whole)[order][:, order]
        np.testing.assert_allclose(permuted, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [rbf(), imq(), linear()], ids=["rbf", "imq", "linear"])
@pytest.mark.parametrize("P", [1, 4])
def test_equal_particles_and_a_single_one_are_safe(kernel, P):
    z = np.full((P, 3), 0.3, np.float32)
    gram, force = map(np.asarray, compiled(kernel)(z @ z.T))
    assert np.isfinite(gram).all() and np.isfinite(force).all()
    if kernel.stationary:
        np.testing.assert_allclose(gram, 1.0)
        np.testing.assert_allclose(force @ z, 0.0, atol=1e-6)


@jax.jit
def distances_and_bandwidth(products):
    squared = squared_distances(products)
    return squared, median_bandwidth(squared)


def test_the_bandwidth_is_the_median_over_pairs():
    z = particles(9)
    squared, bandwidth = distances_and_bandwidth(z @ z.T)
    exact = ((z[:, None] - z[None]) ** 2).sum(-1)
    np.testing.assert_allclose(squared, exact, atol=1e-4)
    median = np.median(exact[np.triu_indices(9, 1)])
    np.testing.assert_allclose(bandwidth, median / (2 * np.log(10)), rtol=1e-5)
    # In high dimension distances are all alike, so that k is about 1 / (P + 1) (core idea of it).
    far = particles(9, 20_000)
    gram, _ = jax.jit(rbf().matrices)(far @ far.T)
    np.testing.assert_allclose(np.asarray(gram)[np.triu_indices(9, 1)], 1 / 10, rtol=0.15)


@pytest.mark.parametrize("equal", [1, 6, 8])
def test_particles_that_coincide_do_not_set_the_bandwidth(equal):
    # With 8 of 9 equal, 28 of the 36 pairs are no distance; the scale is that of the others.
    z = 10 * particles(9)
    z[:equal] = z[0]
    exact = ((z[:, None] - z[None]) ** 2).sum(-1)[np.triu_indices(9, 1)]
    h = distances_and_bandwidth(z @ z.T)[1]
    scale = np.median(exact) or np.median(exact[exact > 0])
    np.testing.assert_allclose(h, scale / (2 * np.log(10)), rtol=1e-5)


@pytest.mark.slow
def test_the_bandwidth_is_a_constant_under_differentiation():
    z = particles(4)

    def slope(kernel):
        return jax.jit(jax.grad(lambda z: kernel.matrices(z @ z.T)[0].sum()))(z)

    h = float(distances_and_bandwidth(z @ z.T)[1])
    np.testing.assert_allclose(slope(rbf()), slope(rbf(h)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_the_probability_product_is_its_formula(power):
    p = np.random.default_rng(0).dirichlet(np.ones(4), size=(5, 2, 3)).astype(np.float32)
    kernel = probability_product(power)
    phi = np.asarray(jax.jit(kernel.features)(p)).reshape(5, -1)
    gram, force = map(np.asarray, compiled(kernel)(phi @ phi.T))
    for i in range(5):
        for j in range(5):  # M B = 6 distributions of 4 classes
            np.testing.assert_allclose(gram[i, j], ((p[i] * p[j]) ** power).sum() / 6, rtol=1e-4)
    np.testing.assert_array_equal(force, 5 * np.eye(5))
    if power == 0.5:
        np.testing.assert_allclose(np.diag(gram), 1.0, rtol=1e-5)
    sure = jnp.eye(4)[None]  # probabilities of 0 have a finite slope
    assert np.isfinite(jax.jit(jax.grad(lambda p: kernel.features(p).sum()))(sure)).all()


@pytest.mark.parametrize(
    ("make", "fields", "why"),
    [
        (rbf, dict(bandwidth=0.0), "bandwidth: 0.0"),
        (imq, dict(bandwidth=-1.0), "bandwidth: -1.0"),
        (imq, dict(power=1.0), "power: 1.0"),
        (linear, dict(offset=-0.1), "offset: -0.1"),
        (probability_product, dict(power=0.0), "power: 0.0"),
        (probability_product, dict(power=1.5), "power: 1.5"),
    ],
)
def test_what_cannot_be_is_refused(make, fields, why):
    with pytest.raises(ValueError, match=why):
        make(**fields)


MEDIAN = jax.jit(rbf_module._median)


@pytest.mark.slow
@settings(max_examples=40)
@given(st.lists(st.floats(0, 2.0**99, width=32, allow_subnormal=False), min_size=1, max_size=8))
def test_the_median_is_numpys_or_that_of_what_is_above_0(values):
    for given_ in (values, values + values[:1]):  # an odd and an even number, with ties
        found = MEDIAN(jnp.asarray(given_, jnp.float32))
        of = np.asarray(given_, np.float32)
        if not np.median(of):
            of = of[of > 0] if of.any() else np.ones(1)
        assert found == pytest.approx(np.median(of), rel=1e-6)
