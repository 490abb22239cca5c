"""CIFAR-10 and CIFAR-100 in their standard binary form, with human labels of CIFAR-10."""

from collections.abc import Mapping

import numpy as np

from experiments.data.files import load_npz
from experiments.data.splits import Arrays, Dataset, dataset
from experiments.runtime import storage
from uncertainty.build import ConfigError, nearest

SHAPE = (3, 32, 32)  # of an image in the files
BATCHES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
FORMS = {  # number of classes -> split -> files, and the label bytes before an image
    10: (dict(train=BATCHES, test=("test_batch.bin",)), ("fine",)),
    100: (dict(train=("train.bin",), test=("test.bin",)), ("coarse", "fine")),
}
# CIFAR-10N (Wei et al. 2022): names of labels in a config -> arrays of the published file
NOISY = dict(
    aggregate="aggre_label",
    random1="random_label1",
    random2="random_label2",
    random3="random_label3",
    worst="worse_label",
)


def cifar_binary(path: str, y: str = "fine", human: str | None = None) -> Dataset:
    """CIFAR-10 or CIFAR-100 from the folder of the binary version: uint8 [N, 32, 32, 3].

    Splits: 'train' 50,000 and 'test' 10,000, in the official order, as far as the files are there.

    Args:
      path: a folder with data_batch_1.bin ... and test_batch.bin (CIFAR-10), or train.bin and
        test.bin (CIFAR-100).
      y: the labels: 'fine'; for CIFAR-100 also 'coarse'; with `human` also 'aggregate', 'random1',
        'random2', 'random3' and 'worst' of CIFAR-10N, for the training images. Test labels stay.
      human: of CIFAR-10, an npz file. 'counts' [10000, 10] are the votes of CIFAR-10H (Peterson et
        al. 2019) and become the entry `human` of 'test'; 'clean_label', 'aggre_label',
        'random_label1', ..., 'worse_label' [50000] are those of CIFAR-10N.

    Raises:
      ConfigError: the folder, a file or an array is missing, or labels that it does not have.
      ValueError: a damaged file, or human labels in another order than the images.
    """
    folder = storage.path(path).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"path: there is no folder {folder}; it should hold test_batch.bin")
    forms = [
        (classes, {s: files for s, files in splits.items() if (folder / files[0]).is_file()}, names)
        for classes, (splits, names) in FORMS.items()
    ]
    classes, splits, names = max(forms, key=lambda form: len(form[1]))
    if not splits:
        raise ConfigError(f"path: {folder} has no files like test_batch.bin or test.bin")
    allowed = (*names, *(NOISY if human else ()))
    if y not in allowed:
        raise ConfigError(f"y: {y!r}; {nearest(y, allowed)}")
    if human and classes != 10:
        raise ConfigError(f"human: {human!r}; CIFAR-10 alone has human labels, {folder} has 100")
    of_people = _human(human) if human else {}

    def read(split: str) -> Arrays:
        rows = np.concatenate([_rows(folder / file, len(names)) for file in splits[split]])
        labels = rows[:, names.index(y) if y in names else 0].astype(np.int64)
        x = rows[:, len(names) :].reshape(-1, *SHAPE).transpose(0, 2, 3, 1)
        entries = dict(x=np.ascontiguousarray(x), y=labels)
        if human and split == "test":
            entries["human"] = _same_number(of_people, "counts", labels, human).astype(np.float32)
        if y in NOISY and split == "train":
            if (_same_number(of_people, "clean_label", labels, human) != labels).any():
                raise ValueError(f"{human}: 'clean_label' differs from the labels of the images")
            entries["y"] = _same_number(of_people, NOISY[y], labels, human).astype(np.int64)
        return entries

    return dataset(splits, read, 20 if y == "coarse" else classes)


def _human(path: str) -> Mapping[str, np.ndarray]:
    arrays = load_npz(storage.path(path).expanduser())
    needed = ("counts", "clean_label", *NOISY.values())
    if missing := [name for name in needed if name not in arrays]:
        raise ConfigError(f"human: {path} has no array {missing[0]!r}, only {sorted(arrays)}")
    return arrays


def _same_number(
    arrays: Mapping[str, np.ndarray], name: str, y: np.ndarray, path: str | None
) -> np.ndarray:
    if len(arrays[name]) != len(y):
        raise ValueError(f"{path}: {len(arrays[name])} rows of {name!r} for {len(y)} images")
    return arrays[name]


def _rows(path: storage.Path, label_bytes: int) -> np.ndarray:
    """[N, labels and pixels] uint8 of a file."""
    if not path.is_file():
        raise ConfigError(f"path: there is no file {path}")
    data, size = np.frombuffer(path.read_bytes(), np.uint8), label_bytes + int(np.prod(SHAPE))
    if not len(data) or len(data) % size:
        raise ValueError(f"{path}: {len(data)} bytes are not a number of rows of {size} bytes")
    return data.reshape(-1, size)
