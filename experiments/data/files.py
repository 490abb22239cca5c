"""Folders of IDX files, and npz files, on a disk or in a bucket."""

import gzip
import math
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from experiments.data.order import SPLIT, philox
from experiments.data.splits import Arrays, Dataset, check_names, dataset
from experiments.runtime import storage
from uncertainty.build import ConfigError, nearest

IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
PREFIXES = {"train": ("train",), "validation": ("validation", "valid"), "test": ("test", "t10k")}


def idx(path: str, num_classes: int | None = None) -> Dataset:
    """A folder like MNIST's: train-images-idx3-ubyte(.gz), t10k-labels-idx1-ubyte(.gz), ...

    Splits: 'train', and 'test' (files that begin with t10k or test), if present. The file of labels
    may be missing where labels are not used, as for out-of-distribution data.

    Args:
      path: the folder.
      num_classes: K; by default one more than the largest label.

    Raises:
      ConfigError: the folder or its files are missing.
      ValueError: a file is damaged, or images and labels differ in number.
    """
    _check_count(num_classes)
    pairs = _pairs(path, ("images", "imgs"), "idx", "train-images-idx3-ubyte.gz")
    return dataset(pairs, lambda name: _read(pairs[name], read_idx), num_classes or 0)


def npz(
    path: str,
    num_classes: int | None = None,
    seed: int | None = None,
    entries: Sequence[str] = (),
    y: str = "y",
) -> Dataset:
    """A folder of pairs (kmnist-test-imgs.npz, kmnist-test-labels.npz), or one npz file.

    One file holds 'x' and 'y', which are the split 'train', or 'x_train', 'y_train', 'x_test', ...
    Integer y are labels; real-valued y [N] or [N, K] are regression targets. Where labels are not
    used, as for out-of-distribution data, y may be missing.

    Args:
      path: the folder or file.
      num_classes: K; by default one more than the largest label. If it is given, whole numbers
        stored as floats count as labels too.
      seed: shuffles the examples of each split, so that 'train[:90%]' and 'train[90%:]' divide one
        file at random; by default they are in the stored order.
      entries: names of further arrays with one row per example: ('group',) reads 'group' beside
        'x', 'group_train' beside 'x_train' and so on.
      y: the name of the array that is y, in a file with several: 'worst' reads 'worst' beside
        'x', 'worst_train' beside 'x_train' and so on.

    Raises:
      ConfigError: the file or an array in it is missing, or two arrays are one split, such as 'x'
        and 'x_train'.
      ValueError: inputs and labels differ in number, an array is not numeric, or the file unpacks
        to more than the free memory.
    """
    _check_count(num_classes)
    entries = check_names(entries)
    location = storage.path(path).expanduser()
    if location.is_dir():
        if entries or y != "y":
            field = f"entries: {entries}" if entries else f"y: {y!r}"
            raise ConfigError(
                f"{field}, but a folder has files of images and labels only; other arrays need "
                "one npz file"
            )
        pairs = _pairs(path, ("images", "imgs"), "npz", "kmnist-test-imgs.npz")
        reads = {n: (lambda n=n: _read(pairs[n], _only_array)) for n in pairs}
    else:
        reads = _arrays_of(location, entries, y)
    labels = [arrays["y"] for arrays in (read() for read in reads.values()) if "y" in arrays]
    real = bool(labels) and labels[0].dtype.kind == "f"
    if real and num_classes is None:
        return dataset(reads, lambda name: _in_order(reads[name](), seed), None)

    def read(name: str) -> Arrays:
        arrays = _in_order(reads[name](), seed)
        if real and "y" in arrays:
            arrays["y"] = _whole(arrays["y"], f"{path}: labels of {name!r}")
        return arrays

    return dataset(reads, read, num_classes or 0)


def read_idx(path: storage.Path | str) -> np.ndarray:
    """The array in an IDX file, gzipped or not.

    Two zero bytes, a type, the number of axes, their sizes as big-endian uint32, the elements.

    Raises:
      ValueError: the file is not IDX, is cut short, or its gzip stream is damaged.
    """
    path = storage.path(path)
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            return _idx_array(path, gzip.open(file) if packed else file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: damaged gzip file ({error})") from error


def _idx_array(path: storage.Path, file) -> np.ndarray:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in IDX_TYPES:
        raise ValueError(f"{path}: not an IDX file (it begins with {head!r})")
    dtype, sizes = np.dtype(IDX_TYPES[head[2]]), file.read(4 * head[3])
    shape = tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4))
    size = math.prod(shape) * dtype.itemsize
    require_memory(size, path)
    data = file.read(size + 1)  # one more byte shows that the file is too long
    if len(sizes) != 4 * head[3] or len(data) != size:
        raise ValueError(f"{path}: {len(data)} bytes do not hold an array {list(shape)} of {dtype}")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def free_memory() -> int:
    """Bytes of free memory, as reported by the operating system."""
    try:
        for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):  # macOS has neither
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def require_memory(size: int, what: object) -> None:
    """Raises ValueError if `size` bytes are more than the free memory."""
    if size > (free := free_memory()):
        raise ValueError(
            f"{what}: {size / 2**30:,.1f} GiB of memory are needed, but "
            f"{free / 2**30:,.1f} are free"
        )


