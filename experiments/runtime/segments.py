"""Lines that are appended: one file on a disk, immutable segments in a bucket.

Objects cannot be appended to. So `metrics.jsonl` of a bucket is the folder `metrics`, in which each
flush writes the lines since the former one as an object: `00003/000012-000012.jsonl` is the 13th of
the third writer. A writer begins with a segment of all lines that stay, and readers take those of
the last writer alone. Every GROUP segments are joined into one, `000000-000015`, before they are
removed; a reader leaves out what a longer one contains, so a kill at any moment loses no line and
doubles none.

A folder like that on a disk is a copy of a bucket's, and is read too.
"""

import contextlib
import re
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from experiments.runtime import lock, storage
from experiments.runtime.storage import BucketPath, Path

GROUP = 16  # segments that are joined
SECONDS = 30.0  # between flushes, besides those before each checkpoint


class Segment(NamedTuple):
    writer: int
    first: int
    last: int
    path: Path


def folder_of(path: Path) -> Path:
    """The folder of the segments of a file: `metrics` of `metrics.jsonl`."""
    return path.parent / path.stem


def segments(path: Path) -> list[Segment]:
    """All segments, those that another one contains included."""
    found = []
    for name in storage.find(folder_of(path)):
        if match := re.fullmatch(r"(\d+)/(\d+)-(\d+)\.jsonl", name):
            found.append(Segment(*map(int, match.groups()), folder_of(path) / name))
    return sorted(found)


def read(path: Path) -> bytes | None:
    """The lines of a file, wherever they are; None if there is none."""
    for attempt in range(5):
        try:
            if last := _of_last_writer(segments(path)):
                return b"".join(storage.read_ranges([(one.path, 0, None) for one in last]))
            return path.read_bytes() if path.is_file() else None
        except FileNotFoundError:  # they were joined meanwhile
            time.sleep(attempt)
    raise FileNotFoundError(f"{folder_of(path)} changes faster than it can be read")


def _of_last_writer(found: Sequence[Segment]) -> list[Segment]:
    """The segments that hold each line once, of sorted ones."""
    last: list[Segment] = []
    for one in found:
        if last and one.writer != last[-1].writer:
            last = []
        if last and last[-1].first == one.first:  # a longer one follows its parts
            last.pop()
        if not last or last[-1].last < one.first:
            last.append(one)
    return last


def _remove(former: Sequence[Segment]) -> None:
    for writer in dict.fromkeys(one.path.parent for one in former):
        storage.remove(writer)


class Appended:
    """Appends text to a file on a disk; it reaches the operating system before `append` returns.

    Args:
      path: of the file.
      text: with which it begins, in place of what it contained.
    """

    def __init__(self, path: Path, text: str):
        storage.write(path, text)
        _remove(segments(path))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def append(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()

    def flush(self) -> None:
        """Nothing: all is written."""

    def close(self) -> None:
        self._file.close()


class AppendedInBucket:
    """The same in a bucket; text is written after SECONDS, by `flush` and by `close`.

    Raises:
      OSError: the former writer still writes.
    """

    def __init__(self, path: BucketPath, text: str):
        former = segments(path)
        self._folder = folder_of(path)
        self._writer = 1 + max((one.writer for one in former), default=0)
        self._count = 0  # segments so far
        self._parts: list[tuple[int, int, str]] = []  # first, last and text of those that count
        self._joined: list[tuple[int, int, str]] = []  # to be removed
        self._block, self._text = text, []  # what is being written, what is appended meanwhile
        self._changed, self._writing = threading.Lock(), threading.Lock()
        self._ended = threading.Event()
        self._put()
        _remove(former)
        path.unlink(missing_ok=True)
        threading.Thread(target=self._run, name="metrics", daemon=True).start()

    def append(self, text: str) -> None:
        with self._changed:
            self._text.append(text)

    def flush(self) -> None:
        """Writes what has been appended.

        Raises:
          OSError: it cannot be written; the next attempt writes it.
        """
        with self._writing:
            while True:
                if not self._block:
                    with self._changed:
                        self._block, self._text = "".join(self._text), []
                if not self._block:
                    return
                self._join()
                self._put()
                self._join()

    def close(self) -> None:
        self._ended.set()
        self.flush()

    def _run(self) -> None:
        while not self._ended.wait(SECONDS):
            with contextlib.suppress(OSError):  # one that lasts is raised before a checkpoint
                self.flush()

    def _put(self) -> None:
        """Writes the block; an attempt after a failure writes the same object."""
        lock.check(self._folder)
        part = (self._count, self._count, self._block)
        self._create(part)
        self._parts.append(part)
        self._count, self._block = self._count + 1, ""

    def _join(self) -> None:
        while group := self._group():
            part = (group[0][0], group[-1][1], "".join(text for *_, text in group))
            self._create(part)
            self._parts[-GROUP:] = [part]
            self._joined += group
        while self._joined:
            storage.remove(self._path(self._joined[0]))
            self._joined.pop(0)

    def _group(self) -> list[tuple[int, int, str]]:
        """The last parts, if they are equally long and enough to be joined."""
        last = self._parts[-GROUP:]
        equal = len({b - a for a, b, _ in last}) == 1
        return last if equal and len(last) == GROUP else []

    def _create(self, part: tuple[int, int, str]) -> None:
        storage.create(self._path(part), part[2].encode())

    def _path(self, part: tuple[int, int, str]) -> BucketPath:
        return self._folder / f"{self._writer:05d}" / f"{part[0]:06d}-{part[1]:06d}.jsonl"


def opened(path: Path, text: str) -> Appended | AppendedInBucket:
    """The file at `path`, which now begins with `text`."""
    return (AppendedInBucket if isinstance(path, BucketPath) else Appended)(path, text)
