"""One writer at a time: whoever is killed, stopped or late."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from experiments.runtime import lock, storage
from experiments.runtime.lock import Lock, exclusive
from experiments.tables.claims import Claims


@pytest.fixture(autouse=True)
def short(monkeypatch, folder):
    monkeypatch.setattr(lock, "STALE", 1.2 if folder.scheme == "s3" else 0.4)
    monkeypatch.setattr(lock, "BEAT", lock.STALE / 6)


def held_by(folder, state=None, **changes):
    """Makes the lock that of another process, whose object is that of `changes`."""
    other = {**Lock(folder).owner, "token": "other", **changes}
    storage.write(folder / lock.FOLDER / "00000007.json", json.dumps({**other, **(state or {})}))


def test_it_is_held_while_the_block_runs(folder):
    with exclusive(folder):
        lock.check(folder / "x")
        with pytest.raises(BlockingIOError, match=rf"in use by process {os.getpid()} of "):
            exclusive(folder).__enter__()
    for _ in range(3):
        with exclusive(folder):
            pass
    assert list(storage.find(folder)) == [".locks/00000004.json"]
    lock.check(folder / "x")  # of nobody


def test_of_many_one_at_a_time(folder):
    inside, most, start = [], [], threading.Barrier(6)

    def work():
        start.wait()
        with exclusive(folder, wait=True):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6


def test_a_dead_owner_on_this_machine_is_known_at_once(folder):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = lock._began(process.pid)
    held_by(folder, process=process.pid, began=began)
    with pytest.raises(BlockingIOError):
        exclusive(folder).__enter__()
    process.kill()
    process.wait()
    started = time.monotonic()
    with exclusive(folder):
        assert time.monotonic() - started < lock.STALE / 2
    held_by(folder, began="1")  # another process has its number now
    with exclusive(folder):
        assert time.monotonic() - started < lock.STALE


def test_of_another_machine_its_silence_tells(folder):
    held_by(folder, machine="another")
    started = time.monotonic()
    with exclusive(folder):
        assert lock.STALE / 2 < time.monotonic() - started < 10 * lock.STALE
    assert list(storage.find(folder)) == [".locks/00000008.json"]


def test_long_silence_is_seen_from_the_times_of_the_server(folder):
    held_by(folder, machine="another")
    time.sleep(lock.STALE + 1.1 * (folder.scheme == "s3"))  # whose times are whole seconds
    started = time.monotonic()
    with exclusive(folder):
        assert time.monotonic() - started < lock.STALE


def test_signs_of_life_from_another_machine_refuse(folder):
    ended = threading.Event()

    def beat():
        for i in range(100):
            held_by(folder, state={"beat": i}, machine="another", host="far", process=5)
            if ended.wait(lock.BEAT):
                return

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        time.sleep(0.1)
        with pytest.raises(BlockingIOError, match="in use by process 5 of far"):
            exclusive(folder).__enter__()
    finally:
        ended.set()
        thread.join()


def test_an_owner_that_was_stopped_notices(folder):
    with exclusive(folder):
        held_by(folder, host="far", process=5)
        for place in (folder, folder / "checkpoints" / "5"):
            with pytest.raises(OSError, match="was taken over by process 5 of far, as nothing"):
                lock.check(place)
        lock.check(storage.path(f"{folder}er"))  # is another folder
    assert json.loads((folder / ".locks/00000007.json").read_bytes())["token"] == "other"
    assert "state" not in json.loads((folder / ".locks/00000007.json").read_bytes())


def test_a_late_one_does_not_take_a_number_below_the_highest(folder):
    late = Lock(folder)
    held_by(folder)
    assert not late._create(3)
    assert list(storage.find(folder)) == [".locks/00000007.json"]


def test_it_beats(folder):
    with exclusive(folder):
        content = (folder / ".locks/00000001.json").read_bytes()
        end = time.monotonic() + 30
        while (folder / ".locks/00000001.json").read_bytes() == content:
            assert time.monotonic() < end
            time.sleep(0.05)
    assert json.loads((folder / ".locks/00000001.json").read_bytes())["state"] == "released"


def test_the_claim_of_a_cell_is_taken_over_from_a_worker_that_is_gone(folder):
    claims, others = Claims(folder / "claims"), Claims(folder / "claims")
    claims.begin()
    with claims.claim("a") as mine, others.claim("a") as other:
        assert (mine, other) == (True, False)
    held_by(folder / "claims" / "b", host="gone", machine="elsewhere")
    began = time.monotonic()
    with claims.claim("b") as mine:
        assert mine and time.monotonic() - began > lock.STALE / 2
        time.sleep(1.1)  # some servers know the time in seconds
        claims.fail("b", "why")
    assert claims.failed("b") == "why" and claims.failed("a") is others.failed("b") is None
