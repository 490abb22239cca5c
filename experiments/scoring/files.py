"""Reads files of predictions, .npz, .npy, .csv and .parquet, as arrays by set and name.

What the arrays are is checked in `checks.py`; here a column `p_3` becomes a column of `probs`.
"""

import csv
import io
import json
import pathlib
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.prediction import archive
from experiments.runtime import storage
from experiments.runtime.workdir import from_jsonable

SUFFIXES = (".npz", ".npy", ".csv", ".parquet")
# Columns PREFIX_0, PREFIX_1, ... and the array that they are.
COLUMNS = {
    "p": "probs",
    "log_p": "log_p",
    "logit": "logits",
    "mean": "mean",
    "variance": "variance",
    "y": "y",
}
OF_ROWS = ("set", "member", "example")  # which set, member and example a row is of


class File(NamedTuple):
    """A file of predictions."""

    path: storage.Path
    sets: Mapping[str, Mapping[str, Callable[[], np.ndarray]]]  # set -> array -> reads it
    metadata: Mapping[str, Any]
    notes: tuple[str, ...] = ()  # what of the file is not read


def read(
    text: str,
    kind: str | None = None,
    rename: Mapping[str, str] | None = None,
    labels: bool = False,
) -> File:
    """A file of predictions; arrays of an archive are read when they are called for.

    Args:
      text: its path.
      kind: of the array of a .npy: 'log_p', 'probs' or 'logits'; 'y' reads labels.
      rename: array or column in the file -> the name that it has here.
      labels: whether it is one of labels, which needs no predictions.

    Raises:
      ValueError: another type of file, a damaged one, an unknown set, a missing or bad column.
    """
    path = storage.path(text)
    suffix = pathlib.PurePosixPath(path.name).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{text}: a file that ends in {', '.join(SUFFIXES)} is expected")
    if not path.is_file():
        raise FileNotFoundError(f"{text}: no such file")
    if suffix == ".npy" and kind is None:
        raise ValueError(
            f"{text}: a bare array does not say what it is; give --kind "
            f"{', '.join(archive.CLASSES[:-1])} or {archive.CLASSES[-1]}"
        )
    if suffix != ".npy" and kind not in (None, "y"):
        raise ValueError(f"--kind: {text} names its arrays, so --kind does not apply to it")
    try:
        if suffix == ".npz":
            return _archive(path, rename or {})
        if suffix == ".npy":
            with path.open("rb") as file:
                array = np.load(file, allow_pickle=False)
            return File(path, {archive.TEST: {str(kind): lambda: array}}, {})
        table = _csv(path) if suffix == ".csv" else _parquet(path)
    except (OSError, EOFError, zipfile.BadZipFile, json.JSONDecodeError, UnicodeError) as error:
        raise ValueError(f"{text} cannot be read: {error}") from error
    table = {(rename or {}).get(name, name): values for name, values in table.items()}
    return File(path, *_of_table(table, text, labels))


def _archive(path: storage.Path, rename: Mapping[str, str]) -> File:
    try:
        opened = np.load(path.open("rb"), allow_pickle=False)
    except (ValueError, EOFError) as error:  # neither an archive nor an array
        raise zipfile.BadZipFile("it is not a NumPy archive") from error
    if not isinstance(opened, np.lib.npyio.NpzFile):
        raise ValueError(f"{path}: a bare array, as .npy files have; rename it and give --kind")
    metadata: dict[str, Any] = {}
    sets: dict[str, dict[str, Callable[[], np.ndarray]]] = {}
    for key in opened.files:
        if key == archive.METADATA:
            metadata = from_jsonable(json.loads(opened[key]))
            continue
        name = archive.parse(key)
        array = rename.get(key, rename.get(name.array, name.array))
        name = archive.parse(array) if "/" in array else name._replace(array=array)
        if not archive.is_set(name.set):
            raise ValueError(f"{path}: {key}: no set {name.set!r}; sets are {archive.SETS}")
        if name.array in sets.setdefault(name.set, {}):
            raise ValueError(f"{path}: {key} is `{name.array}` of {name.set}, which is there twice")
        sets[name.set][name.array] = lambda key=key: _array(opened, key, path)
    return File(path, sets, metadata)


