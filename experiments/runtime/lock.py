"""One writer at a time: a lock of the kernel on a disk, and numbered objects in a bucket.

In a bucket the holder is the owner of the highest number in `<folder>/.locks`. A number is taken by
creating its object, of which one process in the world can be the first. The owner writes its
object again every BEAT seconds; once it has released it, or it has not done so for STALE seconds,
the next number may be taken. The highest number is never removed, so none is ever taken twice.

This is weaker than the kernel's lock. After a kill on another machine it is free only STALE seconds
later. And an owner that was stopped for so long, for example by a network failure, does not know
that it has lost the lock until it looks, which it does at each beat and before all that it writes:
`check`. Between looking and writing another run may write too. What they write then has names of
their own, or fails because it exists already.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import logging
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from experiments.runtime import storage
from experiments.runtime.storage import BucketPath, Path

logger = logging.getLogger(__name__)

FILE, FOLDER = ".lock", ".locks"  # on a disk, in a bucket
# Seconds without a sign of life after which another process, of this run too, counts as lost.
SILENCE = float(os.environ.get("UNCERTAINTY_SILENCE", 30))
STALE, BEAT = 2 * SILENCE, SILENCE / 2
SETTLE = 2.0  # seconds for two to see each other, where the server ignores preconditions


@contextlib.contextmanager
def exclusive(directory: Path, wait: bool = False) -> Iterator[None]:
    """Locks a folder against other processes while the block runs.

    Args:
      directory: exists, or is in a bucket.
      wait: for the holder to release it, rather than to raise.

    Raises:
      BlockingIOError: another process holds it; the message says which.
    """
    if isinstance(directory, BucketPath):
        with _bucket_lock(directory, wait):
            yield
        return
    with open(directory / FILE, "a+") as file:  # the kernel unlocks it when the process ends
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            file.seek(0)
            raise _in_use(directory, f"process {file.read().strip() or 'unknown'}") from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _in_use(directory: Path, holder: str) -> BlockingIOError:
    return BlockingIOError(f"workdir {directory} is in use by {holder}; two runs cannot share it")


_held: dict[BucketPath, "Lock"] = {}


def check(place: Path) -> None:
    """Checks that this process still holds the lock of the folders that contain a path, if any.

    Raises:
      OSError: another process has taken it meanwhile.
    """
    for folder, lock in list(_held.items()):
        if isinstance(place, BucketPath) and f"{place}/".startswith(f"{folder}/"):
            lock.check()


@contextlib.contextmanager
def _bucket_lock(directory: BucketPath, wait: bool) -> Iterator[None]:
    lock = Lock(directory)
    lock.take(wait)
    _held[directory] = lock
    try:
        yield
    finally:
        del _held[directory]
        lock.release()


@dataclasses.dataclass
class Lock:
    """The lock of a folder in a bucket.

    Attributes:
      directory: the folder.
      number: that this process owns.
      owner: what is written in its object.
    """

    directory: BucketPath
    number: int = 0
    owner: dict[str, Any] = dataclasses.field(default_factory=lambda: _this_process())
    _ended: threading.Event = dataclasses.field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def take(self, wait: bool) -> None:
        """Takes the lock.

        Raises:
          BlockingIOError: it is in use, and `wait` is False.
        """
        began, seen = time.monotonic(), (0, None, 0.0)  # number, content, when it was first seen
        while True:
            last = self._last()
            holder, now = self._read(last), time.monotonic()
            if holder is not None and not self._is_free(holder):
                if (last, holder) != seen[:2]:
                    old = self._age(last) > STALE
                    if not old and not wait and (seen[0] or self._is_here(holder)):
                        raise _in_use(self.directory, _named(holder))  # it lives
                    if not old and not seen[0]:
                        logger.info(
                            "%s is locked by %s; waiting at most %.0f s for a sign of life",
                            self.directory,
                            _named(holder),
                            STALE,
                        )
                    seen = (last, holder, now - old * STALE)
                if now - seen[2] < STALE:
                    time.sleep(min(BEAT / 5, 0.1 + (now - began) / 10))
                    continue
            if self._create(last + 1):
                break
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises OSError if another process has taken the lock from this one."""
        last = self._last()
        holder = self._read(last) or {}
        if (last, holder.get("token")) != (self.number, self.owner["token"]):
            raise OSError(
                errno.ESTALE,
                f"{self.directory} was taken over by {_named(holder)}, as nothing was heard of "
                f"this process for {STALE:.0f} s",
            )

    def release(self) -> None:
        """Releases the lock; if that fails, it becomes stale by itself."""
        self._ended.set()
        with contextlib.suppress(OSError):
            self._thread.join(BEAT)
            if self._last() == self.number:
                self._write(state="released")

    def _place(self, number: int) -> BucketPath:
        return self.directory / FOLDER / f"{number:08d}.json"

    def _numbers(self) -> list[int]:
        names = [p.stem for p in (self.directory / FOLDER).iterdir()]
        return sorted(int(name) for name in names if name.isdecimal())

    def _last(self) -> int:
        """The highest number, or 0."""
        return max(self._numbers(), default=0)

    def _read(self, number: int) -> dict[str, Any] | None:
        """What the owner of a number wrote; None if there is nothing."""
        try:
            return json.loads(self._place(number).read_bytes()) if number else None
        except FileNotFoundError:
            return None

    def _content(self, **state: Any) -> bytes:
        return json.dumps({**self.owner, **state}).encode()

    def _write(self, **state: Any) -> None:
        storage.write(self._place(self.number), self._content(**state))

    def _is_here(self, holder: dict[str, Any]) -> bool:
        """Whether the owner's process would be seen from here."""
        return holder.get("machine") is not None and holder["machine"] == self.owner["machine"]

    def _is_free(self, holder: dict[str, Any]) -> bool:
        """Whether the owner has released the lock, or is known to be dead."""
        if holder.get("state") == "released":
            return True
        if not self._is_here(holder) or _began(holder["process"]) == holder["began"]:
            return False
        logger.info("%s was locked by %s, which is dead", self.directory, _named(holder))
        return True

    def _age(self, number: int) -> float:
        """Seconds since the owner has written last, by the server's clock."""
        probe = self.directory / FOLDER / f"probe-{self.owner['token']}"
        probe.touch()
        try:
            age = storage.modified(probe) - storage.modified(self._place(number))
        except FileNotFoundError:  # the next owner has removed it
            return 0.0
        finally:
            probe.unlink(missing_ok=True)
        return age.total_seconds()

    def _create(self, number: int) -> bool:
        """Whether this process has taken the number, and it is the highest."""
        place, content = self._place(number), self._content(beat=0)
        try:
            storage.create(place, content)
        except FileExistsError:
            return False
        try:
            storage.create(place, content + b"\n")
        except FileExistsError:
            pass
        else:
            logger.warning(
                "%s: the server ignores preconditions on writes; two runs that start within %.0f s "
                "of each other may not notice",
                self.directory,
                SETTLE,
            )
            time.sleep(SETTLE)
            if (self._read(number) or {}).get("token") != self.owner["token"]:
                return False
        numbers = self._numbers()
        if numbers[-1] != number:
            place.unlink(missing_ok=True)
            return False
        self.number = number
        for former in numbers[:-1]:
            self._place(former).unlink(missing_ok=True)
        return True

    def _beat(self) -> None:
        beat = 0
        while not self._ended.wait(BEAT):
            beat += 1
            with contextlib.suppress(OSError):  # it is tried again; `check` raises what matters
                if self._last() != self.number:
                    return
                if not self._ended.is_set():
                    self._write(beat=beat)


def _this_process() -> dict[str, Any]:
    return dict(
        token=secrets.token_hex(8),
        host=socket.gethostname(),
        process=os.getpid(),
        began=_began(os.getpid()),
        machine=storage.machine(),
    )


def _began(process: int) -> str | None:
    """When a process of this machine began, in ticks of its clock; None if it is dead."""
    try:
        stat = pathlib.Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]


def _named(holder: dict[str, Any]) -> str:
    return f"process {holder.get('process')} of {holder.get('host')}"
