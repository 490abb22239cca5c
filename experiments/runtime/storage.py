"""Paths of users: on a disk, or in a bucket as `gs://BUCKET/FOLDER` or `s3://BUCKET/FOLDER`.

Programs turn a user's text into a path by `path`, read through its methods, and write through the
functions below, which keep these promises in both places:

    write, whole   a reader sees the former content or the new one, never a part
    create         the first of several writers succeeds, the others raise FileExistsError

Local paths are those of pathlib; `buckets` has the others.
"""

import contextlib
import datetime
import errno
import glob
import hashlib
import os
import pathlib
import posixpath
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.runtime.buckets import FORMS, REFUSED, SCHEMES, BucketPath, clear
from uncertainty.build import ConfigError

Path = pathlib.Path | BucketPath
# Of temporary files: the end of a name, with the machine and process that writes (former versions
# had the process alone), and the seconds after which nobody still writes.
WRITER = re.compile(r"\.(?:([0-9a-f]{12}|unknown)-)?(\d+)(?:-[0-9a-f]{8})?\.tmp$")
UNKNOWN = "unknown"
UNFINISHED = 24 * 3600.0


def path(text: str | os.PathLike[str] | BucketPath) -> Path:
    """The path that a user wrote: a pathlib.Path, or that of an object or folder in a bucket.

    Raises:
      ConfigError: an unknown scheme, or a bucket's path with a typo or an unsupported character.
    """
    if isinstance(text, BucketPath):
        return text
    text = os.fspath(text)
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)(:/+|:|//)", text)
    scheme, mark = found.groups() if found else ("", "")
    if mark == "://" and scheme in SCHEMES:
        return BucketPath.parse(text)
    if scheme in (*SCHEMES, "gcs", "s3a", "s3n"):
        raise ConfigError(f"{text}: a path in a bucket is {FORMS}")
    if mark.startswith(":/"):
        raise ConfigError(
            f"{text}: unknown scheme {scheme + '://'!r}; give a local path, {FORMS} "
            f"(./{text} for a local folder of that name)"
        )
    return pathlib.Path(text)


def require_writable(place: Path) -> None:
    """Checks that files can be written to a folder, which is created.

    Raises:
      ConfigError: the package of the bucket is not installed.
      OSError: it cannot be written; the message says what is missing.
    """
    if isinstance(place, BucketPath):
        probe = place / f".probe-{os.urandom(8).hex()}"
        try:
            probe.touch()
        except FileNotFoundError as error:
            bucket = f"{place.scheme}://{place.parts[0]}"
            reason = f"there is no bucket {bucket}, or no access to it"
            raise FileNotFoundError(errno.ENOENT, reason) from error
        probe.unlink()
        return
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=place) as file:
        file.write(bytes(4096))
        file.flush()


