"""A run's directory: its config, its lock, and files that are written whole or not at all."""

import contextlib
import errno
import fcntl
import fnmatch
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

CONFIG = "config.json"
DATA = "data.json"  # what evaluation must know of the training data
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def open_workdir(
    path: str | os.PathLike,
    config: Mapping[str, Any],
    *,
    ignore: Sequence[str] = (),
    free_bytes: int = 64 << 20,
) -> pathlib.Path:
    """Makes the directory of a new run, or opens that of an interrupted one.

    Args:
        path: the directory; its parents are made too.
        config: the run's config as a plain dict; `config.json` holds it.
        ignore: patterns (fnmatch) of dotted names that may differ from those of the interrupted
            run, such as 'logging.*'. The file is then brought up to date.
        free_bytes: the least free space on the disk to start with.

    Raises:
        ValueError: the directory belongs to a run with another config; each field that differs is
            shown with its old and new value.
        OSError: it cannot be written, or its disk is (almost) full.
    """
    directory = pathlib.Path(path).expanduser().absolute()
    new = jsonable(config)
    _require_writable(directory)
    require_free_space(directory, free_bytes)
    if (directory / CONFIG).exists():
        old = read_config(directory)
        changes = difference(old, from_jsonable(new))
        refused = [line for name, line in changes.items() if not _matches(name, ignore)]
        if refused:
            shown = "\n".join(f"  {line}" for line in refused)
            raise ValueError(
                f"workdir {directory} belongs to a run with another config (old -> new):\n{shown}\n"
                "Take another workdir, or the old values to go on with that run."
            )
        if not changes:
            return directory
    elif (directory / "checkpoints").exists():
        raise ValueError(f"workdir {directory} has checkpoints but no {CONFIG}: whose are they?")
    write_json(directory / CONFIG, new)
    return directory


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    """The config of the run in the directory `path`; its tuples come back as lists.

    Raises:
        ValueError: there is none, or it is not JSON.
    """
    file = pathlib.Path(path) / CONFIG
    if not file.is_file():
        raise ValueError(f"{path} is not a run's workdir: it has no {CONFIG}")
    try:
        return read_json(file)
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Dotted name of each field that differs to the line 'name: old -> new'."""
    old, new = flatten(old), flatten(new)

    def as_text(fields: Mapping[str, Any], name: str) -> str:
        # As JSON, NaN equals itself and 1 differs from True.
        return json.dumps(fields[name]) if name in fields else "(absent)"

    return {
        name: f"{name}: {as_text(old, name)} -> {as_text(new, name)}"
        for name in sorted(old | new)
        if as_text(old, name) != as_text(new, name)
    }


def same_but_for(old: Mapping[str, Any], new: Mapping[str, Any], ignore: Sequence[str]) -> bool:
    """Whether two configs differ in fields that match `ignore` alone."""
    changed = difference(from_jsonable(jsonable(old)), from_jsonable(jsonable(new)))
    return all(_matches(name, ignore) for name in changed)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts to one dict with dotted names; an empty dict leaves nothing."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def require_free_space(path: str | os.PathLike, needed: int) -> None:
    """Raises OSError (ENOSPC) when the disk of `path` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(path).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"workdir {path} has {free / 2**20:.0f} MiB free; the run needs {needed / 2**20:.0f}",
        )


def _require_writable(directory: pathlib.Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as probe:
            probe.write(bytes(4096))
            probe.flush()
    except OSError as error:
        reason = f"workdir {directory} cannot be written: {error.strerror}"
        raise type(error)(error.errno, reason) from error


@contextlib.contextmanager
def locked(directory: str | os.PathLike) -> Iterator[None]:
    """Holds the directory against other trainings while the block runs.

    The lock is the kernel's (flock), so it ends with the process however the process ends. The
    processes of one multi-process training share it: only the first one takes it.

    Raises:
        BlockingIOError: another process holds it; its id is named.
    """
    import jax

    if jax.process_index() != 0:
        yield
        return
    with open(pathlib.Path(directory) / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise BlockingIOError(
                f"workdir {directory} is in use by process {holder}; two trainings cannot share it"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as JSON so that `path` holds the old text or the new, never a part.

    Arrays become lists; NaN and infinities, which JSON lacks, become the strings 'NaN', 'Infinity'
    and '-Infinity', which `read_json` and Python's `float` take back.
    """
    write_text(path, json.dumps(jsonable(value), indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """What `write_json` wrote, non-finite numbers included."""
    return from_jsonable(json.loads(pathlib.Path(path).read_text(encoding="utf-8")))


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replaces the file at once: written beside it, flushed to the disk, then renamed."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def jsonable(value: Any, name: str = "") -> Any:
    """`value` in JSON's types: arrays and tuples as lists, non-finite numbers as strings.

    Raises:
        TypeError: something has no such form; its dotted name is given.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(k): jsonable(v, f"{name}.{k}".lstrip(".")) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v, f"{name}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.dtype.kind in "biufV":  # V: bfloat16 and other extension types
            return jsonable(array.tolist(), name)
    raise TypeError(f"{name or 'value'} = {value!r} ({type(value).__name__}) has no form in JSON")


def from_jsonable(value: Any) -> Any:
    """The inverse of `jsonable` for non-finite numbers."""
    if isinstance(value, dict):
        return {k: from_jsonable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [from_jsonable(v) for v in value]
    return NON_FINITE.get(value, value) if isinstance(value, str) else value
