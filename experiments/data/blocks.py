"""Images of two blocks, one of a simple set and one of a hard set, that both tell the class."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.data.files import require_memory
from experiments.data.generated import RANDOMISED, check_probability, lazily, rng_of, with_agreement
from experiments.data.splits import Arrays, Dataset


def dominoes(
    simple: Dataset,
    hard: Dataset,
    simple_classes: Sequence[int] | None = None,
    hard_classes: Sequence[int] | None = None,
    correlation: float = 1.0,
    agreement: float = 0.5,
    unlabelled: float = 0.0,
    pool: int = 1,
    seed: int = 0,
) -> Dataset:
    """An image of the simple set above one of the hard set, of paired classes: [2 H, W, C].

    Source: Shah et al. 2020, "The pitfalls of simplicity bias in neural networks": MNIST digits 0
    and 1 above automobiles and trucks of CIFAR-10, `simple_classes=(0, 1)`, `hard_classes=(1, 9)`.
    MNIST above Fashion-MNIST with all ten classes is the same without these fields.

    Every image of the hard set is used once, and gets an image of the simple set of its class k,
    drawn with replacement. The smaller of the two is centred on black, and grey images get the
    channels of the other.

    Splits: 'train', 'validation' and 'test', as far as both sets have them; of 'test',
    'simple_randomised' and 'complex_randomised', where the upper (lower) block is that of another
    example; and 'unlabelled'.

    Args:
      simple: spec of a set, such as dict(name="idx", path="mnist"); without a split.
      hard: likewise.
      simple_classes: those that are used, in the order of the new labels; by default all.
      hard_classes: likewise, as many.
      correlation: P(the upper block is of the label's class) in 'train' and 'validation'; of any
        other class uniformly otherwise.
      agreement: the same in 'unlabelled': 1 / K is no correlation, 0 the reverse of training.
      unlabelled: the share of the hard set's training images that are in this split, and not in
        'train'; 0 for none.
      pool: images are means over squares of so many pixels, [2 H / pool, W / pool, C].
      seed: of all that is drawn.

    Raises:
      ValueError: a value out of range, different numbers of classes, sets that are not images in
        memory, or a class without images.
    """
    check_probability("correlation", correlation)
    check_probability("agreement", agreement)
    if pool < 1:
        raise ValueError(f"pool: {pool} pixels; at least 1")
    if not 0 <= unlabelled < 1:
        raise ValueError(f"unlabelled: {unlabelled}; a share from 0, below 1")

    def part(dataset: Dataset, name: str, classes: Sequence[int] | None, field: str) -> list:
        """The images of each class, [N_k, H, W, C] of bytes or of floats in [0, 1]."""
        entries = dataset.read(name)
        if not isinstance(entries, Mapping) or np.ndim(entries["x"]) != 4 or "y" not in entries:
            raise ValueError(f"{field}: images with labels, in memory, are needed")
        x, y = entries["x"], np.asarray(entries["y"])
        if x.dtype != np.uint8 and not (x.min() >= 0 and x.max() <= 1):
            raise ValueError(f"{field}: images are {x.dtype}; bytes, or numbers from 0 to 1")
        labels = range(int(y.max()) + 1) if classes is None else classes
        images = [x[y == label] for label in labels]
        for label, of_class in zip(labels, images, strict=True):
            if not len(of_class):
                raise ValueError(f"{field}: class {label} has no images in {name!r}")
        return images

    def both(name: str) -> tuple[list, list]:
        upper = part(simple, name, simple_classes, "simple")
        lower = part(hard, name, hard_classes, "hard")
        if len(upper) != len(lower):
            raise ValueError(
                f"simple_classes: {len(upper)} classes above {len(lower)}; as many are needed"
            )
        return upper, lower

    def make(name: str) -> Arrays:
        stored = {"unlabelled": "train"}.get(name, "test" if name in RANDOMISED else name)
        upper, lower = both(stored)
        K, rng = len(lower), rng_of(seed, stored)
        y = np.repeat(np.arange(K), [len(images) for images in lower])
        order = rng.permutation(len(y))
        first = round((1 - unlabelled) * len(y)) if stored == "train" else len(y)
        order = order[first:] if name == "unlabelled" else order[:first]
        y, x = y[order], np.concatenate(lower)[order]
        agree = {"unlabelled": agreement, "test": 1.0}.get(
            name, 1.0 if name in RANDOMISED else correlation
        )
        rng = rng_of(seed, f"{stored} pairs" if name != "unlabelled" else name)
        shown = with_agreement(rng, y, agree, K)
        counts = np.array([len(images) for images in upper])
        chosen = (np.cumsum(counts) - counts)[shown] + rng.integers(0, counts[shown])
        above = np.concatenate(upper)[chosen]
        if name in RANDOMISED:
            other = rng_of(seed, name).permutation(len(y))
            above, x = (above[other], x) if name == RANDOMISED[0] else (above, x[other])
        return {"x": pooled(stacked(above, x), pool), "y": y}

    names = ("train", "validation", "test", *RANDOMISED)
    return lazily((*names, *(("unlabelled",) if unlabelled else ())), make, 0)


def stacked(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Images [N, 2 H, W, C] of two blocks [N, h, w, 1 or C], the smaller centred on black."""
    if above.dtype != below.dtype:
        above, below = (
            np.float32(a) / 255 if a.dtype == np.uint8 else np.float32(a) for a in (above, below)
        )
    H, W = np.maximum(above.shape[1:3], below.shape[1:3])
    C = max(above.shape[3], below.shape[3])
    if {above.shape[3], below.shape[3]} - {1, C}:
        raise ValueError(f"simple: {above.shape[3]} channels above {below.shape[3]}; 1, or as many")
    require_memory(len(above) * 2 * int(H * W) * C * above.itemsize, "dominoes")
    image = np.zeros((len(above), 2 * H, W, C), above.dtype)
    for i, block in enumerate((above, below)):
        top, left = (H - block.shape[1]) // 2, (W - block.shape[2]) // 2
        rows = slice(i * H + top, i * H + top + block.shape[1])
        image[:, rows, left : left + block.shape[2]] = block
    return image


def pooled(image: np.ndarray, pool: int) -> np.ndarray:
    """Means over squares of `pool` pixels of images [N, H, W, C], in their type."""
    if pool == 1:
        return image
    N, H, W, C = image.shape
    if H % (2 * pool) or W % pool:
        raise ValueError(f"pool: {pool}; it has to divide the sides of blocks, {H // 2} and {W}")
    mean = image.reshape(N, H // pool, pool, W // pool, pool, C).mean((2, 4), dtype=np.float32)
    return np.rint(mean).astype(np.uint8) if image.dtype == np.uint8 else mean
