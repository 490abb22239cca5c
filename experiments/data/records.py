"""Examples of array_record files on disk, read and decoded without TensorFlow."""

import io
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np


class Records:
    """Random access to the examples of a split in array_record files.

    Attributes:
      keys: entry -> feature.
      shape, dtype: of all x, [N, ...].
      forms: entry -> shape and type of one example.
    """

    def __init__(
        self, builder: Any, split: str, keys: dict[str, str], shape: tuple, resize: int | None
    ):
        from tensorflow_datasets import decode, features

        self.keys, self.resize = keys, resize
        stored = builder.info.features
        self.is_image = isinstance(stored[keys["x"]], features.Image)
        self.dtype = np.dtype(stored[keys["x"]].np_dtype)
        self.forms = {
            entry: (tuple(stored[key].shape or ()), stored[key].np_dtype)
            for entry, key in keys.items()
        } | {"x": (tuple(shape), self.dtype)}
        further = [key for entry, key in keys.items() if entry != "x"]
        decoders = {
            key: decode.SkipDecoding()  # not needed, or decoded below
            for key, feature in stored.items()
            if isinstance(feature, features.Image) and key not in further
        } or None
        self.records = builder.as_data_source(split=split, decoders=decoders)
        self.shape = (len(self.records), *shape)
        # Pillow releases the interpreter lock, but for small images threads cost more than they
        # save.
        self.threads = ThreadPoolExecutor() if math.prod(shape) > 128 * 128 else None

    def __len__(self) -> int:
        return len(self.records)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.keys)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The entries [B, ...] of these examples, as they are stored."""
        examples = self.records.__getitems__([int(i) for i in indices])
        stored = {entry: [e[key] for e in examples] for entry, key in self.keys.items()}
        if self.is_image:
            decode = self.threads.map if self.threads else map
            stored["x"] = list(decode(self._decode, stored["x"]))
        return {entry: np.stack(values) for entry, values in stored.items()}

    def _decode(self, encoded: bytes) -> np.ndarray:
        """One image, resized and cropped, in the feature's type.

        Raises:
          ValueError: the image is smaller than the crop.
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
        """A Pillow image, resized and centre-cropped according to the config."""
        from PIL import Image

        height, width = self.shape[1:3]
        sides = image.size
        if self.resize:
            scale = self.resize / min(image.size)
            sides = tuple(max(round(scale * side), self.resize) for side in image.size)
        if sides[0] < width or sides[1] < height:
            raise ValueError(
                f"size: an image of {sides[1]} x {sides[0]} has no part of {height} x "
                f"{width}; resize={max(height, width)} makes its shorter side as long"
            )
        left, top = (sides[0] - width) // 2, (sides[1] - height) // 2
        if sides != image.size:  # of the crop alone, which is all that is needed
            x, y = image.width / sides[0], image.height / sides[1]
            box = (left * x, top * y, (left + width) * x, (top + height) * y)
            return image.resize((width, height), Image.Resampling.BILINEAR, box=box)
        if image.size != (width, height):
            image = image.crop((left, top, left + width, top + height))
        return image

    def _decode_deep(self, encoded: bytes) -> np.ndarray:
        """A 16-bit image: values v as stored, or v / 257 if the feature has bytes.

        Pillow itself keeps only the upper byte of 16-bit colours, and clips grey values to 255.
        """
        import png
        from PIL import Image

        channels = self.shape[-1]
        columns, rows, lines, _ = png.Reader(bytes=encoded).read()
        pixels = np.stack([np.asarray(line) for line in lines]).reshape(rows, columns, -1)
        if pixels.shape[-1] != channels:
            raise ValueError(
                f"a 16-bit image has {pixels.shape[-1]} channels; {channels} are needed"
            )
        planes = [
            np.asarray(self._framed(Image.fromarray(plane)))
            for plane in np.moveaxis(pixels.astype(np.float32), -1, 0)
        ]
        value = np.stack(planes, -1) / (257 if self.dtype == np.uint8 else 1)
        return (np.rint(value) if self.dtype.kind in "iu" else value).astype(self.dtype)


def _bits(encoded: bytes) -> int:
    """Bits per value of an encoded image; 8 for all but PNG."""
    return encoded[24] if encoded[:8] == b"\x89PNG\r\n\x1a\n" else 8
