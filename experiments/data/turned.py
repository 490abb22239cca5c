"""Images of which some classes are turned and others upright: a symmetry that some classes have."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.data.generated import lazily, rng_of
from experiments.data.splits import Arrays, Dataset


def turned(
    images: Dataset, turned_classes: Sequence[int], reduce: int = 1, seed: int = 0
) -> Dataset:
    """The images of a set, those of some classes turned by 0, 90, 180 or 270 degrees.

    Each angle has the probability 1/4, is drawn once for each image and stays. So the orientation
    is no feature of these classes, for which members that are invariant to it are right, and is one
    of all others: an image that is not upright is of a turned class.

    Splits are 'train', 'validation' and 'test', as far as the set has them, turned alike. The entry
    `turns` of an example is its number of quarter turns, counterclockwise.

    Args:
      images: spec of a set, such as dict(name="fashion_mnist"); without a split.
      turned_classes: their labels; with none all images are upright.
      reduce: side of the blocks of pixels of which the means are taken, so that images are smaller.
      seed: of the angles.

    Raises:
      ValueError: images that are not square or not in memory, a class that the set does not have,
        or blocks that do not divide images.
    """
    if reduce < 1:
        raise ValueError(f"reduce: {reduce}; at least 1")

    def make(name: str) -> Arrays:
        entries = images.read(name)
        if not isinstance(entries, Mapping) or np.ndim(entries["x"]) != 4 or "y" not in entries:
            raise ValueError("images: images with labels, in memory, are needed")
        x, y = np.asarray(entries["x"]), np.asarray(entries["y"])
        side = x.shape[1]
        if x.shape[2] != side:
            raise ValueError(f"images: {side} x {x.shape[2]} pixels; squares alone can be turned")
        if side % reduce:
            raise ValueError(f"reduce: blocks of {reduce} pixels do not divide {side}")
        if missing := sorted(set(turned_classes) - set(np.unique(y).tolist())):
            raise ValueError(f"turned_classes: {missing[0]} has no images in {name!r}")
        turns = rng_of(seed, name).integers(0, 4, len(y)) * np.isin(y, list(turned_classes))
        x = _means(x, reduce)
        out = x.copy()
        for quarter in (1, 2, 3):
            out[turns == quarter] = np.rot90(x[turns == quarter], quarter, axes=(1, 2))
        return {**entries, "x": out, "turns": turns.astype(np.int32)}

    made = lazily(("train", "validation", "test"), make, images.classes)
    return made._replace(range=images.range, class_names=images.class_names, reading=images.reading)


def _means(x: np.ndarray, n: int) -> np.ndarray:
    """Means of blocks of n x n pixels of [B, H, W, C], in the type of x."""
    if n == 1:
        return x
    B, H, W, C = x.shape
    means = x.reshape(B, H // n, n, W // n, n, C).mean((2, 4), dtype=np.float32)
    return (np.rint(means) if x.dtype.kind in "iu" else means).astype(x.dtype)
