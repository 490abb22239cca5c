"""Data sets of TensorFlow Datasets, by name.

A set prepared as array_record is read without TensorFlow; preparing a set, or reading tfrecord
files, imports it.
"""

import difflib
import importlib.util
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.data.own import OWN
from experiments.data.splits import Arrays, Dataset, check_names, positions
from experiments.runtime import storage
from uncertainty.build import ConfigError, nearest

EXTRA = "pip install '.[tensorflow]'"
IN_MEMORY = 1 << 30  # bytes up to which a split is kept as an array
CHUNK = 4096


def tfds(
    name: str,
    data_dir: str | None = None,
    keys: Sequence[str] | Mapping[str, str] | None = None,
    resize: int | None = None,
    size: int | None = None,
    in_memory: int = IN_MEMORY,
) -> Dataset:
    """The set `name` of tfds ('cifar10', 'imagenet2012', 'mnist_corrupted/shot_noise', ...).

    Args:
      name: as for `tfds.builder`, optionally with configuration and version.
      data_dir: where sets are prepared, on a disk; by default $TFDS_DATA_DIR, else
        ~/tensorflow_datasets.
      keys: names of the features for x and y; by default the set's supervised keys. x alone where
        labels are not used, as for out-of-distribution data. A dict also names further entries:
        dict(x='image', y='label', group='attribute').
      resize: the shorter side of an image becomes this long (bilinear) ...
      size: ... and the centre of this side is kept. Needed where images differ in size. Neither
        changes the images of a set that is stored as tfrecord, which are refused in other sizes.
      in_memory: bytes up to which a split becomes an array; a larger one is read at random from
        its array_record files.

    Raises:
      ConfigError: an unknown key, the set is not prepared and cannot be prepared, or its images
        would have to be resized or cropped and it is stored as tfrecord.
    """
    from experiments.data.records import Records

    builder = _prepared(name, data_dir)
    info = builder.info
    keys = _features_of(name, info, keys)
    features = {entry: info.features[key] for entry, key in keys.items()}
    of_x = features["x"].shape
    shape = (size, size, of_x[-1]) if size else of_x
    if None in shape:
        raise ConfigError(
            f"size: needed, since images of {name} differ in size; for example resize=256, size=224"
        )
    stored = info.file_format.value
    if stored != "array_record" and resize not in (None, min(shape[:2], default=None)):
        raise ConfigError(
            f"resize: {resize}, but {name} is stored as {stored}, of which images are read as they "
            "are; prepare it with file_format='array_record'"
        )
    for entry, feature in features.items():
        if entry not in ("x", "y") and None in (feature.shape or ()):
            raise ConfigError(
                f"keys: {keys[entry]!r} of {name} has shape {feature.shape}; an "
                "entry needs one shape for all examples"
            )
    labels = features.get("y")
    # 16-bit images are PNG files, in which 65,535 is white.
    deep = np.dtype(features["x"].np_dtype) == np.uint16
    names = getattr(labels, "names", None)

    def read(split: str) -> Arrays:
        split = _in_examples(name, info, split)
        if stored != "array_record":
            return _through_tensorflow(builder, split, keys, shape, in_memory)
        records = Records(builder, split, keys, shape, resize)
        if len(records) * math.prod(shape) * records.dtype.itemsize > in_memory:
            return records
        parts = [
            records.gather(np.arange(i, min(i + CHUNK, len(records))))
            for i in range(0, len(records), CHUNK)
        ]
        return {entry: np.concatenate([part[entry] for part in parts]) for entry in keys}

    return Dataset(
        read,
        getattr(labels, "num_classes", None),
        range=(0.0, 65535.0) if deep else None,
        class_names=tuple(names) if names and not _numbered(names) else None,
        reading={k: v for k, v in dict(resize=resize, size=size).items() if v is not None},
    )


def _features_of(name: str, info: Any, keys: Any) -> dict[str, str]:
    """Maps the name of each entry to the name of its feature, x first.

    Raises:
      ConfigError: no x, a name that no entry can have, or no such feature.
    """
    if not isinstance(keys, Mapping):
        keys = tuple(keys or info.supervised_keys or ())
        if len(keys) not in (1, 2):
            raise ConfigError(f"keys: {keys!r}; the names of x and y among {sorted(info.features)}")
        keys = dict(zip(("x", "y"), keys, strict=False))
    if "x" not in keys:
        raise ConfigError(
            f"keys: {dict(keys)!r}; x needs the name of one of {sorted(info.features)}"
        )
    check_names([entry for entry in keys if entry not in ("x", "y")], "keys")
    for key in keys.values():
        if key not in info.features:
            raise ConfigError(f"keys: {name} has no {key!r}; {nearest(str(key), info.features)}")
    return {entry: keys[entry] for entry in sorted(keys, key=lambda entry: entry != "x")}


