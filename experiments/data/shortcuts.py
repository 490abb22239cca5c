"""Generated tables whose classes two kinds of features predict: one simple or available, one not.

Each function makes a Dataset. Besides 'train' and 'test' it has splits in which the features are
apart, for the evaluators `simplicity` and `cues`, and 'unlabelled', a stream for objectives that
make members differ. Every split depends on `seed` and its own name alone.
"""

from collections.abc import Sequence

import numpy as np

from experiments.data.generated import (
    RANDOMISED,
    check_probability,
    check_sizes,
    lazily,
    rng_of,
    with_agreement,
)
from experiments.data.splits import Arrays, Dataset


def linear_and_slabs(
    linear: int = 1,
    slabs: Sequence[int] = (5,) * 19,
    noise: float = 0.0,
    margin: float = 0.1,
    rotate: bool = False,
    agreement: float = 0.5,
    size: int = 100_000,
    test_size: int = 20_000,
    seed: int = 0,
) -> Dataset:
    """Coordinates that each predict y in {0, 1}: some by one threshold, others only by several.

    Source: Shah et al. 2020, "The pitfalls of simplicity bias in neural networks", section 3, and
    their code. With U uniform on [0, 1], m the margin and s = 2 y - 1,

      linear  x = s (m + (1 - m) U)
      k-slab  slabs of width w = (2 - 2 m (k - 1)) / k, 2 m apart, centred on j (w + 2 m) for
              |j| <= (k - 1) / 2, of class 1 where j is odd; x is uniform in a slab of its class.
              For k = 5 three quarters of class 0 are in the central slab, as there; for other k
              each slab of a class is equally probable, our choice.

    Coordinates are in [-1, 1], independent given y, the linear ones first. All alone predict y
    without error where `noise` is 0.

    Splits: 'train', 'test'; 'simple_randomised' and 'complex_randomised', the examples of 'test'
    with the linear coordinates, or all others, of another example; 'unlabelled', see `agreement`.

    Args:
      linear: number of linear coordinates.
      slabs: k of each other coordinate, odd and at least 3.
      noise: the share of examples whose linear coordinates are those of a label drawn at random, so
        that they predict y with accuracy 1 - noise / 2: our form of the noisy linear block.
      margin: m.
      rotate: apply one random rotation to all splits, after coordinates are exchanged.
      agreement: in 'unlabelled', P(the label of the linear coordinates is that of the others, y).
        1 is the correlation of training, 0.5 none, 0 its reverse.
      size: examples of 'train' and of 'unlabelled'.
      test_size: of the other splits.
      seed: of all that is drawn.

    Raises:
      ValueError: a value out of range.
    """
    if linear < 0 or linear + len(slabs) < 1:
        raise ValueError(f"linear: {linear} coordinates and {len(slabs)} slabs; at least 1 in all")
    if not 0 < margin < 1:
        raise ValueError(f"margin: {margin}; between 0 and 1")
    for k in slabs:
        if k < 3 or k % 2 == 0 or 2 * margin * (k - 1) >= 2:
            raise ValueError(
                f"slabs: {k}; odd numbers from 3 that leave room for gaps of {2 * margin:g}"
            )
    check_probability("noise", noise)
    check_probability("agreement", agreement)
    check_sizes(size=size, test_size=test_size)
    D = linear + len(slabs)
    turn = np.eye(D) if not rotate else _orthogonal(rng_of(seed, "rotation"), D)

    def sample(rng: np.random.Generator, n: int, agree: float) -> Arrays:
        y = rng.integers(0, 2, n)
        other = np.where(
            rng.random(n) < noise, rng.integers(0, 2, n), with_agreement(rng, y, agree)
        )
        x = np.empty((n, D))
        for i in range(linear):
            x[:, i] = (2 * other - 1) * (margin + (1 - margin) * rng.random(n))
        for i, k in enumerate(slabs, linear):
            x[:, i] = _slabs(rng, y, k, margin)
        return {"x": x, "y": y}

    def make(name: str) -> Arrays:
        test = name in ("test", *RANDOMISED)
        rng = rng_of(seed, "test" if test else name)
        made = sample(rng, test_size if test else size, agreement if name == "unlabelled" else 1.0)
        if name in RANDOMISED:
            columns = slice(0, linear) if name == RANDOMISED[0] else slice(linear, D)
            x = made["x"].copy()
            x[:, columns] = x[rng_of(seed, name).permutation(test_size), columns]
            made = {**made, "x": x}
        return {**made, "x": (made["x"] @ turn).astype(np.float32)}

    both = RANDOMISED if linear and slabs else ()
    return lazily(("train", "test", *both, "unlabelled"), make, 2)


