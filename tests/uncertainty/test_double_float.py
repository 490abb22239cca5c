"""Pairs of float32 against exact integers and float64."""

import fractions

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uncertainty.layers import double_float

FLOATS = st.floats(-1e9, 1e9, width=32).filter(lambda v: v == 0 or abs(v) > 1e-9)


@hypothesis.given(a=FLOATS, b=FLOATS)
def test_a_sum_and_its_rest_are_the_exact_sum(a, b):
    high, low = double_float.two_sum(jnp.float32(a), jnp.float32(b))
    exact = fractions.Fraction(a) + fractions.Fraction(b)
    assert fractions.Fraction(float(high)) + fractions.Fraction(float(low)) == exact
    assert high == np.float32(a) + np.float32(b)


@pytest.mark.parametrize("n", [1, 5, 400, 5000])
def test_the_gram_of_numbers_of_few_digits_is_exact(n):
    # 17 bits for each number: their sums of products need up to 46, of which float32 has 24.
    rng = np.random.default_rng(n)
    x = rng.integers(-(2**16), 2**16, size=(n, 6))
    x[:, 1] = 0
    scale = 2.0 ** np.array([0, 0, -40, 20, -7, 3])
    high, low = jax.jit(double_float.gram)(jnp.asarray(x * scale, jnp.float32))
    exact = (x.T @ x) * np.outer(scale, scale)
    np.testing.assert_allclose(np.asarray(high, float) + np.asarray(low), exact, rtol=2**-46)


def test_a_gram_has_nothing_in_directions_without_data():
    rng = np.random.default_rng(0)
    x = np.asarray(rng.normal(size=(1000, 2)) @ rng.normal(size=(2, 20)), np.float32)
    high, low = jax.jit(double_float.gram)(x)
    total = np.asarray(high, float) + np.asarray(low)
    exact = x.astype(float).T @ x
    nothing = np.linalg.eigh(exact)[1][:, :-2]
    assert np.abs(nothing.T @ total @ nothing).max() < 1e-6
    assert np.abs(nothing.T @ high @ nothing).max() > 1e-5  # what float32 alone can say


@pytest.mark.parametrize("k", [3, 300, 3000])
def test_products_have_twice_the_digits(k):
    rng = np.random.default_rng(k)
    a, b = (rng.normal(size=(n, k)) * 10.0 ** rng.integers(-6, 6, (n, 1)) for n in (4, 5))
    pairs = [(high := x.astype(np.float32), (x - high).astype(np.float32)) for x in (a, b)]
    a, b = (sum(np.asarray(part, float) for part in pair) for pair in pairs)
    high, low = jax.jit(double_float.matmul_transposed)(*pairs)
    error = np.asarray(high, float) + np.asarray(low) - a @ b.T
    bound = k * np.outer(np.abs(a).max(1), np.abs(b).max(1))
    assert np.abs(error / bound).max() < 2**-46


def test_what_is_not_finite_stays_so():
    for bad in (np.nan, np.inf):
        x = np.ones((3, 2), np.float32)
        x[1, 0] = bad
        high, low = jax.jit(double_float.gram)(x)
        assert not np.isfinite(high[0, 0] + low[0, 0]) and high[1, 1] + low[1, 1] == 3