def _read(files: tuple, read: Callable) -> Arrays:
    inputs, labels = files
    return _examples({"x": read(inputs)} | ({} if labels is None else {"y": read(labels)}))


def _examples(arrays: dict[str, np.ndarray]) -> Arrays:
    """The entries of one split, checked to be of equal length."""
    titles = {"x": "inputs", "y": "labels"}
    sizes = {key: array.shape[0] if array.ndim else "no" for key, array in arrays.items()}
    for key, size in sizes.items():
        if size == "no" or size != sizes["x"]:
            pair = dict.fromkeys(("x", key))
            raise ValueError(" but ".join(f"{sizes[k]} {titles.get(k, k)}" for k in pair))
    x = arrays["x"]
    return arrays | {"x": x[..., None] if x.ndim == 3 else x}  # images get a channel


def _check_count(num_classes: int | None) -> None:
    if num_classes is not None and (type(num_classes) is not int or num_classes < 1):
        raise ConfigError(f"num_classes: {num_classes!r}; a whole number from 1")


def _whole(y: np.ndarray, what: str) -> np.ndarray:
    """Labels that are stored as floats, converted to integers."""
    if not (np.isfinite(y).all() and (y == np.rint(y)).all() and (np.abs(y) < 2**31).all()):
        raise ValueError(
            f"{what} are {y.dtype} and not all whole numbers; with num_classes they "
            "have to be, and without it they are regression targets"
        )
    return y.astype(np.int64)


def _in_order(arrays: Arrays, seed: int | None) -> Arrays:
    if seed is None:
        return dict(arrays)
    order = np.argsort(philox(seed, SPLIT).random_raw(len(arrays["x"])), kind="stable")
    return {key: array[order] for key, array in arrays.items()}


def _pairs(path: str, words: tuple[str, ...], ending: str, example: str) -> dict[str, tuple]:
    """The files of inputs and labels in a folder: split -> (path, path)."""
    folder = storage.path(path).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"path: there is no folder {folder}; it should hold {example} and so on")
    pairs = {}
    for split, prefixes in PREFIXES.items():
        inputs = _files(folder, prefixes, words, ending)
        labels = _files(folder, prefixes, ("labels",), ending)
        if len(inputs) > 1 or len(labels) > 1:
            names = [file.name for file in inputs + labels]
            raise ConfigError(f"path: {folder} has several files for {split!r}: {names}")
        if inputs:
            pairs[split] = inputs[0], labels[0] if labels else None
    if not pairs:
        raise ConfigError(f"path: {folder} has no files like {example}")
    return pairs


def _files(folder: storage.Path, prefixes, words, ending: str) -> list[storage.Path]:
    patterns = [
        f"*{p}-{w}[-.]{ending}*" if ending != "npz" else f"*{p}-{w}.npz"
        for p in prefixes
        for w in words
    ]
    return sorted({file for pattern in patterns for file in folder.glob(pattern)})


def load_npz(path: storage.Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise ConfigError(
            f"path: there is no file {path}; an npz file or a folder of them is needed"
        )
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path}: not a readable npz file ({error})") from error
    require_memory(size, path)
    try:
        with path.open("rb") as file, np.load(file) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:  # NumPy, zipfile and zlib raise different types
        reason = (
            "it holds Python objects, which are not loaded; store numeric arrays"
            if "allow_pickle" in str(error)
            else error
        )
        raise ValueError(f"{path}: not a readable npz file ({reason})") from error
    return arrays


def _only_array(path: storage.Path) -> np.ndarray:
    arrays = load_npz(path)
    if len(arrays) != 1:
        raise ValueError(f"{path}: one array is needed, it has {sorted(arrays)}")
    return next(iter(arrays.values()))


def _arrays_of(
    path: storage.Path, entries: Sequence[str], y: str
) -> dict[str, Callable[[], Arrays]]:
    arrays = load_npz(path)
    reads: dict[str, Callable[[], Arrays]] = {}
    stored: dict[str, str] = {}  # split -> its x
    for key in arrays:
        suffix = key.removeprefix("x")
        if not re.fullmatch(r"x(_\w+)?", key) and not (suffix != key and "y" + suffix in arrays):
            continue
        labelled = y != "y" or "y" + suffix in arrays
        names = dict(x="x", **(dict(y=y) if labelled else {}), **{e: e for e in entries})
        for name, array in names.items():
            if array + suffix not in arrays:
                raise ConfigError(
                    f"{'y' if name == 'y' else 'entries'}: {path} has no array "
                    f"{array + suffix!r} beside {key!r}; {nearest(array + suffix, arrays)}"
                )
        try:
            examples = _examples({name: arrays[array + suffix] for name, array in names.items()})
        except ValueError as error:
            raise ValueError(f"{path}: {key} has {error}") from None
        split = suffix.lstrip("_") or "train"
        if split in reads:
            raise ConfigError(
                f"path: {path} has {stored[split]!r} and {key!r}, which are both the split "
                f"{split!r}; remove or rename one"
            )
        reads[split], stored[split] = (lambda examples=examples: examples), key
    if not reads:
        raise ConfigError(
            f"path: {path} has the arrays {sorted(arrays)}; 'x' and 'y', or "
            "'x_train', 'y_train' and so on, are needed"
        )
    return reads
