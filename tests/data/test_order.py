"""The order of examples is a pure function of (seed, step); shards are a partition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.data import order

sizes = st.integers(1, 50)
steps = st.integers(0, 40)


@settings(deadline=None)
@given(n=sizes, batch_size=st.integers(1, 70), seed=st.integers(0, 2**64 - 1))
def test_every_epoch_holds_every_example_once(n, batch_size, seed):
    batches = [order.indices(seed, step, batch_size, n) for step in range(3 * n // batch_size + 1)]
    sequence = np.concatenate(batches)
    assert all(len(batch) == batch_size for batch in batches)
    for epoch in range(len(sequence) // n):
        one = sequence[epoch * n : (epoch + 1) * n]
        np.testing.assert_array_equal(np.sort(one), np.arange(n))


@settings(deadline=None)
@given(n=sizes, share=st.integers(1, 9), processes=st.integers(1, 6), step=steps)
def test_shards_in_order_are_the_global_batch(n, share, processes, step):
    batch_size = share * processes
    shards = [
        order.indices(3, step, batch_size, n, process, processes) for process in range(processes)
    ]
    assert {len(shard) for shard in shards} == {share}
    np.testing.assert_array_equal(np.concatenate(shards), order.indices(3, step, batch_size, n))


@settings(deadline=None)
@given(n=sizes, batch_size=st.integers(1, 20), step=steps, seed=st.integers(0, 5))
def test_a_step_does_not_depend_on_what_was_asked_before(n, batch_size, step, seed):
    expected = order.indices(seed, step, batch_size, n)
    kept = order.permutations(seed, n)
    for other in (step + 3, 0, step + 100):
        order.indices(seed, other, batch_size, n, order=kept)
    np.testing.assert_array_equal(order.indices(seed, step, batch_size, n, order=kept), expected)


def test_the_order_is_the_documented_one():
    """Sorted Philox bits, whose values NumPy promises to keep: a changed order breaks resuming."""
    bits = np.random.Philox(key=[7, 0], counter=[0, 0, 2, 0]).random_raw(5)
    np.testing.assert_array_equal(order.indices(7, 2, 5, 5), np.argsort(bits))
    assert order.indices(7, 0, 8, 8).tolist() == [4, 1, 6, 3, 2, 7, 5, 0]
    bits = np.random.Philox(key=[7, 0], counter=[0, 0, 2, 3]).random_raw(5)
    np.testing.assert_array_equal(order.permutations(7, 5, particle=3)(2), np.argsort(bits))


def test_seeds_and_epochs_differ_and_orders_are_uniform():
    orders = {
        tuple(order.permutations(seed, 8)(epoch)) for seed in range(20) for epoch in range(20)
    }
    assert len(orders) > 395  # of 8! = 40,320, two of 400 coincide rarely
    first = [order.permutations(seed, 4)(0)[0] for seed in range(2000)]
    counts = np.bincount(first, minlength=4)
    assert np.abs(counts - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)


def test_large_seeds_are_not_rounded():
    first = {int(order.philox(2**64 - 1 - i, 0).random_raw()) for i in range(50)}
    assert len(first) == 50


def test_streams_of_different_purpose_step_and_stage_do_not_share_bits():
    draws = [
        order.philox(1, purpose, step=step, stage=stage).random_raw(4)
        for purpose in range(8)
        for step in range(5)
        for stage in range(5)
    ]
    assert len(np.unique(draws)) == 8 * 5 * 5 * 4


def test_the_cached_permutation_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        order.permutations(0, 5)(0)[0] = 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 4, 10), "seed: -1"),
        ((1.5, 0, 4, 10), "seed: 1.5"),
        ((0, -1, 4, 10), "step: -1"),
        ((0, 0, 0, 10), "batch_size: 0"),
        ((0, 0, 4, 0), "n: 0"),
        ((0, 0, 4, 10, 0, 3), "batch_size: 4; 3 processes"),
        ((0, 0, 4, 10, 2, 2), "process_index: 2"),
    ],
)
def test_impossible_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        order.indices(*arguments)