def _array(opened: Any, key: str, path: storage.Path) -> np.ndarray:
    try:
        return opened[key]
    except (ValueError, EOFError, zipfile.BadZipFile) as error:  # an array of objects, or damaged
        raise ValueError(f"{path}: {key}: {error}") from error


def _csv(path: storage.Path) -> dict[str, np.ndarray]:
    """Column -> texts [rows]."""
    with (
        path.open("rb") as binary,
        io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as file,
    ):
        rows = csv.reader(file)
        names = [name.strip() for name in next(rows, [])]
        content = [row for row in rows if row]
    for mark, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(names) == 1 and mark in names[0]:
            raise ValueError(f"{path}: columns are separated by {word}; commas are expected")
    if not names or not content:
        raise ValueError(f"{path}: a line of column names and at least one row are expected")
    _check_names(names, path)
    for number, row in enumerate(content, 2):
        if len(row) != len(names):
            raise ValueError(
                f"{path}: row {number} has {len(row)} cells, but there are {len(names)} columns"
            )
    return dict(zip(names, map(np.array, zip(*content, strict=True)), strict=True))


def _check_names(names: Sequence[str], path: storage.Path) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: two columns are named {twice[0]!r}")


def _parquet(path: storage.Path) -> dict[str, np.ndarray]:
    """Column -> values [rows], or [rows, K] of a column of lists."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            f"{path}: reading parquet needs pyarrow: pip install pyarrow (the extra `parquet`)"
        ) from error
    try:
        with path.open("rb") as file:
            table = parquet.read_table(file)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    _check_names(table.column_names, path)
    columns = {}
    for name in table.column_names:
        column = table.column(name)
        if column.null_count and not name.startswith("y"):
            raise ValueError(f"{path}: column {name!r} has {column.null_count} empty cells")
        nested = pyarrow.types.is_list(column.type) or pyarrow.types.is_fixed_size_list(column.type)
        columns[name] = (
            np.array(column.to_pylist()) if nested else column.to_numpy(zero_copy_only=False)
        )
    return columns


def _of_table(
    table: Mapping[str, np.ndarray], path: str, labels: bool
) -> tuple[dict[str, dict[str, Callable[[], np.ndarray]]], dict[str, Any], tuple[str, ...]]:
    """The arrays of each set, no metadata, and what is not read."""
    columns: dict[str, dict[int, np.ndarray]] = {}  # array -> place in its last axis -> column
    whole: dict[str, np.ndarray] = {}  # array -> a column of its own
    unused = []
    for name, values in table.items():
        match = re.fullmatch(rf"({'|'.join(COLUMNS)})_(\d+)", name)
        if match:
            columns.setdefault(COLUMNS[match[1]], {})[int(match[2])] = values
        elif name in (*archive.ARRAYS, "std") or name.startswith(archive.SCORE):
            whole[name] = values
        elif name not in OF_ROWS:
            unused.append(name)
    arrays = {name: _numbers(values, name, path) for name, values in whole.items()}
    for array, of in columns.items():
        if array in arrays:
            raise ValueError(f"{path}: columns {array} and {array}_0, ... both give `{array}`")
        prefix = next(key for key, value in COLUMNS.items() if value == array)
        missing = next((k for k in range(len(of)) if k not in of), None)
        if missing is not None:
            hint = "; classes are numbered from 0" if missing == 0 else ""
            raise ValueError(
                f"{path}: {len(of)} columns {prefix}_..., but {prefix}_{missing} is missing{hint}"
            )
        each = [_numbers(of[k], f"{prefix}_{k}", path) for k in range(len(of))]
        arrays[array] = np.stack(each, -1)
    rows = {name: table[name] for name in OF_ROWS if name in table}
    names = np.char.strip(rows["set"].astype(str)) if "set" in rows else None
    sets = {}
    for name in [archive.TEST] if names is None else list(dict.fromkeys(names.tolist())):
        if not archive.is_set(name):
            raise ValueError(f"{path}: column set: no set {name!r}; sets are {archive.SETS}")
        of_set = slice(None) if names is None else np.flatnonzero(names == name)
        part = {key: values[of_set] for key, values in arrays.items()}
        order = {key: values[of_set] for key, values in rows.items() if key != "set"}
        part = _members(part, order, f"{path}: {name}")
        sets[name] = {key: (lambda value=value: value) for key, value in part.items()}
    notes = (f"columns that are not read: {', '.join(unused)}",) if unused else ()
    if not labels and not {*columns, *whole} & {*archive.CLASSES, *archive.MOMENTS}:
        have = f"; columns that are not read: {', '.join(unused)}" * bool(unused)
        raise ValueError(
            f"{path}: no column of predictions, p_0, p_1, ... (or log_p_0 or logit_0, ...) of "
            f"classes or mean and variance{have} (--rename OLD=NEW,... reads other names)"
        )
    return sets, {}, notes


def _numbers(values: np.ndarray, name: str, path: str) -> np.ndarray:
    """A column as numbers; groups may be text, and empty cells of y are NaN."""
    if values.dtype.kind in "biuf" or name == "group":
        return values
    if name.startswith("y"):
        values = np.where(np.char.strip(values.astype(str)) == "", "nan", values.astype(str))
    try:
        return values.astype(np.float64)
    except ValueError:
        for row, value in enumerate(values, 2):
            try:
                float(value)
            except ValueError:
                raise ValueError(
                    f"{path}: column {name}, row {row}: {str(value)!r} is not a number"
                ) from None
        raise


PER_EXAMPLE = ("y", "group", "x")  # equal for all members


def _members(
    arrays: dict[str, np.ndarray], rows: Mapping[str, np.ndarray], path: str
) -> dict[str, np.ndarray]:
    """Rows of members and examples as [M, B, ...]; without either, the rows are the examples."""
    if "member" not in rows and "example" not in rows:
        return arrays
    if "member" not in rows:
        names, counts = np.unique(rows["example"], return_counts=True)
        if (counts > 1).any():
            raise ValueError(
                f"{path}: example {names[counts.argmax()]} has {counts.max()} rows, and there is "
                "no column `member`"
            )
        return arrays
    members = list(dict.fromkeys(rows["member"].tolist()))
    places = [np.flatnonzero(rows["member"] == member) for member in members]
    if "example" in rows:
        first = rows["example"][places[0]]
        for i, (member, at) in enumerate(zip(members, places, strict=True)):
            of = rows["example"][at]
            sorter = np.argsort(of, kind="stable")
            if len(of) != len(first) or not np.array_equal(of[sorter], np.sort(first)):
                raise ValueError(
                    f"{path}: member {member} has other examples than member {members[0]}"
                )
            if len(np.unique(of)) < len(of):
                raise ValueError(f"{path}: member {member} has an example twice")
            places[i] = at[sorter[np.searchsorted(of[sorter], first)]]
    sizes = [len(at) for at in places]
    if len(set(sizes)) > 1:
        raise ValueError(f"{path}: members have {min(sizes)} to {max(sizes)} rows")
    index = np.stack(places)
    stacked = {}
    for name, values in arrays.items():
        of_members = values[index]
        if name in PER_EXAMPLE or name.startswith(archive.SCORE):
            differs = ~_same(of_members, of_members[:1])
            if differs.any():
                m, b = np.argwhere(differs.reshape(*index.shape, -1).any(-1))[0]
                raise ValueError(
                    f"{path}: `{name}` of example {b} differs between members {members[0]} and "
                    f"{members[m]}: {of_members[0, b]} and {of_members[m, b]}; a column `example` "
                    "says which rows belong together"
                )
            of_members = of_members[0]
        stacked[name] = of_members
    return stacked


def _same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    same = a == b
    return same | ((a != a) & (b != b)) if a.dtype.kind == "f" else same
