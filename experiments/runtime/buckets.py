"""Paths in buckets, `gs://BUCKET/FOLDER` and `s3://BUCKET/FOLDER`, on top of fsspec.

They have the methods of pathlib that are needed here. They are no `os.PathLike`, so that a library
that knows local files alone fails rather than makes a folder `gs:`. `storage` writes them.
"""

import contextlib
import dataclasses
import errno
import fnmatch
import functools
import io
import logging
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from uncertainty.build import ConfigError

# Scheme -> the package of its file system, the extra that installs it, how to give credentials.
SCHEMES = {
    "gs": (
        "gcsfs",
        "gcs",
        "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
    ),
    "s3": ("s3fs", "s3", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"),
}
ENDPOINTS = ("STORAGE_EMULATOR_HOST", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
FORMS = "gs://BUCKET/FOLDER or s3://BUCKET/FOLDER"
# Some of these have a meaning to the libraries below, and would make one path name others.
REFUSED = re.compile(r"[*?\[\]#\\\x00-\x1f\x7f]")


OFFLINE = {"ClientConnectorError", "ClientConnectionError", "EndpointConnectionError",
           "ConnectTimeoutError", "TimeoutError", "gaierror", "ConnectionError"}  # fmt: skip


class UnavailableError(OSError):
    """The server cannot be reached or does not serve now; the same may succeed later."""


@dataclasses.dataclass(frozen=True, order=True, repr=False)
class BucketPath:
    """An object in a bucket, or a folder: all objects whose names begin with it.

    Attributes:
      scheme: of SCHEMES.
      parts: the bucket, then folders and the name.
    """

    scheme: str
    parts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "BucketPath":
        """The path of `gs://BUCKET/FOLDER`.

        Raises:
          ConfigError: it has no bucket, or an unsupported part.
        """
        scheme, _, rest = text.partition("://")
        bucket, _, key = rest.partition("/")
        if not bucket:
            raise ConfigError(f"{text}: it names no bucket; a path in a bucket is {FORMS}")
        return cls(scheme, (bucket,)) / key

    def __truediv__(self, other: str | os.PathLike[str]) -> "BucketPath":
        parts = [part for part in os.fspath(other).split("/") if part]
        for part in parts:
            if part in (".", "..") or REFUSED.search(part):
                raise ConfigError(f"{self}/{other}: {part!r} cannot be a part of a bucket's path")
        return BucketPath(self.scheme, (*self.parts, *parts))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __repr__(self) -> str:
        return f"BucketPath({str(self)!r})"

    @property
    def key(self) -> str:
        """The path for fsspec, `BUCKET/FOLDER`."""
        return "/".join(self.parts)

    @property
    def fs(self) -> Any:
        """The fsspec file system, for `key`; its errors become clear ones by `clear`."""
        return filesystem(self.scheme)

    @property
    def name(self) -> str:
        return self.parts[-1]

    @property
    def stem(self) -> str:
        return pathlib.PurePosixPath(self.name).stem

    @property
    def parent(self) -> "BucketPath":
        return BucketPath(self.scheme, self.parts[:-1] or self.parts)

    def with_name(self, name: str) -> "BucketPath":
        return self.parent / name

    def relative_to(self, other: "BucketPath") -> pathlib.PurePosixPath:
        return pathlib.PurePosixPath(self.key).relative_to(other.key)

    def absolute(self) -> "BucketPath":
        return self

    expanduser = resolve = absolute

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        try:
            return self.info()["type"] == "file"
        except FileNotFoundError:
            return False

    def is_dir(self) -> bool:
        """Whether there are objects below."""
        return any(True for _ in self.iterdir())

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def iterdir(self) -> Iterator["BucketPath"]:
        """The objects and folders directly below."""
        with clear(self):
            try:
                names = self.fs.ls(self.key, detail=False)
            except FileNotFoundError:
                return
        children = (name.strip("/") for name in names)
        below = {n.rpartition("/")[2] for n in children if n.startswith(f"{self.key}/")}
        for name in sorted(below):
            yield BucketPath(self.scheme, (*self.parts, name))

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        """The objects and folders below that match, with `*` and `[...]` within a part alone."""
        first, _, rest = pattern.partition("/")
        found = [p for p in self.iterdir() if fnmatch.fnmatchcase(p.name, first)]
        for one in found:
            yield from one.glob(rest) if rest else [one]

    def read_bytes(self) -> bytes:
        with clear(self):
            return self.fs.cat_file(self.key)

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self.read_bytes().decode(encoding, errors)

    def open(self, mode: str = "rb") -> io.BufferedIOBase:
        """The object as a file, of which parts are read as they are needed."""
        if mode != "rb":
            raise ValueError(f"{self}: opened with mode {mode!r}; write by `storage.write`")
        with clear(self):
            return self.fs.open(self.key, "rb")

    def touch(self) -> None:
        with clear(self):
            self.fs.pipe_file(self.key, b"")

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the object; S3 does not say whether there was one."""
        with clear(self):
            try:
                self.fs.rm_file(self.key)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder of a bucket is there once an object is below it."""

    def info(self) -> dict[str, Any]:
        """What the server says of the object: `type`, `size` and more."""
        with clear(self):
            return self.fs.info(self.key)


@functools.cache
def filesystem(scheme: str) -> Any:
    """The fsspec file system of a scheme; it keeps no listings, since others write too.

    Raises:
      ConfigError: its package is not installed; the message has the command.
    """
    package, extra, _ = SCHEMES[scheme]
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what it logs is raised too
    for name in ("botocore", "aiobotocore", "fsspec"):
        logging.getLogger(name).setLevel(logging.WARNING)
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme == "gs" and os.environ.get("STORAGE_EMULATOR_HOST"):
        options["token"] = "anon"
    try:
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise ConfigError(
            f"{scheme}:// needs {package}, which is not installed: pip install '.[{extra}]'"
        ) from error


@contextlib.contextmanager
def clear(place: BucketPath) -> Iterator[None]:
    """Turns the errors of the libraries below into OSError with the path and what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no such object", str(place)) from error
    except FileExistsError as error:
        raise FileExistsError(errno.EEXIST, "it exists already", str(place)) from error
    except ConfigError:
        raise
    except Exception as error:
        if "PreconditionFailed" in f"{error!r} {error.__cause__!r}":
            raise FileExistsError(errno.EEXIST, "it exists already", str(place)) from error
        kind = UnavailableError if _passes(place.scheme, error) else OSError
        raise kind(errno.EIO, _reason(place.scheme, error), str(place)) from error


def _causes(error: BaseException) -> list[BaseException]:
    """An error, and what led to it."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and len(chain) < 9:
        chain.append(cause)
    return chain


def _names(error: Exception) -> set[str]:
    return {base.__name__ for one in _causes(error) for base in type(one).__mro__}


def _passes(scheme: str, error: Exception) -> bool:
    """Whether the server was not reached, or answered that it is overloaded or broken."""
    for one in _causes(error):
        response = getattr(one, "response", None)  # of botocore
        answer = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        status = str(answer.get("HTTPStatusCode") or getattr(one, "code", ""))  # or of gcsfs
        if re.fullmatch(r"429|5\d\d", status):
            return True
    return bool(OFFLINE & _names(error)) and not _anonymous(scheme)


def _reason(scheme: str, error: Exception) -> str:
    """What is wrong, and what to do about it."""
    names = _names(error)
    text = " ".join(str(error).split())[:300] or type(error).__name__
    *_, credentials = SCHEMES[scheme]
    anonymous = _anonymous(scheme)
    lacking = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError",
               "RefreshError", "ProfileNotFound", "TokenRetrievalError"}  # fmt: skip
    denied = re.search(r"\b40[13]\b|Forbidden|denied|InvalidAccessKeyId|SignatureDoesNot", text)
    if lacking & names:
        return f"no valid credentials ({text}); {credentials}"
    if OFFLINE & names:
        ends = [f"{name}={os.environ[name]}" for name in ENDPOINTS if os.environ.get(name)]
        where = f"; {', '.join(ends)}" if ends else "; is there a network?"
        also = f" There are no credentials either: {credentials}." if anonymous else ""
        return f"no connection to the server ({text}){where}{also}"
    if denied or "PermissionError" in names:
        which = "there are no credentials" if anonymous else "these credentials are not enough"
        return f"access denied, {which} ({text}); {credentials}"
    return text


def _anonymous(scheme: str) -> bool:
    """Whether gcsfs has found no credentials, and so reads what is public alone."""
    if scheme == "gs" and not os.environ.get("STORAGE_EMULATOR_HOST"):
        with contextlib.suppress(Exception):  # it may be what has failed
            return filesystem(scheme).credentials.credentials is None
    return False
