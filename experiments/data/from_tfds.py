"""Sets of TensorFlow Datasets, by name.

A set that is prepared as array_record is read without TensorFlow; preparing one, or reading one
that is stored as tfrecord, imports it.
"""

import difflib
import importlib.util
import io
import math
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from experiments.data.own import OWN
from experiments.data.splits import Arrays, Dataset, positions
from uncertainty.build import ConfigError, nearest

EXTRA = "pip install '.[tensorflow]'"
IN_MEMORY = 1 << 30  # bytes up to which a split is kept as an array
CHUNK = 4096


def tfds(
    name: str,
    data_dir: str | None = None,
    keys: Sequence[str] | None = None,
    resize: int | None = None,
    size: int | None = None,
    in_memory: int = IN_MEMORY,
) -> Dataset:
    """The set `name` of tfds ('cifar10', 'imagenet2012', 'mnist_corrupted/shot_noise', ...).

    Args:
      name: as `tfds.builder` takes it, with configuration and version where wanted.
      data_dir: where sets are prepared; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      keys: names of the features that are x and y; by default those of supervised learning. x
        alone where labels are not used, as in out-of-distribution data.
      resize: the shorter side of an image becomes this long (bilinear) ...
      size: ... and the centre of this side is kept. Needed where images differ in size.
      in_memory: bytes up to which a split becomes an array; a larger one is read at random from
        its array_record files.

    Raises:
      ConfigError: an unknown key, or the set is not prepared and cannot be.
    """
    builder = _prepared(name, data_dir)
    info = builder.info
    keys = tuple(keys or info.supervised_keys or ())
    for key in keys:
        if key not in info.features:
            raise ConfigError(f"keys: {name} has no {key!r}; {nearest(key, info.features)}")
    if len(keys) not in (1, 2):
        raise ConfigError(f"keys: {keys!r}; the names of x and y among {sorted(info.features)}")
    features = [info.features[key] for key in keys]
    shape = (size, size, features[0].shape[-1]) if size else features[0].shape
    if None in shape:
        raise ConfigError(f"size: needed, since images of {name} differ in size (resize=256, "
                          "size=224 for instance)")  # fmt: skip
    labels = features[1] if len(features) > 1 else None
    # Images of 16 bits are PNG files, in which 65,535 is white.
    deep = np.dtype(features[0].np_dtype) == np.uint16
    names = getattr(labels, "names", None)

    def read(split: str) -> Arrays:
        split = _in_examples(name, info, split)
        if info.file_format.value != "array_record":
            return _through_tensorflow(builder, split, keys, shape, in_memory)
        records = Records(builder, split, keys, shape, resize)
        if len(records) * math.prod(shape) * records.dtype.itemsize > in_memory:
            return records, None if labels is None else records
        parts = [
            records.gather(np.arange(i, min(i + CHUNK, len(records))))
            for i in range(0, len(records), CHUNK)
        ]
        x, y = zip(*parts, strict=True)
        return np.concatenate(x), None if labels is None else np.concatenate(y)

    return Dataset(
        read,
        getattr(labels, "num_classes", None),
        range=(0.0, 65535.0) if deep else None,
        class_names=tuple(names) if names and not _numbered(names) else None,
        reading={k: v for k, v in dict(resize=resize, size=size).items() if v is not None},
    )


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
            found = positions(split, list(info.splits), lambda part: info.splits[part].num_examples)
            return "+".join(
                part if (start, stop) == (0, info.splits[part].num_examples)
                else f"{part}[{start}:{stop}]" for part, start, stop in found
            )  # fmt: skip
        if info.splits[split].num_examples == 0:
            raise ConfigError(f"split: {split!r} has no examples")
    except (AssertionError, KeyError, ValueError) as error:
        raise ConfigError(f"{error} ({name})") from error
    return split