def _numbered(names: Sequence[str]) -> bool:
    """Whether classes are called '0', '1', ..., as tfds does where they have no names."""
    return list(names) == [str(i) for i in range(len(names))]


def _in_examples(name: str, info: Any, split: str) -> str:
    """The split with its slices in examples, see `splits.positions`; shards are left to tfds.

    Raises:
      ConfigError: there is no such split.
    """
    try:
        if "shard" not in str(split):
            slices = positions(
                split, list(info.splits), lambda part: info.splits[part].num_examples
            )
            return "+".join(
                part
                if (start, stop) == (0, info.splits[part].num_examples)
                else f"{part}[{start}:{stop}]"
                for part, start, stop in slices
            )
        if info.splits[split].num_examples == 0:
            raise ConfigError(f"split: {split!r} has no examples")
    except (AssertionError, KeyError, ValueError) as error:
        raise ConfigError(f"{error} ({name})") from error
    return split


def check_name(name: str, data_dir: str | None, field: str) -> None:
    """Raises ConfigError, naming `field`, where neither tfds nor `data_dir` has such a set."""
    import tensorflow_datasets as library

    if data_dir and isinstance(storage.path(str(data_dir)), storage.BucketPath):
        raise ConfigError(
            f"{field.rpartition('.')[0]}.data_dir: {data_dir}: sets of tfds are read from a disk; "
            "copy the prepared folder there"
        )
    base = name.split("/")[0].split(":")[0]
    builders = library.list_builders(with_community_datasets=False)
    folder = pathlib.Path(str(data_dir or library.core.constants.DATA_DIR), base)
    if base not in builders and not folder.is_dir():
        raise ConfigError(f"{field}: no data set {name!r}; {_similar(name, builders)}")


def _prepared(name: str, data_dir: str | None) -> Any:
    """The builder of a set, which is prepared first if necessary and possible."""
    import tensorflow_datasets as library

    try:
        builder = library.builder(name, data_dir=data_dir)
        if not builder.is_prepared():
            builder = library.builder(name, data_dir=data_dir, file_format="array_record")
    except ImportError as error:
        raise ConfigError(f"name: {name} needs TensorFlow ({error}): {EXTRA}") from error
    if builder.is_prepared():
        return builder
    where = f"{name} is not prepared in {builder.data_dir}"
    if builder.name == "fashion_mnist":
        where += " (python -m tools.prepare_fashion_mnist prepares it from local files)"
    if importlib.util.find_spec("tensorflow") is None:
        raise ConfigError(f"name: {where}, and preparing it needs TensorFlow: {EXTRA}")
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise ConfigError(
            f"name: {where}, and preparing it failed: {error}\nFiles that were downloaded by hand "
            "belong in downloads/manual of the same data_dir."
        ) from error
    return builder


def _similar(name: str, tfds_names: Sequence[str]) -> str:
    """The nearest names, without the hundreds that tfds knows."""
    close = difflib.get_close_matches(name, [*OWN, *tfds_names], n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"{hint}(valid: {', '.join(sorted(OWN))}, or a name of tfds)"


def _through_tensorflow(
    builder: Any, split: str, keys: dict[str, str], shape: tuple, limit: int
) -> Arrays:
    """Reads a split that is stored as tfrecord into memory."""
    if importlib.util.find_spec("tensorflow") is None:
        raise ConfigError(
            f"name: {builder.name} is stored as {builder.info.file_format.value} in "
            f"{builder.data_dir}; reading that needs TensorFlow ({EXTRA}), or "
            "prepare it with file_format='array_record'"
        )
    import tensorflow_datasets as library

    config = library.ReadConfig(interleave_cycle_length=1)
    dataset = library.as_numpy(builder.as_dataset(split=split, read_config=config))
    examples, total = [], 0
    for example in dataset:
        arrays = {entry: np.asarray(example[key]) for entry, key in keys.items()}
        total += arrays["x"].nbytes
        if arrays["x"].shape != tuple(shape) or total > limit:
            raise ConfigError(
                f"name: {builder.name} is stored as tfrecord and too large or uneven "
                "for memory; prepare it with file_format='array_record'"
            )
        examples.append(arrays)
    return {entry: np.stack([example[entry] for example in examples]) for entry in keys}
