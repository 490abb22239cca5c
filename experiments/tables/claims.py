"""Which process runs which cell, so that several of them share a table and none is run twice.

A claim is the lock of a folder, `claims/<row>-seed<seed>` beside the runs (`runtime/lock.py`): on a
disk the kernel frees it when its process ends, however it ends; in a bucket one that gives no sign
of life for some time is taken over. A cell that failed leaves the reason there, so that processes
that were started before do not run it again.
"""

import contextlib
import datetime
import os
import pathlib
import secrets
from collections.abc import Iterator

from experiments.runtime import lock, storage
from experiments.runtime.workdir import read_json, write_json

FAILED = "failed.json"


class Claims:
    """The claims of cells below a folder.

    Args:
      folder: of all of them; it is created by the first claim.
    """

    def __init__(self, folder: storage.Path):
        self.folder = folder
        self._began: datetime.datetime | None = None

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether this process may run the cell `name` while the block runs."""
        place = self._made(name)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock.exclusive(place))
            except BlockingIOError:
                yield False
                return
            if self.failed(name) is None:
                (place / FAILED).unlink(missing_ok=True)
            yield True

    def fail(self, name: str, reason: str) -> None:
        """Leaves the reason of a failure for the other processes."""
        write_json(self._made(name) / FAILED, {"reason": reason})

    def failed(self, name: str) -> str | None:
        """Why another process failed at the cell since this one began; None if none did."""
        place = self.folder / name / FAILED
        try:
            if self._began is None or written(place) <= self._began:
                return None
            return read_json(place, {"reason": str})["reason"]
        except FileNotFoundError:
            return None

    def begin(self) -> None:
        """Failures count from now on, by the clock of the folder's file system."""
        self.folder.mkdir(parents=True, exist_ok=True)
        probe = self.folder / f".began-{secrets.token_hex(4)}"
        probe.touch()
        self._began = written(probe)
        probe.unlink(missing_ok=True)

    def _made(self, name: str) -> storage.Path:
        place = self.folder / name
        place.mkdir(parents=True, exist_ok=True)
        return place


def written(place: storage.Path) -> datetime.datetime:
    """When a file was written, by the clock of its file system."""
    if isinstance(place, pathlib.Path):
        return datetime.datetime.fromtimestamp(os.stat(place).st_mtime, datetime.UTC)
    return storage.modified(place)
