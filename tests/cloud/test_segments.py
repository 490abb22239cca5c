"""Lines in a bucket survive a kill at any request: none is lost that was flushed, none doubled."""

import importlib.util
import json

import jax
import pytest

from experiments.runtime import lock, segments, storage
from experiments.runtime.segments import AppendedInBucket, read
from experiments.runtime.writers import METRICS, Profile, Writer, read_metrics
from tests.cloud.conftest import Killed
from uncertainty.build import ConfigError


def lines(first, last):
    return "".join(f"{i}\n" for i in range(first, last))


def test_all_that_was_flushed_is_read_in_order(folder, monkeypatch):
    monkeypatch.setattr(segments, "GROUP", 3)
    path = folder / METRICS
    assert read(path) is None
    file = segments.opened(path, lines(0, 5))
    for i in range(5, 40):
        file.append(lines(i, i + 1))
        if i % 2:
            file.flush()
            assert read(path).decode() == lines(0, i + 1)
    assert len(storage.find(folder)) < 8  # of 18 flushes
    file.append(lines(40, 41))
    file.close()
    assert read(path).decode() == lines(0, 41)
    segments.opened(path, lines(0, 20)).close()
    assert read(path).decode() == lines(0, 20)
    assert list(storage.find(folder)) == ["metrics/00002/000000-000000.jsonl"]


def test_a_kill_at_any_request_loses_nothing_that_was_flushed(memory, monkeypatch):
    monkeypatch.setattr(segments, "GROUP", 2)
    folder, died = storage.path("gs://test/folder"), 0
    for left in range(200):
        storage.remove(folder)
        begun = flushed = False
        AppendedInBucket(folder / METRICS, lines(0, 7)).close()  # of a former process
        memory.dies(left)
        try:
            file = AppendedInBucket(folder / METRICS, lines(0, 3))
            begun, flushed, i = True, 3, 3
            for i in range(4, 13):
                file.append(lines(i - 1, i))
                file.flush()
                flushed = i
        except Killed:
            died += 1
        memory.dies(None)
        found = read(folder / METRICS).decode()
        if begun:
            assert found in (lines(0, flushed), lines(0, flushed + 1)), left
        else:
            assert found in (lines(0, 7), lines(0, 3)), left
        segments.opened(folder / METRICS, found).close()  # whatever is left over does no harm
        assert read(folder / METRICS).decode() == found
        if flushed == 12:
            break
    assert died == left > 20


def test_a_failure_is_tried_again_and_doubles_nothing(memory, monkeypatch):
    monkeypatch.setattr(segments, "GROUP", 2)
    folder = storage.path("gs://test/folder")
    file = AppendedInBucket(folder / METRICS, "")
    count = 0

    def fails(*_, **__):
        nonlocal count
        count += 1
        if count % 3:
            raise OSError("the network")

    change = memory._change
    for i in range(20):
        file.append(lines(i, i + 1))
        monkeypatch.setattr(memory, "_change", fails)
        for _ in range(i % 4):
            try:
                file.flush()
            except OSError:
                continue
        monkeypatch.setattr(memory, "_change", change)
        assert read(folder / METRICS).decode() in (lines(0, n) for n in range(i + 2))
    file.close()
    assert read(folder / METRICS).decode() == lines(0, 20)


def test_a_writer_that_has_lost_its_lock_writes_no_more(folder, monkeypatch):
    with lock.exclusive(folder):
        file = segments.opened(folder / METRICS, lines(0, 1))
        storage.write(folder / lock.FOLDER / "00000009.json", json.dumps({"token": "other"}))
        file.append(lines(1, 2))
        with pytest.raises(OSError, match="was taken over"):
            file.flush()
    assert read(folder / METRICS).decode() == lines(0, 1)
    file._ended.set()


def test_records_are_those_of_a_disk(folder, tmp_path):
    """As tests/experiments/test_writers.py, and after a copy from one to the other."""
    for place in (folder, tmp_path):
        writer = Writer(place)
        for step in range(1, 8):
            writer.write(step, {"loss": 1 / step, "seconds": float(step)})
        writer.close()
        resumed = Writer(place, 5)
        assert resumed.seconds == 5.0
        resumed.write(6, {"loss": 6.0, "seconds": 6.5})
        resumed.flush()
        resumed.close()
    expected = read_metrics(tmp_path / METRICS)
    assert read_metrics(folder / METRICS) == expected
    assert [r["step"] for r in expected] == [1, 2, 3, 4, 5, 6]

    with storage.local_copy(folder) as copy:  # goes on here
        assert read_metrics(copy / METRICS) == expected
        writer = Writer(copy, 6)
        writer.write(7, {"loss": 7.0})
        writer.close()
        assert [p.name for p in copy.glob("metrics*")] == [METRICS, "metrics"]
        assert read_metrics(copy / METRICS) == [*expected, {"step": 7, "loss": 7.0}]
        assert not any((copy / "metrics").iterdir())
    storage.upload(tmp_path, folder.with_name("uploaded"))  # and there
    uploaded = folder.with_name("uploaded")
    writer = Writer(uploaded, 6)
    writer.write(7, {"loss": 7.0})
    writer.close()
    assert read_metrics(uploaded / METRICS) == [*expected, {"step": 7, "loss": 7.0}]
    assert not (uploaded / METRICS).is_file()


def test_tensorboard_files_are_copied_with_each_flush(memory):
    folder = storage.path("gs://test/folder")
    if importlib.util.find_spec("tensorflow") is None:
        with pytest.raises(ConfigError, match=r"tensorboard: .*pip install '\.\[tensorflow\]'"):
            Writer(folder, tensorboard=True)
        return
    writer, sizes = Writer(folder, tensorboard=True), []
    for step in (1, 2):
        writer.write(step, {"loss": 0.5})
        writer.flush()
        sizes.append(storage.find(folder / "tensorboard"))
    writer.close()
    (first,), (second,) = sizes
    assert first == second and sizes[0][first] < sizes[1][first]


def test_a_profile_is_copied_when_it_ends(memory):
    folder = storage.path("gs://test/folder")
    profile = Profile(folder, (1, 1))
    for step in range(3):
        with profile(step):
            jax.block_until_ready(jax.numpy.ones(3) + 1)
    assert any(name.endswith(".xplane.pb") for name in storage.find(folder / "profile"))
