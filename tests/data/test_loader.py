"""Resuming, sharding and evaluation batches; the prefetching thread and its ends."""

import gc
import itertools
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from experiments.data.loader import batches, depth, epoch, prefetch
from experiments.data.source import load
from uncertainty.build import ConfigError

DIGITS = load(dict(name="digits", mean=0.3, std=0.4))
AUGMENT = [dict(name="flip"), dict(name="crop", pad=1), dict(name="mixup", alpha=0.2)]


def take(n, **fields):
    return list(itertools.islice(batches(DIGITS, **{"seed": 3, "batch_size": 48, **fields}), n))


def assert_same(a, b):
    assert len(a) == len(b)
    for (step, one), (other_step, other) in zip(a, b, strict=True):
        assert step == other_step
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


@pytest.mark.parametrize("augment", [(), AUGMENT])
def test_resuming_is_skipping(augment):
    whole = take(30, augment=augment)  # 25 steps are an epoch
    assert_same(take(18, augment=augment, start_step=12), whole[12:])
    assert [step for step, _ in whole] == list(range(30))


@pytest.mark.parametrize("augment", [(), AUGMENT])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_global_batch(augment, processes):
    whole = take(3, augment=augment)
    shards = [
        take(3, augment=augment, process_index=i, process_count=processes) for i in range(processes)
    ]
    joined = [
        (parts[0][0], {k: np.concatenate([p[1][k] for p in parts]) for k in parts[0][1]})
        for parts in zip(*shards, strict=True)
    ]
    assert_same(joined, whole)


def test_an_epoch_of_training_is_the_set():
    y = np.concatenate([batch["y"] for _, batch in take(25)])
    np.testing.assert_array_equal(np.bincount(y), np.bincount(DIGITS.y))
    x = np.concatenate([batch["x"] for _, batch in take(25)]).reshape(1200, -1)
    expected = (DIGITS.x.reshape(1200, -1) - np.float32(0.3)) / np.float32(0.4)
    np.testing.assert_array_equal(np.unique(x, axis=0), np.unique(expected, axis=0))


@pytest.mark.parametrize("batch_size", [1, 400, 64, 1024])
@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_sees_all_in_order_in_one_shape(batch_size, processes):
    test = load(dict(name="digits", split="test"))
    batch_size *= processes
    shards = [
        list(epoch(test, batch_size, process_index=i, process_count=processes))
        for i in range(processes)
    ]
    assert {b["x"].shape for shard in shards for b in shard} == {(batch_size // processes, 8, 8, 1)}
    joined = {
        key: np.concatenate([b[key] for step in zip(*shards, strict=True) for b in step])
        for key in ("x", "y", "mask")
    }
    np.testing.assert_array_equal(joined["mask"], np.arange(len(joined["mask"])) < 400)
    np.testing.assert_array_equal(joined["x"][:400], test.x)
    np.testing.assert_array_equal(joined["y"][:400], test.y)
    assert np.isfinite(joined["x"]).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(seed=-3), "seed: -3"),
        (dict(batch_size=50, process_count=4), "batch_size: 50; 4 processes"),
        (dict(augment=[dict(name="crp")]), r"augment\[0\].name: 'crp'"),
        (dict(augment=[dict(name="flip", p=2)]), "augment: p: 2"),
        (dict(augment=[dict(name="mixup")], batch_size=6, process_count=2), "pairs neighbours"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_batch(fields, message):
    with pytest.raises(ValueError, match=message):
        batches(DIGITS, **{"seed": 0, "batch_size": 48, **fields})


def test_images_are_needed_to_flip():
    with pytest.raises(ConfigError, match=r"augment: images .* x is \[8, 13\]"):
        batches(load(dict(name="wine")), seed=0, batch_size=8, augment=[dict(name="flip")])


def alive():
    return [t for t in threading.enumerate() if t.name == "prefetch"]


def test_prefetching_changes_nothing_but_the_thread():
    threads = set()

    def put(batch):
        threads.add(threading.current_thread().name)
        return {key: value.copy() for key, value in batch.items()}

    with prefetch(batches(DIGITS, seed=3, batch_size=48), put) as stream:
        assert_same(list(itertools.islice(stream, 10)), take(10))
    assert threads == {"prefetch"}
    assert not alive()
    assert list(stream) == []


def test_at_most_depth_batches_are_made_ahead():
    made = []
    with prefetch(((i, i) for i in itertools.count()), made.append, depth=3) as stream:
        for used in range(1, 6):
            next(stream)
            time.sleep(0.02)
            assert len(made) <= used + 3


def test_the_thread_is_woken_for_half_of_the_depth_at_a_time():
    made = []
    with prefetch(((i, i) for i in itertools.count()), made.append, depth=6) as stream:
        for total in (6, 6, 9, 9, 9, 12):  # after 1, 2, ... batches are taken
            next(stream)
            deadline = time.monotonic() + 10
            while len(made) < total and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.02)
            assert len(made) == total


def test_depth_is_what_fits_in_memory():
    example_bytes = 4 * 8 * 8  # of a float32 image
    assert depth(DIGITS, 100, most=32, memory=7 * 100 * example_bytes) == 7
    assert depth(DIGITS, 100, most=5, memory=7 * 100 * example_bytes) == 5
    assert depth(DIGITS, 100, most=5, memory=1) == 2


def test_exceptions_come_in_their_turn():
    def failing():
        yield 0, "a"
        yield 1, "b"
        raise OSError("the disk is gone")

    stream = prefetch(failing(), str.upper)
    assert next(stream) == (0, "A")
    assert next(stream) == (1, "B")
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)
    assert list(stream) == []

    def put(batch):
        raise MemoryError(batch)

    stream = prefetch(iter([(0, "a")]), put)
    with pytest.raises(MemoryError):
        next(stream)
    assert list(prefetch(iter([(0, "a"), (1, "b")]), str.upper)) == [(0, "A"), (1, "B")]
    assert not alive()


@pytest.mark.slow
def test_an_abandoned_stream_ends_its_thread():
    stream = prefetch(batches(DIGITS, seed=0, batch_size=8), lambda batch: batch)
    next(stream)
    assert alive()
    del stream
    gc.collect()
    assert not alive()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["pass", "raise KeyboardInterrupt"])
def test_a_program_ends_with_its_stream_open(end):
    program = f"""
import itertools
from experiments.data.loader import prefetch
stream = prefetch(((i, i) for i in itertools.count()), lambda x: x)
next(stream)
{end}
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True)
    assert (done.returncode == 0) == (end == "pass")
    assert b"Fatal" not in done.stderr
