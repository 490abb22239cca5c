"""A part of CIFAR-10 in one file that is small enough to be carried to a machine without network.

The standard binary form: files of records of 3,073 bytes, the label and the planes R, G, B of
32 x 32.
"""

import pathlib

import numpy as np

TRAIN, TEST = 10_000, 2_000
LIMIT = 40_000_000  # bytes of the file
FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
RECORD = 1 + 3 * 32 * 32


def make(folder: pathlib.Path, file: pathlib.Path, train: int = TRAIN, test: int = TEST) -> int:
    """Writes a file of x_train, y_train, x_test, y_test in uint8; the same number of each class.

    Args:
      folder: with the files of `cifar-10-batches-bin`.
      file: the npz to be written, uncompressed.
      train, test: numbers of images, divisible by 10; the first of each class in a shuffled order.

    Returns:
      The size in bytes, at most LIMIT.

    Raises:
      ValueError: a missing or damaged file, too few images of a class, or too many for LIMIT.
    """
    size = (train + test) * RECORD + 4096
    if size > LIMIT:
        raise ValueError(f"{train} + {test} images are {size} bytes; at most {LIMIT}")
    arrays = {}
    for split, number in (("train", train), ("test", test)):
        if number < 10 or number % 10:
            raise ValueError(f"{split}: {number} images; a positive multiple of 10")
        x, y = _read([folder / name for name in FILES[split]])
        order = np.random.default_rng(0).permutation(len(y))
        chosen = []
        for label in range(10):
            of_class = order[y[order] == label][: number // 10]
            if len(of_class) < number // 10:
                raise ValueError(f"{split}: {len(of_class)} images of class {label}, not "
                                 f"{number // 10}")  # fmt: skip
            chosen.append(of_class)
        rows = np.random.default_rng(1).permutation(np.concatenate(chosen))
        arrays |= {f"x_{split}": x[rows], f"y_{split}": y[rows]}
    partial = file.with_name(file.name + ".tmp")
    with open(partial, "wb") as out:
        np.savez(out, **arrays)
    partial.replace(file)
    return file.stat().st_size


def _read(paths: list[pathlib.Path]) -> tuple[np.ndarray, np.ndarray]:
    records = []
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path}: missing; a folder cifar-10-batches-bin is needed")
        flat = np.fromfile(path, np.uint8)
        if not len(flat) or len(flat) % RECORD:
            raise ValueError(f"{path}: {len(flat)} bytes, not a multiple of {RECORD}")
        records.append(flat.reshape(-1, RECORD))
    rows = np.concatenate(records)
    y = rows[:, 0]
    if y.max() > 9:
        raise ValueError(f"{paths[0].parent}: label {y.max()}; at most 9")
    return rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), y


def load(file: str | None) -> dict[str, np.ndarray]:
    """The arrays of `make`.

    Raises:
      ValueError: no file, or one of other arrays.
    """
    if file is None or not pathlib.Path(file).is_file():
        raise ValueError(
            f"--data: {file or 'no file'}; make it with `python -m benchmarks.device --make-subset "
            "cifar-10-batches-bin --data FILE.npz`"
        )
    with np.load(file) as stored:
        arrays = dict(stored)
    for split in FILES:
        x, y = arrays.get(f"x_{split}"), arrays.get(f"y_{split}")
        if x is None or y is None or x.dtype != np.uint8 or x.shape[1:] != (32, 32, 3):
            raise ValueError(f"--data: {file} has no x_{split} [N, 32, 32, 3] of uint8")
        if y.shape != x.shape[:1] or y.max() > 9:
            raise ValueError(f"--data: {file}: y_{split} must be {len(x)} labels of at most 9")
    return arrays
