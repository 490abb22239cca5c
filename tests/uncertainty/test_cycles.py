"""The part of a cycle that is over, against whole numbers of any size."""

import jax
import numpy as np
import pytest

from uncertainty.inference import annealing
from uncertainty.optimisers import cycles, schedules

INT32 = 2**31 - 1


@pytest.mark.parametrize(
    ("steps", "many"),
    [(INT32, INT32), (INT32, INT32 - 1), (INT32, 2), (3_000_000, 1_000), (1_000_003, 999_983)],
)
def test_no_product_overflows(steps, many):
    some = np.random.default_rng(0).integers(0, INT32, 200)
    some = np.concatenate([some, some % steps, [0, 1, steps - 1, INT32 // many, INT32]])
    got = jax.jit(jax.vmap(lambda t: cycles.share(t, steps, many)))(some.astype(np.int32))
    exact = [np.float32(int(t) * many % steps) / np.float32(steps) for t in some]
    np.testing.assert_allclose(got, exact, rtol=3e-7)  # one division of float32


def test_long_runs_of_many_cycles_are_in_the_right_one():
    step, steps, many = np.int32(2_147_484), 3_000_000, 1_000  # step many = 2^31 + 352
    done = step.item() * many % steps / steps
    got = jax.jit(annealing.cyclical(steps, many, power=1.0))(step)
    np.testing.assert_allclose(got, done, rtol=1e-6)
    rate = jax.jit(schedules.cyclical(steps, cycles=many))(step)
    np.testing.assert_allclose(rate, (1 + np.cos(np.pi * done)) / 2, rtol=1e-5)


@pytest.mark.parametrize(("steps", "many"), [(12, 4), (10, 3), (7, 7)])
def test_each_cycle_begins_at_0(steps, many):
    got = jax.vmap(lambda t: cycles.share(t, steps, many))(np.arange(steps))
    np.testing.assert_allclose(got, [t * many % steps / steps for t in range(steps)], rtol=1e-6)
    assert not got[0]
