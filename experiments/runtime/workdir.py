"""A run's directory: its config, its lock, and its files in JSON.

Programs read all JSON files by `read_json`, whose error for a damaged file names it and what is
expected.
"""

import contextlib
import copy
import errno
import fnmatch
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.runtime import lock, storage

CONFIG = "config.json"
DATA = "data.json"  # the record of the training data, for evaluation
# Old -> new dotted name of a field or section of configs. Older files are read, and compared, with
# the new names.
RENAMED = {"data.context": "data.streams.context"}
# Fields that may differ when a run resumes, as they do not change training. Another mesh or
# executor changes the order of sums, and so rounding.
MAY_CHANGE = (
    "logging.*",
    "checkpoint.*",
    "mesh.*",
    "inference.executor",
    "on_fault",
    "evaluat*",
    "pretrained.path",
)
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def open_workdir(
    path: str | storage.Path,
    config: Mapping[str, Any],
    *,
    ignore: Sequence[str] = (),
    free_bytes: int = 64 << 20,
) -> storage.Path:
    """Creates the directory of a new run, or opens that of an interrupted one.

    Args:
      path: the directory; its parents are created too.
      config: the run's config as a plain dict, written to `config.json`.
      ignore: patterns (fnmatch) of dotted names that may differ from those of the interrupted run,
        such as 'logging.*'. The file is then updated.
      free_bytes: the free disk space that is needed to start.

    Raises:
      ValueError: the directory belongs to a run with another config; the message shows the old
        and new value of each field that differs.
      OSError: it cannot be written, or its disk is (almost) full.
    """
    directory = storage.path(path).expanduser().absolute()
    new = jsonable(config)
    require_writable(directory)
    if isinstance(directory, pathlib.Path):
        require_free_space(directory, free_bytes)
        storage.remove_stale(directory)
    if not _has_config(directory, new, ignore):
        write_json(directory / CONFIG, new)
    return directory


def _has_config(directory: storage.Path, new: Mapping[str, Any], ignore: Sequence[str]) -> bool:
    """Whether the directory has exactly this config.

    Raises:
      ValueError: it has one that differs in more than may be ignored, or none beside checkpoints.
    """
    if not (directory / CONFIG).exists():
        if (directory / "checkpoints").exists():
            raise ValueError(f"workdir {directory} has checkpoints of an unknown run: no {CONFIG}")
        return False
    changed = difference(read_config(directory), new)
    refused = [line for name, line in changed.items() if not matches(name, ignore)]
    if refused:
        diff = "\n".join(f"  {line}" for line in refused)
        raise ValueError(
            f"workdir {directory} belongs to a run with another config (old -> new):\n{diff}\n"
            "Use another workdir, or the old values to resume that run."
        )
    return not changed


def read_config(path: str | storage.Path) -> dict[str, Any]:
    """The config of the run in the directory `path`; its tuples come back as lists.

    Renamed fields have their new names.

    Raises:
      ValueError: the file is missing or not a config.
    """
    file = storage.path(path) / CONFIG
    if not file.is_file():
        raise ValueError(f"{path} is not a run's workdir: it has no {CONFIG}")
    return renamed(read_json(file, {str: object}))


def renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the new names of the fields and sections in `RENAMED`."""
    for old, new in RENAMED.items():
        *parents, last = old.split(".")
        section = config = copy.deepcopy(dict(config))
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if not isinstance(section, dict) or last not in section:
            continue
        value, target = section.pop(last), config
        *parents, last = new.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
        target.setdefault(last, value)
    return dict(config)


def fields(config: Mapping[str, Any], ignore: Sequence[str] = ()) -> dict[str, str]:
    """Maps the dotted name of each field to its value as JSON, for comparing configs.

    As JSON, NaN equals itself, 1 differs from True, and a tuple is a list.

    Args:
      config: nested; renamed fields get their new names.
      ignore: patterns (fnmatch) of names to leave out.
    """
    flat = flatten(renamed(from_jsonable(jsonable(config))))
    return {k: json.dumps(v) for k, v in sorted(flat.items()) if not matches(k, ignore)}


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Maps the dotted name of each field that differs to a line 'name: old -> new'."""
    old, new = fields(old), fields(new)
    return {
        name: f"{name}: {old.get(name, '(absent)')} -> {new.get(name, '(absent)')}"
        for name in sorted({**old, **new})
        if old.get(name) != new.get(name)
    }