def write(place: Path, content: str | bytes) -> None:
    """Replaces a file whole or not at all.

    On a disk it is written beside the file, flushed to the disk, then renamed.
    """
    data = content.encode() if isinstance(content, str) else content
    if isinstance(place, BucketPath):
        with clear(place):
            place.fs.pipe_file(place.key, data)
        return
    with _beside(place) as half, open(half, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _beside(place: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file to write, which replaces `place` when the block ends."""
    remove_stale(place.parent, place.name)
    writer = f"{_machine_digest()}-{os.getpid()}-{secrets.token_hex(4)}"
    half = place.with_name(f".{place.name}.{writer}.tmp")
    try:
        yield half
        os.replace(half, place)
    except BaseException:
        half.unlink(missing_ok=True)
        raise


def write_all(contents: Mapping[BucketPath, bytes]) -> None:
    """Writes several objects of one bucket at a time, each whole or not at all."""
    first = next(iter(contents))
    with clear(first.parent):
        first.fs.pipe({place.key: data for place, data in contents.items()})


def create(place: BucketPath, data: bytes) -> None:
    """Writes an object that does not exist yet.

    Content that differs between writers makes it safe to send twice: if the object that is there
    has this content, an earlier attempt has written it.

    Raises:
      FileExistsError: it exists with other content.
    """
    try:
        _create(place, data)
    except FileExistsError:
        if place.read_bytes() != data:
            raise


def _create(place: BucketPath, data: bytes, attempts: int = 5) -> None:
    try:
        with clear(place):
            place.fs.pipe_file(place.key, data, mode="create")
    except OSError as error:
        # S3's answer to one of two requests at the same time, neither of which has won yet.
        if attempts == 1 or "ConditionalRequestConflict" not in str(error):
            raise
        time.sleep(0.5)
        _create(place, data, attempts - 1)


def remove(place: Path) -> None:
    """Removes a file, or a folder with all below it, if it exists."""
    if isinstance(place, BucketPath):
        names = list(find(place))
        plain = [f"{place.key}/{name}" for name in names if not REFUSED.search(name)]
        with clear(place):
            if plain:
                place.fs.rm(plain)
            for name in names:
                if REFUSED.search(name):  # `rm` takes it for a pattern
                    place.fs.rm_file(f"{place.key}/{name}")
        place.unlink(missing_ok=True)
    elif place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def move(place: Path, new: Path) -> None:
    """Moves a folder within its disk or bucket; what `new` held is removed.

    In a bucket its objects are copied one by one, then removed.
    """
    remove(new)
    if isinstance(place, BucketPath) and isinstance(new, BucketPath):
        for name in find(place):
            with clear(place):
                place.fs.cp_file(f"{place.key}/{name}", f"{new.key}/{name}")
        remove(place)
    elif isinstance(place, pathlib.Path):
        new.parent.mkdir(exist_ok=True)
        os.replace(place, str(new))


def find(place: Path) -> dict[str, int]:
    """The files below a folder: path below it -> bytes."""
    if isinstance(place, pathlib.Path):
        files = (p for p in place.rglob("*") if p.is_file())
        return {p.relative_to(place).as_posix(): p.stat().st_size for p in files}
    with clear(place):
        try:
            found = place.fs.find(place.key, detail=True)
        except FileNotFoundError:
            return {}
    start = f"{place.key}/"
    names = {name.lstrip("/"): int(info["size"]) for name, info in sorted(found.items())}
    below = {name[len(start) :]: size for name, size in names.items() if name.startswith(start)}
    return {name: size for name, size in below.items() if not name.endswith("/")}


def read_ranges(ranges: Sequence[tuple[Path, int, int | None]]) -> list[bytes]:
    """The bytes [start, stop) of each file; those in a bucket are read at the same time.

    (file, 0, None) is the whole file, which may be empty.
    """
    if not ranges:
        return []
    places, starts, stops = zip(*ranges, strict=True)
    first = places[0]
    if isinstance(first, BucketPath):
        with clear(first.parent):
            return first.fs.cat_ranges(
                [place.key for place in places],
                [start or None for start in starts],
                list(stops),
                on_error="raise",
            )
    contents = []
    for place, start, stop in ranges:
        with place.open("rb") as file:
            file.seek(start)
            contents.append(file.read(-1 if stop is None else stop - start))
    return contents


def fingerprint(place: Path) -> Any:
    """What changes when the file is written again, and can be compared.

    Raises:
      FileNotFoundError: there is no such file.
    """
    if isinstance(place, pathlib.Path):
        known = place.stat()
        return known.st_mtime_ns, known.st_size, known.st_ino
    known = place.info()
    return tuple(str(known.get(k)) for k in ("generation", "etag", "ETag", "LastModified", "size"))


def modified(place: BucketPath) -> datetime.datetime:
    """When an object was written, by the server's clock."""
    with clear(place):
        return place.fs.modified(place.key)


@contextlib.contextmanager
def whole(place: Path) -> Iterator[pathlib.Path]:
    """A local file to write, which becomes `place`, whole, when the block ends.

    Nothing is written if the block raises. The folder is created.
    """
    if isinstance(place, BucketPath):
        with tempfile.TemporaryDirectory() as made:
            half = pathlib.Path(made) / place.name
            yield half
            upload(half, place)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with _beside(place) as half:
        yield half


def upload(local: pathlib.Path, place: BucketPath, last: str = "") -> None:
    """Copies a local file, or all files of a folder, of which `last` comes last, to a bucket."""
    for name in sorted(find(local), key=last.__eq__) if local.is_dir() else [""]:
        with clear(place):
            place.fs.put_file(str(local / name), f"{place.key}/{name}".rstrip("/"))


class Outgoing:
    """A folder for a library that writes local files: the folder itself, or a copy for a bucket.

    Attributes:
      path: of the local folder.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._copy = tempfile.TemporaryDirectory() if isinstance(folder, BucketPath) else None
        self.path = self._copy.name if self._copy else str(folder)

    def upload(self) -> None:
        """To the bucket, if there is one."""
        if self._copy:
            upload(pathlib.Path(self.path), self._folder)

    def close(self) -> None:
        """Uploads once more, and removes the copy."""
        self.upload()
        if self._copy:
            self._copy.cleanup()


@contextlib.contextmanager
def local_copy(place: Path) -> Iterator[pathlib.Path]:
    """The file or folder on this disk: itself, or a copy that is removed when the block ends."""
    if isinstance(place, pathlib.Path):
        yield place
        return
    with tempfile.TemporaryDirectory() as made:
        copy = pathlib.Path(made) / place.name
        for name in [""] if place.is_file() else find(place):
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with clear(place):
                key = f"{place.key}/{name}".rstrip("/")
                place.fs.get_file(key, str(target))
        yield copy


def relative(place: Path, other: Path) -> str:
    """The path from the folder `other` to `place`; the whole path if no folder contains both."""
    place, other = place.absolute(), other.absolute()
    if isinstance(place, pathlib.Path) and isinstance(other, pathlib.Path):
        return os.path.relpath(place, other)
    if isinstance(place, BucketPath) and isinstance(other, BucketPath):
        one, two = ((p.scheme, p.parts[0]) for p in (place, other))
        if one == two:
            return posixpath.relpath(f"/{place.key}", f"/{other.key}")
    return str(place)


def remove_stale(directory: pathlib.Path, name: str = "*") -> None:
    """Removes temporary files for `name` of processes that were killed while they wrote.

    Those are dead processes of this machine, and any whose file has not changed for a day: of
    other machines, which may share the disk, it is not known which processes live.
    """
    if name != "*":
        name = glob.escape(name)
    here = _machine_digest()
    for file in directory.glob(f".{name}.*.tmp"):
        if not (writer := WRITER.search(file.name)):
            continue
        with contextlib.suppress(OSError):
            if writer[1] == here != UNKNOWN:
                stale = not alive(int(writer[2]))
            else:
                stale = time.time() - file.stat().st_mtime > UNFINISHED
            if stale:
                file.unlink()


def _machine_digest() -> str:
    """Of this machine, for names of files; UNKNOWN where it is."""
    known = machine()
    return UNKNOWN if known is None else hashlib.sha256(known.encode()).hexdigest()[:12]


def machine() -> str | None:
    """Equal for processes that see each other in /proc; None where that is unknown."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {socket.gethostname()}"
    except OSError:
        return None


def alive(process: int) -> bool:
    """Whether a process of this machine exists."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
