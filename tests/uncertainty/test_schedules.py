"""Schedules against their closed forms at every step."""

import math
from fractions import Fraction

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uncertainty.optimisers import schedules


def values(schedule, total):
    return np.asarray(jax.vmap(schedule)(np.arange(40)))[:total]  # one shape, compiled once


def expected(after, total, warmup):
    """(t + 1) / warmup before `warmup`, then after(t - warmup)."""
    return [(t + 1) / warmup if t < warmup else after(t - warmup) for t in range(total)]


def close(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)  # float32


@pytest.mark.parametrize("warmup", [0, 1, 2, 7, 20])
def test_constant_and_warmup(warmup):
    close(values(schedules.constant(20, warmup), 20), expected(lambda t: 1.0, 20, warmup))


@pytest.mark.parametrize("warmup", [0, 1, 2, 7])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_and_linear(warmup, final):
    total, steps = 23, 23 - warmup

    def cosine(t):
        return final + (1 - final) * (1 + math.cos(math.pi * t / steps)) / 2

    def linear(t):
        return 1 + (final - 1) * t / steps

    close(values(schedules.cosine(total, warmup, final), total), expected(cosine, total, warmup))
    close(values(schedules.linear(total, warmup, final), total), expected(linear, total, warmup))


@settings(max_examples=25, deadline=None)
@given(
    total=st.integers(1, 40),
    warmup=st.integers(0, 3),
    boundaries=st.lists(st.floats(0.01, 0.99), max_size=4),
    factor=st.sampled_from([0.1, 0.2, 0.5]),
)
def test_step_multiplies_once_for_every_boundary_that_has_passed(total, warmup, boundaries, factor):
    warmup = min(warmup, total)
    at = [round(Fraction(str(b)) * total) for b in boundaries]
    if min(at, default=warmup) < warmup:
        with pytest.raises(ValueError, match="before warm-up ends"):
            schedules.step(total, warmup, boundaries, factor)
        return

    def multiple(t):
        return factor ** sum(t + warmup >= boundary for boundary in at)

    schedule = schedules.step(total, warmup, boundaries, factor)
    close(values(schedule, total), expected(multiple, total, warmup))


def test_step_of_a_published_run():
    # 200 epochs of 97 steps, one of warm-up, times 0.2 at epochs 60, 120 and 160.
    schedule = schedules.step(200 * 97, 97, (60 / 200, 120 / 200, 160 / 200), 0.2)
    for epoch, multiple in ((1, 1), (59, 1), (60, 0.2), (119, 0.2), (120, 0.04), (160, 0.008)):
        assert schedule(epoch * 97) == pytest.approx(multiple)
    assert schedule(60 * 97 - 1) == pytest.approx(1)


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "step"])
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_no_step_is_idle_and_none_exceeds_the_peak(name, warmup):
    got = values(getattr(schedules, name)(20, warmup), 20)
    assert got.min() > 0
    assert got.max() == pytest.approx(1)
    assert got[max(warmup - 1, 0)] == pytest.approx(1)  # warm-up ends at the peak


def test_a_boundary_is_that_of_the_fraction_as_it_is_written():
    # 0.575 * 100 is 57.49999999999999 in floating point; 57.5 goes to the even step.
    schedule = schedules.step(100, 0, (0.575,), 0.1)
    close([schedule(t) for t in (57, 58)], [1.0, 0.1])


def test_schedules_can_be_traced():
    schedule = schedules.step(10, 2, (0.5,), 0.1)
    assert jax.jit(schedule)(7) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: schedules.step(100, 0, (0.5, 1.5)), "boundaries"),
        (lambda: schedules.step(100, 0, (0.0,)), "boundaries"),
        (lambda: schedules.step(100, 40, (0.3,)), "boundaries"),
        (lambda: schedules.cosine(100, 101), "warmup_steps"),
        (lambda: schedules.constant(100, -1), "warmup_steps"),
    ],
)
def test_what_does_not_fit_the_run_is_refused_by_name(make, field):
    with pytest.raises(ValueError, match=field):
        make()
