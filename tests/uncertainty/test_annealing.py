"""Annealing against its formulas."""

import jax
import numpy as np
import pytest

from uncertainty.inference import annealing

T = 200


@pytest.mark.parametrize(
    ("made", "formula"),
    [
        (annealing.linear(T), lambda t: t / T),
        (annealing.linear(T, start=0.4), lambda t: 0.4 + 0.6 * t / T),
        (annealing.hyperbolic(T), lambda t: np.tanh((1.3 * t / T) ** 10)),
        (annealing.hyperbolic(T, power=2), lambda t: np.tanh((1.3 * t / T) ** 2)),
        (annealing.cyclical(T), lambda t: (np.mod(t, T / 5) / (T / 5)) ** 10),
        (annealing.cyclical(T, cycles=3, power=1), lambda t: np.mod(t, T / 3) / (T / 3)),
    ],
)
def test_formulas(made, formula):
    for t in (0, 1, 39, 45, 100, 133, 190, 199):
        np.testing.assert_allclose(made(np.int32(t)), formula(t), rtol=1e-3, atol=1e-6)
    for t in (T, T + 1, 10**7):
        assert made(np.int32(t)) == 1.0


@pytest.mark.parametrize("steps", [1_000, 5_000, 50_000])
def test_each_cycle_begins_at_nothing(steps):
    starts = np.arange(5, dtype=np.int32) * (steps // 5)
    made = jax.jit(jax.vmap(annealing.cyclical(steps)))
    np.testing.assert_array_equal(made(starts), 0.0)
    np.testing.assert_allclose(made(starts[1:] - 1), (1 - 5 / steps) ** 10, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "fields", "why"),
    [
        (annealing.linear, dict(steps=0), "steps: 0"),
        (annealing.linear, dict(steps=5, start=1.5), "start: 1.5"),
        (annealing.hyperbolic, dict(steps=5, power=0), "power: 0"),
        (annealing.cyclical, dict(steps=5, cycles=0), "cycles: 0"),
    ],
)
def test_what_cannot_be_is_refused(make, fields, why):
    with pytest.raises(ValueError, match=why):
        make(**fields)
