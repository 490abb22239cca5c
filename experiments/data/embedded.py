"""Data sets that need no file: generated, or inside scikit-learn.

Each function makes a Dataset of all its splits. What is drawn, and the permutation by which
scikit-learn's sets are split, depend on `seed` alone. Images are float32 in [0, 1].
"""

import functools
import math
from collections.abc import Sequence

import numpy as np

from experiments.data.files import require_memory
from experiments.data.order import SPLIT, philox
from experiments.data.splits import UNBOUNDED, Arrays, Dataset, Range, dataset

DIGITS = {"train": 1200, "validation": 197, "test": 400}
UNIT = (0.0, 1.0)


def digits(upsample: int | None = None, seed: int = 0) -> Dataset:
    """scikit-learn's handwritten digits: 1,797 images [8, 8, 1], 10 classes.

    Splits: train 1,200, validation 197, test 400.

    Args:
      upsample: side of the images after linear interpolation, such as 28.
    """
    import scipy.ndimage

    raw = _scikit_learns("load_digits")
    x = (raw.images / 16).astype(np.float32)[..., None]
    if upsample is not None:
        if upsample < 8:
            raise ValueError(f"upsample: {upsample}; at least 8 is needed")
        zoom = (1, upsample / 8, upsample / 8, 1)
        x = scipy.ndimage.zoom(x, zoom, order=1, mode="nearest", grid_mode=True)
    return _partition(dict(x=x, y=raw.target), DIGITS, seed, 10, range=UNIT)


def breast_cancer(seed: int = 0) -> Dataset:
    """569 tumours, 30 features, 2 classes; train 70%, validation 10%, test 20%."""
    return _tabular("load_breast_cancer", seed, 2)


def wine(seed: int = 0) -> Dataset:
    """178 wines, 13 features, 3 classes; train 70%, validation 10%, test 20%."""
    return _tabular("load_wine", seed, 3)


def iris(seed: int = 0) -> Dataset:
    """150 flowers, 4 features, 3 classes; train 70%, validation 10%, test 20%."""
    return _tabular("load_iris", seed, 3)


def diabetes(seed: int = 0) -> Dataset:
    """442 patients, 10 features, disease progression; train 70%, validation 10%, test 20%."""
    return _tabular("load_diabetes", seed, None)


def two_moons(noise: float = 0.1, seed: int = 0) -> Dataset:
    """Two interleaved half circles in the plane; train 1,500, test 500 points.

    Args:
      noise: standard deviation of a point's distance from its half circle.
    """
    import sklearn.datasets

    sizes = {"train": 1500, "test": 500}
    return _generated(
        {
            name: _pair(*sklearn.datasets.make_moons(n, noise=noise, random_state=2 * seed + i))
            for i, (name, n) in enumerate(sizes.items())
        },
        2,
    )


def gaussians_2d(seed: int = 0) -> Dataset:
    """5 Gaussians of standard deviation 1 with centres on a circle of radius 5, one a class.

    Splits: train 40 and test 20 points a class. 'ood' has 250 unlabelled points (all of class 0):
    200 with radius U(11, 30) and any angle, and 50 from N(0, 0.5^2 I) about the origin. 'grid', 169
    equally spaced inputs on [-12, 12]^2 with the class of the nearest centre.
    """
    rng = np.random.default_rng(seed)
    angles = np.pi / 2 + 2 * np.pi * np.arange(5) / 5
    centres = 5 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)

    def sample(per_class: int) -> Arrays:
        y = np.repeat(np.arange(5), per_class)
        return _pair(centres[y] + rng.standard_normal((len(y), 2)), y)

    splits = {"train": sample(40), "test": sample(20)}
    radius, angle = rng.uniform(11, 30, 200), rng.uniform(0, 2 * np.pi, 200)
    ring = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    origin = 0.5 * rng.standard_normal((50, 2))
    splits["ood"] = _pair(np.concatenate([ring, origin]), np.zeros(250, int))
    ticks = np.linspace(-12, 12, 13)
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    splits["grid"] = _pair(grid, np.argmax(grid @ centres.T, axis=-1))
    return _generated(splits, 5)


def rings(
    radii: Sequence[float] = (1.0, 2.0, 3.0),
    width: float = 0.15,
    size: int = 300,
    blob: Sequence[float] = (4.2, 4.2),
    seed: int = 0,
) -> Dataset:
    """Concentric rings in the plane, one a class, and a blob of points far from all of them.

    A point has an angle U(0, 2 pi) and a radius N(radius of its ring, width^2). Labels are those of
    the rings; `label_noise` of the spec gives each ring a noise of its own, and `classes=(k,)`
    without it picks ring k.

    Splits: 'train' and 'test', and 'blob', unlabelled (all of class 0), from N(blob, 0.3^2 I).

    Args:
      radii: of the rings; as many classes.
      width: standard deviation of the radius.
      size: points of each ring in 'train' and in 'test', and of the blob.
      blob: its centre.
    """
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(radii)), size)

    def sample() -> Arrays:
        angle = rng.uniform(0, 2 * np.pi, len(y))
        radius = np.asarray(radii)[y] + width * rng.standard_normal(len(y))
        return _pair(radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1), y)

    splits = {"train": sample(), "test": sample()}
    points = np.asarray(blob) + 0.3 * rng.standard_normal((size, 2))
    splits["blob"] = _pair(points, np.zeros(size, int))
    return _generated(splits, len(radii))


