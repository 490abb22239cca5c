"""How images are read: which stored values become 0 and 1, and which axis has the channels.

Augmentations and corruptions are defined on [0, 1], so images are in [0, 1] before they are
normalised. Bytes have the range (0, 255). Other types have to be in [0, 1] already, or the range
has to be declared: nothing is rescaled implicitly.
"""

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.data.splits import UNBOUNDED, Dataset, Range
from uncertainty.build import ConfigError

if TYPE_CHECKING:
    from experiments.data.examples import Source

logger = logging.getLogger(__name__)

MEASURED = "measured"
BYTES = (0.0, 255.0)


def declared(value: Any) -> Range:
    """The validated `range` of a spec: (low, high), 'unbounded', 'measured' or None.

    Raises:
      ConfigError: any other value.
    """
    if value in (None, UNBOUNDED, MEASURED):
        return value
    try:
        low, high = map(float, value)
    except (TypeError, ValueError):
        low = high = math.nan
    if isinstance(value, str) or not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(
            f"range: {value!r}; (low, high), the stored values that become 0 and 1, {MEASURED!r}, "
            f"those of the split `statistics`, or {UNBOUNDED!r}, as they are stored"
        )
    return low, high


def measured(name: str, x: np.ndarray) -> Range:
    """The least and the largest value of the images x [N, H, W, C].

    Raises:
      ValueError: all values are equal.
    """
    low, high = float(x.min()), float(x.max())
    if not low < high:
        raise ValueError(f"{name}: range: 'measured', but all values are {low:g}")
    return low, high


def in_units(x: np.ndarray, range: Range, clip: bool = False) -> np.ndarray:
    """Stored values as float32: scaled to [0, 1] if they have a range, else unchanged.

    With `clip`, values outside the range become 0 or 1.
    """
    if range is None and x.dtype == np.uint8:
        range = BYTES
    if range in (None, UNBOUNDED) or (range == (0.0, 1.0) and not clip):
        return x if x.dtype == np.float32 else x.astype(np.float32)
    low, high = map(np.float32, range)
    if low == 0:
        x = np.divide(x, high, dtype=np.float32)
    else:
        x = np.subtract(x, low, dtype=np.float32) / (high - low)
    return np.clip(x, 0, 1, out=x) if clip else x


def check(name: str, x: np.ndarray, range: Range, clipped: bool = False) -> None:
    """Refuses images with values outside their range, up to rounding.

    With `clipped`, logs a warning that they are clipped instead.

    Raises:
      ValueError: values outside the range; the message says how to declare it.
    """
    if range == UNBOUNDED or (x.dtype == np.uint8 and range in (None, BYTES)):
        return
    low, high = range or (0.0, 1.0)
    least, most = float(x.min()), float(x.max())
    slack = 1e-6 * (high - low)
    if least >= low - slack and most <= high + slack:
        return
    observed = f"{name}: images have values from {least:.6g} to {most:.6g}"
    if clipped:
        logger.warning(
            "%s, beyond the measured range (%.6g, %.6g), and are clipped to it", observed, low, high
        )
        return
    if range is not None:
        raise ValueError(
            f"{observed}, outside of their range ({low:g}, {high:g}); declare another "
            f"range=(low, high), or range={UNBOUNDED!r}"
        )
    raise ValueError(
        f"{observed}; declare range={_likely(least, most)}, the stored values that become 0 and 1, "
        f"range={MEASURED!r} for those of the split `statistics`, or range={UNBOUNDED!r} to read "
        "them as they are stored"
    )


def _likely(least: float, most: float) -> str:
    if least >= 0 and 16 < most <= 255:
        return "(0, 255)"
    if least >= -1 and most <= 1:
        return "(-1, 1)"
    return f"({least:.6g}, {most:.6g})"


def channels_last(label: str, x: Any, channels: str | None, like: "Source | None") -> tuple:
    """Images [N, H, W, C], and the stored position of the channels if the spec or `like` has it."""
    if channels not in (None, "first", "last"):
        raise ConfigError(f"channels: {channels!r}; 'first' or 'last'")
    if len(x.shape) != 4 or not isinstance(x, np.ndarray):
        if channels == "first":
            raise ConfigError(
                f"channels: 'first' is for images in memory; {label} has inputs of "
                f"shape {list(x.shape[1:])}"
            )
        return x, channels
    looks_first = x.shape[1] in (1, 3) and min(x.shape[2:]) > 4
    if channels is None and looks_first and like is not None:
        channels = like.reading.get("channels")
    if channels is None and looks_first:
        raise ValueError(
            f"{label}: images of shape {list(x.shape[1:])} look like channels first; set "
            "channels='first' to transpose them, or channels='last' to read them as stored"
        )
    return (np.moveaxis(x, 1, -1) if channels == "first" else x), channels


def range_of(
    label: str,
    x: Any,
    dataset: Dataset,
    spec: Any,
    like: "Source | None",
    read_statistics: Callable[[], tuple],
) -> tuple[Range, bool]:
    """The range of the images of a set: from the spec, the set, or the training data.

    Returns:
      The range, and whether it was measured, so that values of other splits may exceed it.

    Raises:
      ConfigError: a range for data that are not images, or a missing range that the training data
        do not determine.
    """
    if len(x.shape) != 4:
        if spec is not None:
            raise ConfigError(
                f"range: {spec!r}, but {label} has inputs of shape "
                f"{list(x.shape[1:])}; only images [H, W, C] have one"
            )
        return None, False
    range = declared(spec)
    if range == MEASURED:
        where, pixels, _ = read_statistics()
        if not isinstance(pixels, np.ndarray):
            raise ConfigError(f"range: {spec!r} needs a set that fits in memory")
        return measured(where, pixels), True
    if range is not None:
        return range, False
    if dataset.range is not None:
        return dataset.range, False
    if like is not None and np.dtype(like.x.dtype) == x.dtype:
        _warn_of_scale(label, x, like.range)
        return like.range, like.measured
    if like is not None and like.range == UNBOUNDED:
        raise ConfigError(
            f"range: the training images are {like.x.dtype}, read as they are stored, and those of "
            f"{label} are {x.dtype}; set range=(low, high), or {UNBOUNDED!r} if both have one scale"
        )
    _warn_of_scale(label, x, None)
    return None, False


def _warn_of_scale(label: str, x: Any, range: Range) -> None:
    """Warns if images use only a small part of their range."""
    if range is None and x.dtype == np.uint8:
        range = BYTES
    if not isinstance(range, tuple) or not isinstance(x, np.ndarray) or not x.size:
        return
    least, most = float(x.min()), float(x.max())
    if most - range[0] < 0.1 * (range[1] - range[0]):
        logger.warning(
            "%s: values from %.4g to %.4g are read with the range (%g, %g); if they are "
            "on another scale, give range=(low, high)",
            label,
            least,
            most,
            *range,
        )
