"""Servers that ignore preconditions, cannot be reached, or want credentials."""

import os
import re
import subprocess
import sys
import threading
import time

import fsspec
import pytest

from experiments.runtime import buckets, lock, storage
from tests.cloud.conftest import free_port, wait_for


@pytest.fixture
def careless(monkeypatch):
    """A folder on a server that has no preconditions, as some that S3 is spoken to."""
    port = free_port()
    code = (
        "from gcp_storage_emulator.server import create_server\n"
        f"create_server('127.0.0.1', {port}, in_memory=True, default_bucket='test').run()"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(port, server)
    made = fsspec.filesystem(
        "gs", token="anon", endpoint_url=f"http://127.0.0.1:{port}", use_listings_cache=False
    )
    monkeypatch.setattr(buckets, "filesystem", lambda scheme: made)
    yield storage.path("gs://test/folder")
    server.kill()
    server.wait()


def test_without_preconditions_it_is_said_and_two_see_each_other(careless, caplog, monkeypatch):
    monkeypatch.setattr(lock, "SETTLE", 1.0)
    won, start = [], threading.Barrier(2)

    def take(i):
        start.wait()
        try:
            with lock.exclusive(careless):
                won.append(i)
                time.sleep(3)
        except BlockingIOError:
            pass

    threads = [threading.Thread(target=take, args=[i]) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert "the server ignores preconditions on writes" in caplog.text


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "no connection to the server .*AWS_ENDPOINT"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_EC2_METADATA_DISABLED": "true"},
         "no valid credentials .*; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(servers, environment, message):
    code = (
        "from experiments.runtime import storage, workdir\n"
        "workdir.require_writable(storage.path('s3://test/run'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), **environment},
    )  # fmt: skip
    last = done.stderr.splitlines()[-1]
    assert re.search(f"workdir s3://test/run cannot be written: {message}", last), done.stderr