def x_sin_x(seed: int = 0) -> Dataset:
    """y = x sin x + N(0, 0.25^2), with a gap: 45 inputs in each of [1.5, 2.5] and [4.5, 6].

    Splits: 'train' and 'test', 90 points each; 'grid', 100 equally spaced inputs on [0, 7] with
    the noise-free values.
    """
    rng = np.random.default_rng(seed)

    def inputs() -> np.ndarray:
        return np.concatenate([rng.uniform(1.5, 2.5, 45), rng.uniform(4.5, 6.0, 45)])

    return _curve(lambda x: x * np.sin(x), inputs, np.linspace(0, 7, 100), 0.25, rng)


def cubic(seed: int = 0) -> Dataset:
    """y = x^3 + N(0, 3^2) with 20 inputs in [-4, 4], of Hernandez-Lobato & Adams (2015).

    Splits: 'train' and 'test', 20 points each; 'grid', 100 equally spaced inputs on [-6, 6] with
    the noise-free values.
    """
    rng = np.random.default_rng(seed)
    grid = np.linspace(-6, 6, 100)
    return _curve(lambda x: x**3, lambda: rng.uniform(-4, 4, 20), grid, 3.0, rng)


def noise(
    shape: Sequence[int] | None = None,
    size: int = 1000,
    distribution: str = "uniform",
    seed: int = 0,
) -> Dataset:
    """Inputs without structure, as out-of-distribution data: U(0, 1) or N(0, 1), all of class 0.

    Like all evaluation data they are normalised as the training data are; for tables in other units
    give `mean` and `std` in the spec.

    Args:
      shape: of one example, such as (28, 28, 1); by default that of the training data.
      size: number of examples; the only split is 'test'.
      distribution: 'uniform' or 'normal'.
    """
    if distribution not in ("uniform", "normal"):
        raise ValueError(f"distribution: {distribution!r}; 'uniform' or 'normal' is needed")
    if shape is None:
        raise ValueError("shape: missing; there are no training data whose shape it could have")
    rng = np.random.default_rng(seed)
    draw = rng.random if distribution == "uniform" else rng.standard_normal
    require_memory(8 * size * math.prod(shape), f"noise of shape {tuple(shape)} and size {size}")
    limits = UNIT if distribution == "uniform" else UNBOUNDED
    arrays = _pair(draw((size, *shape)), np.zeros(size, int))
    return _generated({"test": arrays}, 1, range=limits)


def stand_in(shape: Sequence[int], num_classes: int, size: int = 32, seed: int = 0) -> Dataset:
    """Random bytes with random labels, in place of a set of images that is not available.

    Read by `:runlocal` configs: it has the shape, type and number of classes of the real set.

    Args:
      shape: of one example, such as (32, 32, 3).
      num_classes: K.
      size: examples in each of the splits 'train', 'validation' and 'test'.
    """
    require_memory(3 * size * math.prod(shape), f"stand_in of shape {tuple(shape)} and size {size}")
    rng = np.random.default_rng(seed)
    splits = {
        name: _pair(
            rng.integers(0, 256, (size, *shape), np.uint8), rng.integers(0, num_classes, size)
        )
        for name in ("train", "validation", "test")
    }
    return _generated(splits, num_classes)


@functools.cache
def _scikit_learns(loader: str):
    """The result of one of scikit-learn's loaders, cached."""
    import sklearn.datasets

    return getattr(sklearn.datasets, loader)()


def _tabular(loader: str, seed: int, classes: int | None) -> Dataset:
    bunch = _scikit_learns(loader)
    arrays = _pair(bunch.data, bunch.target)
    n = len(bunch.target)
    sizes = {"train": round(0.7 * n), "validation": round(0.1 * n), "test": n}
    return _partition(arrays, sizes, seed, classes, standardise=True)


def _partition(
    arrays: Arrays,
    sizes: dict[str, int],
    seed: int,
    classes: int | None,
    standardise: bool = False,
    range: Range = None,
) -> Dataset:
    """Splits of these sizes, in this order, after a permutation; the last takes what is left."""
    order = np.argsort(philox(seed, SPLIT).random_raw(len(arrays["x"])), kind="stable")
    splits, start = {}, 0
    for name, size in sizes.items():
        indices = order[start : start + size]
        splits[name] = {key: array[indices] for key, array in arrays.items()}
        start += size
    return _generated(splits, classes, standardise, range)


def _curve(function, inputs, grid: np.ndarray, noise_std: float, rng) -> Dataset:
    splits = {}
    for name in ("train", "test"):
        x = inputs()
        splits[name] = _pair(x[:, None], function(x) + noise_std * rng.standard_normal(len(x)))
    splits["grid"] = _pair(grid[:, None], function(grid))
    return _generated(splits, None)


def _pair(x: np.ndarray, y: np.ndarray) -> Arrays:
    return {"x": x, "y": y}


def _generated(
    splits: dict[str, Arrays],
    classes: int | None,
    standardise: bool = False,
    range: Range = None,
) -> Dataset:
    return dataset(splits, splits.__getitem__, classes, standardise, range)
