"""A run's directory: its config, its lock, and files that are written whole or not at all.

Whatever JSON file the programs read, they read by `read_json`, which says of a damaged one which
file it is and what it should hold.
"""

import contextlib
import copy
import errno
import fcntl
import fnmatch
import glob
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

CONFIG = "config.json"
DATA = "data.json"  # what evaluation must know of the training data
# Dotted name of a field or section of configs as it was -> as it is now. Files that were written
# before are read, and compared, under the present names.
RENAMED = {"data.context": "data.streams.context"}
# What may differ when a run is resumed: none of it changes what is trained. Another mesh or
# executor takes sums in another order, and so changes rounding.
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
    remove_stale(directory)
    if (directory / CONFIG).exists():
        old = read_config(directory)
        changed = difference(old, new)
        refused = [line for name, line in changed.items() if not matches(name, ignore)]
        if refused:
            shown = "\n".join(f"  {line}" for line in refused)
            raise ValueError(
                f"workdir {directory} belongs to a run with another config (old -> new):\n{shown}\n"
                "Take another workdir, or the old values to resume that run."
            )
        if not changed:
            return directory
    elif (directory / "checkpoints").exists():
        raise ValueError(f"workdir {directory} has checkpoints but no {CONFIG}: whose are they?")
    write_json(directory / CONFIG, new)
    return directory


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    """The config of the run in the directory `path`; its tuples come back as lists.

    Fields that have been renamed since have their present names.

    Raises:
        ValueError: there is none, or the file does not hold a config.
    """
    file = pathlib.Path(path) / CONFIG
    if not file.is_file():
        raise ValueError(f"{path} is not a run's workdir: it has no {CONFIG}")
    return renamed(read_json(file, {str: object}))


def renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the present names of the fields and sections that `RENAMED` names."""
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
    """Dotted name of each field to its value as JSON, as configs are compared.

    As JSON, NaN equals itself, 1 differs from True, and a tuple is a list.

    Args:
        config: nested; renamed fields get their present names.
        ignore: patterns (fnmatch) of names to leave out.
    """
    flat = flatten(renamed(from_jsonable(jsonable(config))))
    return {k: json.dumps(v) for k, v in sorted(flat.items()) if not matches(k, ignore)}


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Dotted name of each field that differs to the line 'name: old -> new'."""
    old, new = fields(old), fields(new)
    return {
        name: f"{name}: {old.get(name, '(absent)')} -> {new.get(name, '(absent)')}"
        for name in sorted({**old, **new})
        if old.get(name) != new.get(name)
    }


def same_but_for(old: Mapping[str, Any], new: Mapping[str, Any], ignore: Sequence[str]) -> bool:
    """Whether two configs differ in fields that match `ignore` alone."""
    return fields(old, ignore) == fields(new, ignore)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a dotted name is one of those that patterns (fnmatch) are for."""
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


def read_json(path: str | os.PathLike, form: Any = object) -> Any:
    """What `write_json` wrote, non-finite numbers included.

    Args:
        path: the file.
        form: what it has to hold: a type; a list of one form; a dict of the forms of the fields
            that have to be there, or `{str: form}` for any; a tuple of alternatives.

    Raises:
        ValueError: it is not JSON, or not of that form; the file is named, and what is wrong.
        OSError: it cannot be read.
    """
    if not hasattr(path, "read_bytes"):  # one in a bucket has it, too
        path = pathlib.Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file")
    try:
        value = from_jsonable(json.loads(path.read_bytes()))
    except ValueError as error:  # of the encoding, too
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
    """How `value` is not of a form that `read_json` takes, or None."""
    if form is object:
        return None
    forms = form if isinstance(form, tuple) else (form,)
    kinds = [one if isinstance(one, type) else type(one) for one in forms]
    of_kind = [one for one, kind in zip(forms, kinds, strict=True) if _is(value, kind)]
    if not of_kind:
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
        return f"{name} is {shown}, not {' or '.join(KINDS[kind] for kind in kinds)}"
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


def readable(path: pathlib.Path, read: Callable[[pathlib.Path], Any]) -> Any:
    """What `read` finds in a file.

    Raises:
      ValueError: whatever went wrong, in one line that names the file: readers of archives and
        nested text have many ways to fail on bytes that nobody wrote.
    """
    try:
        return read(path)
    except Exception as error:
        reason = " ".join(f"{error}".replace(str(path), "").split()) or type(error).__name__
        raise ValueError(f"{path} is damaged: {reason[:200]}") from error


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replaces the file at once: written beside it, flushed to the disk, then renamed."""
    path = pathlib.Path(path)
    remove_stale(path.parent, path.name)
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


def remove_stale(directory: pathlib.Path, name: str = "*") -> None:
    """Removes what a `write_text` that was killed left of `name`: its process is no more."""
    if name != "*":
        name = glob.escape(name)
    for path in directory.glob(f".{name}.*.tmp"):
        process = path.name.split(".")[-2]
        if process.isdecimal() and not _alive(int(process)):
            with contextlib.suppress(OSError):
                path.unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


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
