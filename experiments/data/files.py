"""Local folders of IDX files, and npz files."""

import gzip
import math
import pathlib
import zlib

import numpy as np

from experiments.data.order import SPLIT, philox
from experiments.data.splits import Arrays, Dataset, dataset
from uncertainty.build import ConfigError

IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
PREFIXES = {"train": ("train",), "validation": ("validation", "valid"), "test": ("test", "t10k")}


def idx(path: str, num_classes: int | None = None) -> Dataset:
    """A folder like MNIST's: train-images-idx3-ubyte(.gz), t10k-labels-idx1-ubyte(.gz), ...

    Splits: 'train', and 'test' (files that begin with t10k or test), as far as they are there.

    Args:
      path: the folder.
      num_classes: K; by default one more than the largest label.

    Raises:
      ConfigError: the folder or its files are missing.
      ValueError: a file is damaged, or images and labels differ in number.
    """
    found = _pairs(path, ("images", "imgs"), "idx", "train-images-idx3-ubyte.gz")
    return dataset(found, lambda name: _labelled(*map(read_idx, found[name])), num_classes or 0)


def npz(path: str, num_classes: int | None = None, seed: int | None = None) -> Dataset:
    """A folder of pairs (kmnist-test-imgs.npz, kmnist-test-labels.npz), or one npz file.

    One file holds 'x' and 'y', which are the split 'train', or 'x_train', 'y_train', 'x_test', ...
    Integer y are labels; real-valued y [N] or [N, K] are regression targets.

    Args:
      path: the folder or file.
      num_classes: K; by default one more than the largest label.
      seed: of a random order of the examples of each split, so that 'train[:90%]' and 'train[90%:]'
        divide one file at random; by default they stand as they are stored.

    Raises:
      ConfigError: the file, or the arrays in it, are missing.
      ValueError: inputs and labels differ in number, or an array has another type than a number's.
    """
    location = pathlib.Path(path).expanduser()
    if location.is_dir():
        found = _pairs(path, ("images", "imgs"), "npz", "kmnist-test-imgs.npz")
        reads = {n: (lambda n=n: _labelled(*map(_only_array, found[n]))) for n in found}
    else:
        reads = _arrays_of(location)
    first = next(iter(reads.values()))()[1]
    classes = None if first.dtype.kind == "f" else num_classes or 0
    return dataset(reads, lambda name: _in_order(reads[name](), seed), classes)


def read_idx(path: pathlib.Path | str) -> np.ndarray:
    """The array in an IDX file, gzipped or not.

    Two zero bytes, a type, the number of axes, their sizes as big-endian uint32, the elements.

    Raises:
      ValueError: the file is not IDX, is cut short, or its gzip stream is damaged.
    """
    data = pathlib.Path(path).read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file ({error})") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in IDX_TYPES:
        raise ValueError(f"{path}: not an IDX file (it begins with {data[:4]!r})")
    dtype, start = np.dtype(IDX_TYPES[data[2]]), 4 + 4 * data[3]
    shape = tuple(int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4))
    if len(data) != start + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{path}: {len(data)} bytes do not hold an array {list(shape)} of {dtype}")
    array = np.frombuffer(data, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _labelled(x: np.ndarray, y: np.ndarray) -> Arrays:
    if len(x) != len(y):
        raise ValueError(f"{len(x)} inputs but {len(y)} labels")
    return (x[..., None] if x.ndim == 3 else x), y  # images get a channel


def _in_order(arrays: Arrays, seed: int | None) -> Arrays:
    if seed is None:
        return arrays
    order = np.argsort(philox(seed, SPLIT).random_raw(len(arrays[0])), kind="stable")
    return tuple(a[order] for a in arrays)


def _pairs(path: str, words: tuple[str, ...], ending: str, example: str) -> dict[str, tuple]:
    """The files of inputs and labels in a folder: split -> (path, path)."""
    folder = pathlib.Path(path).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"path: there is no folder {folder}; it should hold {example} and so on")
    found = {}
    for split, prefixes in PREFIXES.items():
        inputs = _files(folder, prefixes, words, ending)
        labels = _files(folder, prefixes, ("labels",), ending)
        if len(inputs) > 1 or len(labels) > 1:
            names = [file.name for file in inputs + labels]
            raise ConfigError(f"path: {folder} has several files for {split!r}: {names}")
        if inputs and labels:
            found[split] = inputs[0], labels[0]
    if not found:
        raise ConfigError(f"path: {folder} has no files like {example} with their labels")
    return found


def _files(folder: pathlib.Path, prefixes, words, ending: str) -> list[pathlib.Path]:
    patterns = [f"*{p}-{w}[-.]{ending}*" if ending != "npz" else f"*{p}-{w}.npz"
                for p in prefixes for w in words]  # fmt: skip
    return sorted({file for pattern in patterns for file in folder.glob(pattern)})


def _load_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise ConfigError(
            f"path: there is no file {path}; an npz file or a folder of them is needed"
        )
    try:
        with np.load(path) as file:
            return {key: file[key] for key in file.files}
    except Exception as error:  # NumPy, zipfile and zlib each have their own
        raise ValueError(f"{path}: not a readable npz file ({error})") from error


def _only_array(path: pathlib.Path) -> np.ndarray:
    arrays = _load_npz(path)
    if len(arrays) != 1:
        raise ValueError(f"{path}: one array is needed, it has {sorted(arrays)}")
    return next(iter(arrays.values()))


def _arrays_of(path: pathlib.Path) -> dict:
    arrays = _load_npz(path)
    reads = {}
    for key in arrays:
        suffix = key.removeprefix("x")
        if key.startswith("x") and "y" + suffix in arrays:
            pair = _labelled(arrays[key], arrays["y" + suffix])
            reads[suffix.lstrip("_") or "train"] = lambda pair=pair: pair
    if not reads:
        raise ConfigError(f"path: {path} has the arrays {sorted(arrays)}; 'x' and 'y', or "
                          "'x_train', 'y_train' and so on, are needed")  # fmt: skip
    return reads