def same_but_for(old: Mapping[str, Any], new: Mapping[str, Any], ignore: Sequence[str]) -> bool:
    """Whether two configs differ only in fields that match `ignore`."""
    return fields(old, ignore) == fields(new, ignore)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a dotted name matches one of the patterns (fnmatch)."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts into one dict with dotted names; empty dicts vanish."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def require_free_space(path: str | os.PathLike, needed: int) -> None:
    """Raises OSError (ENOSPC) if the disk of `path` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(path).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"workdir {path} has {free / 2**20:.0f} MiB free; the run needs {needed / 2**20:.0f}",
        )


def require_writable(directory: storage.Path) -> None:
    """Raises OSError if the directory, which is created, cannot be written."""
    try:
        storage.require_writable(directory)
    except OSError as error:
        reason = f"workdir {directory} cannot be written: {error.strerror}"
        raise type(error)(error.errno, reason) from error


@contextlib.contextmanager
def locked(directory: storage.Path) -> Iterator[None]:
    """Locks the directory against other training runs while the block runs.

    The processes of one run share the lock: only the first one takes it.

    Raises:
      BlockingIOError: another process holds it; the message says which.
    """
    import jax

    if jax.process_index() != 0:
        yield
        return
    with lock.exclusive(storage.path(directory)):
        yield


@contextlib.contextmanager
def opened(
    path: str | storage.Path, config: Mapping[str, Any], *, ignore: Sequence[str] = ()
) -> Iterator[storage.Path]:
    """The directory of a run, opened by `open_workdir` and locked while the block runs.

    It is locked first: a run that is refused, as another one holds the lock, leaves `config.json`
    as it is. Of the processes of one run only the first one opens and locks it.

    Args:
      path, config, ignore: see `open_workdir`.

    Raises:
      BlockingIOError: another process holds the lock; the message says which.
      ValueError: the directory belongs to a run with another config.
      OSError: it cannot be written, or its disk is (almost) full.
    """
    import jax

    directory = storage.path(path).expanduser().absolute()
    first = jax.process_index() == 0
    if first:
        require_writable(directory)
        _has_config(directory, jsonable(config), ignore)  # refused without a lock, as far as known
    with locked(directory):
        if first:
            open_workdir(directory, config, ignore=ignore)
        yield directory


def write_json(path: str | storage.Path, value: Any) -> None:
    """Writes `value` as JSON atomically.

    Arrays become lists; NaN and infinities, which JSON lacks, become the strings 'NaN', 'Infinity'
    and '-Infinity', which `read_json` and Python's `float` convert back.
    """
    text = json.dumps(jsonable(value), indent=2, allow_nan=False) + "\n"
    storage.write(storage.path(path), text)


def read_json(path: str | storage.Path, form: Any = object) -> Any:
    """Reads a file of `write_json`, with non-finite numbers restored.

    Args:
      path: the file.
      form: the expected form: a type; a list of one form; a dict of the forms of required fields,
        or `{str: form}` for any names; a tuple of alternatives.

    Raises:
      ValueError: it is not JSON, or not of that form; the message names the file and the error.
      OSError: it cannot be read.
    """
    path = storage.path(path)
    if isinstance(path, pathlib.Path) and path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file")
    try:
        value = from_jsonable(json.loads(path.read_bytes()))
    except ValueError as error:  # of JSON or of the encoding
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} is not valid JSON: nested too deeply") from None
    wrong = mismatch(value, form)
    if wrong:
        raise ValueError(f"{path} is damaged: {wrong}")
    return value


KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
    list: "a list",
    dict: "a dict",
}


def mismatch(value: Any, form: Any, name: str = "it") -> str | None:
    """How `value` differs from a form of `read_json`, or None."""
    if form is object:
        return None
    forms = form if isinstance(form, tuple) else (form,)
    kinds = [one if isinstance(one, type) else type(one) for one in forms]
    of_kind = [one for one, kind in zip(forms, kinds, strict=True) if _is(value, kind)]
    if not of_kind:
        printed = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
        return f"{name} is {printed}, not {' or '.join(KINDS[kind] for kind in kinds)}"
    form, inner = of_kind[0], []
    if isinstance(form, list):
        inner = [(v, form[0], f"{name}[{i}]") for i, v in enumerate(value)]
    if isinstance(form, dict):
        missing = [key for key in form if key is not str and key not in value]
        if missing:
            return f"{name} has no {missing[0]!r}"
        inner = [
            (v, form.get(k, form.get(str, object)), k if name == "it" else f"{name}.{k}")
            for k, v in value.items()
        ]
    return next(filter(None, (mismatch(*one) for one in inner)), None)


def _is(value: Any, kind: type) -> bool:
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def readable(path: storage.Path, read: Callable[[storage.Path], Any]) -> Any:
    """The result of `read` on a file.

    Raises:
      ValueError: any error, in one line that names the file: readers of archives and nested text
        raise many types for damaged files.
    """
    try:
        return read(path)
    except Exception as error:
        reason = " ".join(f"{error}".replace(str(path), "").split()) or type(error).__name__
        raise ValueError(f"{path} is damaged: {reason[:200]}") from error


def jsonable(value: Any, name: str = "") -> Any:
    """`value` in JSON's types: arrays and tuples as lists, non-finite numbers as strings.

    Raises:
      TypeError: a value has no such form; the message has its dotted name.
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
