"""Stateless augmentation: random numbers depend on (seed, step, stage, particle, position) alone.

An augmentation is `f(batch, draw, **fields) -> batch`, on images [B, H, W, C] in [0, 1] before they
are normalised; those in IN_UNIT_RANGE take 0 for black and 1 for white, and refuse images of
unbounded range. Its name in a config is its name here: `[dict(name="flip"), dict(name="crop",
pad=4)]`. Neither the number of processes nor an interruption changes what an example becomes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.data import images

Batch = dict[str, np.ndarray]


class Draw:
    """Random numbers for the rows of a batch that this process holds, of one particle or several.

    They are drawn for the whole global batch of `size` and then cut to `rows`, so a row's numbers
    depend neither on which process holds the other rows nor on the number of particles.
    """

    def __init__(self, *bits: np.random.BitGenerator, size: int, rows: slice = slice(None)):
        self.generators, self.size, self.rows = list(map(np.random.Generator, bits)), size, rows

    def __call__(self, distribution: str, *parameters: Any, shape: Sequence[int] = ()):
        """Draws from the NumPy Generator's `distribution`, such as 'integers', 0, 9.

        Returns:
          [B, *shape], or [P B, *shape], one particle's rows after the other's.
        """
        draws = [
            getattr(generator, distribution)(*parameters, size=(self.size, *shape))[self.rows]
            for generator in self.generators
        ]
        return draws[0] if len(draws) == 1 else np.concatenate(draws)


def flip(batch: Batch, draw: Draw, *, p: float = 0.5) -> Batch:
    """Mirrors images left to right with probability `p`."""
    x = _images(batch).copy()
    mirrored = draw("random") < _fraction("p", p)
    x[mirrored] = x[mirrored, :, ::-1]
    return batch | {"x": x}


def crop(batch: Batch, draw: Draw, *, pad: int = 4, size: int | None = None) -> Batch:
    """A random window after padding with `pad` zeros, which are black, at each side.

    Args:
      size: height and width of the window; by default those of the image.
    """
    x = _images(batch)
    height, width = (size or x.shape[1]), (size or x.shape[2])
    room = x.shape[1] + 2 * pad - height, x.shape[2] + 2 * pad - width
    if pad < 0 or min(room) < 0:
        raise ValueError(f"pad: {pad}; the padded image has no window {height} x {width}")
    offsets = draw("integers", 0, np.asarray(room) + 1, shape=(2,))
    out = np.zeros((len(x), height, width, x.shape[3]), x.dtype)
    for image, target, (top, left) in zip(x, out, (offsets - pad).tolist(), strict=True):
        window = image[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
        top, left = max(-top, 0), max(-left, 0)
        target[top : top + window.shape[0], left : left + window.shape[1]] = window
    return batch | {"x": out}


def cutout(batch: Batch, draw: Draw, *, size: int) -> Batch:
    """Sets a square of side `size`, centred anywhere in the image, to zero (DeVries & Taylor 2017).

    Zero is black. The square may reach beyond the border.
    """
    x = _images(batch).copy()
    centres = draw("integers", 0, x.shape[1:3], shape=(2,)) - size // 2
    for image, (top, left) in zip(x, centres.tolist(), strict=True):
        image[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = 0
    return batch | {"x": x}


def mixup(batch: Batch, draw: Draw, *, alpha: float = 0.2, classes: int) -> Batch:
    """x' = w x + (1 - w) x_partner, and the same for labels; w ~ Beta(alpha, alpha) per example.

    The labels become float32 [B, K]. Zhang et al. (2018), equation 2.

    Differences from the paper: positions 2i and 2i + 1 are partners, where the paper shuffles the
    batch. The order of the examples is random already, so the pairs are as uniform, and both
    examples of a pair are in the same process. Each example draws its own w.

    Args:
      alpha: of the distribution of w; small values keep most examples nearly as they are.

    Raises:
      ValueError: this process holds an odd number of examples, of each particle where each has its
        own.
    """
    if not alpha > 0:
        raise ValueError(f"alpha: {alpha}; a positive number is needed")
    x, y = batch["x"], soft(batch["y"], classes)
    count = len(x) // len(draw.generators)  # of one particle
    if count % 2:
        whose = " of each particle" if len(draw.generators) > 1 else ""
        raise ValueError(
            f"mixup pairs neighbours, but this process has {count} examples{whose} a batch"
        )
    weight = draw("beta", alpha, alpha).astype(np.float32)
    mixed = {}
    for key, values in (("x", x), ("y", y)):
        w = weight.reshape(-1, *[1] * (values.ndim - 1))
        partner = values.reshape(-1, 2, *values.shape[1:])[:, ::-1].reshape(values.shape)
        mixed[key] = partner + w * (values - partner)
    return batch | mixed


def label_noise(batch: Batch, draw: Draw, *, transition: Sequence[Sequence[float]]) -> Batch:
    """Redraws each label from its row of `transition` [K, K]: p(new = j | old = i) = T_ij.

    As an augmentation it redraws at every step; for noise that is part of the data set, give
    `label_noise` to `load`.
    """
    rows = np.asarray(transition, np.float64)
    y = batch["y"]
    if rows.ndim != 2 or rows.shape[0] != rows.shape[1] or (rows < 0).any():
        raise ValueError(f"transition: shape {rows.shape}; a non-negative K x K matrix is needed")
    if not np.allclose(rows.sum(1), 1, atol=1e-6):
        raise ValueError(f"transition: rows sum to {rows.sum(1)}, not to 1")
    if y.ndim != 1 or y.max(initial=0) >= len(rows):
        raise ValueError(f"transition: {len(rows)} classes are too few for these labels")
    cumulative = np.cumsum(rows, axis=1)
    cumulative /= cumulative[:, -1:]  # the last is 1, which no draw reaches
    new = (draw("random")[:, None] >= cumulative[y]).sum(1)
    return batch | {"y": new.astype(np.int32)}


def rand_augment(batch: Batch, draw: Draw, *, num_ops: int = 2, magnitude: float = 9) -> Batch:
    """RandAugment (Cubuk et al. 2020): `num_ops` operations, uniform over 14, at one `magnitude`.

    The operations are Pillow's, on bytes; `magnitude` is in [0, 30]. Geometric operations fill with
    black and take the nearest pixel, and like brightness, colour, contrast and sharpness go either
    way with equal probability. Ranges: `rand_augment_ops`.

    Raises:
      ValueError: a magnitude out of range, or images that are not in [0, 1].
    """
    from experiments.data import rand_augment_ops

    if not 0 <= magnitude <= 30:
        raise ValueError(f"magnitude: {magnitude}; it must be in [0, 30]")
    x = _images(batch)
    images.check("rand_augment", x, None)
    op_indices = draw("integers", 0, len(rand_augment_ops.OPS), shape=(num_ops,))
    sign = np.where(draw("random", shape=(num_ops,)) < 0.5, -1, 1)
    pixels = np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)
    out = [
        rand_augment_ops.apply(image, ops, signs, magnitude / 30)
        for image, ops, signs in zip(pixels, op_indices.tolist(), sign.tolist(), strict=True)
    ]
    return batch | {"x": np.divide(np.stack(out), np.float32(255), dtype=np.float32)}


def soft(y: np.ndarray, classes: int) -> np.ndarray:
    """Labels as probabilities, float32 [B, K]; soft labels stay as they are."""
    return y if y.ndim == 2 else np.eye(classes, dtype=np.float32)[y]


def _images(batch: Batch) -> np.ndarray:
    if batch["x"].ndim != 4:
        raise ValueError(f"images [B, H, W, C] are needed, x is {list(batch['x'].shape)}")
    return batch["x"]


def _fraction(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: {value}; it must be in [0, 1]")
    return value


NAMES = {f.__name__: f for f in (flip, crop, cutout, mixup, label_noise, rand_augment)}
IN_UNIT_RANGE = ("crop", "cutout", "rand_augment")
LABELS = ("mixup", "label_noise")  # which change y