class Records:
    """Random access to the examples of a split in array_record files: `gather(indices) -> x, y`."""

    def __init__(self, builder: Any, split: str, keys: tuple, shape: tuple, resize: int | None):
        from tensorflow_datasets import decode, features

        self.keys, self.resize = keys, resize
        self.is_image = isinstance(builder.info.features[keys[0]], features.Image)
        self.dtype = np.dtype(builder.info.features[keys[0]].np_dtype)
        decoders = {
            key: decode.SkipDecoding()  # ours is x, and others are not looked at
            for key, feature in builder.info.features.items()
            if isinstance(feature, features.Image)
        } or None
        self.records = builder.as_data_source(split=split, decoders=decoders)
        self.shape = (len(self.records), *shape)
        # Pillow releases the interpreter lock, but small images cost less than the hand-over.
        self.threads = ThreadPoolExecutor() if math.prod(shape) > 128 * 128 else None

    def __len__(self) -> int:
        return len(self.records)

    def gather(self, indices: np.ndarray) -> Arrays:
        """x [B, ...] and y [B, ...] of these examples, as they are stored; y None without a key."""
        examples = self.records.__getitems__([int(i) for i in indices])
        x = [example[self.keys[0]] for example in examples]
        if self.is_image:
            x = list((self.threads.map if self.threads else map)(self._decode, x))
        y = [example[key] for example in examples for key in self.keys[1:]]
        return np.stack(x), np.asarray(y) if y else None

    def _decode(self, encoded: bytes) -> np.ndarray:
        """One image, resized and cut, of the type of the feature.

        Raises:
          ValueError: the image is smaller than what is to be cut out of it.
        """
        from PIL import Image

        height, width, channels = self.shape[1:]
        if _bits(encoded) == 16:
            return self._decode_deep(encoded)
        image = Image.open(io.BytesIO(encoded))
        if self.dtype == np.uint8:
            image = image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
        image = self._framed(image)
        if self.dtype != np.uint8:
            return np.asarray(image, self.dtype).reshape(height, width, channels)
        return np.frombuffer(image.tobytes(), np.uint8).reshape(height, width, channels)

    def _framed(self, image: Any) -> Any:
        """A Pillow image, resized and its centre cut out as the config says."""
        from PIL import Image

        height, width = self.shape[1:3]
        if self.resize:
            scale = self.resize / min(image.size)
            sides = [max(round(scale * side), self.resize) for side in image.size]
            image = image.resize(sides, Image.Resampling.BILINEAR)
        if image.width < width or image.height < height:
            raise ValueError(
                f"size: an image of {image.height} x {image.width} has no part of {height} x "
                f"{width}; resize={max(height, width)} makes its shorter side as long"
            )
        left, top = (image.width - width) // 2, (image.height - height) // 2
        if image.size != (width, height):
            image = image.crop((left, top, left + width, top + height))
        return image

    def _decode_deep(self, encoded: bytes) -> np.ndarray:
        """An image of 16 bits: values v as stored, or v / 257 where the feature has bytes.

        Pillow keeps the upper byte of colours of 16 bits, and clips grey ones to 255.
        """
        import png
        from PIL import Image

        channels = self.shape[-1]
        columns, rows, lines, _ = png.Reader(bytes=encoded).read()
        pixels = np.stack([np.asarray(line) for line in lines]).reshape(rows, columns, -1)
        if pixels.shape[-1] != channels:
            raise ValueError(f"an image of 16 bits has {pixels.shape[-1]} channels; {channels} are "
                             "needed")  # fmt: skip
        planes = [
            np.asarray(self._framed(Image.fromarray(plane)))
            for plane in np.moveaxis(pixels.astype(np.float32), -1, 0)
        ]
        value = np.stack(planes, -1) / (257 if self.dtype == np.uint8 else 1)
        return (np.rint(value) if self.dtype.kind in "iu" else value).astype(self.dtype)


def _bits(encoded: bytes) -> int:
    """Bits of a value of an encoded image; 8 for whatever is not PNG."""
    return encoded[24] if encoded[:8] == b"\x89PNG\r\n\x1a\n" else 8


def check_name(name: str, data_dir: str | None, field: str) -> None:
    """Raises ConfigError, naming `field`, where neither tfds nor `data_dir` has such a set."""
    import tensorflow_datasets as library

    base = name.split("/")[0].split(":")[0]
    known = library.list_builders(with_community_datasets=False)
    folder = pathlib.Path(str(data_dir or library.core.constants.DATA_DIR), base)
    if base not in known and not folder.is_dir():
        raise ConfigError(f"{field}: no data set {name!r}; {_similar(name, known)}")


def _prepared(name: str, data_dir: str | None) -> Any:
    """The builder of a set, prepared first if that is needed and possible."""
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
        where += " (python -m tools.prepare_fashion_mnist makes it from local files)"
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


def _through_tensorflow(builder: Any, split: str, keys: tuple, shape: tuple, limit: int) -> Arrays:
    """Reads a split that is stored as tfrecord into memory."""
    if importlib.util.find_spec("tensorflow") is None:
        raise ConfigError(f"name: {builder.name} is stored as {builder.info.file_format.value} in "
                          f"{builder.data_dir}; reading that needs TensorFlow ({EXTRA}), or "
                          "prepare it with file_format='array_record'")  # fmt: skip
    import tensorflow_datasets as library

    config = library.ReadConfig(interleave_cycle_length=1)
    dataset = library.as_numpy(builder.as_dataset(split=split, read_config=config))
    examples, total = [], 0
    for example in dataset:
        x, *y = (np.asarray(example[key]) for key in keys)
        total += x.nbytes
        if x.shape != tuple(shape) or total > limit:
            raise ConfigError(f"name: {builder.name} is stored as tfrecord and too large or uneven "
                              "for memory; prepare it with file_format='array_record'")  # fmt: skip
        examples.append((x, *y))
    x, *y = zip(*examples, strict=True)
    return np.stack(x), np.asarray(*y) if y else None
