"""Sprites whose colour, shape, scale and orientation are cues of one class."""

from collections.abc import Sequence

import numpy as np

from experiments.data.files import require_memory
from experiments.data.generated import check_probability, check_sizes, lazily, rng_of
from experiments.data.splits import Arrays, Dataset

CUES = ("colour", "shape", "scale", "orientation")
SHAPES = ("ellipse", "rectangle", "triangle", "cross")
CHUNK = 512  # images that are drawn at once


def sprites(
    num_classes: int = 4,
    cues: Sequence[str] = CUES,
    side: int = 32,
    agreement: float = 0.0,
    size: int = 10_000,
    test_size: int = 2_000,
    seed: int = 0,
) -> Dataset:
    """A sprite on black, [side, side, 3]: each of its cues alone tells the class.

    The design is that of Scimeca et al. 2022, "Which shortcut cues will DNNs choose?" (WCST-ML):
    training examples are on the diagonal, where every cue has the value of the class, and a test
    set of each cue is off it, where the label is the value of this cue and all others are uniform
    and independent. Sprites, sizes and values are ours:

      colour       hues k / K of a colour circle
      shape        ellipse, isosceles triangle and cross, 2 : 1; rectangle, 2.5 : 1
      scale        half the long side: 0.35 to 0.8 of half the image, in equal steps
      orientation  k 180 / K degrees

    Brightness (0.7 to 1), position (as far as the sprite is inside) and small changes of the angle
    (up to 4 degrees) differ at random and tell nothing. Cues that are left out are random.

    Splits: 'train', 'validation' and 'test' on the diagonal; 'off_colour', 'off_shape', ... of each
    cue; 'unlabelled', on the diagonal with probability `agreement`, all cues independent otherwise,
    with the label of the last of `cues`.

    Args:
      num_classes: K, 2 to 4.
      cues: those that tell the class.
      side: of the image, at least 12.
      agreement: of the split 'unlabelled'.
      size: examples of 'train' and of 'unlabelled'.
      test_size: of the other splits.
      seed: of all that is drawn.

    Raises:
      ValueError: a value out of range.
    """
    if not 2 <= num_classes <= len(SHAPES):
        raise ValueError(f"num_classes: {num_classes}; from 2 to {len(SHAPES)}")
    if not cues or len(set(cues)) != len(cues) or not set(cues) <= set(CUES):
        raise ValueError(f"cues: {list(cues)}; some of {', '.join(CUES)}, each once")
    if side < 12:
        raise ValueError(f"side: {side} pixels; at least 12")
    check_probability("agreement", agreement)
    check_sizes(size=size, test_size=test_size)
    require_memory(6 * max(size, test_size) * side**2, f"sprites of side {side}")

    def make(name: str) -> Arrays:
        rng, n = rng_of(seed, name), size if name in ("train", "unlabelled") else test_size
        values = rng.integers(0, num_classes, (len(CUES), n))
        y = rng.integers(0, num_classes, n)
        tells = [CUES.index(cue) for cue in cues]
        if name == "unlabelled":
            tied = rng.random(n) < agreement
            values[tells] = np.where(tied, y, values[tells])
            y = values[tells[-1]]
        elif name.startswith("off_"):
            y = values[CUES.index(name.removeprefix("off_"))]
        else:
            values[tells] = y
        return {"x": drawn(rng, values, num_classes, side), "y": y}

    off = tuple(f"off_{cue}" for cue in cues)
    return lazily(("train", "validation", "test", *off, "unlabelled"), make, num_classes)


def drawn(rng: np.random.Generator, values: np.ndarray, classes: int, side: int) -> np.ndarray:
    """Images [N, side, side, 3], bytes, of the values [4, N] of CUES."""
    colour, shape, scale, orientation = values
    n = len(colour)
    length = 0.35 + 0.45 * scale / (classes - 1)  # of half the image
    angle = np.pi * orientation / classes + np.radians(rng.uniform(-4, 4, n))
    centre = (1 - length) * rng.uniform(-1, 1, (2, n))
    rgb = _hues(colour / classes) * rng.uniform(0.7, 1, n)[:, None]  # [N, 3]
    ticks = (2 * np.arange(side) + 1) / side - 1
    image = np.empty((n, side, side, 3), np.uint8)
    for start in range(0, n, CHUNK):
        at = slice(start, start + CHUNK)
        x = ticks[None, None, :] - centre[0, at, None, None]
        y = ticks[None, :, None] - centre[1, at, None, None]
        cos, sin = (f(angle[at])[:, None, None] for f in (np.cos, np.sin))
        a = length[at, None, None]
        # In the sprite's own axes, with its half length as the unit.
        distance = a * _distance((cos * x + sin * y) / a, (cos * y - sin * x) / a, shape[at])
        covered = np.clip(0.5 - distance * side / 2, 0, 1)[..., None]
        image[at] = np.rint(255 * covered * rgb[at, None, None, :])
    return image


def _distance(u: np.ndarray, v: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Approximate signed distances [N, H, W] to shapes [N] of half axes 1 and 1/2."""

    def box(long: float, short: float, middle: float = 0.0) -> np.ndarray:
        return np.maximum(np.abs(u - middle) - long, np.abs(v) - short)

    radius = np.hypot(u, 2 * v)
    slope = np.hypot(u, 4 * v) / np.maximum(radius, 1e-6)
    ellipse = (radius - 1) / np.maximum(slope, 1e-6)
    # Corners (1, 0), (-1, 1/2) and (-1, -1/2).
    triangle = np.maximum(-1 - u, (u + 4 * np.abs(v) - 1) / np.sqrt(17))
    cross = np.minimum(box(1.0, 0.16), box(0.16, 0.5, 0.35))
    all_of = np.stack([ellipse, box(0.9, 0.36), triangle, cross])
    return np.take_along_axis(all_of, shape[None, :, None, None], axis=0)[0]


def _hues(hue: np.ndarray) -> np.ndarray:
    """Saturated colours [N, 3] of hues [N] in [0, 1)."""
    k = (np.array([5.0, 3.0, 1.0]) + 6 * hue[:, None]) % 6
    return 1 - np.clip(np.minimum(k, 4 - k), 0, 1)
