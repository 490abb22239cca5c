"""Mean and standard deviation of a data set, and a check that it is finite."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.data.images import BYTES
from experiments.data.splits import UNBOUNDED, Range
from uncertainty.build import ConfigError


def statistics_of(name: str, x: Any, y: Any, classes: int | None, limits: Range = None) -> tuple:
    """Mean and standard deviation of x for each feature or channel, and of regression targets.

    A constant feature gets standard deviation 1, so that it becomes 0 and not NaN.

    Args:
      name: of the split, for messages.
      x: [N, ...] as stored.
      y: labels or targets [N, ...].
      classes: None for regression.
      limits: the range of images, see `images`; statistics are then those of the scaled values.

    Returns:
      mean and std of x, each float32 [D] or [C]; those of y, [K], or None for classes.

    Raises:
      ConfigError: x is not in memory.
      ValueError: a value is not finite.
    """
    if not isinstance(x, np.ndarray):
        raise ConfigError("standardise: needs a set that fits in memory; give mean and std")
    check_finite(name, {"x": x} if y is None else {"x": x, "y": y})
    axes = tuple(range(max(x.ndim - 1, 1)))
    low, high = (0, 1) if limits in (None, UNBOUNDED) else limits
    if x.dtype == np.uint8 and limits is None:
        low, high = BYTES
    x = np.array(x, np.float64)
    x -= low
    x /= high - low
    moments = [x.mean(axes), _positive(x.std(axes)), None, None]
    if classes is None:
        y = np.asarray(y, np.float64).reshape(len(y), -1)
        moments[2:] = y.mean(0), _positive(y.std(0))
    return tuple(None if m is None else np.asarray(m, np.float32) for m in moments)


def _positive(std: np.ndarray) -> np.ndarray:
    return np.where(std > 0, std, 1)


def per_example(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray | None:
    """`value` (a mean or std) repeated to the shape of an example, float32; None stays None.

    Raises:
      ConfigError: it does not broadcast, is not finite, or is a std that is not positive.
    """
    if value is None:
        return None
    try:
        value = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: {value!r}; a number, or one per channel or feature") from None
    try:
        fits = np.broadcast_shapes(value.shape, shape) == tuple(shape)
    except ValueError:
        fits = False
    if not fits or not np.isfinite(value).all() or (name == "std" and (value <= 0).any()):
        raise ConfigError(
            f"{name}: {value.tolist()} for examples {list(shape)}; a finite number "
            "or one per channel or feature is needed, positive for std"
        )
    return np.broadcast_to(value, shape).copy()  # a short last axis would be slow to broadcast


def compact(value: np.ndarray | None, axes: int) -> list | float | None:
    """The inverse of `per_example`: a list, without the axes over which the value is constant.

    Args:
      value: of the shape of an example, or None.
      axes: how many leading axes may go: 2 of an image.
    """
    if value is None:
        return None
    for _ in range(axes):
        if not (value == value[:1]).all():
            return value.tolist()
        value = value[0]
    return value.tolist()


def check_finite(
    name: str, batch: Mapping[str, np.ndarray], indices: np.ndarray | None = None
) -> None:
    """Raises ValueError, naming the first example with NaN or infinity.

    Args:
      name: of the set.
      batch: entries of its examples.
      indices: of these examples in their set; by default their positions in the batch.
    """
    for key, values in batch.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            bad = np.argwhere(~np.isfinite(values))[0]
            first = bad[0] if indices is None else indices[bad[0]]
            raise ValueError(
                f"{name}: {key} of example {first} is {values[tuple(bad)]} "
                f"(position {tuple(bad[1:].tolist())})"
            )