def predictive_and_available(
    predictivity: Sequence[float] = (0.9, 0.98),
    amplification: float = 1.0,
    depth: int = 0,
    dimensions: int = 100,
    agreement: float = 0.5,
    size: int = 10_000,
    test_size: int = 10_000,
    seed: int = 0,
) -> Dataset:
    """Two latents, of which the shortcut predicts less and may be more available than the core.

    After Hermann et al. 2024, "On the foundations of shortcut learning"; the sampling and the
    embedding are our own form, as theirs could not be read. Latents are z_i = s_i U(1/4, 1), where
    the sign s_i is that of the label with probability `predictivity[i]`, independently, and

      x = amplification z_1 w + f(z_2 v)

    with w and v random orthonormal directions times sqrt(D), and f `depth` layers tanh(Q h) with
    random rotations Q, each scaled to keep the mean square over z in [-1, 1]. So predictivity and
    availability are set apart: a classifier that follows the sign of z_2 alone is the best one
    where predictivity[1] is larger, however large the shortcut is.

    Splits: 'train', 'test'; 'off_shortcut' and 'off_core', where both signs are uniform and
    independent and the label is the sign of this latent, for the evaluator `cues`; 'unlabelled'.

    Args:
      predictivity: of the shortcut and of the core, in [1/2, 1].
      amplification: of the shortcut's direction, above 0.
      depth: of the nesting of the core.
      dimensions: D, at least 2.
      agreement: in 'unlabelled', P(both signs are equal); the label is the core's sign.
      size: examples of 'train' and of 'unlabelled'.
      test_size: of the other splits.
      seed: of all that is drawn.

    Raises:
      ValueError: a value out of range.
    """
    if len(predictivity) != 2 or not all(0.5 <= p <= 1 for p in predictivity):
        raise ValueError(f"predictivity: {list(predictivity)}; two numbers in [0.5, 1]")
    if not amplification > 0:
        raise ValueError(f"amplification: {amplification}; a positive number")
    if depth < 0 or dimensions < 2:
        raise ValueError(f"depth: {depth}, dimensions: {dimensions}; from 0 and from 2")
    check_probability("agreement", agreement)
    check_sizes(size=size, test_size=test_size)
    D, rng = dimensions, rng_of(seed, "embedding")
    w, v = np.sqrt(D) * _orthogonal(rng, D)[:2]
    rotations = [_orthogonal(rng, D) for _ in range(depth)]

    def nested(z: np.ndarray) -> np.ndarray:
        """f(z v) [N, D]."""
        grid = np.linspace(-1, 1, 101)[:, None] * v
        of_z, power = z[:, None] * v, np.mean(grid**2)
        for Q in rotations:
            of_z, grid = np.tanh(of_z @ Q), np.tanh(grid @ Q)
            factor = np.sqrt(power / np.mean(grid**2))
            of_z, grid = factor * of_z, factor * grid
        return of_z

    def make(name: str) -> Arrays:
        rng = rng_of(seed, name)
        n = size if name in ("train", "unlabelled") else test_size
        y = rng.integers(0, 2, n)
        chance = tuple(predictivity)
        if name not in ("train", "test"):  # the label is that of one latent
            shortcut = (
                agreement if name == "unlabelled" else (1.0 if name == "off_shortcut" else 0.5)
            )
            chance = (shortcut, 0.5 if name == "off_shortcut" else 1.0)
        signs = [2 * with_agreement(rng, y, p) - 1 for p in chance]
        z = np.stack(signs) * rng.uniform(0.25, 1, (2, n))
        x = amplification * z[0][:, None] * w + nested(z[1])
        return {"x": x.astype(np.float32), "y": y}

    return lazily(("train", "test", "off_shortcut", "off_core", "unlabelled"), make, 2)


def _slabs(rng: np.random.Generator, y: np.ndarray, k: int, m: float) -> np.ndarray:
    """A k-slab coordinate [N] of labels y [N]."""
    width, index = (2 - 2 * m * (k - 1)) / k, np.empty(len(y))
    for label in (0, 1):
        j = np.arange(label, (k - 1) // 2 + 1, 2)
        weights = np.where(j == 0, 1.0, 2.0) if k != 5 or label else np.array([3.0, 1.0])
        of = y == label
        index[of] = rng.choice(j, of.sum(), p=weights / weights.sum())
    side = rng.choice([-1.0, 1.0], len(y))
    return side * index * (width + 2 * m) + width * (rng.random(len(y)) - 0.5)


def _orthogonal(rng: np.random.Generator, n: int) -> np.ndarray:
    """A rotation or reflection [n, n] from the uniform distribution over them."""
    q, r = np.linalg.qr(rng.standard_normal((n, n)))
    return q * np.sign(np.diagonal(r))
