"""Checkpoints in a bucket: `<folder>/<step>`, which is complete once its list of files is there.

Each process writes its share of the arrays (`shards`), and tells the others whether it could. Then
process 0 writes the description and, last, the list of all files, which is created and never
replaced: without it a step does not exist for any reader. Names of arrays are new in each attempt,
so not even a run that has lost its lock can change a complete checkpoint.
"""

import concurrent.futures
import contextlib
import json
import secrets
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from experiments.runtime import lock, processes, shards, storage
from experiments.runtime.buckets import UnavailableError
from experiments.runtime.shards import DamagedCheckpointError
from experiments.runtime.storage import BucketPath


class Uploads:
    """The checkpoints in a folder of a bucket.

    Args:
      folder: of the steps.
      keep: how many of the newest ones stay.
      list_name: the name of the list of files within a step, `{file: [bytes, CRC-32]}`.
    """

    def __init__(self, folder: BucketPath, keep: int, list_name: str):
        self.folder, self.keep, self.list_name = folder, keep, list_name
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None
        self._running: concurrent.futures.Future | None = None

    def complete(self) -> list[str]:
        """The names of the steps that are complete."""
        return self._steps(storage.find(self.folder))

    def _steps(self, found: Mapping[str, int]) -> list[str]:
        names = (name.partition("/") for name in found)
        return [step for step, _, rest in names if rest == self.list_name]

    def start(self, step: int, tree: Any, notes: Mapping[str, bytes]) -> None:
        """Starts to write the arrays of a tree, which may be donated as soon as this returns.

        Args:
          step: of the checkpoint.
          tree: of arrays.
          notes: further small files of the step, by name.
        """
        copies, call = shards.snapshot(tree), processes.next_call()
        self._pool = self._pool or concurrent.futures.ThreadPoolExecutor(1, "upload")
        self._running = self._pool.submit(self._upload, step, copies, notes, call)

    def wait(self) -> None:
        """Waits for the last one; raises OSError if a process could not write it."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        self.wait()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _upload(
        self, step: int, copies: Sequence[shards.Shard], notes: Mapping[str, bytes], call: int
    ) -> None:
        place = self.folder / str(step)
        own: dict[str, Any] = {}
        try:
            prefix = f"{jax.process_index()}-{secrets.token_hex(4)}"
            own["files"] = shards.write(place, copies, prefix)
        except Exception as error:
            own |= dict(error=f"{error}", passes=isinstance(error, UnavailableError))
        every = processes.exchange(f"upload/{call}", own)
        outcome: dict[str, Any] = {}
        errors = [one for one in every if "error" in one]
        if not errors and jax.process_index() == 0:
            try:
                files = {name: sums for one in every for name, sums in one["files"].items()}
                self._complete(place, files, notes)
            except Exception as error:
                outcome |= dict(error=f"{error}", passes=isinstance(error, UnavailableError))
        errors += [one for one in processes.exchange(f"done/{call}", outcome) if one]
        if errors:
            raise (UnavailableError if errors[0]["passes"] else OSError)(errors[0]["error"])

    def _complete(
        self, place: BucketPath, files: Mapping[str, Sequence[int]], notes: Mapping[str, bytes]
    ) -> None:
        storage.write_all({place / name: content for name, content in notes.items()})
        sums = {name: [len(content), zlib.crc32(content)] for name, content in notes.items()}
        lock.check(place)
        storage.create(place / self.list_name, json.dumps({**files, **sums}).encode())
        with contextlib.suppress(OSError):  # the next save removes what is left
            self._remove_old()

    def _remove_old(self) -> None:
        found = storage.find(self.folder)
        stay = sorted(map(int, self._steps(found)))[-self.keep :]
        for name in {name.partition("/")[0] for name in found} - {str(step) for step in stay}:
            storage.remove(self.folder / name / self.list_name)  # first: then it is none
            storage.remove(self.folder / name)


def check_files(place: BucketPath, sums: Mapping[str, Sequence[int]]) -> None:
    """Checks that the files of a step have their sizes, and small ones their checksums.

    The bytes of the arrays are checked as they are read.

    Raises:
      DamagedCheckpointError: a file is missing or differs.
    """
    sizes = storage.find(place)
    for name, (size, _) in sums.items():
        if sizes.get(name) != size:
            raise DamagedCheckpointError(f"{name} has {sizes.get(name, 0)} of {size} bytes")
    names = [name for name in sums if name.endswith(".json")]
    contents = storage.read_ranges([(place / name, 0, None) for name in names])
    for name, content in zip(names, contents, strict=True):
        if zlib.crc32(content) != sums[name][1]:
            raise DamagedCheckpointError(f"{name} has the wrong checksum")
